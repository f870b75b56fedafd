"""What a run's configuration says of its model, as sections of the model's card: training and data."""

from pathlib import Path

from sparsevid.models.card import markdown_table
from sparsevid.runs.config import RunConfig


def run_sections(config: RunConfig, checkpoint: str) -> dict[str, str]:
    """Sections of the card of a run's model.

    Args:
        config: of the run, as a checkpoint holds it.
        checkpoint: its name.

    Returns:
        Markdown by heading.
    """
    return {"Training": _training(config, checkpoint), "Data": _data(config)}


def _training(config: RunConfig, name: str) -> str:
    train = config.train
    rows = [
        ("run", config.name),
        ("checkpoint", name),
        ("objective", config.objective.kind),
        ("steps of the run, clips of a step", f"{train.steps}, {train.global_batch}"),
        ("optimizer, rate, precision", f"{train.optimizer}, {train.lr:g}, {train.precision}"),
        ("decay of the average", f"{train.ema_decay:g}"),
        ("autoencoder", config.autoencoder.kind),
        ("seed", str(config.seed)),
        ("made with", ", ".join(f"{each} {version}" for each, version in config.record.versions.items()) or "not recorded"),
    ]
    return markdown_table(("what", ""), rows)


def _data(config: RunConfig) -> str:
    data, record = config.data, config.record
    size = "×".join(map(str, data.size)) if data.size else "as the card says"
    rows = [
        ("card", Path(data.card).stem),
        ("split", data.split or "as the card says"),
        (
            "clips",
            f"{data.frames or 'as many frames as the card says'} frames of {size}, stride {data.stride or 'of the card'}",
        ),
        ("frames a second", "not recorded" if record.fps is None else f"{record.fps:g}"),
        ("classes", str(len(record.classes) or "none")),
        ("fingerprint (SHA-256)", record.fingerprint or "not recorded"),
    ]
    return markdown_table(("what", ""), rows)
