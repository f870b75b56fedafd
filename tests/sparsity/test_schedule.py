"""The token schedule over diffusion time, and drawing stages from it."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from scipy import stats

from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.schedule import constant_schedule, paper_schedule, pruning_rate, sparse_side, table_schedule
from sparsevid.sparsity.times import LogitNormalTimes, UniformTimes, UniformTimesteps, draw_stage, stage_block
from sparsevid.system.seeding import Purpose, keyed_generator

SCHEDULE = paper_schedule((16, 16, 16), 4, 0.61, 0.86)
DISTRIBUTIONS = [UniformTimesteps(), UniformTimes(), LogitNormalTimes(), LogitNormalTimes(0.5, 1.3)]


@pytest.mark.parametrize(
    ("dense", "rates"), [((1, 16, 16), (0.61, 0.86)), ((1, 32, 32), (0.9, 0.96)), ((4, 9, 16), (0.3, 0.95))]
)
def test_stages_follow_the_pruning_rate(dense, rates):
    schedule = paper_schedule(dense, 1, *rates)
    for u in torch.linspace(0.0005, 0.9995, 1999).tolist():
        rate = pruning_rate(u, *rates)
        assert schedule.grid(u) == Grid(1, sparse_side(dense[1], rate), sparse_side(dense[2], rate))


def test_published_ranges_of_sides():
    sides = [
        [stage.grid.h for stage in paper_schedule((1, n, n), 1, *r).stages] for n, r in ((16, (0.61, 0.86)), (32, (0.9, 0.96)))
    ]
    assert sides == [[10, 9, 8, 7, 6], [10, 9, 8, 7, 6]]
    assert [s.grid.h for s in paper_schedule((1, 32, 32), 1, 0.61, 0.86).stages] == list(range(20, 11, -1))


def test_noise_end_holds_the_sparsest_grid_for_the_first_quarter():
    assert {SCHEDULE.grid(u) for u in (0.75, 0.8, 0.9, 1.0)} == {Grid(4, 6, 6)}
    tokens = [stage.grid.tokens for stage in SCHEDULE.stages]
    assert tokens == sorted(tokens, reverse=True) and len(set(tokens)) == len(tokens)


def test_stages_cover_the_interval_without_gaps():
    stages = SCHEDULE.stages
    assert stages[0].low == 0.0 and stages[-1].high == 1.0
    assert all(a.high == b.low for a, b in pairwise(stages))


def test_constant_rate_is_one_stage_and_tables_merge_equal_grids():
    assert len(paper_schedule((4, 8, 8), 2, 0.75, 0.75).stages) == 1
    table = table_schedule([(0.2, (4, 8, 8)), (0.5, (4, 8, 8)), (1.0, (2, 4, 4))], (4, 8, 8))
    assert [(s.low, s.high, s.grid) for s in table.stages] == [(0.0, 0.5, (4, 8, 8)), (0.5, 1.0, (2, 4, 4))]
    assert constant_schedule((2, 3, 3)).grid(0.3) == (2, 3, 3)


def test_frames_of_the_sparse_grid_may_change_over_time_too():
    schedule = paper_schedule((16, 16, 16), [(0.3, 8), (1.0, 4)], 0.61, 0.86)
    space = paper_schedule((16, 16, 16), 4, 0.61, 0.86)
    for u in torch.linspace(0.001, 0.999, 500).tolist():
        assert schedule.grid(u) == space.grid(u)._replace(t=8 if u <= 0.3 else 4)
    assert all(a.grid != b.grid and a.high == b.low for a, b in pairwise(schedule.stages))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: paper_schedule((8, 8, 8), 3, 0.5, 0.8), "does not divide"),
        (lambda: paper_schedule((8, 8, 8), 4, 0.8, 0.5), "r_min ≤ r_max"),
        (lambda: table_schedule([(0.5, (1, 2, 2))], (4, 8, 8)), "rise"),
        (lambda: paper_schedule((8, 8, 8), [(0.5, 4), (0.2, 2)], 0.5, 0.8), "rise"),
        (lambda: table_schedule([(1.0, (1, 9, 2))], (4, 8, 8)), "h = 9"),
        (lambda: SCHEDULE.grid(1.2), r"not in \[0, 1\]"),
    ],
)
def test_impossible_schedules_are_refused(build, reason):
    with pytest.raises(ValueError, match=reason):
        build()


def draws(times, slots: int, steps: int, seed: int = 0):
    """(step, stage index, one time) for every slot of `steps` steps."""
    for step in range(steps):
        for slot in range(slots):
            shared = keyed_generator(Purpose.STAGE, seed, stage_block(step, slots))
            index = draw_stage(SCHEDULE, times, slot, slots, step, shared)
            u = times.sample(SCHEDULE.stages[index], 1, keyed_generator(Purpose.TIME, seed, step, slot)).item()
            yield step, index, u


@pytest.mark.parametrize("times", DISTRIBUTIONS, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("slots", [1, 2, 8])
def test_each_step_covers_the_stages_in_proportion(times, slots):
    block = slots if slots > 1 else 8
    found = [index for _, index, _ in draws(times, slots, 400 if slots > 1 else 800)]
    for first in range(0, len(found), block):
        counts = Counter(found[first : first + block])
        for index, stage in enumerate(SCHEDULE.stages):
            assert abs(counts[index] - block * times.mass(stage)) < 1.0 + 1e-9


@pytest.mark.parametrize("times", DISTRIBUTIONS, ids=lambda t: type(t).__name__)
def test_every_time_lies_in_the_stage_of_its_grid(times):
    for _, index, u in draws(times, 4, 1000):
        assert SCHEDULE.stage_index(u) == index


@pytest.mark.parametrize("times", DISTRIBUTIONS, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("slots", [1, 3])
def test_marginal_of_the_times_is_the_distribution(times, slots):
    # Strata make the counts more even than independent draws, so the chi-square test must not reject.
    u = torch.tensor([value for _, _, value in draws(times, slots, 6000 // slots, seed=5)], dtype=torch.float64)
    edges = [times.quantile(k / 20) for k in range(1, 20)]
    observed = torch.bincount(torch.bucketize(u, torch.tensor(edges, dtype=torch.float64)), minlength=20)
    if isinstance(times, UniformTimesteps):
        k = (u * 999).round().long()
        observed = torch.bincount(k // 50, minlength=20)
    assert stats.chisquare(observed.numpy()).pvalue > 0.01


@pytest.mark.parametrize("times", DISTRIBUTIONS, ids=lambda t: type(t).__name__)
def test_masses_of_the_stages_sum_to_one(times):
    assert sum(times.mass(stage) for stage in SCHEDULE.stages) == pytest.approx(1.0, abs=1e-12)


def test_discrete_masses_count_timesteps():
    times = UniformTimesteps()
    counts = Counter(SCHEDULE.stage_index(k / 999) for k in range(1000))
    assert {i: times.mass(stage) for i, stage in enumerate(SCHEDULE.stages)} == {i: n / 1000 for i, n in counts.items()}
