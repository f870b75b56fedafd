"""Tokens are contiguous, (B, T, N, D) or (B, t, n, D), wherever a layer reads them: no norm copies them."""

from dataclasses import replace

import pytest
import torch
from fake_gpu import fake_gpu
from parity import randomise, relative_error
from torch import Tensor

from sparsevid.diffusion.samplers import Told, call_at
from sparsevid.models.blocks import Head, Layer
from sparsevid.models.embeddings import PatchEmbedding
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.savings import parse_saving, saved
from sparsevid.sparsity.spec import ModelSpec

SPARSE = ModelSpec("2P 2(1M2S1R1D) 2D", 32, 2, (4, 8, 12), sparse_grid=(2, 3, 4))
SPECS = {
    "sparse": SPARSE,
    "dense": SPARSE.dense(),
    "residual": replace(SPARSE, residual_upsampling=True),
    "classes": replace(SPARSE, num_classes=3),
    "two M, public": replace(SPARSE, layout="2P 1(2M2S1R1D) 6D", transition_positions=False),
    "image": ModelSpec("2P 1(1M1S1R1D) 2D", 32, 2, (1, 8, 12), sparse_grid=(1, 3, 4), num_classes=3),
}
CALLS = {
    "plain": {},
    "all tokens": {"grid": (4, 4, 6)},
    "one token": {"grid": (1, 1, 1)},
    "stills": {"images": 2},
    "steps": {"saving": "steps:every=2"},
    "static": {"saving": "static:every=2"},
}


def watch(model: DiffusionTransformer) -> list[tuple[str, tuple, tuple, bool]]:
    """From now on: name, shape, strides and contiguity of all tokens that go into layers and head and come out of a layer."""
    seen = []

    def note(name: str, tensors) -> None:
        seen.extend(
            (name, tuple(x.shape), x.stride(), x.is_contiguous()) for x in tensors if isinstance(x, Tensor) and x.ndim == 4
        )

    for name, module in model.named_modules():
        if isinstance(module, Layer | Head):
            module.register_forward_pre_hook(lambda _, args, name=name: note(f"into {name}", args))
        if isinstance(module, Layer | PatchEmbedding):
            module.register_forward_hook(lambda _, args, out, name=name: note(f"out of {name}", [out]))
    return seen


def run(spec: ModelSpec, call: dict, device: str) -> None:
    """A call with these options, and with a saving one more, which leaves something out."""
    frames, options = spec.input_size[0] + call.get("images", 0), dict(call)
    if not spec.is_sparse:
        options.pop("grid", None)
        options |= {"saving": "static:every=2"} if "saving" in options else {}
    elif not spec.is_video and "grid" in options:
        options["grid"] = (1, *options["grid"][1:])
    with torch.device(device):
        model = DiffusionTransformer(spec).eval()
        x, t = torch.randn(2, 4, frames, *spec.input_size[1:]), torch.tensor([3, 700])
        labels = torch.zeros(2, *[frames - spec.input_size[0] + 1] * ("images" in call), dtype=torch.long)
    seen, saving = watch(model), options.pop("saving", None)
    called = model if saving is None else saved(model, parse_saving(saving))
    for _ in range(1 if saving is None else 2):
        call_at(called, x, t, Told(0.5), labels=labels if spec.num_classes else None, **options)
    layers = {name.split()[-1] for name, *_ in seen}
    assert layers == {"x_embedder", "final_layer", *(f"blocks.{i}" for i in range(spec.depth))}
    assert [each for each in seen if not each[-1]] == []


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tokens_are_contiguous_before_and_after_every_layer(spec, call):
    with torch.no_grad():
        run(spec, call, "cpu")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_tokens_are_contiguous_on_a_gpu(call):
    """As PyTorch says strides are there, where kernels differ from the CPU's."""
    with fake_gpu(), torch.no_grad():
        run(SPARSE, call, "cuda")
        run(SPARSE.dense(), call, "cuda")


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_times_the_weight_are_the_convolution(patch):
    embed = randomise(PatchEmbedding(3, 16, patch))
    assert {name: tuple(value.shape) for name, value in embed.state_dict().items()} == {
        "proj.weight": (16, 3, patch, patch),
        "proj.bias": (16,),
    }
    x = torch.randn(2, 3, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    frames = x.transpose(1, 2).flatten(0, 1)
    by_convolution = torch.nn.functional.conv2d(frames, embed.proj.weight, embed.proj.bias, stride=patch)
    tokens = by_convolution.flatten(2).mT.unflatten(0, (2, 4))
    assert relative_error(embed(x), tokens) <= 1e-6
    channels_last = x.flatten(0, 1).to(memory_format=torch.channels_last).view_as(x)
    assert embed(channels_last).is_contiguous() and relative_error(embed(channels_last), tokens) <= 1e-6
