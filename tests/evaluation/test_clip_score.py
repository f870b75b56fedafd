"""Scores of prompts: equal to torchmetrics', with prompts by the samples' record or a file, the same by every way there."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers (extra `text`)")

from evaluation.small_videos import write_clips
from text.tiny_clip import tiny_clip

from sparsevid.cli import main
from sparsevid.evaluation.clips.clip_readers import ClipGenerator
from sparsevid.evaluation.detectors import build_detector
from sparsevid.evaluation.evaluate import Extras, measure
from sparsevid.evaluation.metrics.clip_score import Prompts, clip_score
from sparsevid.evaluation.prompts import listed_in
from sparsevid.evaluation.protocols import load_protocol, with_fields
from sparsevid.videos.write import write_image_archive

PROMPTS = ["a green frog crosses a road", "a ball hits bricks", "two planes shoot"]
PROTOCOL = "sparsevid/clip-score-v1"
FRAMES, COUNT = 4, 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory, samples, protocol):
    """Of two that differ in the sign of texts, the one by which the samples of these tests show their prompts."""
    folders = [tiny_clip(tmp_path_factory.mktemp("clip") / "tiny", PROMPTS, sign) for sign in (1.0, -1.0)]
    found = [measure(None, samples, protocol=protocol, detector_path=each).record.score for each in folders]
    assert min(found) == 0 < max(found)
    return folders[found.index(max(found))]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Seven samples of three prompts in turn, as sampling leaves them."""
    path = write_clips(tmp_path_factory.mktemp("samples") / "samples", COUNT, 3, frames=FRAMES)
    for number in range(COUNT):
        (path / f"{number:03d}.npy").rename(path / f"{number:06d}.npy")
    record(path, PROMPTS)
    return path


def record(path, prompts):
    settings = {"formats": ["npy"], "prompts": prompts}
    (path / "samples.json").write_text(json.dumps({"num": COUNT, "settings": settings, "made_with": []}))


@pytest.fixture(scope="module")
def protocol():
    return with_fields(load_protocol(PROTOCOL), [f"frames={FRAMES}"])


@pytest.fixture(scope="module")
def scored(samples, folder, protocol):
    return measure(None, samples, protocol=protocol, detector_path=folder, batch_size=3).record


def clips_of(samples):
    """uint8 (N,T,3,H,W)."""
    return torch.stack([torch.from_numpy(np.load(path)) for path in sorted(samples.glob("*.npy"))]).permute(0, 1, 4, 2, 3)


def test_the_score_is_torchmetrics_mean_over_frames(samples, folder, scored):
    """The library's own class takes an image at a time; it expects vectors, as transformers 4 gave them."""
    module = pytest.importorskip("torchmetrics.multimodal.clip_score", reason="needs torchmetrics")
    from transformers import CLIPModel, CLIPProcessor

    class Vectors(CLIPModel):
        def get_image_features(self, *given):
            found = super().get_image_features(*given)
            return getattr(found, "pooler_output", found)

        def get_text_features(self, *given):
            found = super().get_text_features(*given)
            return getattr(found, "pooler_output", found)

    metric = module.CLIPScore(lambda: (Vectors.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)))
    for number, frames in enumerate(clips_of(samples)):
        metric.update(frames, [PROMPTS[number % 3]] * FRAMES)
    assert scored.score == pytest.approx(max(metric.compute().item(), 0.0), rel=1e-5)


def test_the_record_has_all_that_it_depends_on(samples, folder, scored):
    clip = build_detector("clip", path=folder)
    assert list(scored.values) == [
        "clip_score", "clip_score_error", "clip_score_shuffled", "clip_score_gain", "clip_score_gain_error"
    ]  # fmt: skip
    assert scored.detector["fingerprint"] == clip.fingerprint and "shortest_edge" in scored.detector["preprocessing"]
    assert (scored.prompts["listed"], scored.prompts["used"]) == (3, 3) and scored.prompts["file"].endswith("samples.json")
    assert (scored.fake["clips"], scored.real, scored.protocol["frames"]) == (COUNT, None, FRAMES)
    assert scored.metric == "CLIP score (CLIP)"
    assert type(scored).from_dict(scored.as_dict()) == scored


def test_each_part_is_its_definition(samples, folder, scored):
    clip = build_detector("clip", path=folder)
    frames = clips_of(samples)
    vectors = torch.stack([clip.clip.pictures(each) for each in frames]).double()  # (N,T,D)
    texts = clip.texts(PROMPTS).double()
    cosines = 100 * torch.einsum("ntd,pd->ntp", vectors, texts).mean(dim=1)  # (N,P)
    own = torch.stack([cosines[i, i % 3] for i in range(COUNT)])
    others = torch.stack([cosines[i, [j % 3 for j in range(COUNT) if j % 3 != i % 3]].mean() for i in range(COUNT)])
    assert scored.values["clip_score"] == pytest.approx(own.mean().item(), rel=1e-5)
    assert scored.values["clip_score_shuffled"] == pytest.approx(max(others.mean().item(), 0), rel=1e-5)
    assert scored.values["clip_score_gain"] == pytest.approx((own - others).mean().item(), rel=1e-4)


def test_prompts_of_a_file_an_archive_and_a_generator_are_those_of_the_record(samples, folder, tmp_path):
    """Each way to the same images: by a record, by a file with a line a prompt, packed, and made when asked for."""
    one, texts = with_fields(load_protocol(PROTOCOL), ["frames=1"]), tmp_path / "prompts.txt"
    texts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    images = clips_of(samples)[:, 0]
    write_image_archive(tmp_path / "packed.npz", images.unsqueeze(2), COUNT)
    (tmp_path / "packed").mkdir()
    record(tmp_path / "packed", PROMPTS)
    generator = ClipGenerator(lambda number: images[number].unsqueeze(1), COUNT, "made")
    ways = [(samples, None), (samples, texts), (tmp_path / "packed.npz", None), (generator, texts)]
    found = [measure(None, fake, protocol=one, detector_path=folder, prompts=file).record for fake, file in ways]
    assert all(each.values == found[0].values for each in found)
    assert len({each.prompts["sha256"] for each in found}) == 1


def test_the_command_writes_the_record_of_the_function(samples, folder, scored, tmp_path, capsys):
    out, options = tmp_path / "score.json", ["--protocol-option", f"frames={FRAMES}", "--batch", "3"]
    arguments = ["--fake", str(samples), "--detector", "clip", "--detector-path", str(folder), *options]
    assert main(["evaluate", "score", *arguments, "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == scored.as_dict()
    assert "CLIP score: higher is better" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (None, FileNotFoundError, "would say what prompts the clips are of: give a job's folder, or name a file"),
        ([], ValueError, "names no prompts: these clips are of no model of text"),
        ("frog", ValueError, "its prompts are no list of texts"),
    ],
)
def test_a_record_without_prompts_is_refused_before_anything_is_computed(folder, protocol, tmp_path, change, error, reason):
    write_clips(tmp_path / "made", 2, 0, frames=FRAMES)
    if change is not None:
        record(tmp_path / "made", change)
    with pytest.raises(error, match=reason):
        measure(None, tmp_path / "made", protocol=protocol, detector_path=tmp_path / "no folder is opened")


def test_what_does_not_fit_is_said(samples, folder, protocol, tmp_path):
    file = tmp_path / "prompts.txt"
    for content, reason in ((b"", "no line with a prompt"), (b"\xff\xfe", "no text in UTF-8")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            listed_in(file)
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.txt of prompts"):
        measure(None, samples, protocol=protocol, detector_path=folder, prompts=tmp_path / "none.txt")
    with pytest.raises(ValueError, match="judges by none"):
        measure(samples, samples, protocol="sparsevid/fd-transnetv2-v2", prompts=file, count=2)
    with pytest.raises(ValueError, match="shorter than the 16 frames .* frames=4"):
        measure(None, samples, protocol=PROTOCOL, detector_path=folder)
    with pytest.raises(FileNotFoundError, match="CLIP is read from a folder, which --detector-path names"):
        measure(None, samples, protocol=protocol)
    with pytest.raises(ValueError, match="clip_score is none"):
        measure(None, samples, protocol=protocol, detector_path=folder, extras=Extras(bootstrap=4))
    (tmp_path / "named").mkdir()
    for name in ("frog", "road"):
        (tmp_path / "named" / f"{name}.npy").write_bytes((samples / "000000.npy").read_bytes())
    record(tmp_path / "named", PROMPTS)
    with pytest.raises(ValueError, match="told by its number, and 'frog.npy@0' has none"):
        measure(None, tmp_path / "named", protocol=protocol, detector_path=folder)


def test_features_are_kept_but_a_distance_of_them_knows_no_prompts(samples, folder, tmp_path, capsys):
    out = tmp_path / "fake.safetensors"
    options = ["--detector", "clip", "--detector-path", str(folder), "--protocol-option", f"frames={FRAMES}"]
    assert main(["evaluate", "features", "--source", str(samples), "--role", "fake", *options, "--out", str(out)]) == 0
    assert main(["evaluate", "distance", "--fake", str(out)]) == 2
    assert "judges clips by their prompts" in capsys.readouterr().err


def unit(*shape, seed):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_error_of_prompts_that_occur_once_is_that_of_a_mean():
    clips, texts = unit(40, 8, seed=0), unit(40, 8, seed=1)
    own = 100 * (clips * texts).sum(dim=1).double()
    found = clip_score(clips, Prompts(texts, torch.arange(40)))
    assert found.error == pytest.approx((own.std() / 40**0.5).item(), rel=1e-6)
    one = clip_score(clips, Prompts(texts[:1].expand(40, 8), torch.zeros(40, dtype=torch.long)))
    cosines = 100 * (clips * texts[:1]).sum(dim=1).double()
    assert one.error == pytest.approx((cosines.std() / 40**0.5).item(), rel=1e-6)
    assert one.shuffled is None and one.gain is None and one.gain_error is None


def test_the_error_is_for_other_prompts_and_not_only_for_other_clips_of_the_same():
    """Of 400 sets of 5 prompts with 8 clips each: the scatter of their scores is the error that one of them tells."""
    generator = torch.Generator().manual_seed(0)
    values, errors = [], []
    for _ in range(400):
        by_prompt = torch.randn(5, 1, generator=generator)
        cosines = (0.3 + 0.1 * by_prompt + 0.02 * torch.randn(5, 8, generator=generator)).flatten()
        clips = torch.stack([cosines, torch.ones(40)], dim=1)
        texts = torch.tensor([1.0, 0.0]).expand(40, 2)
        found = clip_score(clips, Prompts(texts, torch.arange(5).repeat_interleave(8)))
        values.append(found.value)
        errors.append(found.error**2)
    assert np.mean(errors) ** 0.5 == pytest.approx(np.std(values), rel=0.1)
    naive = 100 * (0.1**2 + 0.02**2) ** 0.5 / 40**0.5
    assert np.std(values) > 2 * naive


def test_prompts_and_clips_must_belong_together():
    with pytest.raises(ValueError, match="each clip has a prompt"):
        clip_score(unit(4, 8, seed=0), Prompts(unit(3, 8, seed=1), torch.arange(3)))
    with pytest.raises(ValueError, match="at least 2 clips"):
        clip_score(unit(1, 8, seed=0), Prompts(unit(1, 8, seed=1), torch.arange(1)))


@pytest.mark.slow
def test_two_ranks_write_the_clip_score_of_one(samples, folder, tmp_path):
    records = []
    for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]):
        out = tmp_path / f"{len(records)}.json"
        arguments = ["--fake", str(samples), "--detector", "clip", "--detector-path", str(folder), "--out", str(out)]
        command = [*launcher, "-m", "sparsevid.cli", "evaluate", "score", *arguments, "--batch", "2"]
        options = ["--protocol-option", f"frames={FRAMES}"]
        done = subprocess.run([sys.executable, *command, *options], env={**os.environ, "OMP_NUM_THREADS": "1"},
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        records.append(json.loads(out.read_text()))
    assert records[0] == records[1]
