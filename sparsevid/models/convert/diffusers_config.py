"""config.json of diffusers' transformers ↔ our spec: of PixArt-α, Latte-1 and DiT.

Of their classes these folders use what their published models use; any other value is refused by name, and so is a key that
none of the three had.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sparsevid.models.presets import text_spec
from sparsevid.sparsity.spec import NORM_EPS, ModelSpec

PIXART, LATTE, DIT = "PixArtTransformer2DModel", "LatteTransformer3DModel", "DiTTransformer2DModel"
OLD = "Transformer2DModel"  # of older folders of PixArt and DiT, which their norm tells apart
NORMS = {PIXART: "ada_norm_single", LATTE: "ada_norm_single", DIT: "ada_norm_zero"}
# Where a folder leaves a key out, the class has these.
USUAL = {
    PIXART: {"num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28,
             "sample_size": 128, "patch_size": 2, "norm_eps": 1e-6, "attention_bias": True,
             "activation_fn": "gelu-approximate", "norm_elementwise_affine": False, "norm_type": "ada_norm_single",
             "cross_attention_dim": 1152, "num_embeds_ada_norm": 1000},
    LATTE: {"num_attention_heads": 16, "attention_head_dim": 88, "num_layers": 1, "sample_size": 64, "norm_eps": 1e-5,
            "attention_bias": False, "activation_fn": "geglu", "norm_elementwise_affine": True, "norm_type": "layer_norm",
            "video_length": 16},
    DIT: {"num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "num_layers": 28, "sample_size": 32,
          "patch_size": 2, "norm_eps": 1e-5, "attention_bias": True, "activation_fn": "gelu-approximate",
          "norm_elementwise_affine": False, "norm_type": "ada_norm_zero", "num_embeds_ada_norm": 1000},
}  # fmt: skip
NEEDED = {"activation_fn": "gelu-approximate", "attention_bias": True, "norm_elementwise_affine": False}
# Of no effect, or, in older folders, of parts that these models do not have: at these values alone.
OTHERS = {
    "dropout": None, "norm_num_groups": None, "upcast_attention": None, "attention_type": ("default", None),
    "use_linear_projection": (False, None), "num_vector_embeds": (None,), "only_cross_attention": (False, None),
    "double_self_attention": (False, None),
}  # fmt: skip
SIZES = ("num_attention_heads", "attention_head_dim", "in_channels", "num_layers", "sample_size", "patch_size")
OPTIONAL = ("out_channels", "cross_attention_dim", "caption_channels", "num_embeds_ada_norm", "video_length",
            "interpolation_scale", "use_additional_conditions")  # fmt: skip


def class_of(config: Mapping[str, Any]) -> str:
    """The class that a folder's config is of.

    Raises:
        ValueError: another one.
    """
    name, norm = config.get("_class_name"), str(config.get("norm_type"))
    if name == OLD:
        name = {"ada_norm_single": PIXART, "ada_norm_zero": DIT}.get(norm, f"{OLD} with norm_type {norm!r}")
    if name not in NORMS:
        raise ValueError(f"config.json is of {name}; accepted are {', '.join(NORMS)}")
    return name


def spec_of(config: Mapping[str, Any], *, original_dit: bool = False) -> ModelSpec:
    """The spec of a folder's model, which computes what diffusers does.

    Args:
        config: what config.json holds.
        original_dit: let a DiT compute as the original does, which public weights were trained by. diffusers' has other
            frequencies of time, another ε in the norm before MLPs, and positions that follow the side.

    Raises:
        ValueError: a model of another class, a key that none has, or a value that ours cannot express; the message names it.
    """
    kind = class_of(config)
    known = {*USUAL[kind], *NEEDED, *OTHERS, *SIZES, *OPTIONAL}
    if unknown := sorted(name for name in config if name not in known and not name.startswith("_")):
        raise ValueError(f"config.json of {kind} has keys that are not known: {', '.join(unknown)}")
    values = {**dict.fromkeys((*SIZES, *OPTIONAL)), **USUAL[kind], **config}
    _check(kind, values)
    hidden = values["num_attention_heads"] * values["attention_head_dim"]
    sample, channels = values["sample_size"], values["in_channels"]
    shared = {"in_channels": channels, "patch_size": values["patch_size"], "norm_eps": values["norm_eps"]}
    shared["learn_sigma"] = _learns_sigma(channels, values["out_channels"])
    if kind == DIT:
        spec = ModelSpec(
            f"{values['num_layers']}D",
            hidden,
            values["num_attention_heads"],
            (1, sample, sample),
            num_classes=values["num_embeds_ada_norm"],
            position_base=sample // values["patch_size"],
            frequency_shift=1,
            **shared,
        )
        return replace(spec, position_base=None, frequency_shift=0, norm_eps=NORM_EPS) if original_dit else spec
    if original_dit:
        raise ValueError(f"the folder is of {kind}, and no DiT whose original could be meant")
    if kind == PIXART:
        given = values["use_additional_conditions"]
        shared["micro_conditions"] = sample == 128 if given is None else given
    frames, layers = (values["video_length"], 2 * values["num_layers"]) if kind == LATTE else (1, values["num_layers"])
    heads, captions = values["num_attention_heads"], values["caption_channels"]
    spec = text_spec(f"{layers}D", hidden, heads, sample, frames, text_channels=captions, **shared)
    scale = values["interpolation_scale"]
    return spec if scale is None else replace(spec, position_scale=float(scale))


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """config.json of the class of diffusers that holds a dense model; the inverse of `spec_of`.

    Raises:
        ValueError: a spec that no class can express; the message says why.
    """
    kind = _kind_for(spec)
    base = spec.position_base or spec.dense_grid().h
    config: dict[str, Any] = {
        "_class_name": kind,
        "num_attention_heads": spec.num_heads,
        "attention_head_dim": spec.hidden_size // spec.num_heads,
        "in_channels": spec.in_channels,
        "out_channels": spec.out_channels,
        "num_layers": spec.depth // 2 if kind == LATTE else spec.depth,
        "sample_size": base * spec.patch_size,
        "patch_size": spec.patch_size,
        "norm_type": NORMS[kind],
        "norm_eps": spec.norm_eps,
        "num_embeds_ada_norm": spec.num_classes or 1000,
        **NEEDED,
    }
    if kind == DIT:
        return config
    config |= {"cross_attention_dim": spec.hidden_size, "caption_channels": spec.text_channels}
    if kind == LATTE:
        return config | {"video_length": spec.input_size[0]}
    usual = float(max(config["sample_size"] // 64, 1)) == spec.position_scale
    scale = None if usual else spec.position_scale
    return config | {"interpolation_scale": scale, "use_additional_conditions": spec.micro_conditions}


def _check(kind: str, values: Mapping[str, Any]) -> None:
    """Raise ValueError for a value that our layers do not have."""
    for name, needed in (*NEEDED.items(), ("norm_type", NORMS[kind])):
        if values[name] != needed:
            raise ValueError(f"config.json of {kind} has {name} = {values[name]!r}; accepted is {needed!r}")
    for name, accepted in OTHERS.items():
        if accepted is not None and values.get(name) not in (None, *accepted):
            raise ValueError(f"config.json of {kind} has {name} = {values[name]!r}; accepted is {accepted[0]!r}")
    whole = [
        *SIZES,
        *{PIXART: ["caption_channels"], LATTE: ["caption_channels", "video_length"], DIT: ["num_embeds_ada_norm"]}[kind],
    ]
    for name in whole:
        if not isinstance(values[name], int) or values[name] < 1:
            raise ValueError(f"config.json of {kind} has {name} = {values[name]!r}; accepted are whole numbers from 1")
    hidden = values["num_attention_heads"] * values["attention_head_dim"]
    if kind != DIT and values["cross_attention_dim"] != hidden:
        raise ValueError(
            f"config.json of {kind} has cross_attention_dim = {values['cross_attention_dim']!r}; accepted is {hidden}"
        )
    if kind == LATTE and values["video_length"] < 2:
        raise ValueError(f"config.json of {kind} has video_length = {values['video_length']}; a model of videos has at least 2")


def _learns_sigma(channels: int, out_channels: int | None) -> bool:
    if out_channels not in (None, channels, 2 * channels):
        raise ValueError(
            f"config.json has out_channels = {out_channels}; accepted are those of the latents, {channels}, or, with a "
            f"variance, {2 * channels}"
        )
    return out_channels == 2 * channels


def _kind_for(spec: ModelSpec) -> str:
    """The class that holds such a model."""
    if spec.parsed_layout.kinds.strip("D"):
        raise ValueError(f"diffusers has dense models alone: layout {spec.depth}D, found {spec.layout!r}")
    if spec.mlp_ratio != 4.0:
        raise ValueError(f"diffusers' transformers have an MLP of 4·D channels, found mlp_ratio {spec.mlp_ratio}")
    if spec.text_channels and spec.shared_modulation and spec.position_base:
        kind = LATTE if spec.is_video else PIXART
        usual = max(spec.position_base * spec.patch_size // 64, 1)
        if kind == LATTE and (spec.micro_conditions or spec.depth % 2 or spec.position_scale != usual):
            raise ValueError(
                f"{LATTE} has pairs of layers, no sizes as conditions, and position_scale {usual} for this position_base; "
                f"found {spec.depth} layers, micro_conditions {spec.micro_conditions}, position_scale {spec.position_scale}"
            )
        return kind
    of_dit = spec.num_classes and spec.no_class and not spec.is_video and not spec.shared_modulation
    if of_dit and spec.position_scale == 1.0 and not spec.micro_conditions:
        if spec.position_base is None and spec.input_size[1] != spec.input_size[2]:
            raise ValueError(f"{DIT} is of square latents, found {spec.input_size[1]}×{spec.input_size[2]}")
        return DIT
    raise ValueError(
        f"diffusers has no class for this model: {PIXART} and {LATTE} are of text, with modulation that layers share and a "
        f"position_base, {DIT} of images with classes and 'no class'; found {spec.to_dict()}"
    )
