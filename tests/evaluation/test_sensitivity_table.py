"""One table of all metrics on the same damage: values, directions, and damage to whole sets."""

import pytest
import torch
from evaluation.feature_ranks import DrawnClips, SmallNetwork

from sparsevid.evaluation.detectors import build_detector
from sparsevid.evaluation.distortions import DISTORTIONS, SET_DISTORTIONS
from sparsevid.evaluation.evaluate import compute_metrics
from sparsevid.evaluation.features import compute_features
from sparsevid.evaluation.protocols import with_fields
from sparsevid.evaluation.sensitivity import DistortedClips
from sparsevid.evaluation.sensitivity_table import ALL, as_json, as_table, measure_table


def clip(frames: int = 10) -> torch.Tensor:
    return torch.randint(0, 256, (3, frames, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def shown(damaged: torch.Tensor, given: torch.Tensor) -> list[int]:
    """Which frame of the clip each frame of the damaged one is."""
    return [next(i for i in range(given.shape[1]) if damaged[:, t].equal(given[:, i])) for t in range(damaged.shape[1])]


def test_frames_are_lost_shown_twice_or_slowed_down():
    generator = torch.Generator().manual_seed(3)
    dropped = shown(DISTORTIONS["dropped frames"](clip(), 0.5, generator), clip())
    assert all(frame in (t, dropped[t - 1] if t else 0) for t, frame in enumerate(dropped)) and len(set(dropped)) == 10 - 4
    twice = shown(DISTORTIONS["duplicated frames"](clip(), 0.5, generator), clip())
    assert twice == sorted(twice) and set(twice) == set(range(max(twice) + 1)) and max(twice.count(i) for i in twice) == 2
    assert shown(DISTORTIONS["slow motion"](clip(9), 1.0, generator), clip(9)) == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert shown(DISTORTIONS["slow motion"](clip(9), 2 / 3, generator), clip(9)) == [0, 0, 1, 1, 2, 2, 3, 3, 4]


def test_damage_to_a_set_is_of_its_own_clips_in_any_order_of_reading():
    clips = DrawnClips(8)
    whole = torch.stack([clip for _, clip in clips.read(0, 8)])
    for name in SET_DISTORTIONS:
        same = [clip for _, clip in DistortedClips(clips, name, 0.0, 0).read(0, 8)]
        assert torch.stack(same).equal(whole), name
        half = [clip for _, clip in DistortedClips(clips, name, 0.5, 0).read(0, 8)]
        again = [*DistortedClips(clips, name, 0.5, 0).read(5, 8)]
        assert all(a.equal(b) for a, (_, b) in zip(half[5:], again, strict=True))
        assert [clip_id for clip_id, _ in again] == list(clips.ids[5:])
    left = {tuple(clip.flatten().tolist()) for _, clip in DistortedClips(clips, "fewer modes", 1.0, 0).read(0, 8)}
    assert len(left) == 2
    mixed = [clip for _, clip in DistortedClips(clips, "mixed classes", 1.0, 0).read(0, 8)]
    assert all(
        each[:, :2].equal(own[:, :2]) and not each[:, 2:].equal(own[:, 2:]) for each, own in zip(mixed, whole, strict=True)
    )
    assert all(any(each[:, 2:].equal(other[:, 2:]) for other in whole) for each in mixed)


def test_a_table_holds_what_each_score_is_by_itself(folders, protocol):
    real, _ = folders
    rules, detector = with_fields(protocol, ["split=all"]), build_detector("small")
    names, strengths = ("blur", "noise", "fewer modes"), (0.5, 1.0)
    rows = measure_table(real, [(detector, rules)], limit=20, split="all", distortions=names, strengths=strengths)
    by_value = {row.value: row for row in rows}
    assert {"frechet", "kid", "kvd", "jedi", "precision", "recall"} <= set(by_value) and "kid_std" not in by_value
    from sparsevid.evaluation.clips.clips import choose_clips

    clips = choose_clips(real, "real", rules, limit=20)
    damaged = DistortedClips(clips, "noise", 1.0, rules.seed)
    expected = compute_metrics(compute_features(clips, detector), compute_features(damaged, detector), rules)
    assert by_value["frechet"].answers["noise"].scores[1] == pytest.approx(expected["frechet"], rel=1e-9)
    assert by_value["frechet"].itself == pytest.approx(0, abs=1e-10) and by_value["precision"].itself == 1
    assert by_value["precision"].higher and not by_value["frechet"].higher
    noise = by_value["frechet"].answers["noise"]
    assert noise.monotone and noise.scores[0] < noise.scores[1]
    assert noise.seen == (noise.scores[1] > by_value["frechet"].halves)
    columns, cells = as_table(rows, names)
    assert len(columns) == len(cells[0]) and len(cells) == len(rows)
    assert as_json(rows, strengths)["rows"][0]["clips"] == 20


def test_images_have_no_damage_of_time(folders, protocol):
    rules = with_fields(protocol, ["split=all", "frames=1"])
    (row, *_) = measure_table(folders[0], [(Frame(), rules)], limit=12, split="all", strengths=(1.0,))
    assert set(row.answers) == {"blur", "noise", *SET_DISTORTIONS}
    assert as_table([row], ALL)[1][0].count("") == len(ALL) - 4
    with pytest.raises(ValueError, match="unknown distortions fog"):
        measure_table(folders[0], [], limit=12, distortions=("fog",))


class Frame(SmallNetwork):
    """Mean colours of a frame."""

    def extract(self, clips: torch.Tensor) -> torch.Tensor:
        values = clips.float().mean(dim=2)
        return torch.cat([values.mean(dim=(2, 3)), values.std(dim=(2, 3)), values[:, :, :3, :4].flatten(1)], dim=1)[:, :16]
