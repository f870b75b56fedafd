"""From a run's configuration to the spec and token schedule it names: what training and sampling share."""

from sparsevid.models.presets import build_spec, preset_rates
from sparsevid.runs.config import ConfigError, RunConfig, ScheduleConfig
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.layout import parse_layout
from sparsevid.sparsity.schedule import TokenSchedule, default_frames, paper_schedule, table_schedule
from sparsevid.sparsity.spec import ModelSpec


def spec_from_config(
    config: RunConfig, *, input_size: tuple[int, int, int], in_channels: int, num_classes: int, learn_sigma: bool
) -> ModelSpec:
    """The spec of a run's model; what follows from data, autoencoder and objective is passed in.

    Raises:
        ConfigError: neither a preset nor all sizes are given.
        KeyError, ValueError: as `build_spec` and `ModelSpec`.
    """
    model = config.model
    names = ("layout", "hidden_size", "num_heads", "patch_size", "mlp_ratio")
    values = {name: getattr(model, name) for name in names if getattr(model, name) is not None}
    if model.preset is not None:
        preset = build_spec(model.preset)
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
        "num_classes": num_classes,
        "learn_sigma": learn_sigma,
        "sparse_grid": grid,
        "transition_positions": model.transition_positions,
        "residual_upsampling": model.residual_upsampling,
        "allow_no_dense": model.allow_no_dense,
    }
    return build_spec(model.preset, **values) if model.preset is not None else ModelSpec(**values)


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
        return paper_schedule(dense, table or config.frames or default_frames(dense.t), r_min, r_max)
    if config.kind == "constant":
        if config.grid is None or len(config.grid) != 3:
            raise ConfigError(f"schedule.kind=constant needs schedule.grid=[t,h,w], got {config.grid}")
        return table_schedule([(1.0, config.grid)], dense)
    if not config.table:
        raise ConfigError("schedule.kind=table needs schedule.table, rows [u up to which, [t, h, w]]")
    return table_schedule([(row[0], row[1]) for row in config.table], dense)
