"""Properties of the Inception score."""

import pytest
import torch
from torch import Tensor

from sparsevid.evaluation.metrics.inception_score import inception_score


def draw(count: int, classes: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_is_its_definition():
    logits = draw(20, 5)
    p = logits.softmax(dim=1)
    mean = p.mean(dim=0)
    divergences = [sum(float(q * (q / m).log()) for q, m in zip(row, mean, strict=True)) for row in p]
    expected = torch.tensor(sum(divergences) / 20, dtype=torch.float64).exp().item()
    found = inception_score(logits, splits=1)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.std == 0


def test_bounds_are_reached():
    same = torch.zeros(40, 8)
    assert inception_score(same).value == pytest.approx(1, abs=1e-14)
    sure = 200 * torch.eye(8).repeat(10, 1)  # every split of 8 holds each class once
    assert inception_score(sure).value == pytest.approx(8, rel=1e-12)


@pytest.mark.parametrize("count", [100, 103, 10])
def test_equals_torch_fidelity_in_the_order_given(count):
    public = pytest.importorskip("torch_fidelity.metric_isc", reason="needs torch-fidelity")
    logits = draw(count, 12).float()
    theirs = public.isc_features_to_metric(logits, splits=10, shuffle=False)
    found = inception_score(logits)
    assert found.value == pytest.approx(theirs[public.KEY_METRIC_ISC_MEAN], rel=1e-12)
    assert found.std == pytest.approx(theirs[public.KEY_METRIC_ISC_STD], rel=1e-9, abs=1e-12)


def test_order_matters_between_splits_only():
    logits = draw(40, 6)
    within = torch.cat([part.flip(0) for part in logits.split(4)])
    assert inception_score(within).value == pytest.approx(inception_score(logits).value, rel=1e-12)
    shuffled = logits[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    assert abs(inception_score(shuffled).value - inception_score(logits).value) > 1e-4


def test_constants_of_a_sample_and_the_names_of_classes_do_not_matter():
    logits = draw(30, 6)
    base = inception_score(logits)
    moved = inception_score(logits.flip(1) + draw(30, 1, seed=2))
    assert (moved.value, moved.std) == pytest.approx((base.value, base.std), rel=1e-10)


def test_logits_whose_probabilities_underflow_give_a_number():
    logits = torch.zeros(20, 4)
    logits[:, 0] = 1e5
    assert inception_score(logits).value == pytest.approx(1, abs=1e-12)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least 10 clips, got 9"):
        inception_score(draw(9, 4))
    with pytest.raises(ValueError, match="1 split or more, of 1 sample or more, got 0"):
        inception_score(draw(9, 4), splits=0)
    with pytest.raises(ValueError, match="1 of 20 clips hold values that are not finite"):
        inception_score(draw(20, 4).index_fill(0, torch.tensor(3), torch.inf))
