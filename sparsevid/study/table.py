"""The table of a study in Markdown: means over seeds, and differences to the control of the same seed with their intervals."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sparsevid.benchmark.report import MISSING, as_markdown
from sparsevid.study.intervals import (
    LEVEL,
    Difference,
    difference,
    error_of_interval,
    error_of_share,
    paired_difference,
    spread,
)
from sparsevid.study.results import Line, newest

COLUMNS = (
    "row",
    "seeds",
    "loss",
    "loss − control",
    "distance",
    "distance − control",
    "accuracy",
    "accuracy − control",
    "GMACs/clip",
    "of control",
    "s/clip",
    "control / this",
    "steps",
    "training PMACs",
    "training s",
    "note",
)
Rows = dict[str, dict[int, Line]]  # lines by row and seed


def rows_of(lines: Sequence[Line], names: Sequence[str] = ()) -> Rows:
    """The newest lines by row and seed.

    Args:
        lines: of results, oldest first.
        names: the order of rows; others follow as they came.
    """
    found: Rows = {name: {} for name in names}
    for (row, seed), line in newest(lines).items():
        found.setdefault(row, {})[seed] = line
    return {row: dict(sorted(seeds.items())) for row, seeds in found.items() if seeds}


def study_table(lines: Sequence[Line], controls: Mapping[str, str | None]) -> str:
    """The table, after what a reader has to know of it.

    Args:
        lines: of the results of one study, also of several files, oldest first.
        controls: the rows, in their order, each with the row that it is compared with, if there is one.
    """
    rows = rows_of(lines, list(controls))
    hardware = {name: mark for name, mark in zip(_distinct(rows, "hardware"), _marks(), strict=False)}
    cells = [_cells(row, seeds, rows.get(controls.get(row) or "", {}), hardware) for row, seeds in rows.items()]
    return as_markdown({}, _lines(rows, controls, hardware), COLUMNS, cells)


def differences(seeds: Mapping[int, Line], control: Mapping[int, Line]) -> dict[str, Difference | None]:
    """A row's differences to the control, of the seeds that both have; None where nothing can be compared.

    Args:
        seeds: lines of the row by seed.
        control: those of the control.
    """
    pairs = [(seeds[seed], control[seed]) for seed in seeds if seed in control]
    if not pairs:
        return dict.fromkeys(("loss", "distance", "accuracy"))
    return {"loss": _of_loss(pairs), "distance": _of_distance(pairs), "accuracy": _of_accuracy(pairs)}


def _of_loss(pairs: list[tuple[Line, Line]]) -> Difference | None:
    clips = [(row.get("losses"), other.get("losses")) for row, other in pairs]
    if any(not a or not b or len(a) != len(b) for a, b in clips) or len({len(a) for a, _ in clips}) > 1:
        return None
    return paired_difference(*zip(*clips, strict=True))


def _of_distance(pairs: list[tuple[Line, Line]]) -> Difference | None:
    if any(not each.get("distance_interval") for pair in pairs for each in pair):
        return None
    errors = [sum(error_of_interval(each["distance_interval"]) ** 2 for each in pair) for pair in pairs]
    return difference([a["distance"] - b["distance"] for a, b in pairs], statistics.fmean(errors), _clips(pairs))


def _of_accuracy(pairs: list[tuple[Line, Line]]) -> Difference | None:
    if any(not each.get("clips") for pair in pairs for each in pair):
        return None
    errors = [sum(error_of_share(each["accuracy"], each["clips"]) ** 2 for each in pair) for pair in pairs]
    return difference([a["accuracy"] - b["accuracy"] for a, b in pairs], statistics.fmean(errors), _clips(pairs))


def _clips(pairs: list[tuple[Line, Line]]) -> int:
    return min(each.get("clips") or 2 for pair in pairs for each in pair)


def _cells(row: str, seeds: dict[int, Line], control: dict[int, Line], hardware: dict[str, str]) -> list[str]:
    lines, found = list(seeds.values()), differences(seeds, control)
    return [
        row,
        str(len(lines)),
        _mean(lines, "loss", ".4f"),
        _shown(found["loss"], ".4f"),
        _mean(lines, "distance", ".1f"),
        _shown(found["distance"], ".1f"),
        _mean(lines, "accuracy", ".1f", 100, " %"),
        _shown(found["accuracy"], ".1f", 100),
        _mean(lines, "macs", ".4g", 1e-9, shown=False),
        _ratio(seeds, control, "macs"),
        _seconds(lines, hardware),
        _ratio(seeds, control, "seconds", same="hardware", inverse=True),
        _mean(lines, "total_steps", ".0f", shown=False),
        _mean(lines, "total_training_macs", ".3g", 1e-15, shown=False),
        _mean(lines, "training_seconds", ".0f", shown=False),
        next((line["note"] for line in lines if line.get("note")), ""),
    ]


def _mean(lines: list[Line], key: str, form: str, scale: float = 1.0, unit: str = "", shown: bool = True) -> str:
    """Mean and, if it is to be shown, standard deviation over seeds."""
    values = [scale * line[key] for line in lines if line.get(key) is not None]
    if not values:
        return MISSING
    deviation = spread(values) if shown else None
    return f"{statistics.fmean(values):{form}}{'' if deviation is None else f' ± {deviation:{form}}'}{unit}"


def _shown(found: Difference | None, form: str, scale: float = 1.0) -> str:
    """A difference with its interval; bold where that excludes zero, with a mark where it is of one seed."""
    if found is None:
        return MISSING
    sign = form.replace(".", "+.", 1)
    text = f"{scale * found.mean:{sign}} [{scale * found.low:{sign}}, {scale * found.high:{sign}}]"
    return (f"**{text}**" if found.told else text) + ("†" if found.seeds == 1 else "")


def _seconds(lines: list[Line], hardware: dict[str, str]) -> str:
    """Of each hardware by itself, marked where there are several."""
    groups: dict[str, list[float]] = {}
    for line in lines:
        groups.setdefault(line.get("hardware", ""), []).append(line["seconds"])
    marked = len(hardware) > 1
    return ", ".join(
        f"{statistics.fmean(values):.3g}{f' ({hardware[name]})' if marked else ''}" for name, values in groups.items()
    )


def _ratio(seeds: dict[int, Line], control: dict[int, Line], key: str, same: str | None = None, inverse: bool = False) -> str:
    """The mean over seeds of a row's value over the control's, of those that are alike in `same`."""
    pairs: list[tuple[Any, Any]] = [(seeds[seed], control[seed]) for seed in seeds if seed in control]
    pairs = [(a, b) for a, b in pairs if same is None or a.get(same) == b.get(same)]
    if not pairs:
        return MISSING
    ratios = [b[key] / a[key] if inverse else a[key] / b[key] for a, b in pairs]
    return f"{statistics.fmean(ratios):.2f}×" if inverse else f"{statistics.fmean(ratios):.3f}"


def _lines(rows: Rows, controls: Mapping[str, str | None], hardware: dict[str, str]) -> list[str]:
    named = " or ".join(f"`{name}`" for name in dict.fromkeys(filter(None, controls.values())) if name in rows) or "of none"
    every = [line for seeds in rows.values() for line in seeds.values()]
    real = [line for line in every if line.get("accuracy_real") is not None]
    told = [
        f"means ± standard deviations over seeds; − control: to the row {named} of the same seed, with an interval of "
        f"{LEVEL:.0%} for other clips and other seeds, bold where it excludes zero; †: of one seed, for other clips alone",
        "s/clip: from noise to latents, warm; control / this: seconds on the same hardware; steps, training PMACs: with those "
        "of the row it starts from; training s: its own",
    ]
    if real:
        numbers = ", ".join(sorted({f"{value:.1f}" for value in _of(real, "distance_real")}))
        share = statistics.fmean(_of(real, "accuracy_real"))
        told.append(
            f"{real[0].get('metric', 'distance')} of {real[0]['clips']} samples; of real training clips: {numbers}; "
            f"classifier: {share:.1%} of the real held-out clips"
        )
    told += [f"hardware{f' ({mark})' if len(hardware) > 1 else ''}: {name or 'not said'}" for name, mark in hardware.items()]
    commits = sorted({str(line.get("commit"))[:12] for line in every})
    dates = sorted(str(line.get("date"))[:10] for line in every)
    return [*told, *([f"commits: {', '.join(commits)}; {dates[0]} to {dates[-1]}"] if every else [])]


def _of(lines: list[Line], key: str) -> list[float]:
    return [line[key] for line in lines if line.get(key) is not None]


def _distinct(rows: Rows, key: str) -> list[str]:
    return list(dict.fromkeys(line.get(key, "") for seeds in rows.values() for line in seeds.values()))


def _marks() -> list[str]:
    return [chr(ord("A") + number) for number in range(26)]
