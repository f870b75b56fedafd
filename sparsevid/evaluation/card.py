"""Scores with their protocols, as a section of a model's card."""

from collections.abc import Sequence
from pathlib import Path

from sparsevid.evaluation.record import ProtocolRecord, load_record
from sparsevid.models.card import markdown_table


def score_sections(run: Path | None, records: Sequence[Path] = ()) -> dict[str, str]:
    """The section of the card that has a model's scores.

    Args:
        run: folder of the run that trained it, whose own scores lie in `scores`; None: not known.
        records: more of them, as `sparsevid evaluate score` writes them.

    Returns:
        Markdown by heading; empty where no score is known.

    Raises:
        ValueError: a record that is none.
    """
    own = [] if run is None else sorted(run.glob("scores/*.json"))
    found = [(path.stem, path) for path in own] + [(path.name, path) for path in records]
    return {"Scores": _scores([(name, load_record(path)) for name, path in found])} if found else {}


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
