"""Named models: presets of `ModelSpec`."""

from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from sparsevid.sparsity.spec import ModelSpec

# name: (depth, hidden size, heads, sparse layout), after DiT (arXiv 2212.09748, table 1) and SparseDiT (appendix)
SIZES = {
    "S": (12, 384, 6, "1P 2(1M2S1R1D) 1D"),
    "B": (12, 768, 12, "1P 2(1M2S1R1D) 1D"),
    "L": (24, 1024, 16, "2P 3(1M3S1R1D) 4D"),
    "XL": (28, 1152, 16, "2P 4(1M3S1R1D) 2D"),
}
PATCHES = (2, 4, 8)
VIDEO_SIZE, IMAGE_SIZE = (16, 32, 32), (1, 32, 32)  # latents of 16 frames, or an image, of 256×256 pixels


def _make_presets() -> dict[str, ModelSpec]:
    presets = {}
    for size, (depth, hidden, heads, sparse_layout) in SIZES.items():
        for patch in PATCHES:
            for family, latents, classes in (("Latte", VIDEO_SIZE, 0), ("DiT", IMAGE_SIZE, 1000)):
                dense = ModelSpec(f"{depth}D", hidden, heads, latents, patch_size=patch, num_classes=classes)
                side = max(1, latents[1] // patch // 2)  # half of the dense side: r = 0.75
                grid = (max(1, latents[0] // 4), side, side)
                presets[f"{family}-{size}/{patch}"] = dense
                presets[f"Sparse{family}-{size}/{patch}"] = replace(dense, layout=sparse_layout, sparse_grid=grid)
    return presets


PRESETS = _make_presets()


def build_spec(preset: str, **changes: Any) -> ModelSpec:
    """The spec of a preset, with some of its fields changed.

    Args:
        preset: a name such as `SparseLatte-XL/2`.
        changes: fields of `ModelSpec` to replace.

    Raises:
        KeyError: no such preset; the message lists them.
        ValueError: the changed fields do not fit together, or change the preset's depth.
    """
    if preset not in PRESETS:
        near = get_close_matches(preset, PRESETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise KeyError(f"no preset {preset!r}.{hint} The presets are {', '.join(sorted(PRESETS))}")
    spec = replace(PRESETS[preset], **changes)
    if spec.depth != PRESETS[preset].depth:
        raise ValueError(
            f"layout {spec.layout!r} has {spec.depth} layers, but preset {preset} has {PRESETS[preset].depth}; "
            "change the layout's counts, or set all sizes without a preset"
        )
    return spec
