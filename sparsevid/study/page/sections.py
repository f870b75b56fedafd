"""The parts of the page, each with what its figures mean: a study's clips, quality, course over time and tables; and runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from sparsevid.study.effects import BETTER, OPEN, WORSE, Difference, differences, estimate
from sparsevid.study.measurements import StudyResults, short_hash
from sparsevid.study.page.clips import encode
from sparsevid.study.page.curves import curves_plot
from sparsevid.study.page.forest import forest
from sparsevid.study.page.markup import Markup, element, together
from sparsevid.study.page.numbers import SHOWN
from sparsevid.study.page.rows import RowStyles
from sparsevid.study.page.run_folder import Run
from sparsevid.study.page.scatter import legend, scatter
from sparsevid.study.page.stages import stage_dots, stage_lines
from sparsevid.study.page.tables import COSTS, Differences, facts_table, measurements_table, runs_table, study_table
from sparsevid.study.page.tokens import tokens_plot

ORDER = ("distance", "loss", "accuracy")  # of the choice of qualities
SHEET_SIDE, SHEET_BYTES = 900, 200_000  # pixels, and bytes in base64
CLIPS = "A column a row, a line a class. Rows of one seed share their noise, and all play in step."
POINTS = (
    "A point is the mean of a row, small dots are its seeds, and the bar is the 95 % interval of the mean over seeds; of one "
    "seed it is that of its samples. Rows of equal cost stand side by side. By their means, no row is both cheaper and better "
    "than those on the broad line, the frontier."
)
PAIRS = (
    "Each row minus {} of the same seed, with its 95 % interval, for other clips and other seeds; of one seed, for other clips "
    "alone. A full marker: the interval excludes zero. A hollow one: it cannot be told. Each interval is for its row alone: of "
    "twenty rows without any difference, one is expected to seem to have one."
)
STAGES = "Means over seeds; the bars are 95 % intervals over seeds, of ratios to {} of the same seed."
TOKENS = "How many sparse tokens a row computes with. Sampling goes from left to right, from noise to data."
TABLE = (
    "Each column sorts. Means ± standard deviation over seeds; differences to {} are paired by seed, with their 95 % interval. "
    "A row is called better or worse only where the interval excludes zero."
)


def study_parts(study: StudyResults, anchor: str, styles: RowStyles, clips: Markup | None) -> Markup:
    """All of a study.

    Args:
        study: to show.
        anchor: by which links find it.
        styles: of the page.
        clips: its clips; None if there are none.
    """
    found = differences(study)
    each = element("details", element("summary", "each measurement"), measurements_table(study, styles))
    quality = _quality(study, anchor, styles, found)
    parts = [
        _section(f"{anchor}-clips", "Clips", CLIPS if clips else "No clips were kept with these results.", clips),
        _section(f"{anchor}-quality", "Cost and quality", None, quality),
        _section(f"{anchor}-time", "Over time", None, _over_time(study, anchor, styles)),
        _section(f"{anchor}-tables", "Tables", TABLE.format(study.against), study_table(study, styles, found), each),
        _section(f"{anchor}-run", "What was run", None, facts_table(study, styles)),
    ]
    return element("div", _hero(study, found), parts, class_="study", id=anchor)


def runs_part(runs: Sequence[Run], styles: RowStyles) -> Markup:
    """Runs beside each other."""
    plots = []
    for name, title in (("train/loss", "training loss"), ("validation/loss", "validation loss")):
        series = {run.name: values for run in runs if (values := run.metrics.get(name))}
        drawn = curves_plot(series, title, styles)
        lacking = [run.name for run in runs if run.name not in series]
        said = f"Not measured: {', '.join(lacking)}." if lacking else None
        plots.append((title.capitalize(), drawn, said))
    tokens = tokens_plot({run.name: run.schedule for run in runs}, styles, "runs")
    plots.append(("Tokens over time", tokens, TOKENS if tokens else "No run has a token schedule that is known."))
    plots += [(f"Samples of {run.name}", _sheet(run.sheet), run.sheet.name) for run in runs if run.sheet is not None]
    figures = [_figure(title, drawn, said) for title, drawn, said in sorted(plots, key=lambda each: each[1] is None)]
    names = [element("li", styles.chip(run.name), run.name) for run in runs]
    configs = [
        element("details", element("summary", f"configuration of {run.name}"), element("pre", run.config, tabindex=0))
        for run in runs
        if run.config
    ]
    parts = (element("ul", names, class_="who"), element("div", figures, class_="pair"), runs_table(runs, styles), configs)
    text = "Losses over optimizer steps; where steps are many, a point is the mean of neighbours."
    return element("div", _section("runs", "Runs", text, *parts), class_="study")


def _section(anchor: str, title: str, text: str | None, *parts: Markup | Sequence[Markup] | None) -> Markup:
    head = element("header", element("h2", title), None if text is None else element("p", text))
    return element("section", head, parts, id=anchor)


def _figure(title: str, drawn: Markup | None, text: str | None) -> Markup:
    caption = None if text is None else element("figcaption", text)
    return element("figure", element("h3", title), drawn, caption)


def _hero(study: StudyResults, differences: Differences) -> Markup:
    measured = [each for row in study.rows for each in study.of(row)]

    def of(key: str) -> list[str]:
        return list(dict.fromkeys(each.facts[key] for each in measured if key in each.facts))

    def listed(found: Sequence[str]) -> str:
        more = f" and {len(found) - 2} more" if len(found) > 2 else ""
        return "; ".join(found[:2]) + more if found else "not recorded"

    dates = sorted(each[:10] for each in of("date"))
    seeds = sorted({each.seed for each in measured})
    facts = {
        "rows": str(len(study.rows)),
        "seeds": f"{len(seeds)} ({', '.join(map(str, seeds))})" if len(seeds) <= 6 else str(len(seeds)),
        "measurements": str(len(measured)),
        "hardware": listed(of("hardware")),
        "commit": listed(list(map(short_hash, of("commit")))),
        "date": " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "not recorded",
    }
    found = {f"{SHOWN[name].title} against {study.against}": said for name in ORDER if (said := _counted(differences[name]))}
    lists = [
        element("dl", [element("div", element("dt", name), element("dd", text)) for name, text in each.items()], class_="facts")
        for each in (facts, found)
        if each
    ]
    return element("header", element("h1", study.name), lists, class_="hero")


def _counted(differences: Mapping[str, Difference | None]) -> str:
    """How many rows may be called better, and how many worse."""
    found = [each.verdict for each in differences.values() if each is not None]
    return ", ".join(f"{count} {verdict}" for verdict in (BETTER, WORSE, OPEN) if (count := found.count(verdict)))


def _switch(name: str, title: str, choices: Mapping[str, str]) -> Markup:
    """Choices of which one is made; the first at the beginning."""
    options = []
    for number, (value, text) in enumerate(choices.items()):
        button = element("input", type="radio", name=name, value=value, checked=number == 0)
        options.append(element("label", button, element("span", text)))
    return element("fieldset", element("legend", title), options)


def _when(choices: str, content: Markup | None, missing: str, first: bool) -> Markup:
    """What is shown once all of these choices are made."""
    return element("div", content or element("p", missing, class_="note"), data_when=choices, hidden=not first)


def _quality(study: StudyResults, anchor: str, styles: RowStyles, differences: Differences) -> Markup:
    measured = [name for name in ORDER if any(estimate(study.of(row), name) for row in study.rows)]
    order = measured or ORDER
    timed, hardware = study.on_one_hardware()
    others = len(timed.measurements) < len(study.measurements)
    points, pairs = [], []
    for quality in order:
        first = quality == order[0]
        for cost in COSTS:
            drawn = scatter(timed if cost == "seconds" else study, styles, cost, quality, differences[quality])
            missing = f"Not measured: no row has both {SHOWN[quality].title} and {SHOWN[cost].title}."
            only = element("p", f"Rows measured on {hardware} alone.", class_="note") if others and cost == "seconds" else None
            shown = together([drawn, only]) if drawn else None
            points.append(_when(f"{quality} {cost}", shown, missing, first and cost == COSTS[0]))
        missing = f"Not comparable: no row shares a seed with {study.against} and has its {SHOWN[quality].title} measured."
        pairs.append(_when(quality, forest(study, styles, quality, differences[quality]), missing, first))
    switches = (
        _switch(f"{anchor}-quality", "quality", {name: SHOWN[name].title for name in order}),
        _switch(f"{anchor}-cost", "cost", {name: SHOWN[name].title for name in COSTS}),
    )
    figures = (
        element("figure", element("h3", "What it costs"), points, element("figcaption", POINTS)),
        element("figure", element("h3", f"Against {study.against}"), pairs, element("figcaption", PAIRS.format(study.against))),
    )
    above = (element("div", switches, class_="switches"), legend(study, styles))
    return element("div", above, element("div", figures, class_="pair"), class_="switched")


def _over_time(study: StudyResults, anchor: str, styles: RowStyles) -> Markup:
    drawn = {f"relative to {study.against}": stage_dots(study, styles), "absolute": stage_lines(study, styles)}
    names = {f"way-{number}": name for number, (name, found) in enumerate(drawn.items()) if found is not None}
    switch = element("div", _switch(f"{anchor}-stages", "as", names), class_="switches") if len(names) > 1 else None
    plots = [_when(value, drawn[name], "", number == 0) for number, (value, name) in enumerate(names.items())]
    head = element("div", element("h3", "Loss by stage"), switch, class_="headed")
    caption = element("figcaption", STAGES.format(study.against) if names else "Not measured.")
    left = element("figure", head, plots if len(names) > 1 else list(filter(None, drawn.values())), caption, class_="switched")
    schedules = {row: next((each.schedule for each in study.of(row) if each.schedule), ()) for row in study.rows}
    tokens = tokens_plot(schedules, styles, study.name)
    right = _figure("Tokens over time", tokens, TOKENS if tokens else "No row says its token schedule.")
    return element("div", left, right, class_="pair")


def _sheet(path: Path) -> Markup:
    """The newest sheet of samples, small enough for the page."""
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
            small.thumbnail((SHEET_SIDE, SHEET_SIDE))
            uri = encode({"": small}, SHEET_BYTES)[0][""]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return element("p", f"{path} cannot be read: {error}", class_="note")
    return element("img", src=uri, alt=f"samples, {path.name}", class_="sheet", loading="lazy")
