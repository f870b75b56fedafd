"""TeaCache: its decisions are its rule's, and what it reuses is the last residual."""

from itertools import pairwise

import pytest
import torch
from every import DENSE, made_up
from led import lead_stack, script

from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.savings import parse_saving, saved
from sparsevid.savings.base import SavingError
from sparsevid.savings.teacache import TeaCache

LATTE = [-2464.34137, 308.044764, 80.7447667, -4.11385132, 0.111001402]  # published for Latte T2V


def rule(modulated: list[torch.Tensor], coefficients: list[float], threshold: float) -> list[int]:
    """The calls that TeaCache computes, written as it is published."""
    computed, total = [0], 0.0
    for number, (before, now) in enumerate(pairwise(modulated), 1):
        d = ((now - before).abs().mean() / before.abs().mean()).item()
        total += sum(c * d**power for power, c in enumerate(reversed(coefficients)))
        if number == len(modulated) - 1 or total >= threshold:
            computed.append(number)
            total = 0.0
    return computed


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.5, 2.0])
@pytest.mark.parametrize("coefficients", [[0.0, 0.0, 0.0, 1.0, 0.0], LATTE, [0.5, -1.0, 2.0, 0.3, 0.01]])
def test_decisions_are_those_of_the_rule(threshold, coefficients):
    calls = script(30, step=0.1)
    policy = TeaCache(threshold).with_fit(made_up("teacache", coefficients=coefficients))
    computed, outputs = lead_stack(policy, calls)
    assert computed == rule([call.modulated for call in calls], coefficients, threshold)
    for number, output in enumerate(outputs):
        last = max(each for each in computed if each <= number)
        residual = (calls[last].x + calls[last].added) - calls[last].x
        assert torch.equal(output, calls[number].x + (residual if last < number else calls[number].added))


def test_thresholds_order_how_much_is_computed():
    calls, fit = script(40), made_up("teacache", coefficients=[0.0, 0.0, 0.0, 1.0, 0.0])
    counts = [len(lead_stack(TeaCache(threshold).with_fit(fit), calls)[0]) for threshold in (1e-30, 0.1, 0.3, 1.0, 1e9)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 40 and counts[-1] == 2 and len(set(counts)) > 3


def test_outside_of_its_range_the_polynomial_is_as_at_its_end_and_never_below_zero():
    fit = made_up("teacache", coefficients=LATTE, range=[0.05, 0.2])
    policy = TeaCache(0.1).with_fit(fit)
    assert policy.predicted(9.0) == policy.predicted(0.2) > 0 and policy.predicted(0.0) == policy.predicted(0.05)
    assert TeaCache(0.1).with_fit(made_up("teacache", coefficients=LATTE)).predicted(9.0) == 0.0


def test_a_half_that_guidance_begins_later_is_computed_first():
    """And what it is compared with is its own call before, whichever that was."""
    calls, fit = script(6, step=0.01), made_up("teacache", coefficients=[0.0, 0.0, 0.0, 1.0, 0.0])
    assert lead_stack(TeaCache(1e9).with_fit(fit), calls, "null", [3, 4, 5, 7, 8, 9], count=10)[0] == [3, 9]


def test_bfloat16_tokens_take_a_residual_in_float32():
    calls = [call._replace(x=call.x.bfloat16() + 100, added=call.added.bfloat16()) for call in script(5, step=0.01)]
    fit = made_up("teacache", coefficients=[0.0, 0.0, 0.0, 0.0, 1e-9])
    _, outputs = lead_stack(TeaCache(0.1).with_fit(fit), calls)
    assert all(output.dtype == torch.bfloat16 for output in outputs)
    first = calls[0].x.float()
    residual = (calls[0].x + calls[0].added).float() - first
    assert torch.equal(outputs[2], (calls[2].x.float() + residual).bfloat16())


def test_without_a_fit_the_message_names_the_command_and_threshold_0_needs_none():
    model = DiffusionTransformer(DENSE).eval()
    times = [1.0, 0.5]
    with pytest.raises(SavingError, match=r"teacache: nothing is fitted .*`sparsevid calibrate MODEL --saving teacache`"):
        saved(model, parse_saving("teacache:threshold=0.1"), times)
    none = parse_saving("teacache:threshold=0")
    x, t = torch.randn(1, 4, 1, 4, 4), torch.tensor([999.0])
    with torch.inference_mode():
        assert torch.equal(saved(model, none)(x, t), model(x, t))
        fitted = none.with_fit(made_up("teacache", coefficients=[0.0] * 5))
        assert torch.equal(saved(model, fitted)(x, t), model(x, t))
    with pytest.raises(SavingError, match="threshold = -1"):
        parse_saving("teacache:threshold=-1")
    fitted = parse_saving("teacache").with_fit(made_up("teacache", coefficients=[0.0] * 5))
    with pytest.raises(SavingError, match="must know which call is the last"):
        saved(model, fitted)
