"""Guidance and the token schedule as wrappers, and flow sampling."""

import pytest
import torch
from einops import rearrange
from parity import load_public_model, load_reference, relative_error

from sparsevid.diffusion.flow import interpolate, velocity
from sparsevid.diffusion.samplers import ddim, ddpm, euler, flow_times, sampler_times
from sparsevid.diffusion.wrappers import with_guidance, with_token_schedule
from sparsevid.sparsity.schedule import paper_schedule


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


class Recorder:
    """A model that predicts zero and remembers the grids that it was called with."""

    def __init__(self, channels: int) -> None:
        self.channels, self.calls = channels, []

    def __call__(self, x, t, *, grid):
        self.calls.append((t[0].item() / 999, grid))
        return x.new_zeros(len(x), self.channels, *x.shape[2:])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "euler"])
def test_the_model_is_called_with_the_grid_of_the_time(sampler):
    schedule = paper_schedule((8, 16, 16), 2, 0.6, 0.9)
    model, x = Recorder(4 if sampler == "euler" else 8), torch.randn(2, 4, 3, 2, 2)
    options = {} if sampler == "euler" else {"noise": lambda: torch.randn_like(x)}
    {"ddpm": ddpm, "ddim": ddim, "euler": euler}[sampler](with_token_schedule(model, schedule), x, 20, **options)
    assert len(model.calls) == 20
    assert [u for u, _ in model.calls] == pytest.approx(sampler_times(sampler, 20), abs=1e-6)
    assert all(grid == schedule.grid(min(u, 1.0)) for u, grid in model.calls)
    tokens = [grid.tokens for _, grid in model.calls]
    assert tokens == sorted(tokens) and len(set(tokens[:5])) == 1 and tokens[0] < tokens[-1]


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
