"""The table of a study in Markdown: means over seeds, and differences to the control of the same seed with their intervals."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sparsevid.benchmark.report import MISSING, as_markdown
from sparsevid.evaluation.comparison import LEVEL
from sparsevid.study.effects import Difference, differences, estimates, ratio
from sparsevid.study.measurements import NUMBERS, Measurement, StudyResults, short_hash

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
FORMS = {"loss": (".4f", 1.0, ""), "distance": (".1f", 1.0, ""), "accuracy": (".1f", 100.0, " %")}  # form, factor, unit
Marks = dict[str, str]  # of hardware, where there are several


def study_table(study: StudyResults, names: Sequence[str] = (), *, only: Sequence[str] = (), notes: Sequence[str] = ()) -> str:
    """The table, after what a reader has to know of it.

    Args:
        study: what was measured of it.
        names: the order of rows; others follow.
        only: rows to show, with what they are compared with; default: all.
        notes: what else a reader has to know.
    """
    shown = {*only, *map(study.control, only)} if only else study.rows
    rows = [row for row in dict.fromkeys([*names, *study.rows]) if row in study.rows and row in shown]
    measured = [each for row in rows for each in study.of(row)]
    hardware = list(dict.fromkeys(each.hardware for each in measured))
    marks = {name: f" ({chr(ord('A') + number)})" if len(hardware) > 1 else "" for number, name in enumerate(hardware)}
    found = differences(study)
    lines = [*_lines(study, rows, measured, marks), *notes]
    return as_markdown({}, lines, COLUMNS, [_cells(study, row, {key: each.get(row) for key, each in found.items()}, marks)
                                            for row in rows])  # fmt: skip


def table_values(study: StudyResults, *, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of the table as plain values, their figures by hardware where it matters (else under an empty name).

    Args:
        study, only: as of `study_table`.
    """
    found, shown = differences(study), {*only, *map(study.control, only)} if only else study.rows
    return [
        {
            "row": row,
            "control": study.control(row),
            "note": next((each.note for each in study.of(row) if each.note), ""),
            "figures": {
                name: {hardware: asdict(each) for hardware, each in of_figure.items()}
                for name in NUMBERS
                if (of_figure := estimates(study.of(row), name))
            },
            "to_control": {
                name: {**asdict(change), "of": change.of, "verdict": change.verdict}
                for name, each in found.items()
                if (change := each.get(row)) is not None
            },
        }
        for row in study.rows
        if row in shown
    ]


def _cells(study: StudyResults, row: str, found: Mapping[str, Difference | None], marks: Marks) -> list[str]:
    own, control = study.of(row), study.of(study.control(row) or "")
    same = study.loss_of(row)
    qualities = []
    for quality, (form, factor, unit) in FORMS.items():
        change = f"as `{same}`" if same and quality == "loss" else _shown(found[quality], form, factor)
        qualities += [_mean(own, quality, form, factor, unit, spread=True), change]
    macs, faster = ratio(own, control, "macs"), ratio(control, own, "seconds")
    return [
        row,
        str(len(own)),
        *qualities,
        _mean(own, "macs", ".4g", 1e-9),
        MISSING if macs is None else f"{macs:.3f}",
        _mean(own, "seconds", ".3g", marks=marks),
        MISSING if faster is None else f"{faster:.2f}×",
        _mean(own, "total_steps", ".0f"),
        _mean(own, "total_training_macs", ".3g", 1e-15),
        _mean(own, "training_seconds", ".0f", marks=marks),
        next((each.note for each in own if each.note), ""),
    ]


def _mean(
    own: Sequence[Measurement], figure: str, form: str, factor: float = 1.0, unit: str = "", *, spread: bool = False,
    marks: Marks | None = None,
) -> str:  # fmt: skip
    """Mean and, if it is to be shown, standard deviation over seeds; of times each hardware by itself."""
    cells = []
    for hardware, each in estimates(own, figure).items():
        deviation = f" ± {factor * each.spread:{form}}" if spread and each.spread is not None else ""
        cells.append(f"{factor * each.mean:{form}}{deviation}{unit}{marks[hardware] if marks else ''}")
    return ", ".join(cells) or MISSING


def _shown(found: Difference | None, form: str, factor: float) -> str:
    """A difference with its interval; bold where that excludes zero, with a mark where it is not for both clips and seeds."""
    if found is None or found.interval is None:
        return MISSING
    mean, low, high = (f"{factor * value:{form.replace('.', '+.', 1)}}" for value in (found.mean, *found.interval))
    text = f"{mean} [{low}, {high}]"
    return (f"**{text}**" if found.told else text) + ("†" if found.seeds == 1 else "" if found.clips else "‡")


def _lines(study: StudyResults, rows: Sequence[str], measured: Sequence[Measurement], marks: Marks) -> list[str]:
    controls = dict.fromkeys(filter(None, map(study.control, rows)))
    named = " or ".join(f"`{name}`" for name in controls) or "of none"
    told = [
        f"means ± standard deviations over seeds; − control: to the row {named} of the same seed, with an interval of "
        f"{LEVEL:.0%} for other clips and other seeds, bold where it excludes zero; †: of one seed, for other clips alone; "
        "‡: for other seeds alone; not corrected for the number of rows",
        "s/clip: from noise to latents, warm; control / this: seconds on the same hardware; steps, training PMACs: with those "
        "of the row it starts from; training s: its own",
    ]
    if real := [each for each in measured if "accuracy_real" in each.figures]:
        numbers = sorted({f"{each.figures['distance_real']:.1f}" for each in real if "distance_real" in each.figures})
        share = statistics.fmean(each.figures["accuracy_real"] for each in real)
        samples = real[0].figures.get("clips")
        dealt = [each.figures["accuracy_shuffled"] for each in real if "accuracy_shuffled" in each.figures]
        chance = f", {statistics.fmean(dealt):.1%} of samples whose classes or prompts are dealt out anew" if dealt else ""
        told.append(
            f"{real[0].facts.get('metric', 'distance')} of {'?' if samples is None else f'{samples:.0f}'} samples; of real "
            f"training clips: {', '.join(numbers) or MISSING}; classifier: {share:.1%} of the real held-out clips{chance}"
        )
    told += [f"hardware{mark}: {name or 'not said'}" for name, mark in marks.items()]
    commits = sorted({short_hash(each.facts.get("commit", "not said")) for each in measured})
    dates = sorted(each.facts.get("date", "not said")[:10] for each in measured)
    return [*told, *([f"commits: {', '.join(commits)}; {dates[0]} to {dates[-1]}"] if measured else [])]
