"""A score with everything it depends on, as it is written beside what was scored."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sparsevid.system.atomic import write_json


@dataclass(frozen=True)
class ProtocolRecord:
    """A score with everything it depends on.

    Attributes:
        metric: title of the first metric, such as FVD or FD-TransNetV2.
        score: its value, the first of `values`.
        values: every value of every metric of the protocol, such as {"frechet": 12.3} or {"kid": …, "kid_std": …}. The mean
            over repeats if there are any.
        protocol: all fields of the protocol; None if the features were made without one.
        protocol_fingerprint: SHA-256 over them, or None.
        detector: name, weight checksum ("fingerprint"), preprocessing and settings of the detector.
        real: the real clips: root, card, split, number of clips and videos, formats, rejects, decoder, `fingerprint` (of the
            files' names, sizes and frame counts) and `content` (of the decoded pixels of the clips); None where no metric of
            the protocol looks at real clips.
        fake: the same of the generated ones.
        warnings: what makes this score less comparable than the protocol intends.
        versions: of the software, by side.
        computation: batch size and kind of device, by side.
        split: the part of the real data; None if no protocol chose it.
        seed: of the draws of clips; of the first draw if there were several.
        interval: bootstrap interval of the score: {"low", "high", "level", "repeats"}, and "halves" if they are kept; or None.
        extrapolation: the score's fit against 1/N: {"value", "slope", "error", "sizes", "means",
            "reliable"}, or None.
        repeats: with several draws of clips, {"seed", "values"} of each.
        deviations: with several draws of clips, the standard deviation of each of `values` (divisor: draws − 1).
        prompts: what the clips were to show, where a metric judges them by that: file, number and SHA-256 of the prompts.
        other_splits: the records of the other splits, for a protocol that reports several.
    """

    metric: str
    score: float
    values: dict[str, float]
    protocol: dict[str, Any] | None
    protocol_fingerprint: str | None
    detector: dict[str, Any]
    real: dict[str, Any] | None
    fake: dict[str, Any]
    warnings: tuple[str, ...]
    versions: dict[str, dict[str, str]]
    split: str | None = None
    seed: int | None = None
    interval: dict[str, Any] | None = None
    extrapolation: dict[str, Any] | None = None
    repeats: tuple[dict[str, Any], ...] = ()
    deviations: dict[str, float] | None = None
    prompts: dict[str, Any] | None = None
    other_splits: tuple["ProtocolRecord", ...] = ()
    computation: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ProtocolRecord":
        """Take back what `as_dict` gave.

        Raises:
            ValueError: a field is missing or unknown.
        """
        try:
            others = tuple(map(cls.from_dict, values.get("other_splits", ())))
            lists = {name: tuple(values.get(name, ())) for name in ("warnings", "repeats")}
            numbers = {
                "score": float(values["score"]),
                "values": {name: float(each) for name, each in values["values"].items()},
            }
            return cls(**{**values, **lists, **numbers, "other_splits": others})
        except (TypeError, KeyError, AttributeError) as error:
            known = ", ".join(each.name for each in fields(cls))
            raise ValueError(f"not the fields of a record ({error}); they are {known}") from error

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON has it."""
        return json.loads(json.dumps(asdict(self)))

    def save(self, path: Path) -> None:
        """Write the record as JSON, whole or not at all."""
        write_json(path, self.as_dict())


def load_record(path: Path) -> ProtocolRecord:
    """Read what `ProtocolRecord.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no record: it holds {type(values).__name__}, not an object")
    return ProtocolRecord.from_dict(values)
