"""Feature files: streaming, the same bits for any number of ranks and after a kill, and refusal of what does not fit."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from evaluation.feature_ranks import DrawnClips, SmallNetwork
from launch import run_all
from safetensors.torch import save_file
from torch import Tensor

from sparsevid.evaluation.detectors import Detector
from sparsevid.evaluation.feature_parts import Batch, FeatureParts
from sparsevid.evaluation.features import FeatureFile, check_comparable, compute_features, load_features, save_features

SCRIPT = Path(__file__).with_name("feature_ranks.py")


class MeanColour(Detector):
    """A detector small enough to know its features by hand: mean red, green and blue of a clip, times a weight of 1."""

    name, metric, preprocessing, dim, min_frames, fingerprint = "mean-colour", "FD-MeanColour", "none", 3, 1, "0" * 64

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def extract(self, clips: Tensor) -> Tensor:
        return clips.float().mean(dim=(2, 3, 4)) * self.weight


class GivenClips:
    """Clips out of a list."""

    def __init__(self, clips: list[tuple[str, Tensor]]) -> None:
        self.clips, self.origin, self.fingerprint = clips, {"root": "given"}, "given"
        self.ids = tuple(name for name, _ in clips)

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, first: int, last: int) -> Iterator[tuple[str, Tensor]]:
        return iter(self.clips[first:last])


class Watched(DrawnClips):
    """Keeps which batches are read, and how many clips were read and not yet given to the detector at most."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.lock, self.open, self.most, self.starts = threading.Lock(), 0, 0, []

    def read(self, first: int, last: int) -> Iterator[tuple[str, Tensor]]:
        with self.lock:
            self.starts.append(first)
            self.open += last - first
            self.most = max(self.most, self.open)
        return super().read(first, last)


class Taking(MeanColour):
    """Tells the clips that it has them."""

    def __init__(self, clips: Watched) -> None:
        super().__init__()
        self.clips = clips

    def extract(self, clips: Tensor) -> Tensor:
        with self.clips.lock:
            self.clips.open -= len(clips)
        return super().extract(clips)


def one_process(*arguments: object) -> int:
    """Run the script in a process of its own with one thread; the exit status."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], env=environment, timeout=300).returncode


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_features_do_not_depend_on_the_batch_size_and_keep_the_order(batch_size):
    clips = DrawnClips(7)
    file = compute_features(clips, MeanColour(), batch_size=batch_size)
    assert file.clip_ids == clips.ids
    expected = torch.stack([clip.float().mean(dim=(1, 2, 3)) for _, clip in clips.read(0, 7)])
    torch.testing.assert_close(file.features, expected)
    assert file.features.dtype == torch.float32 and not file.features.requires_grad


def test_streamed_features_are_those_of_one_forward_and_of_merged_parts():
    """Up to rounding: a batch of another size sums in another order."""
    clips, detector = DrawnClips(11), SmallNetwork()
    whole = detector(torch.stack([clip for _, clip in clips.read(0, 11)]))
    streamed = compute_features(clips, detector, batch_size=4).features
    merged = torch.cat([detector(torch.stack([clip for _, clip in clips.read(*part)])) for part in ((0, 5), (5, 11))])
    torch.testing.assert_close(streamed, whole)
    torch.testing.assert_close(merged, whole)


def test_every_forward_has_the_same_shape():
    shapes = []

    class Noting(MeanColour):
        def extract(self, clips: Tensor) -> Tensor:
            shapes.append(tuple(clips.shape))
            return super().extract(clips)

    assert compute_features(DrawnClips(7), Noting(), batch_size=3).features.shape == (7, 3)
    assert shapes == [(3, 3, 4, 12, 10)] * 3


@pytest.mark.parametrize("readers", [1, 2])
def test_reading_runs_ahead_by_a_bounded_number_of_batches(readers):
    clips = Watched(48)
    compute_features(clips, Taking(clips), batch_size=4, readers=readers)
    assert sorted(clips.starts) == list(range(0, 48, 4))
    assert clips.most <= 4 * (readers + 2)


def test_two_ranks_write_the_file_of_one_to_the_last_bit(tmp_path):
    two = tmp_path / "two.safetensors"
    run_all(SCRIPT, two, 11, 2, processes=2)  # six batches, the last one partial
    assert two.read_bytes() == (tmp_path / "alone-two.safetensors").read_bytes()
    assert torch.equal(load_features(two).features, compute_features(DrawnClips(11), SmallNetwork(), batch_size=2).features)


@pytest.mark.slow
def test_a_killed_and_resumed_process_writes_the_file_of_another_to_the_last_bit(tmp_path):
    arguments = (11, 2)
    one, two, killed = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "killed"))
    assert one_process(one, *arguments) == 0
    assert one_process(killed, *arguments, 4) == -signal.SIGKILL
    assert not killed.exists() and len(list((tmp_path / ".killed.safetensors.parts").iterdir())) == 4
    run_all(SCRIPT, killed, *arguments, processes=2)  # goes on with another number of ranks
    assert one_process(two, *arguments, 2) == -signal.SIGKILL
    assert one_process(two, *arguments, 5) == 0  # lives, for four batches are left to do
    assert one.read_bytes() == two.read_bytes() == killed.read_bytes()
    assert not list(tmp_path.glob(".*"))


def resumed(path: Path, clips: DrawnClips, detector: Detector, batch_size: int, stamp: str = "") -> tuple[FeatureFile, int]:
    """Features with `path` as the file, and how many batches had to be read for it."""
    watched = Watched(len(clips))
    watched.ids, watched.fingerprint, watched.origin, watched.seed = clips.ids, clips.fingerprint, clips.origin, clips.seed
    return compute_features(watched, detector, batch_size=batch_size, out=path, stamp=stamp), len(watched.starts)


def interrupt(path: Path, clips: DrawnClips, batch_size: int = 2) -> None:
    """Leave behind what a process leaves that a damaged clip in its last batch has ended."""

    class Breaking(DrawnClips):
        def read(self, first: int, last: int) -> Iterator[tuple[str, Tensor]]:
            if last == len(self):
                raise OSError("unreadable")
            return super().read(first, last)

    broken = Breaking(len(clips), clips.seed)
    with pytest.raises(OSError, match="unreadable"):
        compute_features(broken, SmallNetwork(), batch_size=batch_size, out=path, readers=1)


def test_finished_batches_are_taken_up(tmp_path):
    clips, path = DrawnClips(10), tmp_path / "f.safetensors"
    interrupt(path, clips)
    file, read = resumed(path, clips, SmallNetwork(), 2)
    assert read == 1
    assert torch.equal(file.features, compute_features(clips, SmallNetwork(), batch_size=2).features)
    assert torch.equal(load_features(path).features, file.features)


@pytest.mark.parametrize("what", ["clips", "files", "weights", "settings", "batch size", "damage"])
def test_batches_of_another_identity_are_computed_anew(what, tmp_path):
    clips, path, detector, batch_size, stamp = DrawnClips(8), tmp_path / "f.safetensors", SmallNetwork(), 2, ""
    interrupt(path, clips)
    parts = tmp_path / ".f.safetensors.parts"
    assert len(list(parts.iterdir())) == 3
    if what == "clips":
        clips = DrawnClips(8, seed=1)
    elif what == "files":
        stamp = "later"
    elif what == "weights":
        detector.fingerprint = "1" * 64
    elif what == "settings":
        detector.settings = {"eps": 1e-3}
    elif what == "batch size":
        batch_size = 4
    else:
        for part in parts.iterdir():
            part.write_bytes(part.read_bytes()[:-1])
    file, read = resumed(path, clips, detector, batch_size, stamp)
    assert read == len(clips) // batch_size and not parts.exists()
    assert torch.equal(file.features, compute_features(clips, detector, batch_size=batch_size).features)


def test_a_finished_file_is_taken_and_one_of_another_identity_is_not(tmp_path):
    clips, path = DrawnClips(6), tmp_path / "f.safetensors"
    first, read = resumed(path, clips, SmallNetwork(), 2)
    assert read == 3
    again, read = resumed(path, clips, SmallNetwork(), 2)
    assert read == 0 and torch.equal(again.features, first.features) and again.source == first.source
    assert resumed(path, clips, SmallNetwork(), 2, stamp="later")[1] == 3
    assert resumed(path, clips, SmallNetwork(), 3, stamp="later")[1] == 2
    path.write_bytes(path.read_bytes()[:-4])
    assert resumed(path, clips, SmallNetwork(), 3, stamp="later")[1] == 2  # damaged


def test_the_content_is_that_of_the_pixels_in_order_alone():
    """Whatever the batch size, the detector and the names; not of a list that holds the same clips in another order."""
    clips = list(DrawnClips(5).read(0, 5))
    renamed = [(f"other {name}", clip) for name, clip in clips]
    found = [
        compute_features(GivenClips(each), detector, batch_size=batch).source["content"]
        for each, detector, batch in ((clips, MeanColour(), 2), (clips, SmallNetwork(), 5), (renamed, MeanColour(), 3))
    ]
    assert len(set(found)) == 1
    changed = clips[2][1].clone()
    changed[0, 0, 0, 0] ^= 1
    for others in (clips[::-1], [*clips[:2], ("changed", changed), *clips[3:]], clips[:4]):
        assert compute_features(GivenClips(others), MeanColour()).source["content"] not in found


def test_a_feature_file_has_the_permissions_of_any_new_file(tmp_path):
    save_features(compute_features(DrawnClips(2), MeanColour()), tmp_path / "f.safetensors")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "f.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        save_features(compute_features(DrawnClips(2), MeanColour()), tmp_path / "file" / "f.safetensors")


def test_foreign_files_beside_the_parts_are_left_alone(tmp_path):
    parts = FeatureParts(tmp_path / "f.safetensors", "id")
    parts.save(3, Batch(torch.ones(2, 4), torch.zeros(2, 32, dtype=torch.uint8)))
    (parts.folder / "note.txt").write_text("mine")
    assert list(parts.load((2, 4), 5)) == [3]
    assert parts.load((2, 4), 3) == {}  # the batch is beyond the last
    assert (parts.folder / "note.txt").exists()


def test_a_feature_file_survives_the_disk(tmp_path):
    clips = DrawnClips(5)
    clips.origin = {"root": "/data/ünï #1", "fingerprint": "f"}
    path = tmp_path / "new folder" / "real.safetensors"
    protocol = {"name": "a/b", "size": [4, 4], "count": None}
    file = compute_features(clips, MeanColour(), role="real", protocol=protocol, out=path)
    loaded = load_features(path)
    assert torch.equal(loaded.features, file.features)
    for field in dataclasses.fields(FeatureFile):
        if field.name != "features":
            assert getattr(loaded, field.name) == getattr(file, field.name)
    assert [each.name for each in path.parent.iterdir()] == ["real.safetensors"]  # no draft and no part is left behind


def test_saving_replaces_an_older_file(tmp_path):
    path = tmp_path / "f.safetensors"
    for count in (4, 2):
        save_features(compute_features(DrawnClips(count), MeanColour()), path)
    assert load_features(path).features.shape == (2, 3)


ODD = ("odd", torch.zeros(3, 4, 6, 6, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([], "no clips"),
        ([*DrawnClips(2).read(0, 2), *DrawnClips(1).read(0, 1)], "clip 'clip 0.mp4@0' occurs twice"),
        ([*DrawnClips(3).read(0, 3), ODD], r"clip 'odd' has shape \(3, 4, 6, 6\)"),
        ([*DrawnClips(4).read(0, 4), ODD], r"clip 'odd' has shape \(3, 4, 6, 6\)"),
        ([("grey", torch.zeros(1, 4, 6, 6, dtype=torch.uint8))], r"takes clips \(B, 3, T, H, W\)"),
        ([("float", torch.zeros(3, 4, 6, 6))], "takes uint8 clips"),
    ],
)
def test_unusable_clips_are_refused(clips, message):
    with pytest.raises(ValueError, match=message):
        compute_features(GivenClips(clips), MeanColour(), batch_size=2)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"readers": 0}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="count from 1"):
        compute_features(DrawnClips(2), MeanColour(), **options)


def test_features_that_are_not_finite_are_refused_with_the_clip():
    class Failing(MeanColour):
        def extract(self, clips: Tensor) -> Tensor:
            bright = (clips.amax(dim=(1, 2, 3, 4)) == 255).float()[:, None]
            return super().extract(clips) + bright.log().clamp(max=0).nan_to_num(neginf=0.0) + (bright / (1 - bright)) * 0

    dark = [(name, clip.clamp(max=200)) for name, clip in DrawnClips(5).read(0, 5)]
    dark[3] = (dark[3][0], torch.full_like(dark[3][1], 255))
    with pytest.raises(ValueError, match="features of clip 'clip 3.mp4@0' are not finite"):
        compute_features(GivenClips(dark), Failing(), batch_size=2)


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("detector", "other", "detector of real is mean-colour, of fake other"),
        ("detector_fingerprint", "1" * 64, "SHA-256"),
        ("detector_settings", {"eps": 1e-3}, "settings"),
        ("protocol", {"name": "two"}, "protocol"),
        ("features", torch.zeros(3, 4), "number of dimensions of real is 3, of fake 4"),
    ],
)
def test_features_of_different_origin_cannot_be_compared(field, value, what):
    real = compute_features(DrawnClips(3), MeanColour(), protocol={"name": "one"})
    check_comparable(real, compute_features(DrawnClips(4, seed=1), MeanColour(), protocol={"name": "one"}))
    with pytest.raises(ValueError, match=what):
        check_comparable(real, dataclasses.replace(real, **{field: value}))


def test_files_in_swapped_roles_are_refused():
    real, fake = (compute_features(DrawnClips(3), MeanColour(), role=role) for role in ("real", "fake"))
    check_comparable(real, fake)
    for pair, message in (((fake, fake), "the real features were made of fake"), ((real, real), "the fake features were made")):
        with pytest.raises(ValueError, match=message):
            check_comparable(*pair)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no feature file .*absent"):
        load_features(tmp_path / "absent.safetensors")


def test_other_files_are_refused_by_name(tmp_path):
    text, bare, odd, short = (tmp_path / f"{name}.safetensors" for name in ("text", "bare", "odd", "short"))
    text.write_text("not a tensor file")
    save_file({"features": torch.zeros(2, 3)}, bare)
    save_file({"features": torch.zeros(2, 3)}, odd, {"sparsevid": '{"clip_ids": ["a", "b"], "colour": "red"}'})
    save_features(compute_features(DrawnClips(2), MeanColour()), short)
    cut = short.read_bytes()[:-4]
    short.write_bytes(cut)
    for path in (text, bare, odd, short):
        with pytest.raises(ValueError, match=f"{path.name} is not a feature file.*clip_ids, detector"):
            load_features(path)
