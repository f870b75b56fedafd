"""Named models: presets of `ModelSpec`, and the pruning rates that go with the sparse ones."""

from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.schedule import TokenSchedule, default_frames, paper_schedule
from sparsevid.sparsity.spec import ModelSpec

# name: (depth, hidden size, heads, sparse layout), after DiT (arXiv 2212.09748, table 1) and SparseDiT (appendix)
SIZES = {
    "S": (12, 384, 6, "1P 2(1M2S1R1D) 1D"),
    "B": (12, 768, 12, "1P 2(1M2S1R1D) 1D"),
    "L": (24, 1024, 16, "2P 3(1M3S1R1D) 4D"),
    "XL": (28, 1152, 16, "2P 4(1M3S1R1D) 2D"),
}
PATCHES = (2, 4, 8)
VIDEO_SIZE, IMAGE_SIZE, LARGE_IMAGE_SIZE = (16, 32, 32), (1, 32, 32), (1, 64, 64)  # latents of 256² video, 256² and 512² images
# Pruning rates (r_min, r_max) inside a frame. Video: sides of a half to a quarter of the dense side.
VIDEO_RATES, IMAGE_RATES = (0.75, 0.9375), (0.61, 0.86)
# Models of text: name: (pixels of a side, frames, layers, sparse layout, rates). Latents have an eighth of the side.
TEXT = {
    "PixArt-XL/2-256": (256, 1, 28, "2P 4(1M3S1R1D) 2D", IMAGE_RATES),
    "PixArt-XL/2-512": (512, 1, 28, "2P 4(1M3S1R1D) 2D", IMAGE_RATES),
    "PixArt-XL/2-1024": (1024, 1, 28, "2P 4(1M3S1R1D) 2D", IMAGE_RATES),
    # Pairs of layers take the place of layers: twice as many, in as many modules, with M and R where layers listen.
    "Latte-1": (512, 16, 56, "4P 4(1M7S1R3D) 4D", VIDEO_RATES),
}
T5_CHANNELS = 4096  # of T5 v1.1 XXL
# Published settings (SparseDiT, tables 1 and 2) beside the default one: name: (like, input size, rates)
PUBLISHED = {
    "SparseDiT-XL/2-r44": ("SparseDiT-XL/2", IMAGE_SIZE, (0.44, 0.61)),
    "SparseDiT-XL/2-512": ("SparseDiT-XL/2", LARGE_IMAGE_SIZE, (0.61, 0.86)),
    "SparseDiT-XL/2-512-r90": ("SparseDiT-XL/2", LARGE_IMAGE_SIZE, (0.90, 0.96)),
}


def _schedule(size: tuple[int, int, int], patch: int, rates: tuple[float, float]) -> TokenSchedule:
    t, height, width = size
    return paper_schedule(Grid(t, height // patch, width // patch), default_frames(t), *rates)


def _make_presets() -> tuple[dict[str, ModelSpec], dict[str, tuple[float, float]]]:
    presets, rates = {}, {}
    for size, (depth, hidden, heads, sparse_layout) in SIZES.items():
        for patch in PATCHES:
            families = (("Latte", VIDEO_SIZE, 0, VIDEO_RATES), ("DiT", IMAGE_SIZE, 1000, IMAGE_RATES))
            for family, latents, classes, family_rates in families:
                name = f"{family}-{size}/{patch}"
                dense = ModelSpec(f"{depth}D", hidden, heads, latents, patch_size=patch, num_classes=classes)
                grid = _schedule(latents, patch, family_rates).stages[0].grid
                presets[name] = dense
                presets[f"Sparse{name}"] = replace(dense, layout=sparse_layout, sparse_grid=grid)
                rates[f"Sparse{name}"] = family_rates
    presets["DiT-XL/2-512"] = replace(presets["DiT-XL/2"], input_size=LARGE_IMAGE_SIZE)
    for name, (like, latents, published_rates) in PUBLISHED.items():
        grid = _schedule(latents, presets[like].patch_size, published_rates).stages[0].grid
        presets[name] = replace(presets[like], input_size=latents, sparse_grid=grid)
        rates[name] = published_rates
    for name, (side, frames, depth, sparse_layout, text_rates) in TEXT.items():
        presets[name] = dense = text_spec(f"{depth}D", 1152, 16, side // 8, frames)
        grid = _schedule(dense.input_size, dense.patch_size, text_rates).stages[0].grid
        presets[f"Sparse{name}"] = replace(dense, layout=sparse_layout, sparse_grid=grid)
        rates[f"Sparse{name}"] = text_rates
    return presets, rates


def text_spec(layout: str, hidden_size: int, num_heads: int, sample_size: int, frames: int = 1, **others: Any) -> ModelSpec:
    """The spec of a model of PixArt-α's kind, or of Latte-1's if it has more than one frame.

    Args:
        layout, hidden_size, num_heads: as of `ModelSpec`.
        sample_size: side of the latents that it was trained on, from which these models take base and scale of positions, and,
            images at 128, that sizes of pictures are conditions.
        frames: of a clip.
        others: further fields, in place of PixArt's.
    """
    options = {"patch_size": 2, "text_channels": T5_CHANNELS, "micro_conditions": frames == 1 and sample_size == 128} | others
    return ModelSpec(
        layout,
        hidden_size,
        num_heads,
        (frames, sample_size, sample_size),
        shared_modulation=True,
        position_base=sample_size // options["patch_size"],
        position_scale=max(sample_size // 64, 1),
        **options,
    )


PRESETS, RATES = _make_presets()


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


def preset_rates(preset: str | None) -> tuple[float, float]:
    """(r_min, r_max) of a preset's token schedule; without a sparse preset those for video."""
    return RATES.get(preset or "", VIDEO_RATES)


def preset_schedule(preset: str) -> TokenSchedule:
    """The token schedule of a sparse preset at its own input size.

    Raises:
        KeyError: no such preset.
        ValueError: the preset is dense.
    """
    spec = build_spec(preset)
    if not spec.is_sparse:
        raise ValueError(f"preset {preset} is dense and has no token schedule")
    return _schedule(spec.input_size, spec.patch_size, preset_rates(preset))
