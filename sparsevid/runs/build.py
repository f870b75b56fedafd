"""From a run's configuration to the spec and token schedule it names: what training and sampling share."""

from typing import Any, NamedTuple

from sparsevid.models.presets import PRESETS, build_spec, preset_rates
from sparsevid.runs.config import ConfigError, ModelConfig, RunConfig, ScheduleConfig
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.layout import parse_layout
from sparsevid.sparsity.schedule import TokenSchedule, default_frames, paper_schedule, table_schedule
from sparsevid.sparsity.spec import ModelSpec


class TextSize(NamedTuple):
    """What prompts of a run's captions are: tokens, and channels of their features."""

    tokens: int
    channels: int


def spec_from_config(
    config: RunConfig,
    *,
    input_size: tuple[int, int, int],
    in_channels: int,
    num_classes: int,
    learn_sigma: bool,
    text: TextSize | None = None,
) -> ModelSpec:
    """The spec of a run's model; what follows from data, autoencoder and objective is passed in.

    Args:
        config: of the run.
        input_size: (frames, height, width) of the latents.
        in_channels: of the latents.
        num_classes: of the data; with captions their classes are names only.
        learn_sigma: whether the objective learns a variance.
        text: of the captions; None for a run without.

    Raises:
        ConfigError: neither a preset nor all sizes are given, or what is given does not go with the data.
        KeyError, ValueError: as `build_spec` and `ModelSpec`.
    """
    model = config.model
    names = ("layout", "hidden_size", "num_heads", "patch_size", "mlp_ratio")
    values = {name: getattr(model, name) for name in names if getattr(model, name) is not None}
    _check_text(model, text is not None)
    if model.preset is not None:
        preset = build_spec(model.preset)
        _check_preset(model.preset, preset, text is not None, input_size[0])
        values = {name: getattr(preset, name) for name in names} | values
    missing = [name for name in ("layout", "hidden_size", "num_heads", "patch_size") if name not in values]
    if missing:
        raise ConfigError(f"give model.preset, or all sizes: missing are {', '.join(f'model.{name}' for name in missing)}")
    layout = parse_layout(values["layout"], allow_no_dense=model.allow_no_dense)
    grid = None
    if layout.is_sparse:
        t, height, width = input_size
        dense = Grid(t, max(1, height // values["patch_size"]), max(1, width // values["patch_size"]))
        grid = schedule_from_config(config.schedule, dense, model.preset).stages[0].grid
    values |= {
        "input_size": input_size,
        "in_channels": in_channels,
        "num_classes": 0 if text else num_classes,
        "learn_sigma": learn_sigma,
        "sparse_grid": grid,
        "transition_positions": model.transition_positions,
        "residual_upsampling": model.residual_upsampling,
        "allow_no_dense": model.allow_no_dense,
        **_text_values(model, text),
    }
    return build_spec(model.preset, **values) if model.preset is not None else ModelSpec(**values)


def _text_values(model: ModelConfig, text: TextSize | None) -> dict[str, Any]:
    """Fields of the spec that belong to a model of text, and how layers are modulated. What is left out is the preset's."""
    values: dict[str, Any] = {}
    if text is not None:
        values = {"text_tokens": text.tokens, "text_channels": text.channels, "null_caption": True}
    if model.merge_text is not None:
        values["merge_text"] = model.merge_text
    if model.shared_modulation is not None:
        values["shared_modulation"] = model.shared_modulation
    elif model.preset is None:
        values["shared_modulation"] = text is not None
    return values


def _check_text(model: ModelConfig, has_captions: bool) -> None:
    if model.merge_text is not None and not has_captions:
        raise ConfigError(f"model.merge_text = {model.merge_text} is of models of text, and data.captions is not given")


def _check_preset(name: str, preset: ModelSpec, has_captions: bool, frames: int) -> None:
    """Raise ConfigError where a preset is conditioned on something else than the data have, or is of another kind of clips."""
    of_text = [each for each in PRESETS if PRESETS[each].text_channels]
    if preset.text_channels and not has_captions:
        raise ConfigError(
            f"model.preset = {name} is of text, and data.captions is not given: name the folder that `sparsevid "
            "encode_captions` wrote for these data, or take a preset without text, such as DiT-XL/2 or Latte-XL/2"
        )
    if has_captions and not preset.text_channels:
        raise ConfigError(
            f"data.captions is given, and model.preset = {name} hears no text: take one of {', '.join(of_text)}, or "
            "model.layout, hidden_size, num_heads and patch_size without a preset"
        )
    if not preset.is_video and frames > 1:
        raise ConfigError(
            f"model.preset = {name} is of images, and clips have {frames} frames: take data.frames=1, or a preset of videos, "
            "such as Latte-XL/2, or with captions Latte-1"
        )
    if preset.text_channels and preset.is_video and frames == 1:
        raise ConfigError(
            f"model.preset = {name} is of videos, every other layer of it works over frames, and clips have 1: take a "
            "preset of images, such as PixArt-XL/2-256, or data.frames from 2"
        )


def schedule_from_config(config: ScheduleConfig, dense: Grid, preset: str | None = None) -> TokenSchedule:
    """The token schedule of a run, for a grid of dense tokens; rates that the config leaves open are the preset's.

    Raises:
        ConfigError: the kind lacks its grid or table.
        ValueError: rates or grids that do not fit.
    """
    if config.kind == "paper":
        r_min, r_max = preset_rates(preset)
        r_min = r_min if config.r_min is None else config.r_min
        r_max = r_max if config.r_max is None else config.r_max
        table = [(row[0], row[1]) for row in config.frames_table] if config.frames_table else None
        frames = default_frames(dense.t) if config.frames is None else config.frames
        return paper_schedule(dense, table or frames, r_min, r_max)
    if config.kind == "constant":
        if config.grid is None or len(config.grid) != 3:
            raise ConfigError(f"schedule.kind=constant needs schedule.grid=[t,h,w], got {config.grid}")
        return table_schedule([(1.0, config.grid)], dense)
    if not config.table:
        raise ConfigError("schedule.kind=table needs schedule.table, rows [u up to which, [t, h, w]]")
    return table_schedule([(row[0], row[1]) for row in config.table], dense)
