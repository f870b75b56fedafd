"""Guidance and the token schedule as wrappers, and flow sampling."""

import pytest
import torch
from einops import rearrange
from parity import load_public_model, load_reference, relative_error

from sparsevid.diffusion.flow import interpolate, velocity
from sparsevid.diffusion.samplers import FLOW_SAMPLERS, SAMPLERS, euler, flow_times, sampler_times
from sparsevid.diffusion.wrappers import with_guidance, with_token_schedule
from sparsevid.sparsity.schedule import paper_schedule, stage_at, table_schedule


@pytest.mark.parametrize(("name", "channels"), [("latte_class", 4), ("dit", 3)])
def test_guidance_equals_the_public_forward_with_cfg(name, channels):
    model, tensors, _ = load_public_model(name)
    scale = load_reference(name)[1]["cfg_scale"]
    half = len(tensors["cfg.x"]) // 2
    x, t, labels = tensors["cfg.x"][:half], tensors["cfg.t"][:half], tensors["cfg.y"][:half]
    x = rearrange(x, "b t c h w -> b c t h w") if x.ndim == 5 else x[:, :, None]
    guided = with_guidance(model, scale, null_label=model.spec.num_classes, channels=channels)
    with torch.no_grad():
        out = guided(x, t, labels=labels)
    out = rearrange(out, "b c t h w -> b t c h w") if name != "dit" else out[:, :, 0]
    assert relative_error(out, tensors["cfg.out"][:half]) <= 1e-5


def test_guidance_of_scale_one_is_no_guidance():
    model, tensors, _ = load_public_model("latte_class")
    x, t, labels = rearrange(tensors["in.x"], "b t c h w -> b c t h w"), tensors["in.t"], tensors["in.y"]
    guided = with_guidance(model, 1.0, null_label=model.spec.num_classes)
    with torch.no_grad():
        assert torch.equal(guided(x, t, labels=labels), model(x, t, labels))


class Conditional:
    """A model that predicts its labels, and remembers how many clips it was called with."""

    def __init__(self) -> None:
        self.batches = []

    def __call__(self, x, t, labels):
        self.batches.append(len(x))
        return labels.view(-1, 1, 1, 1, 1) * torch.ones_like(x)


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 10), ("euler", 10), ("heun", 5)])
def test_guidance_acts_inside_its_interval_alone(sampler, steps):
    """Bounds included, at times that float32 holds inexactly; outside one pass is made, not two."""
    model, x, labels = Conditional(), torch.zeros(3, 4, 1, 2, 2), torch.tensor([0, 1, 2])
    low, high = (333 / 999, 777 / 999) if sampler == "ddim" else (0.2, 0.8)
    guided = with_guidance(model, 3.0, null_label=5, interval=(low, high))
    outputs = []
    SAMPLERS[sampler](lambda x, t, **cond: outputs.append(guided(x, t, **cond)) or outputs[-1], x, steps, labels=labels)
    inside = [low - 1e-9 <= u <= high + 1e-9 for u in sampler_times(sampler, steps)]
    assert 0 < sum(inside) < len(inside)
    assert model.batches == [6 if each else 3 for each in inside]
    for each, output in zip(inside, outputs, strict=True):
        assert output[:, 0, 0, 0, 0].tolist() == ([-10.0, -7.0, -4.0] if each else [0.0, 1.0, 2.0])


def test_guidance_at_all_times_is_the_interval_from_0_to_1():
    model, x, labels = Conditional(), torch.zeros(2, 4, 1, 2, 2), torch.tensor([0, 1])
    always, whole = (with_guidance(model, 2.0, 5, interval=interval) for interval in (None, (0.0, 1.0)))
    assert torch.equal(euler(always, x, 5, labels=labels), euler(whole, x, 5, labels=labels))


def test_channels_that_are_not_guided_keep_the_conditional_prediction():
    model, x, t = Conditional(), torch.zeros(1, 4, 1, 1, 1), torch.zeros(1)
    out = with_guidance(model, 3.0, null_label=5, channels=3)(x, t, labels=torch.tensor([1]))
    assert out.flatten().tolist() == [-7.0, -7.0, -7.0, 1.0]


def test_impossible_guidance_is_refused():
    for interval in ((0.8, 0.2), (-0.1, 0.5), (0.5, 1.5)):
        with pytest.raises(ValueError, match=r"guidance interval is \(low, high\) with 0 ≤ low ≤ high ≤ 1, got"):
            with_guidance(Conditional(), 2.0, 5, interval=interval)
    with pytest.raises(ValueError, match="at least 1 channel, got 0"):
        with_guidance(Conditional(), 2.0, 5, channels=0)
    guided = with_guidance(Conditional(), 2.0, 5, interval=(0.4, 0.6))
    with pytest.raises(ValueError, match="on both sides of the guidance interval"):
        guided(torch.zeros(2, 4, 1, 1, 1), torch.tensor([100.0, 500.0]), labels=torch.tensor([0, 1]))


class Recorder:
    """A model that predicts zero and remembers the grids that it was called with."""

    def __init__(self, channels: int) -> None:
        self.channels, self.calls = channels, []

    def __call__(self, x, t, *, grid):
        self.calls.append((t[0].item() / 999, grid))
        return x.new_zeros(len(x), self.channels, *x.shape[2:])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_model_is_called_with_the_grid_of_the_time(sampler):
    schedule = paper_schedule((8, 16, 16), 2, 0.6, 0.9)
    model, x = Recorder(4 if sampler in FLOW_SAMPLERS else 8), torch.randn(2, 4, 3, 2, 2)
    options = {} if sampler in FLOW_SAMPLERS else {"noise": lambda: torch.randn_like(x)}
    SAMPLERS[sampler](with_token_schedule(model, schedule), x, 20, **options)
    assert [u for u, _ in model.calls] == pytest.approx(sampler_times(sampler, 20), abs=1e-6)
    assert all(grid == schedule.grid(min(u, 1.0)) for u, grid in model.calls)
    tokens = [grid.tokens for _, grid in model.calls]
    assert tokens == sorted(tokens) and len(set(tokens[:5])) == 1 and tokens[0] < tokens[-1]


def test_a_time_at_a_cut_belongs_to_the_stage_below_it():
    """0.8 comes back from float32 as 0.80000001, and 1 − 0.7 is 0.30000000000000004."""
    schedule = table_schedule([(0.3, (8, 8, 8)), (0.8, (4, 4, 4)), (1.0, (2, 2, 2))], (8, 16, 16))
    for steps, expected in ((5, (2, 4, 4, 4, 8)), (10, (2, 2, 4, 4, 4, 4, 4, 8, 8, 8))):
        model, x = Recorder(4), torch.zeros(1, 4, 1, 1, 1)
        euler(with_token_schedule(model, schedule), x, steps)
        assert tuple(grid.t for _, grid in model.calls) == expected
        assert tuple(schedule.stages[stage_at(schedule, u)].grid.t for u in flow_times(steps)) == expected
    assert [stage_at(schedule, u) for u in (0.0, 1.0 + 1e-7)] == [0, 2]
    for outside in (-0.01, 1.01):
        with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
            stage_at(schedule, outside)


def test_a_batch_of_two_stages_is_refused():
    scheduled = with_token_schedule(Recorder(8), paper_schedule((8, 16, 16), 2, 0.6, 0.9))
    with pytest.raises(ValueError, match="different stages"):
        scheduled(torch.zeros(2, 4, 1, 1, 1), torch.tensor([0, 999]))


def test_euler_follows_straight_lines_exactly():
    x0, noise = torch.randn(3, 4, 2, 2, 2, dtype=torch.float64), torch.randn(3, 4, 2, 2, 2, dtype=torch.float64)
    for steps in (1, 3, 10):
        torch.testing.assert_close(euler(lambda x, t: velocity(x0, noise), noise, steps), x0)
    u = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    mixed = interpolate(x0, u, noise)
    torch.testing.assert_close(mixed[0], x0[0])
    torch.testing.assert_close(mixed[1], (x0[1] + noise[1]) / 2)
    torch.testing.assert_close(mixed[2], noise[2])
    assert flow_times(4) == [1.0, 0.75, 0.5, 0.25]
