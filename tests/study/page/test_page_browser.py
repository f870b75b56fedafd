"""The page as a browser shows it: in a headless Chromium, which is started once."""

from itertools import product

import numpy as np
import pytest
from chromium import browser, find_chromium
from study_lines import HOSTILE, lines, moving, write, write_clips

from sparsevid.study.page.document import write_page

FRAMES = 6
CLASSES = ["pong", "space_invaders", "qbert"]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    program = find_chromium()
    if program is None:
        pytest.skip("needs a browser: Chromium, such as Debian's package chromium, or Chrome")
    with browser(program, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def clips() -> dict[str, np.ndarray]:
    """By row, and of another length in one of them."""
    found = {row: moving(3, FRAMES, shift=5 * n) for n, row in enumerate(["real", "dense", "sparse", HOSTILE])}
    return found | {"residual": moving(3, FRAMES - 2)}


@pytest.fixture(scope="module")
def page(tmp_path_factory, clips):
    """A page of a study with clips, one row of a hostile name and one that lacks much, and of a run."""
    folder = tmp_path_factory.mktemp("page")
    written = [*lines(), *lines([HOSTILE]), {"study": "paper", "row": "open", "seed": 0, "macs": 3e10}]
    written.append({"study": "paper", "row": "real", "seed": 0})
    for row, of_row in clips.items():
        first = next(each for each in written if each["row"] == row)
        first |= {"shown": write_clips(folder, f"{len(row)}.npz", of_row), "classes": CLASSES}
    (folder / "run").mkdir()
    rows = "".join(f'{{"step": {step}, "train/loss": {2 / step}}}\n' for step in range(1, 40))
    (folder / "run" / "metrics.jsonl").write_text(rows, encoding="utf-8")
    write_page([write(folder / "paper.jsonl", written), folder / "run"], folder / "out")
    return folder / "out" / "index.html"


@pytest.fixture
def shown(chromium, page):
    """A function that shows the page and gives the browser."""

    def show(width: int = 1600, *, dark: bool = False, still: bool = True):
        chromium.open(page, width=width, dark=dark, still=still)
        chromium.run(READY)
        return chromium

    return show


# Pictures are decoded, and the first frame is drawn. A canvas of the test's own reads the others.
READY = """window.read = (canvas) => {
  const own = document.createElement("canvas");
  [own.width, own.height] = [canvas.width, 1];
  const context = own.getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  return context.getImageData(0, 0, own.width, 1).data;
};
document.querySelector(".wall").scrollIntoView();  // what is far from the window is not drawn
new Promise((done) => {
  const look = () => (all(".wall canvas").some((canvas) => read(canvas)[3]) ? done() : requestAnimationFrame(look));
  look();
}).then(() => scrollTo(0, 0))"""
PLACE = "document.querySelector('#tip').getBoundingClientRect()"
TWO_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
# Text whose contrast with what is behind it is below that of WCAG 2, AA; each with what it has.
FAINT = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const numbers = (colour) => {
    if (!known.has(colour)) known.set(colour, drawn(colour));
    return known.get(colour);
  };
  const drawn = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const found = numbers(getComputedStyle(each).backgroundColor);
      if (found[3] > 200) return found.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, style")) continue;
    const style = getComputedStyle(element);
    const ink = numbers(element instanceof SVGElement ? style.fill : style.color).slice(0, 3);
    const [a, b] = [light(ink), light(paper(element))].sort();
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.push(`${walker.currentNode.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return faint;
})()"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1600])
def test_the_page_is_whole_at_any_width_light_and_dark(shown, page, width, dark):
    found = shown(width, dark=dark)
    assert found.complaints() == []
    assert found.requests() == [page.as_uri()]
    assert found.run("document.title") == "paper – sparsevid"
    assert found.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    back, ink = found.run("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert (brightness(back) < brightness(ink)) == dark
    assert found.run(FAINT) == []
    wide = found.run("all('.plot').filter((plot) => plot.checkVisibility()).map((plot) => plot.getBoundingClientRect().width)")
    assert wide
    assert all(200 < each <= width for each in wide)
    assert found.run("all('.wall canvas').every((canvas) => getComputedStyle(canvas).imageRendering === 'pixelated')")
    side = found.run("document.querySelector('.wall canvas').getBoundingClientRect().width")
    assert side % 24 == 0  # a whole multiple of a clip's width


def brightness(colour: str) -> float:
    return sum(float(part) for part in colour.strip("rgb()").split(","))


def bars(found) -> list[int]:
    """Where the bright bar of each clip stands, by its left edge, as it is drawn on the page."""
    return found.run("""all(".wall canvas").map((canvas) => {
      const data = read(canvas);
      return Array.from({ length: canvas.width }, (_, x) => x).find((x) => [0, 1, 2].every((c) => data[4 * x + c] > 245));
    })""")


def planted(clips, frame: int) -> list[int]:
    """The same as planted: a line a class, a column a row; a clip that is shorter stays at its last frame."""
    rows = ["real", "dense", "sparse", "residual", HOSTILE]
    found = []
    for number, row in product(range(3), rows):
        own = clips[row][number, :, min(frame, clips[row].shape[2] - 1), 0]
        found.append(int(np.argmax((own == 255).all(axis=0))))
    return found


def test_clips_are_drawn_in_step_frame_by_frame(shown, clips):
    found = shown()
    for frame in (0, 1, 2):
        assert bars(found) == planted(clips, frame)
        assert found.run("document.querySelector('.where').textContent") == f"{frame + 1} / {FRAMES}"
        found.run("document.querySelector('.step[data-by=\"1\"]').click()")
    found.run("document.querySelector('.step[data-by=\"-1\"]').click()")
    assert bars(found) == planted(clips, 2)
    found.run("{ const seek = document.querySelector('.seek'); seek.value = 5; seek.dispatchEvent(new Event('input')); }")
    assert bars(found) == planted(clips, 5)
    found.run("document.querySelector('.step[data-by=\"1\"]').click()")  # from the last frame to the first
    assert bars(found) == planted(clips, 0)


def test_clips_play_until_they_are_paused(shown):
    found = shown(still=False)
    assert found.run("document.querySelector('.play').textContent") == "Pause"
    turned = """new Promise((done) => {
      const first = document.querySelector(".where").textContent;
      const look = () => (document.querySelector(".where").textContent === first ? requestAnimationFrame(look) : done(true));
      look();
    })"""
    assert found.run(turned)
    before = bars(found)
    found.run(
        "document.querySelector('.speed').value = '4'; document.querySelector('.speed').dispatchEvent(new Event('change'))"
    )
    assert found.run("player.speed") == 4
    assert found.run(turned)
    found.run("document.querySelector('.play').click()")
    still = bars(found)
    found.run(TWO_FRAMES)
    found.run("new Promise((done) => setTimeout(done, 400))")
    assert bars(found) == still
    assert len(before) == len(still) == 15
    assert found.run("document.querySelector('.play').textContent") == "Play"
    assert found.complaints() == []


def test_who_wants_no_motion_gets_none(shown):
    found = shown(still=True)
    assert found.run("document.querySelector('.play').textContent") == "Play"
    assert found.run("player.playing") is False


def test_clips_are_led_by_the_keyboard(shown, clips):
    found = shown()
    found.run("document.querySelector('.wall .box').focus()")
    found.press("ArrowRight")
    found.press("ArrowRight")
    found.press("ArrowLeft")
    assert bars(found) == planted(clips, 1)
    found.press(" ", "Space")
    assert found.run("player.playing") is True
    found.press(" ", "Space")
    assert found.run("player.playing") is False


ROWS = "[...document.querySelector('table.sortable').tBodies[0].rows]"


def column(found, number: int) -> list[str]:
    return found.run(f"{ROWS}.map((row) => row.cells[{number}].textContent)")


def test_tables_sort_by_each_column_and_say_so(shown):
    found = shown()
    heads = found.run("[...document.querySelector('table.sortable').tHead.rows[0].cells].map((head) => head.textContent)")
    rows = sorted(column(found, 0))
    for number in range(len(heads)):
        for way in ("ascending", "descending"):
            found.run(f"all('table.sortable thead button')[{number}].click()")
            sorts = found.run("[...document.querySelector('table.sortable').tHead.rows[0].cells].map((head) => head.ariaSort)")
            assert sorts == [way if place == number else "none" for place in range(len(heads))]
            values = found.run(f"{ROWS}.map((row) => row.cells[{number}].dataset.v ?? null)")
            said = [value for value in values if value is not None]
            assert values[len(said) :] == [None] * (len(values) - len(said))  # what is missing comes last, either way
            try:
                said = [float(value) for value in said]
            except ValueError:
                said = [value.casefold() for value in said if value[0].isalnum()]
            assert said == sorted(said, reverse=way == "descending")
    assert sorted(column(found, 0)) == rows


def test_tables_sort_by_the_keyboard(shown):
    found = shown()
    found.run("all('table.sortable thead button')[4].focus()")  # distance
    found.press("Enter")
    first = column(found, 0)
    assert first[:2] == ["teacher, features", "teacher, output"]
    assert first[-1] == "open"
    found.press(" ", "Space")
    assert column(found, 0)[0] == "sparse, 5 steps"


def test_switches_show_what_is_chosen_and_nothing_else(shown):
    found = shown()
    visible = "all('[data-when]').filter((part) => part.checkVisibility()).map((part) => part.dataset.when)"
    assert found.run(visible) == ["distance macs", "distance", "way-0"]
    found.run("document.querySelector('input[value=accuracy]').click()")
    found.run("document.querySelector('input[value=seconds]').click()")
    found.run("document.querySelector('input[value=way-1]').click()")
    assert found.run(visible) == ["accuracy seconds", "accuracy", "way-1"]
    label = found.run("all('[data-when] .plot').filter((plot) => plot.checkVisibility())[0].ariaLabel")
    assert label == "paper: seconds a sampled clip against class accuracy of samples, a point a row"


def test_a_point_says_which_row_it_is_and_its_figures(shown):
    found = shown()
    found.run("all('.point').find((point) => point.checkVisibility() && point.dataset.tip.startsWith('sparse\\n')).focus()")
    said = found.run("document.querySelector('#tip').textContent").split("\n")
    assert said[0] == "sparse"
    assert said[1].startswith("distance 190")
    assert said[2] == "multiply–adds 112 G"
    assert "against dense: +" in said[3]
    dimmed = found.run("all('.head').map((head) => [head.querySelector('b').textContent, head.classList.contains('dim')])")
    assert [name for name, dim in dimmed if not dim] == ["sparse"]
    found.run(TWO_FRAMES)  # the page may have moved to it
    left, right, top, bottom = found.run(f"['left', 'right', 'top', 'bottom'].map((side) => {PLACE}[side])")
    assert 0 <= left < right <= 1600
    assert 0 <= top < bottom <= 900
    found.press("Escape")
    assert found.run("document.querySelector('#tip').hidden") is True


def test_a_row_stays_chosen_while_its_button_is_pressed(shown):
    found = shown()
    button = f"all('.legend button').find((button) => button.textContent === {HOSTILE!r})"
    found.run(f"{button}.click()")
    assert found.run(f"{button}.ariaPressed") == "true"
    assert found.run("all('.head:not(.dim) b').map((name) => name.textContent)") == [HOSTILE]
    found.run(f"{button}.click()")
    assert found.run("all('.dim').length") == 0


@pytest.mark.parametrize("dark", [False, True])
def test_a_reader_can_choose_the_other_theme(shown, dark):
    found = shown(dark=dark)
    back = "getComputedStyle(document.body).backgroundColor"
    first = brightness(found.run(back))
    assert found.run("theme.textContent") == ("Light" if dark else "Dark")
    found.run("theme.click()")
    second = brightness(found.run(back))
    assert (second > first) == dark
    assert found.run(FAINT) == []
    found.run("theme.click()")
    assert brightness(found.run(back)) == first
