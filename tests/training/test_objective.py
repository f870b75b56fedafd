"""The random part of a micro-batch: times, noise and dropped labels have their distributions, and depend on their key alone."""

import pytest
import torch

from sparsevid.runs.config import ObjectiveConfig
from sparsevid.sparsity.schedule import paper_schedule
from sparsevid.training.objective import Draw, build_objective, draw_noise, draw_times, drop_labels

SCHEDULE = paper_schedule((4, 8, 8), 2, 0.3, 0.8)
OBJECTIVES = {
    "diffusion": ObjectiveConfig(kind="diffusion"),
    "flow, uniform": ObjectiveConfig(kind="flow", times="uniform"),
    "flow, logit-normal": ObjectiveConfig(kind="flow", times="logit_normal"),
}
STEPS, SLOTS, BATCH = 500, 4, 8  # 16,000 draws
KEYS = [{"seed": seed, "step": step, "slot": slot} for seed in (0, 1) for step in (0, 1, 12) for slot in (0, 1)]


def draws(kind: str, schedule) -> list[Draw]:
    objective = build_objective(OBJECTIVES[kind])
    return [
        draw_times(objective, schedule, BATCH, seed=3, step=step, slot=slot, slots=SLOTS)
        for step in range(STEPS)
        for slot in range(SLOTS)
    ]


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_stages_leave_the_distribution_of_times_as_it_is(kind):
    """Times drawn by stage are the objective's times: the largest gap of the two empirical distributions is within chance."""
    by_stage = draws(kind, SCHEDULE)
    assert {draw.index for draw in by_stage} == set(range(len(SCHEDULE.stages)))
    for draw in by_stage:
        assert draw.stage == SCHEDULE.stages[draw.index]
        assert ((draw.u > draw.stage.low) | (draw.u == 0)).all() and (draw.u <= draw.stage.high).all()
    staged, plain = (torch.cat([draw.u for draw in each]).sort().values for each in (by_stage, draws(kind, None)))
    at = torch.linspace(0, 1, 1001, dtype=torch.float64)
    gap = (torch.searchsorted(staged, at, right=True) - torch.searchsorted(plain, at, right=True)).abs().max() / len(plain)
    # Kolmogorov-Smirnov for two samples of 16,000: exceeded once in 1000 if both have one distribution.
    assert gap < 1.95 * (2 / len(plain)) ** 0.5


@pytest.mark.parametrize("share", (0.1, 0.5))
def test_the_stated_share_of_labels_is_dropped(share):
    labels = torch.arange(8).repeat(4)
    found = torch.stack([drop_labels(labels, 8, share, seed=0, step=step, slot=slot) for step in range(500) for slot in (0, 1)])
    dropped = found == 8
    assert torch.equal(found[~dropped], labels.expand_as(found)[~dropped])
    # 32,000 labels: four standard deviations of their mean; and each place of the batch has the share, not one more often.
    assert abs(dropped.double().mean() - share) < 4 * (share * (1 - share) / dropped.numel()) ** 0.5
    assert (dropped.double().mean(dim=0) - share).abs().max() < 4.5 * (share * (1 - share) / len(dropped)) ** 0.5


def test_shares_of_none_and_all():
    labels = torch.arange(8).reshape(4, 2)  # a clip's and its still's
    assert torch.equal(drop_labels(labels, 8, 0.0, seed=0, step=0, slot=0), labels)
    assert (drop_labels(labels, 8, 1.0, seed=0, step=0, slot=0) == 8).all()


def test_draws_are_functions_of_their_key():
    """The same key gives the same draw after any other; keys that differ in seed, step or slot give others."""
    objective, like, labels = (
        build_objective(OBJECTIVES["flow, uniform"]),
        torch.empty(2, 3, 4),
        torch.zeros(64, dtype=torch.long),
    )

    def everything(key: dict) -> torch.Tensor:
        u = draw_times(objective, None, 2, slots=2, **key).u
        return torch.cat([u, draw_noise(like, **key).flatten(), drop_labels(labels, 1, 0.5, **key)]).float()

    first = [everything(key) for key in KEYS]
    torch.rand(7)
    assert all(torch.equal(value, everything(key)) for value, key in zip(first[::-1], KEYS[::-1], strict=True))
    parts = [[value[:2], value[2:26], value[26:]] for value in first]
    for i, one in enumerate(parts):
        assert not any(torch.equal(a, b) for other in parts[:i] for a, b in zip(one, other, strict=True))
