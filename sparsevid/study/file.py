"""The file of a study: YAML with typed keys, strict as a run's configuration is."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparsevid.study import StudyError
from sparsevid.study.measurements import REAL
from sparsevid.system.schema import AS_TYPED, check_keys, read_yaml, yaml_text

_TYPED = {AS_TYPED: True}  # text all through: what it means, the schema that it is laid over says
NOTHING = "none"  # in place of a row: what a row is `like`, or the study, says one, and this row has none
# What a run is not told apart by: where it lies, how it is watched and kept, what the study itself says otherwise.
SAME_RUN = (
    "name", "output", "record", "monitor", "sample", "data.root", "data.workers", "data.decoder", "data.cache_frames",
    "data.strict", "data.latents", "text.encoder",
    *(f"train.{name}" for name in (
        "checkpoint_every", "keep_checkpoints", "keep_every", "log_every", "resume", "timeout", "silence",
        "start_timeout", "ema_device",
    )),
)  # fmt: skip
TAKEN = {
    NOTHING: "in a row's keys it says that there is no such row",
    REAL: "pages show the real clips under this name",
}  # names that no row may have
_NUMBER = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)  # as YAML has it
_MARKS = set(",[]{}#&*!|>'\"%@`: ")  # in an element of a list, what has to be quoted


@dataclass
class SampleSettings:
    """How clips of a row are sampled."""

    clips: int = 512
    sampler: str | None = None  # default: the run's own
    steps: int = 20
    guidance: float = 1.0  # scale of classifier-free guidance; 1: none
    guidance_interval: list[float] | None = None
    schedule: str | None = None  # of a sparse model: paper, constant, off; default: as it was trained
    savings: list[str] = field(default_factory=list)  # what calls of the model leave out, such as static:every=2
    batch: int = 16
    seed: int = 0  # sample i starts from the same noise in all rows, for all seeds of training


@dataclass
class MeasureSettings:
    """What is measured, on which clips."""

    split: str = "test"  # of held-out losses, of the distance, of the classifier's accuracy
    train_split: str = "train"  # of the classifier, and of the distance between real clips
    clips: int = 240  # held-out ones of the loss
    times: int = 8  # of each of them: one in each of so many intervals that training draws equally often
    batch: int = 16
    protocol: str | None = None  # whose detector and metric are taken; default: that of the run's monitor
    bootstrap: int = 200  # resamplings for the interval of a distance
    repeats: int = 3  # timed batches
    classifier_steps: int = 500
    seed: int = 0  # of clips, times and noise, and of the classifier


@dataclass
class RowSettings:
    """A row: a variant of the base run."""

    note: str = ""  # for the reader of the table
    base: str | None = None  # the run that it is a variant of, in place of the study's
    control: str | None = None  # the row that it is compared with, in place of the study's; none: with nothing
    like: str | None = None  # another row, whose keys count where this one has none, its overrides below this one's
    overrides: dict[str, Any] = field(default_factory=dict, metadata=_TYPED)  # of the base run, dotted or nested
    start: str | None = None  # the row whose run of the same seed it is fine-tuned from
    teacher: str | None = None  # the row whose run of the same seed it is distilled from
    of: str | None = None  # the row whose run it samples with other settings; nothing is trained
    steps_of: str | None = None  # train as many steps as this row and what it starts from
    macs_of: str | None = None  # train as many multiply-adds
    sample: dict[str, Any] = field(default_factory=dict, metadata=_TYPED)  # over the study's
    seeds: list[int] | None = None  # default: the study's
    measured: bool | None = None  # false: only a start for others; default: true


@dataclass
class ScaleSettings:
    """What is other at another size of data and model."""

    overrides: dict[str, Any] = field(default_factory=dict, metadata=_TYPED)  # of the base run, below the rows'
    rows: dict[str, Any] = field(default_factory=dict, metadata=_TYPED)  # overrides of single rows, above all
    sample: dict[str, Any] = field(default_factory=dict, metadata=_TYPED)
    measure: dict[str, Any] = field(default_factory=dict, metadata=_TYPED)
    seeds: list[int] | None = None


@dataclass
class StudyFile:
    """A study."""

    study: str = ""  # its name: of its results and of the folder of its runs
    base: str = ""  # the run that rows are variants of, relative to this file
    control: str | None = None  # the row that others are compared with, of the same seed; default: dense, if there is one
    seeds: list[int] = field(default_factory=lambda: [0])
    overrides: dict[str, Any] = field(default_factory=dict, metadata=_TYPED)  # of the base run, for all rows
    sample: SampleSettings = field(default_factory=SampleSettings)
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    scales: dict[str, ScaleSettings] = field(default_factory=dict)
    rows: dict[str, RowSettings] = field(default_factory=dict)


def read_study(path: Path) -> StudyFile:
    """Read a study's file.

    Raises:
        StudyError: no such file, broken YAML, an unknown key (with the nearest valid one), a value of the wrong type, another
            name than the file's, a row of a name that means something else, or a control that is no row.
    """
    if not path.is_file():
        raise StudyError(f"no study {path}; give the path of a YAML file such as configs/study/paper.yaml")
    try:
        values = _without_empty(read_yaml(yaml_text(path), StudyFile, str(path)))
        check_keys(values, StudyFile, str(path))
        for part, schema in (("rows", RowSettings), ("scales", ScaleSettings)):
            sections = values.get(part) or {}
            if not isinstance(sections, Mapping):
                raise StudyError(f"{path}: {part} is a section with names, got {sections!r}")
            for name, section in sections.items():
                if not isinstance(section, Mapping):
                    raise StudyError(f"{path}: {part}.{name} is a section with keys, got {section!r}")
                check_keys(section, schema, f"{path}: {part}.{name}")
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StudyFile), values))
        assert isinstance(found, StudyFile)
    except OmegaConfBaseException as error:
        raise StudyError(f"{path}: {_reason(error, values)}") from error
    except ValueError as error:
        raise StudyError(str(error)) from error
    for key in ("study", "base", "rows", "seeds"):
        if not getattr(found, key):
            raise StudyError(f"{path}: {key} is not given")
    for name in (found.study, *found.rows, *found.scales):
        if not name or not all(letter.isalnum() or letter in "-_.+" for letter in name) or name.startswith("."):
            raise StudyError(f"{path}: {name!r} names folders: letters, digits, '-', '_', '+' and '.' make it")
    _check_names(found, path)
    return found


def _check_names(found: StudyFile, path: Path) -> None:
    """The study's name, those of its rows, and those of controls."""
    if found.study != path.stem:
        raise StudyError(
            f"{path}: study = {found.study!r}; it is the file's name, by which other studies find it: study: {path.stem}, or "
            f"call the file {found.study}.yaml"
        )
    for name, meaning in TAKEN.items():
        if name in found.rows:
            raise StudyError(f"{path}: a row cannot be called {name!r}: {meaning}")
    controls = {"control": found.control} | {f"rows.{name}.control": row.control for name, row in found.rows.items()}
    for key, control in controls.items():
        if control is not None and control not in (NOTHING, *found.rows):
            raise StudyError(f"{path}: {key}: no row {control!r}; {nearest(control, list(found.rows))}")


def _reason(error: OmegaConfBaseException, values: Mapping[str, Any]) -> str:
    """Where a value is of the wrong type, and what it is to be."""
    key, reason = error.full_key or "", str(error).splitlines()[0]
    if "ListConfig" in reason:
        given = OmegaConf.select(OmegaConf.create(dict(values)), key)
        reason = f"{given} is no list; a list of one is [{given}]"
    return f"{key}: {reason}"


def laid_over(settings: Any, changes: Mapping[str, Any], source: str) -> Any:
    """Settings with the changes of a row or scale over them, of the types that the settings' class says.

    Raises:
        StudyError: an unknown key, or a value of the wrong type.
    """
    try:
        check_keys(changes, type(settings), source)
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(settings), _numbers(dict(changes))))
    except OmegaConfBaseException as error:
        raise StudyError(f"{source}: {_reason(error, dict(changes))}") from error
    except ValueError as error:
        raise StudyError(str(error)) from error


def changed(values: dict[str, Any], default: dict[str, Any], without: Sequence[str] = (), prefix: str = "") -> dict[str, Any]:
    """What differs from the defaults, by dotted key: a field that is added later, with its default, changes nothing.

    Args:
        values: nested.
        default: the same keys.
        without: dotted keys and sections that do not count.
        prefix: of the keys.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in without or value == default.get(key):
            continue
        if isinstance(value, dict) and isinstance(default.get(key), dict):
            found |= changed(value, default[key], without, f"{name}.")
        else:
            found[name] = value
    return found


def dotted(overrides: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Overrides, dotted or nested, as a command line has them: `key=value`, in their order."""
    found = []
    for key, value in overrides.items():
        name = f"{prefix}{key}"
        found += dotted(value, f"{name}.") if isinstance(value, Mapping) else [f"{name}={_typed(value)}"]
    return found


def nearest(name: str, known: list[str]) -> str:
    """A hint for a name that is not known, and those that are."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"{f'did you mean {near[0]!r}? ' if near else ''}there are {', '.join(known)}"


def _numbers(value: Any) -> Any:
    """Numbers that were text all through, as YAML reads them where the type is known: `.nan`, `.inf`."""
    if isinstance(value, Mapping):
        return {key: _numbers(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(each) for each in value]
    return float(value.replace(".", "")) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _typed(value: Any) -> str:
    """A value that was text all through, as it was typed."""
    if value is None:
        return "null"
    if not isinstance(value, list):
        return str(value)
    return f"[{', '.join(each if _is_plain(each) else json.dumps(each, ensure_ascii=False) for each in map(_typed, value))}]"


def _is_plain(text: str) -> bool:
    """Whether a text stands in a list as it is: nested lists do, and what has no mark of YAML in it."""
    return (text.startswith("[") and text.endswith("]")) or (bool(text) and not _MARKS.intersection(text))


def _without_empty(values: DictConfig) -> DictConfig:
    """Rows without a key of their own, such as `dense:`, are rows all the same."""
    rows = values.get("rows")
    for name, row in rows.items() if isinstance(rows, Mapping) else ():
        if row is None:
            values.rows[name] = {}
    return values
