"""A sparse model from a dense one. Tensors that do not change are passed on, not copied."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsevid.models.convert.conversion import Change, ConversionReport, check_weights, expected_shapes, with_own_storage
from sparsevid.sparsity.spec import ModelSpec

_PART = re.compile(r"(?P<attn>.+\.attn)\.(?P<part>q|kv|v)\.(?P<kind>weight|bias)")


def dense_to_sparse(
    weights: Mapping[str, Tensor], dense_spec: ModelSpec, sparse_spec: ModelSpec
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Initialise a sparse model from a dense one, layer i from layer i (as SparseDiT does).

    P takes V and proj of the dense attention and drops Q and K; M and R take Q as q, K and V as kv. R's merge starts with
    W1 = 0 (1 with residual upsampling), W2 = 1. All else, what listens to text too, has the same name in both models.

    Args:
        weights: all weights of the dense model, under our names.
        dense_spec: its spec; all its layers are D.
        sparse_spec: the spec to convert to. It may differ from the dense one in layout and what belongs to it, and in the input
            size, as long as both are for images or both for videos.

    Returns:
        The weights of the sparse model, which safetensors can write, and a report.

    Raises:
        ValueError: the first model is not dense, the two differ in more than the above, or keys do not fit the dense spec.
    """
    _check_convertible(dense_spec, sparse_spec)
    check_weights(weights, expected_shapes(dense_spec))
    sparse: dict[str, Tensor] = {}
    dropped: list[Change] = []
    initialised: list[Change] = []
    for name, shape in expected_shapes(sparse_spec).items():
        if name in weights:
            sparse[name] = weights[name]
        elif part := _PART.fullmatch(name):
            joint = f"{part['attn']}.qkv.{part['kind']}"
            q, k, v = weights[joint].chunk(3)
            sparse[name] = {"q": q, "kv": torch.cat([k, v]), "v": v}[part["part"]]
            if part["part"] == "v":
                dropped.append(Change(f"{joint} (q, k)", "a pooling layer has no queries and keys"))
        else:
            identity = name.endswith("2.weight") or (name.endswith("1.weight") and sparse_spec.residual_upsampling)
            sparse[name] = (torch.eye(shape[0]) if identity else torch.zeros(shape)).to(weights["x_embedder.proj.weight"])
            initialised.append(Change(name, "identity" if identity else "zero"))
    return with_own_storage(sparse), ConversionReport(len(sparse) - len(initialised), tuple(dropped), tuple(initialised))


def _check_convertible(dense: ModelSpec, sparse: ModelSpec) -> None:
    if dense.parsed_layout.kinds.strip("D"):
        raise ValueError(f"a sparse model is made from a dense one, layout {dense.depth}D; found {dense.layout!r}")
    fields = (
        "depth",
        "hidden_size",
        "num_heads",
        "in_channels",
        "patch_size",
        "mlp_ratio",
        "num_classes",
        "no_class",
        "learn_sigma",
        "text_channels",
        "text_tokens",
        "null_caption",
        "shared_modulation",
        "micro_conditions",
        "position_base",
        "position_scale",
        "norm_eps",
        "frequency_shift",
    )
    compared = {field: (getattr(dense, field), getattr(sparse, field)) for field in (*fields, "is_video")}
    differing = [f"{field} is {a!r} in the dense and {b!r} in the sparse one" for field, (a, b) in compared.items() if a != b]
    if differing:
        raise ValueError(f"the two models differ in more than their layers: {'; '.join(differing)}")
