"""Feature files: streaming, round trip, and refusal of what does not belong together."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sparsevid.evaluation.detectors import Detector
from sparsevid.evaluation.features import FeatureFile, check_comparable, compute_features, load_features, save_features


class MeanColour(Detector):
    """A detector small enough to know its features by hand: mean red, green and blue of a clip, times a weight of 1."""

    name, metric, preprocessing, dim, min_frames, fingerprint = "mean-colour", "FD-MeanColour", "none", 3, 1, "0" * 64

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def extract(self, clips: Tensor) -> Tensor:
        return clips.float().mean(dim=(2, 3, 4)) * self.weight


def draw_clips(count: int, seed: int = 0) -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(0, 256, (count, 3, 4, 6, 5), dtype=torch.uint8, generator=generator)
    return [(f"clip {i}.mp4@0", clip) for i, clip in enumerate(clips)]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_features_do_not_depend_on_the_batch_size_and_keep_the_order(batch_size):
    clips = draw_clips(7)
    file = compute_features(clips, MeanColour(), batch_size=batch_size)
    assert file.clip_ids == tuple(name for name, _ in clips)
    expected = torch.stack([clip.float().mean(dim=(1, 2, 3)) for _, clip in clips])
    torch.testing.assert_close(file.features, expected)
    assert file.features.dtype == torch.float32 and not file.features.requires_grad


def test_clips_are_streamed_a_batch_at_a_time():
    alive, most = set(), 0

    class Counted(Detector):
        name, metric, preprocessing, dim, min_frames, fingerprint = "counted", "", "", 3, 1, ""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def extract(self, clips: Tensor) -> Tensor:
            nonlocal most
            most = max(most, len(alive))
            alive.clear()
            return clips.float().mean(dim=(2, 3, 4))

    def stream():
        for name, clip in draw_clips(20):
            alive.add(name)
            yield name, clip

    assert compute_features(stream(), Counted(), batch_size=4).features.shape == (20, 3)
    assert most == 4


def test_a_feature_file_survives_the_disk(tmp_path):
    file = compute_features(
        draw_clips(5),
        MeanColour(),
        role="real",
        protocol={"name": "a/b", "size": [4, 4], "count": None},
        source={"root": "/data/ünï #1", "fingerprint": "f"},
    )
    path = tmp_path / "new folder" / "real.safetensors"
    save_features(file, path)
    loaded = load_features(path)
    assert torch.equal(loaded.features, file.features)
    for field in dataclasses.fields(FeatureFile):
        if field.name != "features":
            assert getattr(loaded, field.name) == getattr(file, field.name)
    assert [each.name for each in path.parent.iterdir()] == ["real.safetensors"]  # no draft is left behind


def test_saving_replaces_an_older_file(tmp_path):
    path = tmp_path / "f.safetensors"
    for count in (4, 2):
        save_features(compute_features(draw_clips(count), MeanColour()), path)
    assert load_features(path).features.shape == (2, 3)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([], "no clips"),
        ([*draw_clips(2), draw_clips(1)[0]], "clip 'clip 0.mp4@0' occurs twice"),
        ([*draw_clips(2), ("odd", torch.zeros(3, 4, 6, 6, dtype=torch.uint8))], r"clip 'odd' has shape \(3, 4, 6, 6\)"),
        ([("grey", torch.zeros(1, 4, 6, 6, dtype=torch.uint8))], r"takes clips \(B, 3, T, H, W\)"),
        ([("float", torch.zeros(3, 4, 6, 6))], "takes uint8 clips"),
    ],
)
def test_unusable_clips_are_refused(clips, message):
    with pytest.raises(ValueError, match=message):
        compute_features(clips, MeanColour(), batch_size=2)


def test_features_that_are_not_finite_are_refused_with_the_clip():
    detector = MeanColour()
    with torch.no_grad():
        detector.weight[0] = float("inf")
    with pytest.raises(ValueError, match="features of clip 'clip 0.mp4@0' are not finite"):
        compute_features(draw_clips(3), detector)


def test_batch_size_starts_at_one():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        compute_features(draw_clips(2), MeanColour(), batch_size=0)


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("detector", "other", "detector of real is mean-colour, of fake other"),
        ("detector_fingerprint", "1" * 64, "weights' SHA-256 of real is 000"),
        ("protocol", {"name": "another"}, "protocol of real is .*one.*, of fake .*another"),
    ],
)
def test_features_of_different_instruments_cannot_be_compared(field, value, what):
    real = compute_features(draw_clips(3), MeanColour(), protocol={"name": "one"})
    check_comparable(real, compute_features(draw_clips(4, seed=1), MeanColour(), protocol={"name": "one"}))
    with pytest.raises(ValueError, match=what):
        check_comparable(real, dataclasses.replace(real, **{field: value}))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no feature file .*absent"):
        load_features(tmp_path / "absent.safetensors")


def test_other_files_are_refused_by_name(tmp_path):
    text, bare, odd, short = (tmp_path / f"{name}.safetensors" for name in ("text", "bare", "odd", "short"))
    text.write_text("not a tensor file")
    save_file({"features": torch.zeros(2, 3)}, bare)
    save_file({"features": torch.zeros(2, 3)}, odd, {"sparsevid": '{"clip_ids": ["a", "b"], "colour": "red"}'})
    save_features(compute_features(draw_clips(2), MeanColour()), short)
    cut = short.read_bytes()[:-4]
    short.write_bytes(cut)
    for path in (text, bare, odd, short):
        with pytest.raises(ValueError, match=f"{path.name} is not a feature file.*clip_ids, detector"):
            load_features(path)
