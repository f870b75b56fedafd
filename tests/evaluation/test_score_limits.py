"""Scores that are interrupted, cannot be computed, or are not of all that was to be scored."""

import dataclasses

import numpy as np
import pytest
import torch
from evaluation.feature_ranks import SmallNetwork
from evaluation.small_videos import COUNT, write_clips

from sparsevid.evaluation.detectors import DETECTORS
from sparsevid.evaluation.evaluate import Extras, extract_features, measure, score


class Counting(SmallNetwork):
    """Counts its forward passes, and breaks at one of them."""

    name, calls, breaks_at = "counting", 0, 0

    def extract(self, clips: torch.Tensor) -> torch.Tensor:
        Counting.calls += 1
        if Counting.calls == Counting.breaks_at:
            raise RuntimeError("out of memory")
        return super().extract(clips)


def test_features_are_kept_and_an_interrupted_score_goes_on(folders, protocol, tmp_path, monkeypatch):
    """The real side has three batches; the second of the generated one's three breaks."""
    monkeypatch.setitem(DETECTORS, "counting", (Counting.__module__, Counting.__name__))
    rules = dataclasses.replace(protocol, detector="counting")
    plain = score(*folders, protocol=rules, batch_size=8)
    monkeypatch.setattr(Counting, "calls", 0)
    monkeypatch.setattr(Counting, "breaks_at", 5)
    with pytest.raises(RuntimeError, match="out of memory"):
        score(*folders, protocol=rules, batch_size=8, keep=tmp_path)
    assert [path.name.split("-")[0] for path in tmp_path.glob("*.safetensors")] == ["real"]
    assert score(*folders, protocol=rules, batch_size=8, keep=tmp_path) == plain
    assert Counting.calls == 5 + 2
    assert score(*folders, protocol=rules, batch_size=8, keep=tmp_path) == plain
    assert Counting.calls == 7  # both sides are there


@pytest.mark.parametrize(
    ("changes", "extras", "message"),
    [
        ({}, {"extrapolate": True}, "an extrapolation takes 20 generated clips or more, got 12"),
        ({"metrics": ("precision_recall",)}, {"bootstrap": 5, "count": 8}, "a bootstrap interval takes 12 real clips or more"),
        ({"metrics": ("precision_recall",)}, {"count": 5}, "metric precision_recall takes 6 real clips or more, got 5"),
        ({"metrics": ("inception_score",), "detector": "logits"}, {"count": 9}, "takes 10 generated clips or more, got 9"),
        ({"metrics": ("inception_score",), "detector": "logits"}, {"pictures": True}, "for distances between two sets"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_computed(folders, protocol, tmp_path, changes, extras, message):
    """Before the detector is built: there is no weight file."""
    fake = write_clips(tmp_path / "fake", 12, 1)
    options = {"count": extras.pop("count", None), "extras": Extras(**extras), "detector_path": tmp_path / "absent.pt"}
    with pytest.raises(ValueError, match=message):
        measure(folders[0], fake, protocol=dataclasses.replace(protocol, **changes), **options)
    with pytest.raises(ValueError, match="resamplings from 2"):
        Extras(bootstrap=1)


def test_pictures_do_without_the_fit_where_clips_are_too_few(folders, protocol):
    few = measure(*folders, protocol=protocol, count=8, extras=Extras(pictures=True))
    assert few.record.extrapolation is None
    assert measure(*folders, protocol=protocol, extras=Extras(pictures=True)).record.extrapolation is not None


def test_unreadable_fakes_are_told_and_do_not_leave_a_selection(folders, protocol, tmp_path):
    fake = write_clips(tmp_path / "fake", COUNT, 1)
    (fake / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and no more")
    (warning,) = score(folders[0], fake, protocol=protocol)["warnings"]
    assert "1 of the generated videos" in warning and "broken.mp4" in warning
    for rules in (dataclasses.replace(protocol, fake_count=COUNT + 1), dataclasses.replace(protocol, fake_count=None)):
        with pytest.raises(ValueError, match="'broken.mp4'.*make them anew, or remove them"):
            score(folders[0], fake, protocol=rules)


def test_generated_videos_have_no_split(folders, detector, protocol):
    with pytest.raises(ValueError, match="generated videos have none, got split 'test'"):
        extract_features(folders[1], "fake", detector, protocol, split="test")


def test_batches_of_a_replaced_file_are_computed_anew(protocol, detector, tmp_path):
    """Finished batches of an interrupted command are not taken up when a file behind them is another one of equal size."""
    calls = []

    class Breaking(SmallNetwork):
        def extract(self, clips: torch.Tensor) -> torch.Tensor:
            calls.append(len(clips))
            if len(calls) == 3:
                raise RuntimeError("out of memory")
            return super().extract(clips)

    folder, out = write_clips(tmp_path / "fake", 6, 0), tmp_path / "f.safetensors"
    arguments = (folder, "fake", detector, protocol)
    before = extract_features(*arguments, batch_size=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        extract_features(folder, "fake", Breaking(), protocol, batch_size=2, out=out)
    assert len(list((tmp_path / ".f.safetensors.parts").iterdir())) == 2
    np.save(folder / "000.npy", 255 - np.load(folder / "000.npy"))
    after = extract_features(*arguments, batch_size=2, out=out)
    assert not torch.equal(before.features[0], after.features[0]) and torch.equal(before.features[1:], after.features[1:])
