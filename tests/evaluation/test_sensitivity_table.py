"""One table of all metrics on the same damage: values, directions, and damage to whole sets."""

import re

import pytest
import torch
from evaluation.feature_ranks import DrawnClips, SmallNetwork

from sparsevid.cli import main
from sparsevid.evaluation.detectors import build_detector
from sparsevid.evaluation.distortions import DISTORTIONS, SET_DISTORTIONS
from sparsevid.evaluation.evaluate import compute_metrics
from sparsevid.evaluation.features import compute_features
from sparsevid.evaluation.protocols import with_fields
from sparsevid.evaluation.sensitivity import DistortedClips
from sparsevid.evaluation.sensitivity_table import HALVES, Answer, as_json, as_tables, measure_table


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
    assert min(noise.told) >= 0.95 and noise.told_from(strengths) == 0.5
    ((title, columns, cells),) = as_tables(rows, strengths)
    assert title.startswith("small, 20 clips") and len(columns) == len(rows) + 1 == len(cells[0])
    assert [row[0] for row in cells] == ["itself", "halves", *names, "stable from"]
    assert cells[3][1].endswith("+ 0.5")
    assert as_json(rows, strengths)["rows"][0]["clips"] == 20


def test_what_no_metric_can_see_is_not_told(folders, protocol):
    """Colours of clips whose frames are shuffled are what they were, in whatever halves."""
    rules = with_fields(protocol, ["split=all", "metrics=[frechet]"])
    names = ("frame shuffling", "time reversal")
    rows = measure_table(folders[0], [(Colours(), rules)], limit=12, split="all", distortions=names, strengths=(0.5, 1.0))
    for row in rows:
        for answer in row.answers.values():
            assert answer.told == (0, 0) and answer.told_from((0.5, 1.0)) is None and not answer.monotone, row
    assert all(cell.startswith("(") for line in as_tables(rows, (0.5, 1.0))[0][2][2:4] for cell in line[1:])


def test_damage_is_told_from_the_strength_on_from_which_all_greater_ones_are():
    told = lambda *shares: Answer((1.0, 2.0, 3.0), True, shares).told_from((0.25, 0.5, 1.0))  # noqa: E731
    assert told(1, 1, 1) == 0.25 and told(1, 0.5, 1) == 1.0 and told(0, (HALVES - 1) / HALVES, 1) == 0.5
    assert told(1, 1, 0.9) is None


def test_a_killed_table_goes_on_from_what_is_kept(folders, protocol, tmp_path, monkeypatch):
    """Features of finished sets are not computed again, and the table is that of a run without a stop."""
    rules = with_fields(protocol, ["split=all"])
    options = {"limit": 12, "split": "all", "distortions": ("blur", "fewer modes"), "strengths": (0.5, 1.0)}
    whole = measure_table(folders[0], [(build_detector("small"), rules)], **options)
    mortal, made = build_detector("small"), []

    def extract(clips: torch.Tensor) -> torch.Tensor:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(len(clips))
        return type(mortal).extract(mortal, clips)

    monkeypatch.setattr(mortal, "extract", extract)
    with pytest.raises(KeyboardInterrupt):
        measure_table(folders[0], [(mortal, rules)], keep=tmp_path, **options)
    assert len(list(tmp_path.glob("small-*.safetensors"))) == 3
    made.clear()
    assert measure_table(folders[0], [(mortal, rules)], keep=tmp_path, **options) == whole
    assert len(made) == 2  # of 5 sets, a batch each


def test_images_have_no_damage_of_time(folders, protocol):
    rules = with_fields(protocol, ["split=all", "frames=1"])
    (row, *_) = measure_table(folders[0], [(Frame(), rules)], limit=12, split="all", strengths=(1.0,))
    assert set(row.answers) == {"blur", "noise", *SET_DISTORTIONS}
    with pytest.raises(ValueError, match="unknown distortions fog"):
        measure_table(folders[0], [], limit=12, distortions=("fog",))


class Colours(SmallNetwork):
    """The darkest and the brightest of each colour over a clip."""

    def extract(self, clips: torch.Tensor) -> torch.Tensor:
        flat = clips.float().flatten(2)
        return torch.cat([flat.amin(dim=2), flat.amax(dim=2), flat.sum(dim=2)], dim=1).repeat(1, 2)[:, :16]


class Frame(SmallNetwork):
    """Mean colours of a frame."""

    def extract(self, clips: torch.Tensor) -> torch.Tensor:
        values = clips.float().mean(dim=2)
        return torch.cat([values.mean(dim=(2, 3)), values.std(dim=(2, 3)), values[:, :, :3, :4].flatten(1)], dim=1)[:, :16]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "small", "fog"], "--table takes `all` alone, or some of .*; got 'fog'"),
        (["--table", "all", "small"], "got 'all'"),
        (["--table", "small", "--keep", "{file}/deeper"], "file is a file, and was to be a folder"),
        (["--table", "small", "--detector", "small"], "names its detectors itself"),
        (["--detector", "small", "--keep", "{file}"], "--keep are about a --table"),
    ],
)
def test_what_a_table_cannot_be_made_of_is_said_at_once(arguments, message, folders, protocol, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = [each.format(file=tmp_path / "file") for each in arguments]
    assert main(["evaluate", "sensitivity", "--real", str(folders[0]), *arguments]) != 0
    assert re.search(message, capsys.readouterr().err)
