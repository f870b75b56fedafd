"""Means, paired differences and what is said of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from sparsevid.study.effects import BETTER, OPEN, WORSE, difference, differences, estimate, estimates, ratio
from sparsevid.study.measurements import Measurement, StudyResults


def measured(row: str, seed: int, losses=(), interval=None, **figures: float) -> Measurement:
    return Measurement("paper", row, seed, figures, tuple(losses), distance_interval=interval)


def losses_of(row: str, seeds, clips) -> list[Measurement]:
    return [measured(row, seed, each, loss=float(np.mean(each))) for seed, each in zip(seeds, clips, strict=True)]


def test_over_seeds_it_is_students_interval_of_paired_differences():
    own, control = [190.0, 205.0, 201.0], [180.0, 191.0, 197.0]
    rows = [[measured(name, seed, distance=value) for seed, value in enumerate(values)]
            for name, values in (("sparse", own), ("dense", control))]  # fmt: skip
    found = difference(*rows, "distance")
    reference = ttest_1samp(np.subtract(own, control), 0).confidence_interval()
    assert found.interval == pytest.approx((reference.low, reference.high))
    assert (found.seeds, found.verdict) == (3, OPEN)
    mean = estimate(rows[0], "distance")
    assert mean.interval == pytest.approx(tuple(ttest_1samp(own, 0).confidence_interval()))
    assert mean.spread == pytest.approx(np.std(own, ddof=1))


def test_of_one_seed_a_loss_varies_over_paired_clips():
    drawn = np.random.default_rng(1)
    clips = drawn.normal(0.3, 0.1, 64)  # much wider than the difference
    other = clips + drawn.normal(0.004, 0.003, 64)
    found = difference(losses_of("sparse", [5], [other]), losses_of("dense", [5], [clips]), "loss")
    reference = ttest_1samp(other - clips, 0).confidence_interval()
    assert found.interval == pytest.approx((reference.low, reference.high))
    assert found.verdict == WORSE
    assert found.of == "64 clips of one seed"


def test_distances_of_the_same_halves_are_paired():
    """What noise and real clips that both share do to both distances is no reason to doubt their difference."""
    drawn = np.random.default_rng(2)
    shared = drawn.normal(12.0, 3.0, 200)
    halves = [shared, shared + 1.0 + drawn.normal(0.0, 0.1, 200)]
    rows = [replace(measured(name, 0, interval=(6.0, 18.0), distance=each.mean(), clips=512), halves=tuple(each))
            for name, each in zip(("dense", "sparse"), halves, strict=True)]  # fmt: skip
    found = difference(rows[1:], rows[:1], "distance")
    assert found.verdict == WORSE and found.interval.high - found.interval.low == pytest.approx(2 * 1.96 * 0.1, rel=0.15)
    others = replace(rows[0], figures=rows[0].figures | {"clips": 256})  # halves of another size
    for control in (replace(rows[0], halves=()), replace(rows[0], halves=rows[0].halves[:100]), others):
        assert difference(rows[1:], [control], "distance").verdict == OPEN


@pytest.mark.parametrize("fact", ["data", "metric", "measured"])
def test_figures_of_other_clips_or_metrics_are_not_compared(fact):
    row, control = (replace(measured(name, 0, loss=1.0), facts={fact: "one"}) for name in ("sparse", "dense"))
    assert difference([row], [control], "loss") is not None
    assert difference([row], [replace(control, facts={fact: "another"})], "loss") is None
    assert difference([row], [replace(control, facts={})], "loss") is None


def test_one_run_of_two_trainings_is_not_compared_with_itself():
    row, control = (
        replace(measured(name, 0, distance=9.0), facts={"run": "dense", "weights": name}) for name in ("few", "dense")
    )
    assert difference([row], [control], "distance") is None
    for facts in ({"run": "sparse", "weights": "few"}, {"run": "dense", "weights": "dense"}, {"run": "dense"}, {}):
        assert difference([replace(row, facts=facts)], [control], "distance") is not None


def test_seeds_that_differ_widen_what_clips_alone_say():
    clips = np.random.default_rng(3).normal(0.3, 0.01, 40)
    control = losses_of("dense", range(3), [clips] * 3)
    alike = difference(losses_of("a", range(3), [clips + 0.01 + 1e-4 * n for n in (-1, 0, 1)]), control, "loss")
    apart = difference(losses_of("b", range(3), [clips + 0.01 + 2e-2 * n for n in (-1, 0, 1)]), control, "loss")
    assert alike.mean == pytest.approx(apart.mean)
    assert (alike.verdict, apart.verdict) == (WORSE, OPEN)


@pytest.mark.parametrize(("figure", "sign"), [("loss", 1), ("distance", 1), ("accuracy", -1)])
@pytest.mark.parametrize(("shift", "verdict"), [(-0.5, BETTER), (0.5, WORSE), (0.0, OPEN)])
def test_a_row_is_better_only_where_the_interval_excludes_zero(figure, sign, shift, verdict):
    noise = [0.02, -0.01, -0.015]
    control = [measured("dense", seed, **{figure: 1.0}) for seed in range(3)]
    row = [measured("sparse", seed, **{figure: 1.0 + sign * shift + each}) for seed, each in enumerate(noise)]
    found = difference(row, control, figure)
    assert found.verdict == verdict
    assert (found.interval.low <= 0 <= found.interval.high) == (verdict == OPEN)


def test_one_seed_alone_says_nothing_without_samples_of_known_scatter():
    control = [measured("dense", 0, accuracy=0.9, distance=100.0, interval=(90.0, 115.0), loss=0.3)]
    row = [measured("sparse", 0, accuracy=0.1, distance=160.0, interval=(148.0, 180.0), loss=0.2)]
    for figure in ("accuracy", "loss"):
        found = difference(row, control, figure)
        assert (found.interval, found.verdict) == (None, OPEN)
    found = difference(row, control, "distance")
    half = math.hypot(25, 32) / 2  # as of two independent draws of samples
    assert found.interval == pytest.approx((60 - half, 60 + half), rel=1e-4)
    assert found.verdict == WORSE
    bare = difference([measured("sparse", 0, distance=160.0)], control, "distance")
    assert (bare.mean, bare.interval, bare.verdict) == (60.0, None, OPEN)


def test_an_accuracy_is_as_sure_as_its_samples_are_many():
    for clips, verdict in ((40.0, OPEN), (4000.0, WORSE)):
        control = [measured("dense", 0, accuracy=0.75, clips=clips)]
        found = difference([measured("sparse", 0, accuracy=0.70, clips=clips)], control, "accuracy")
        half = 1.96 * math.sqrt((0.75 * 0.25 + 0.7 * 0.3) / clips)
        assert found.interval.high - found.mean == pytest.approx(half, rel=0.05)
        assert found.verdict == verdict
    none = difference([measured("sparse", 0, accuracy=0.0, clips=40.0)], control, "accuracy")
    assert none.interval.low < none.interval.high < 0


def test_samples_widen_what_seeds_alone_say():
    control = [measured("dense", seed, distance=100.0, interval=(70.0, 130.0)) for seed in range(3)]
    row = [measured("sparse", seed, distance=101.0 + 0.01 * seed, interval=(70.0, 130.0)) for seed in range(3)]
    assert difference(row, control, "distance").verdict == OPEN
    bare = [[replace(each, distance_interval=None) for each in each_row] for each_row in (row, control)]
    assert difference(*bare, "distance").verdict == WORSE


def test_each_row_is_compared_with_the_control_that_its_line_names():
    lines = [measured(row, 0, loss=loss) for row, loss in (("dense", 1.0), ("small", 2.0), ("sparse", 3.0), ("tiny", 4.0))]
    controls = {"dense": None, "small": "dense", "sparse": "small", "tiny": "gone"}
    study = StudyResults("scale", {(each.row, 0): replace(each, control=controls[each.row]) for each in lines})
    found = differences(study)["loss"]
    assert {row: each.mean for row, each in found.items()} == {"small": 1.0, "sparse": 1.0}
    assert study.against == "the control"
    assert StudyResults("paper", {(each.row, 0): each for each in lines}).against == "dense"


def test_times_compare_on_the_same_hardware_alone():
    def timed(row: str, seed: int, seconds: float, hardware: str) -> Measurement:
        return replace(measured(row, seed, seconds=seconds, macs=seconds), facts={"hardware": hardware})

    control = [timed("dense", 0, 4.0, "a"), timed("dense", 1, 1.0, "b")]
    row = [timed("sparse", 0, 2.0, "a"), timed("sparse", 1, 1.0, "a")]
    assert ratio(row, control, "seconds") == 0.5
    assert ratio(row, control, "macs") == 0.75
    assert ratio(row[1:], control, "seconds") is None
    assert {name: each.mean for name, each in estimates(control, "seconds").items()} == {"a": 4.0, "b": 1.0}
    assert {name: each.mean for name, each in estimates(control, "macs").items()} == {"": 2.5}
    study = StudyResults("paper", {(each.row, each.seed): each for each in [*control, *row, timed("fast", 0, 0.1, "b")]})
    kept, hardware = study.on_one_hardware()
    assert (hardware, sorted(kept.measurements)) in (("a", [("dense", 0), ("sparse", 0), ("sparse", 1)]),)


def test_only_seeds_that_both_have_are_compared():
    control = [measured("dense", seed, distance=100.0 + seed) for seed in (0, 1, 2)]
    row = [measured("sparse", seed, distance=110.0 + seed) for seed in (1, 2, 7)]
    found = difference(row, control, "distance")
    assert (found.seeds, found.mean) == (2, 10.0)
    assert difference(row[2:], control, "distance") is None
    assert difference(row, control, "accuracy") is None
    assert estimate(row, "accuracy") is None


def test_losses_of_other_numbers_of_clips_are_not_compared():
    control = losses_of("dense", (0, 1), [[0.1, 0.2, 0.3]] * 2)
    assert difference(losses_of("sparse", (0, 1), [[0.2, 0.3]] * 2), control, "loss") is None
    for kept in ([], [[0.4]] * 2):  # not at all, and too few to vary: seeds are all that is known
        bare = [[replace(each, losses=tuple(kept[0]) if kept else ()) for each in row] for row in (control, control)]
        found = difference(*bare, "loss")
        assert (found.of, found.clips, found.interval) == ("2 seeds", "", (0.0, 0.0))
