"""Public state dicts for tests: those of the reference files, and small ones of random weights."""

import re

import torch
from einops import rearrange
from parity import load_reference

from sparsevid.models.convert.conversion import expected_shapes
from sparsevid.models.convert.public import to_public
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.sparsity.spec import ModelSpec

# file: (prefix of its weights, family)
FILES = {
    "latte_uncond": ("sd.", "latte"),
    "latte_class": ("sd.", "latte"),
    "dit": ("sd.", "dit"),
    "sparsedit": ("sd.", "sparsedit"),
    "dit_to_sparsedit": ("dense.", "dit"),
}


def public_weights(name: str) -> tuple[dict, dict, dict]:
    """Official state dict of a reference file, its other tensors, and the constructor's arguments of the model."""
    tensors, config = load_reference(name)
    prefix = FILES[name][0]
    weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return weights, tensors, config.get("dense", config)


def run_model(weights: dict, spec: ModelSpec, tensors: dict) -> torch.Tensor:
    """Our output for a reference file's input, in its order of axes."""
    model = DiffusionTransformer(spec).eval()
    model.load_state_dict(weights, strict=True)
    x, labels = tensors["in.x"], tensors.get("in.y")
    with torch.no_grad():
        if x.ndim == 4:
            return model(x[:, :, None], tensors["in.t"], labels)[:, :, 0]
        out = model(rearrange(x, "b t c h w -> b c t h w"), tensors["in.t"], labels)
    return rearrange(out, "b c t h w -> b t c h w")


def same(first: dict, second: dict) -> bool:
    """Whether two state dicts have the same names and bits."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def split(weights: dict) -> dict:
    """The same state dict with q, k and v apart, in layers with fused qkv and in those with q and kv."""
    apart = {}
    for name, value in weights.items():
        joint = re.fullmatch(r"(.+\.attn)\.(qkv|kv)\.(\w+)", name)
        parts = value.chunk(len(joint[2])) if joint else (value,)
        names = [f"{joint[1]}.{part}.{joint[3]}" for part in joint[2]] if joint else [name]
        apart |= dict(zip(names, parts, strict=True))
    return apart


def small_state(spec: ModelSpec, family: str, seed: int = 0) -> dict:
    """A public state dict of random weights."""
    generator = torch.Generator().manual_seed(seed)
    return to_public({name: torch.randn(s, generator=generator) for name, s in expected_shapes(spec).items()}, spec, family)
