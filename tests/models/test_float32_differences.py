"""What sparse layers change is small beside the tokens: in bfloat16 it is a difference of float32 tokens, so it is not lost."""

import copy
from dataclasses import replace

import pytest
import torch
from parity import relative_error
from torch import Tensor, nn

from sparsevid.diffusion.samplers import TimedModel, Told, call_at
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.savings import parse_saving, saved
from sparsevid.sparsity.spec import ModelSpec

SPARSE = ModelSpec("1P 2(1M2S1R1D) 1D", 64, 2, (4, 8, 8), sparse_grid=(2, 2, 2), learn_sigma=False)
RESIDUAL = replace(SPARSE, residual_upsampling=True)
T, NEXT_T = torch.tensor([700.0, 300.0]), torch.tensor([650.0, 250.0])
SIZES = [0.02, 0.05]  # of random weights: those of an initialisation, and of a trained model


def rounded(spec: ModelSpec, size: float) -> tuple[DiffusionTransformer, DiffusionTransformer, Tensor, Tensor]:
    """A model in bfloat16, the same weights in float64, and two inputs that are neighbours."""
    generator = torch.Generator().manual_seed(0)
    model = DiffusionTransformer(spec).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=size, generator=generator)
    x = torch.randn(2, 4, 4, 8, 8, generator=generator)
    near = x + 0.1 * torch.randn(x.shape, generator=generator)
    return model.bfloat16(), copy.deepcopy(model).double(), x.bfloat16(), near.bfloat16()


def upsampled(model: DiffusionTransformer) -> list[Tensor]:
    """What each R is given to upsample, at the calls from now on."""
    seen = []
    for kind, block in zip(model.kinds, model.blocks, strict=True):
        if kind == "R":
            block.merged_layer1.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    return seen


def changes(saving: TimedModel) -> list[Tensor]:
    """What the sparse layers of each module changed at the last refresh, as it is kept."""
    ((_, (policy,)),) = saving.call._states.values()
    return [end.double() - start for start, end in policy.kept.values()]


def error(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_residual_upsampling_in_bfloat16(size):
    model, exact, x, _ = rounded(RESIDUAL, size)
    found, expected = upsampled(model), upsampled(exact)
    model(x, T), exact(x.double(), T)
    errors = [error(*pair) for pair in zip(found, expected, strict=True)]
    print("relative errors", errors)
    assert len(errors) == 2 and max(errors) < 0.01


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spec", [SPARSE, RESIDUAL], ids=["plain", "residual"])
@torch.no_grad()
def test_steps_in_bfloat16(spec, size):
    """Of what is carried from call to call, and, where the difference is upsampled, of that at the call that reuses."""
    model, exact, x, near = rounded(spec, size)
    saving, exact_saving = (saved(each, parse_saving("steps:every=2")) for each in (model, exact))
    call_at(saving, x, T, Told(0.7)), call_at(exact_saving, x.double(), T, Told(0.7))
    errors = [error(a, b) for a, b in zip(changes(saving), changes(exact_saving), strict=True)]
    found, expected = upsampled(model), upsampled(exact)
    call_at(saving, near, NEXT_T, Told(0.6)), call_at(exact_saving, near.double(), NEXT_T, Told(0.6))
    errors += [error(*pair) for pair in zip(found, expected, strict=True)]
    print("relative errors", errors)
    assert len(errors) == 4 and max(errors) < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@torch.no_grad()
def test_only_what_is_subtracted_is_wider(dtype):
    narrow, wider = ([], ["static:every=2"]), ["steps:every=2"]
    for spec, saving, wide in (*((SPARSE, each, False) for each in narrow), (RESIDUAL, [], True), (SPARSE, wider, True)):
        model = DiffusionTransformer(spec).eval().to(dtype)
        seen = {}
        for kind, block in zip(model.kinds, model.blocks, strict=True):
            block.register_forward_hook(lambda _, args, out, kind=kind, seen=seen: seen.update({kind: out.dtype}))
        called = saved(model, [parse_saving(each) for each in saving])
        out = call_at(called, torch.randn(1, 4, 4, 8, 8, dtype=dtype), T[:1], Told(0.7))
        sparse = torch.promote_types(dtype, torch.float32) if wide else dtype
        assert seen == {"P": dtype, "M": sparse, "S": sparse, "R": dtype, "D": dtype}
        assert out.dtype == dtype


def test_gradients_in_bfloat16_are_those_of_float64():
    model, exact, x, _ = rounded(RESIDUAL, 0.05)
    for each in (model, exact):
        each(x.to(next(each.parameters()).dtype), T).float().square().mean().backward()
    for (name, one), other in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert one.grad.dtype == torch.bfloat16
        assert error(one.grad.double(), other.grad) < 0.1, name


@torch.no_grad()
def test_a_graph_of_float32_tokens_is_the_model_s():
    model, _, x, _ = rounded(replace(RESIDUAL, layout="1P 1(1M1S1R1D)"), 0.05)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    assert relative_error(compiled(x, T).float(), model(x, T).float()) <= 3e-2
    torch.compiler.reset()
