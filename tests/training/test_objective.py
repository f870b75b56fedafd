"""The random part of a micro-batch: times, noise and dropped labels have their distributions, and depend on their key alone."""

from dataclasses import replace

import pytest
import torch

from sparsevid.diffusion.null_text import NullText
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import ObjectiveConfig
from sparsevid.sparsity.schedule import paper_schedule
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.training.objective import Draw, build_objective, draw_dropped, draw_noise, draw_times, told

SCHEDULE = paper_schedule((4, 8, 8), 2, 0.3, 0.8)
OBJECTIVES = {
    "diffusion": ObjectiveConfig(kind="diffusion"),
    "flow, uniform": ObjectiveConfig(kind="flow", times="uniform"),
    "flow, logit-normal": ObjectiveConfig(kind="flow", times="logit_normal"),
}
STEPS, SLOTS, BATCH = 500, 4, 8  # 16,000 draws
KEYS = [{"seed": seed, "step": step, "slot": slot} for seed in (0, 1) for step in (0, 1, 12) for slot in (0, 1)]


def drop_labels(labels: torch.Tensor, classes: int, share: float, **key: int) -> torch.Tensor:
    spec = ModelSpec("1D", 8, 1, num_classes=classes)
    return told(spec, {"label": labels}, draw_dropped(labels.shape, share, **key))["labels"]


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


TEXT = ModelSpec("1D", 8, 1, text_channels=3, text_tokens=4, null_caption=True)
NULL, NULL_MASK = torch.arange(1.0, 13.0).view(1, 4, 3), torch.tensor([[True, True, False, False]])


@pytest.mark.parametrize("shape", [(64,), (32, 2)], ids=["clips", "clips and stills"])
def test_the_same_are_told_of_no_prompt_as_would_be_of_no_class(shape):
    key = {"seed": 1, "step": 2, "slot": 3}
    labels, dropped = torch.zeros(shape, dtype=torch.long), draw_dropped(shape, 0.3, **key)
    text, mask = -torch.rand(*shape, 4, 3), torch.tensor([True, True, True, False]).expand(*shape, 4)
    batch, null = {"label": labels, "text": text, "text_mask": mask}, NullText(NULL, NULL_MASK)
    assert torch.equal(drop_labels(labels, 1, 0.3, **key) == 1, dropped) and 0 < dropped.sum() < dropped.numel()
    found = told(TEXT, batch, dropped, null)
    assert torch.equal(found["text"][~dropped], text[~dropped]) and (found["text"][dropped] == NULL[0]).all()
    assert torch.equal(found["text_mask"][~dropped], mask[~dropped]) and (found["text_mask"][dropped] == NULL_MASK[0]).all()
    assert all(torch.equal(value, batch[name]) for name, value in told(TEXT, batch).items())


def test_no_prompt_is_heard_by_its_own_mask_or_that_of_the_prompt_it_stands_for():
    text, mask = -torch.rand(2, 4, 3), torch.tensor([[True, False, False, False], [True, True, True, True]])
    everybody = torch.ones(2, dtype=torch.bool)
    for null, expected in (
        (NullText(NULL, NULL_MASK), NULL_MASK.expand(2, 4)),
        (NullText(NULL), torch.ones(2, 4, dtype=torch.bool)),
        (NullText(NULL, NULL_MASK, heard="prompt"), mask),
    ):
        found = null.in_place_of(text, mask, everybody)
        assert torch.equal(found[0], NULL.expand(2, 4, 3)) and torch.equal(found[1], expected)
    with pytest.raises(ValueError, match=r"'no prompt' has features \(4, 3\), prompts have \(3, 3\)"):
        NullText(NULL).in_place_of(text[:, 1:], mask[:, 1:], everybody)


def test_what_stands_for_no_prompt_has_to_be_given_as_features():
    spec = ModelSpec("1D", 8, 1, text_channels=3, text_tokens=2)
    batch = {"text": torch.zeros(2, 2, 3), "text_mask": torch.ones(2, 2, dtype=torch.bool)}
    dropped = torch.tensor([True, False])
    with pytest.raises(ValueError, match="nothing says what that is"):
        told(spec, batch, dropped)
    prepared = DiffusionTransformer(spec).prepare_text(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="is prepared by the model already"):
        told(spec, batch, dropped, NullText(prepared))


def test_sizes_of_pictures_are_conditions_where_the_model_takes_them():
    sizes = torch.tensor([[512.0, 256.0, 1.0]])
    batch = {"label": torch.zeros(1, dtype=torch.long), "sizes": sizes, "text": NULL, "text_mask": NULL_MASK}
    wide = replace(TEXT, hidden_size=12, micro_conditions=True)
    assert torch.equal(told(wide, batch)["sizes"], sizes) and "sizes" not in told(TEXT, batch)
    assert told(ModelSpec("1D", 8, 1), batch) == {}
