"""What a run's folder knows of a model, as sections of its card: training, data, scores."""

from collections.abc import Sequence
from pathlib import Path

from sparsevid.evaluation.record import ProtocolRecord, load_record
from sparsevid.models.card import markdown_table
from sparsevid.runs.config import RunConfig, load_config


def run_sections(checkpoint: Path, records: Sequence[Path] = ()) -> dict[str, str]:
    """Sections of the card of a run's model.

    Args:
        checkpoint: a folder with config.yaml; the run's own scores lie two folders above, in `scores`.
        records: more scores, as `sparsevid evaluate score` writes them.

    Returns:
        Markdown by heading; without what is not known.

    Raises:
        ValueError: a record that is none.
    """
    config = load_config(checkpoint / "config.yaml")
    scores = [(path.stem, path) for path in sorted(checkpoint.resolve().parents[1].glob("scores/*.json"))]
    scores += [(path.name, path) for path in records]
    sections = {"Training": _training(config, checkpoint.resolve().name), "Data": _data(config)}
    if scores:
        sections["Scores"] = _scores([(name, load_record(path)) for name, path in scores])
    return sections


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


def _scores(records: Sequence[tuple[str, ProtocolRecord]]) -> str:
    rows = [
        (
            name,
            record.metric,
            f"{record.score:.4f}",
            "none" if record.protocol is None else str(record.protocol.get("name", "unnamed")),
            (record.protocol_fingerprint or "none")[:16],
            str(record.fake.get("clips", "not recorded")),
        )
        for name, record in records
    ]
    return markdown_table(("of", "metric", "score", "protocol", "its SHA-256", "clips"), rows)
