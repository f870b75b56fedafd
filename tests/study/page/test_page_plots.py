"""What is drawn, read back from the SVG; numbers as text; colours."""

import re
import xml.etree.ElementTree as ET
from importlib.resources import files
from itertools import combinations, pairwise

import pytest
from scipy.stats import ttest_1samp
from study_lines import HOSTILE, ROWS, line, lines, write

from sparsevid.study.effects import QUALITIES, difference, differences, estimate
from sparsevid.study.measurements import CONTROL, read_studies, short_hash, token_steps
from sparsevid.study.page.curves import averaged, curves_plot
from sparsevid.study.page.forest import forest
from sparsevid.study.page.frame import LETTER, Scale, place_labels, spread_scale
from sparsevid.study.page.markup import Markup, element
from sparsevid.study.page.numbers import change, seconds, signed, with_prefix
from sparsevid.study.page.rows import COLOURS, RowStyles
from sparsevid.study.page.scatter import beside, front_of, points_of, scatter
from sparsevid.study.page.stages import stage_changes, stage_dots, stage_lines
from sparsevid.study.page.tokens import tokens_plot

COSTS = ("macs", "seconds")


def study_of(tmp_path, written):
    return read_studies([write(tmp_path / "paper.jsonl", written)])[0][0]


@pytest.fixture
def study(tmp_path):
    return study_of(tmp_path, [*lines(), *(line(HOSTILE, seed) for seed in range(3))])


def differences_of(study, quality):
    return {row: difference(study.of(row), study.of(CONTROL), quality) for row in study.rows if row != CONTROL}


def plots(study):
    """All plots of a study, by name."""
    styles = RowStyles(study.rows)
    found = {"stages": stage_lines(study, styles), "dots": stage_dots(study, styles)}
    found["tokens"] = tokens_plot({row: study.of(row)[0].schedule for row in study.rows}, styles, study.name)
    for quality in QUALITIES:
        own = differences_of(study, quality)
        found[f"forest {quality}"] = forest(study, styles, quality, own)
        found |= {f"{cost} {quality}": scatter(study, styles, cost, quality, own) for cost in COSTS}
    return {name: plot for name, plot in found.items() if plot is not None}


def tips(root):
    return [each.get("data-tip") for each in root.iter() if each.get("data-tip") is not None]


def test_plots_are_well_formed_and_names_stay_text(study):
    found = plots(study)
    assert len(found) == 12
    for plot in found.values():
        root = ET.fromstring(plot)
        assert not [each.tag for each in root.iter() if each.tag == "script"]
        assert any(HOSTILE in tip for tip in tips(root))


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("cost", COSTS)
def test_points_stand_where_their_figures_say(study, cost, quality):
    styles = RowStyles(study.rows)
    root = ET.fromstring(scatter(study, styles, cost, quality, {}))
    wide, narrow = root.findall("svg")
    for picture in (wide, narrow):
        places = {each.get("data-row"): place(each) for each in picture.iter("g") if each.get("data-tip")}
        assert len(places) == len(study.rows)
        for a, b in combinations(study.rows, 2):
            (ax, ay), (bx, by) = places[str(styles.index(a))], places[str(styles.index(b))]
            means = [estimate(study.of(row), quality).mean for row in (a, b)]
            assert (ay > by) == (means[0] < means[1]) or abs(ay - by) < 0.1
            costs = [estimate(study.of(row), cost).mean for row in (a, b)]
            assert (ax < bx) == (costs[0] < costs[1]) or abs(costs[0] / costs[1] - 1) < 0.2  # equal ones stand side by side
    assert all(quality in tip for tip in tips(root))


def place(point):
    path = next(each for each in point.iter("path") if each.get("class") == "marker").get("d")
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
    if "a" in path:  # a circle begins at its left
        return numbers[0] + numbers[2], numbers[1]
    return sum(numbers[::2]) / len(numbers[::2]), sum(numbers[1::2]) / len(numbers[1::2])


def test_the_frontier_turns_with_what_is_better(study):
    by_accuracy = [point.row for point in points_of(study, "macs", "accuracy")]
    front = [by_accuracy[index] for index in front_of(points_of(study, "macs", "accuracy"), "accuracy")]
    assert front[0] == "sparse, 5 steps"
    assert front[-1] == "teacher, features"
    assert CONTROL not in front


def test_each_row_has_one_colour_and_one_marker_on_the_whole_page(study):
    styles = RowStyles(study.rows)
    for plot in plots(study).values():
        for each in ET.fromstring(plot).iter():
            row, own = each.get("data-row"), re.match(r"c\d", each.get("class") or "")
            if row is not None and own is not None:
                assert own[0] == styles.classes(study.rows[int(row)])
    many = RowStyles([CONTROL, *map(str, range(50))])
    assert len({(many.classes(row), many.shape(row)) for row in many.names}) == 51


def test_a_marker_is_full_only_where_the_interval_excludes_zero(study):
    styles = RowStyles(study.rows)
    for quality in QUALITIES:
        own = differences_of(study, quality)
        wide = ET.fromstring(forest(study, styles, quality, own)).find("svg")
        for each in (each for each in wide.iter("g") if each.get("data-tip")):
            row = study.rows[int(each.get("data-row"))]
            excludes = not own[row].interval.low <= 0 <= own[row].interval.high
            assert ("hollow" not in each.get("class").split()) == excludes
            assert ("cannot be told" not in each.get("data-tip")) == excludes


def test_stages_are_compared_seed_by_seed(study):
    found = stage_changes(study.of("sparse"), study.of(CONTROL))
    ratios = [[100 * (a.loss / b.loss - 1) for a, b in zip(own.stages, other.stages, strict=True)]
              for own, other in zip(study.of("sparse"), study.of(CONTROL), strict=True)]  # fmt: skip
    assert [each.mean for each in found] == pytest.approx([sum(column) / 3 for column in zip(*ratios, strict=True)])
    for each, column in zip(found, zip(*ratios, strict=True), strict=True):
        assert each.seeds == 3
        assert each.interval == pytest.approx(tuple(ttest_1samp(column, 0).confidence_interval()))
    assert stage_changes(study.of(CONTROL), study.of(CONTROL))[0].mean == 0


def test_a_loss_that_is_another_row_s_is_drawn_once(tmp_path):
    """Few steps of the same run lose what it loses: no row of its own over time, and no difference to count."""
    alike = [line("sparse", seed) | {"row": "sparse, 5 steps"} for seed in range(3)]
    study = study_of(tmp_path, [*lines(["dense", "sparse"]), *alike])
    for plot in (stage_lines(study, RowStyles(study.rows)), stage_dots(study, RowStyles(study.rows))):
        said = tips(ET.fromstring(plot))
        assert any("sparse" in each for each in said) and not any("5 steps" in each for each in said)
    assert set(differences(study)["loss"]) == {"sparse"} and set(differences(study)["distance"]) == {
        "sparse",
        "sparse, 5 steps",
    }


def test_rows_of_one_schedule_share_a_line(study):
    root = ET.fromstring(tokens_plot({row: study.of(row)[0].schedule for row in study.rows}, RowStyles(study.rows), "paper"))
    assert len([each for each in root.find(".//svg").iter("path") if each.get("class") == "line"]) == 2
    names = [item for each in root.iter("li") for item in "".join(each.itertext()).split("  ·  ")]
    assert sorted(names) == sorted(row for row in study.rows if row != CONTROL)
    assert tokens_plot({CONTROL: ()}, RowStyles([CONTROL]), "paper") is None
    flat = tokens_plot({"none": token_steps([[1, 0]])}, RowStyles(["none"]), "paper")
    assert ET.fromstring(flat) is not None


@pytest.mark.parametrize(
    "figures",
    [
        {"loss": 1e30, "distance": -1e30, "accuracy": 0.0, "macs": 1e-30, "seconds": 1e30},
        {"loss": 0.0, "distance": 0.0, "accuracy": 1e-29, "macs": 0.0, "seconds": 0.0},
        {"loss": -3.0, "distance": 1e-12, "accuracy": -0.5, "macs": -5.0, "seconds": 5e-324},
    ],
)
def test_figures_of_any_size_are_drawn(tmp_path, figures):
    two = [{**line(row, seed), **figures} for row in ("dense", "sparse") for seed in range(2)]
    two[3] |= {name: value * 1.0000000001 for name, value in figures.items()}
    mixed = [line("dense", 0), line("sparse", 0) | figures]
    for written in (two, mixed, [line("dense", 0) | figures]):
        for plot in plots(study_of(tmp_path, written)).values():
            assert "nan" not in plot
            assert "inf" not in re.sub(r'(data-tip|aria-label)="[^"]*"', "", plot)
            ET.fromstring(plot)


def test_an_interval_that_reaches_below_zero_runs_out_of_a_logarithmic_plot(tmp_path):
    distances = {"dense": (3.0, [-9.0, 20.0]), "sparse": (90.0, [80.0, 100.0])}
    own = [line(row, 0) | {"distance": value, "distance_interval": ends} for row, (value, ends) in distances.items()]
    picture = ET.fromstring(scatter(study_of(tmp_path, own), RowStyles(distances), "macs", "distance", {})).find("svg")
    field = next(each for each in picture.iter("svg") if each is not picture)
    bottom = float(field.get("y")) + float(field.get("height"))
    ends = [float(each.get("y1")) for each in field.iter("line") if each.get("class") == "bar"]
    assert max(ends) > bottom and len([end for end in ends if end < bottom]) >= 3
    places = [place(each)[1] for each in picture.iter("g") if each.get("data-tip")]
    assert abs(places[0] - places[1]) > 0.5 * float(field.get("height"))  # a ratio of 30 fills it


def test_what_was_not_measured_is_not_drawn(tmp_path):
    bare = study_of(tmp_path, [{"study": "paper", "row": row, "seed": 0, "macs": 5.0} for row in ROWS])
    assert plots(bare) == {}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [(0.001, 0.0011), (1.0, 3.0), (2.0, 90.0), (3e9, 8e12), (5.0, 5.0)])
def test_ticks_lie_on_the_scale_and_are_not_many(values, log):
    scale = spread_scale(values, 10.0, 210.0, log=log)
    assert all(10 < scale(value) < 210 for value in values)
    for most in (2, 3, 6):
        ticks = scale.ticks(most)
        assert 2 <= len(ticks) <= most
        assert all(9.99 <= scale(tick) <= 210.01 for tick in ticks)
        assert all(a < b for a, b in pairwise(ticks))


def test_equal_ratios_are_equal_lengths_on_a_logarithmic_scale():
    scale = Scale(1.0, 100.0, 0.0, 100.0, True)
    assert [scale(value) for value in (1.0, 10.0, 100.0)] == pytest.approx([0, 50, 100])


def test_points_of_equal_cost_stand_side_by_side_and_pass_no_other():
    places = [100.0, 300.0, 101.0, 100.0, 250.0]
    found = beside(places, 200.0)
    assert (found[1], found[4]) == (300.0, 250.0)
    assert all(abs(a - b) > 10 for a, b in combinations(found, 2))
    assert sum(found[i] for i in (0, 2, 3)) == pytest.approx(301.0)
    crowd = beside([100.0] * 20 + [120.0] * 2 + [200.0], 90.0)
    assert len({round(place, 3) for place in crowd}) == 23
    assert max(crowd[:20]) < min(crowd[20:22])
    assert max(beside([100.0] * 50, 90.0)) == 145.0
    assert beside([], 90.0) == []


def test_labels_cover_neither_points_nor_each_other():
    points = [(50.0 + 3 * n, 60.0 + 9 * (n % 4), f"row number {n}") for n in range(12)]
    found = place_labels(points, (0.0, 0.0, 300.0, 200.0))
    assert any(each is None for each in found)  # there is no room for all
    areas = []
    for (_, _, name), each in zip(points, found, strict=True):
        if each is not None:
            left = each[0] - {"start": 0, "middle": 0.5, "end": 1}[each[2]] * LETTER * len(name)
            areas.append((left, each[1] - 10, left + LETTER * len(name), each[1] + 3))
    points = [(x, y, x, y) for x, y, _ in points]
    pairs = [*combinations(areas, 2), *((area, point) for area in areas for point in points)]
    assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a, b in pairs)


def test_long_curves_are_averaged_and_end_at_their_last_steps():
    values = [(step, 1.0 / step) for step in range(1, 5001)]
    found = averaged(values)
    assert len(found) <= 160
    assert found[-1][0] > 4900
    assert sum(value for _, value in found) / len(found) == pytest.approx(sum(v for _, v in values) / 5000, rel=0.05)
    root = ET.fromstring(curves_plot({"one": values, "two": values[:1]}, "loss", RowStyles(["one", "two"])))
    assert len(tips(root.find(".//svg"))) >= 9
    assert curves_plot({"one": []}, "loss", RowStyles(["one"])) is None


def test_markup_escapes_what_is_not_markup():
    found = element("td", "<b>", [Markup("<i></i>"), 3], title='"&\ud800', class_="x", hidden=True, aria_label=None)
    assert found == '<td title="&quot;&amp;\\ud800" class="x" hidden>&lt;b&gt;<i></i>3</td>'


def test_numbers_are_written_for_readers():
    assert [with_prefix(value) for value in (400, 2_894_112, 1.12e11, 0.5)] == ["400", "2.89 M", "112 G", "0.500"]
    assert [seconds(value) for value in (0.0421, 0.42, 900, 9000)] == ["42.1 ms", "0.420 s", "15.0 min", "2.50 h"]
    assert [signed(value) for value in (0.2235, -1.5, 0, 123456)] == ["0.224", "−1.50", "0", "123456"]
    assert change("loss", 0.0119, (0.0108, 0.013)) == "+0.0119 [+0.0108, +0.0130]"
    assert change("accuracy", -0.0173, (-0.0792, 0.0445)) == "−1.73 pp [−7.92, +4.45]"
    assert change("distance", 0.0, None) == "0"
    assert short_hash("e6848bd2d0c1f3a4b5968778695a4b3c2d1e0f9a with local changes") == "e6848bd2d0 with local changes"


def test_colours_stand_out_on_both_papers():
    """Contrast by WCAG 2: 4.5 for text, 3 for markers; and rows differ for protan, deutan and tritan readers."""
    style = files("sparsevid.study.page").joinpath("page.css").read_text(encoding="utf-8")
    found = re.findall(r"(--\w+|\.c\d)(?: \{ --c)?: light-dark\((#\w{6}), (#\w{6})\)", style)
    pairs = {name: (light, dark) for name, light, dark in found}
    rows = [f".c{number}" for number in range(COLOURS + 1)]
    for theme in (0, 1):
        for paper in ("--paper", "--raised"):
            for name in ("--ink", "--soft", "--press", "--good", "--bad"):
                assert contrast(pairs[name][theme], pairs[paper][theme]) >= 4.5, (name, paper, theme)
        for name in rows:
            assert contrast(pairs[name][theme], pairs["--paper"][theme]) >= 3, (name, theme)
        for seen in VISION:
            for a, b in combinations(rows, 2):
                assert distance(pairs[a][theme], pairs[b][theme], seen) >= 0.06, (a, b, theme, seen)


# Linear RGB as it is seen by trichromats and without one kind of cones (Machado, Oliveira and Fernandes 2009, severity 1).
VISION = {
    "all": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def linear(colour: str) -> list[float]:
    values = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]


def contrast(a: str, b: str) -> float:
    dark, light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear(a), linear(b)))
    return (light + 0.05) / (dark + 0.05)


def distance(a: str, b: str, seen: str) -> float:
    """Between two colours in Oklab."""
    return sum((x - y) ** 2 for x, y in zip(oklab(a, seen), oklab(b, seen), strict=True)) ** 0.5


def oklab(colour: str, seen: str) -> list[float]:
    light = [max(0.0, sum(w * v for w, v in zip(row, linear(colour), strict=True))) for row in VISION[seen]]
    cones = ((0.4122214708, 0.5363325363, 0.0514459929), (0.2119034982, 0.6806995451, 0.1073969566),
             (0.0883024619, 0.2817188376, 0.6299787005))  # fmt: skip
    axes = ((0.2104542553, 0.7936177850, -0.0040720468), (1.9779984951, -2.4285922050, 0.4505937099),
            (0.0259040371, 0.7827717662, -0.8086757660))  # fmt: skip
    roots = [sum(w * v for w, v in zip(row, light, strict=True)) ** (1 / 3) for row in cones]
    return [sum(w * v for w, v in zip(row, roots, strict=True)) for row in axes]
