"""Tables that `page.js` sorts: what each row shows, each measurement by itself, what was run."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sparsevid.study.effects import BETTER, OPEN, QUALITIES, WORSE, Difference, estimates, ratio
from sparsevid.study.measurements import FACTS, NUMBERS, Measurement, StudyResults, short_hash
from sparsevid.study.page.markup import Markup, element, together
from sparsevid.study.page.numbers import NOT_MEASURED, SHOWN, change, signed
from sparsevid.study.page.rows import RowStyles
from sparsevid.study.page.run_folder import Run

COSTS = ("macs", "seconds")
LAST = ("training_seconds", "total_training_macs", "parameters", "steps")  # of a row's columns
Differences = Mapping[str, Mapping[str, Difference | None]]  # by quality and row
MARKS = {BETTER: "▲", WORSE: "▼", OPEN: "·"}


class Cell(NamedTuple):
    """What stands in a table, and by what it is sorted: a number, a text, or nothing, which comes last."""

    content: Any
    value: float | str | None
    kind: str = ""


def table(caption: str, heads: Sequence[str], lines: Sequence[tuple[int, Sequence[Cell]]]) -> Markup:
    """A table in a box of its own, which scrolls where it is wider than the page.

    Args:
        caption: what it is a table of.
        heads: of the columns.
        lines: number of the row on the page (see `RowStyles.index`), and its cells.
    """
    columns = [element("th", element("button", head, type="button"), scope="col", aria_sort="none") for head in heads]
    body = []
    for number, cells in lines:
        name = element("th", cells[0].content, scope="row", data_v=cells[0].value)
        body.append(element("tr", name, map(_cell, cells[1:]), data_row=number))
    parts = (element("caption", caption, class_="unseen"), element("thead", element("tr", columns)), element("tbody", body))
    return element(
        "div", element("table", parts, class_="sortable"), class_="box tall", tabindex=0, role="group", aria_label=caption
    )


def study_table(study: StudyResults, styles: RowStyles, differences: Differences) -> Markup:
    """A line a row: means over seeds with their spread, differences to the control, costs.

    Args:
        study: whose rows.
        styles: of the page.
        differences: to the control.
    """
    heads = ["row", "seeds"]
    for quality in QUALITIES:
        heads += [SHOWN[quality].title, f"{SHOWN[quality].title} against {study.against}"]
    for cost in COSTS:
        heads += [SHOWN[cost].title, f"{SHOWN[cost].title}, × {study.against}"]
    heads += [*(SHOWN[figure].title for figure in LAST), "note"]
    lines = []
    for row in study.rows:
        own = study.of(row)
        cells = [_name(row, styles), Cell(str(len(own)), len(own), "number")]
        for quality in QUALITIES:
            cells += [_mean(own, quality), _difference(study, row, quality, differences[quality].get(row))]
        for cost in COSTS:
            cells += [_mean(own, cost), _ratio(own, study.of(study.control(row) or row), cost)]
        cells += [_mean(own, figure) for figure in LAST]
        note = next((each.note for each in own if each.note), "")
        lines.append((styles.index(row), [*cells, Cell(note, note or None, "words")]))
    return table(f"{study.name}: a line a row, means ± standard deviation over seeds", heads, lines)


def measurements_table(study: StudyResults, styles: RowStyles) -> Markup:
    """A line a row and seed, as measured."""
    heads = ["row", "seed", *(SHOWN[figure].title for figure in NUMBERS)]
    lines = []
    for row in study.rows:
        for each in study.of(row):
            cells = [_name(row, styles), Cell(str(each.seed), each.seed, "number")]
            lines.append((styles.index(row), [*cells, *(_measured(each, figure) for figure in NUMBERS)]))
    return table(f"{study.name}: each measurement", heads, lines)


def facts_table(study: StudyResults, styles: RowStyles) -> Markup:
    """What was run, where, when, at which commit, by which command: first what holds for all."""
    measured = [(row, each) for row in study.rows for each in study.of(row)]
    values = {key: list(dict.fromkeys(each.facts.get(key, "") for _, each in measured)) for key in FACTS}
    of_all = {key: found[0] for key, found in values.items() if len(found) == 1}
    listed = [element("div", element("dt", key), element("dd", _fact(key, text).content)) for key, text in of_all.items()]
    keys = [key for key in values if key not in of_all]
    lines = []
    for row, each in measured:
        cells = [_name(row, styles), Cell(str(each.seed), each.seed, "number")]
        lines.append((styles.index(row), [*cells, *(_fact(key, each.facts.get(key, "")) for key in keys)]))
    written = element("dl", listed, class_="facts plain") if listed else None
    return together([written, table(f"{study.name}: what was run", ["row", "seed", *keys], lines)])


def runs_table(runs: Sequence[Run], styles: RowStyles) -> Markup:
    """A line a run, with all that its folder says."""
    keys = list(dict.fromkeys(key for run in runs for key in run.facts))
    lines = []
    for run in runs:
        cells = [_name(run.name, styles)]
        for name, title in (("train/loss", "training"), ("validation/loss", "validation")):
            value = run.metrics[name][-1][1] if run.metrics.get(name) else None
            cells.append(Cell(_missing(f"no {title} loss") if value is None else signed(value, 4), value, "number"))
        cells += [_fact(key, run.facts.get(key, "")) for key in keys]
        lines.append((styles.index(run.name), cells))
    return table("runs: what was run", ["run", "training loss, last", "validation loss, last", *keys], lines)


def _cell(cell: Cell) -> Markup:
    return element("td", cell.content, data_v=None if cell.value is None else repr(cell.value) if isinstance(cell.value, float)
                   else cell.value, class_=cell.kind or None)  # fmt: skip


def _missing(text: str = NOT_MEASURED) -> Markup:
    return element("span", text, class_="missing")


def _name(row: str, styles: RowStyles) -> Cell:
    return Cell(styles.name(row), row)


def _mean(own: Sequence[Measurement], figure: str) -> Cell:
    """Of times one of each hardware, sorted by the first."""
    found = estimates(own, figure)
    if not found:
        return Cell(_missing(), None, "number")
    text: list[Any] = []
    for hardware, each in found.items():
        text += [", " if text else "", SHOWN[figure].text(each.mean)]
        if each.spread:
            text.append(element("small", f" ± {SHOWN[figure].spread(each.spread)}"))
        elif figure == "distance" and each.interval is not None and each.spread is None:
            text.append(element("small", f" [{signed(each.interval.low, 3)}, {signed(each.interval.high, 3)}]"))
        if len(found) > 1:
            text.append(element("small", f" on {hardware or 'what is not said'}"))
    measured = sum(len(each.values) for each in found.values())
    if measured < len(own):
        text.append(element("small", f" of {measured}"))
    return Cell(text, next(iter(found.values())).mean, "number")


def _difference(study: StudyResults, row: str, quality: str, found: Difference | None) -> Cell:
    control = study.control(row)
    if control is None:
        return Cell(_missing("control" if row in map(study.control, study.rows) else "no control"), None, "number")
    if found is None:
        same = study.loss_of(row) if quality == "loss" else None
        return Cell(_missing(f"as {same}" if same else "not comparable"), None, "number")
    verdict = element("span", f"{MARKS[found.verdict]} {found.verdict}", class_=f"verdict {found.verdict.split()[0]}")
    named = element("small", f" {control}") if study.against != control else None  # where rows have several controls
    return Cell((change(quality, found.mean, found.interval), " ", verdict, named), found.mean, "number")


def _ratio(own: Sequence[Measurement], control: Sequence[Measurement], cost: str) -> Cell:
    found = ratio(own, control, cost)
    return Cell(_missing("–") if found is None else f"{signed(found)}×", found, "number")


def _measured(each: Measurement, figure: str) -> Cell:
    if figure not in each.figures:
        return Cell(_missing(), None, "number")
    text = [SHOWN[figure].text(each.figures[figure])]
    if figure == "distance" and each.distance_interval is not None:
        low, high = each.distance_interval
        text.append(element("small", f" [{signed(low, 3)}, {signed(high, 3)}]"))
    return Cell(text, each.figures[figure], "number")


def _fact(key: str, text: str) -> Cell:
    if not text:
        return Cell(_missing("not recorded"), None)
    if key in ("commit", "settings", "data"):
        return Cell(element("code", short_hash(text), title=text), text)
    if key in ("command", "folder"):
        return Cell(element("code", text), text, "words")
    if key == "date":
        return Cell(text[:16].replace("T", " "), text)  # to the minute
    return Cell(text, text, "words" if len(text) > 48 else "")
