"""The page as a file: all of what there is, nothing from elsewhere, and no name that becomes markup."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from study_lines import HOSTILE, line, lines, moving, write, write_clips

from sparsevid.runs.config import load_config, save_config
from sparsevid.study.page.document import build_page, read_sources, write_page, write_pictures
from sparsevid.study.page.run_folder import read_run

ROOT = Path(__file__).parents[3]


class Page(HTMLParser):
    """Elements of a page, each with its attributes, and the text in it."""

    VOID = ("br", "hr", "img", "input", "meta")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def run(tmp_path):
    """A run's folder: configuration, metrics with a line cut off and a step made twice, a sheet of samples."""
    folder = tmp_path / "runs" / "sparse"
    (folder / "samples").mkdir(parents=True)
    save_config(load_config(ROOT / "configs" / "demo" / "sparse.yaml"), folder / "config.yaml")
    rows = [{"step": step, "train/loss": 2.0 / step, "train/skipped": 0} for step in range(10, 210, 10)]
    rows += [{"step": 100, "train/loss": 7.0}, {"step": 200, "validation/loss": 0.5}, {"step": "x"}, 5]
    text = "\n".join(map(json.dumps, rows)) + '\n{"step": 210, "tra'
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    Image.new("RGB", (64, 32), "red").save(folder / "samples" / "step-0000100.png")
    return folder


def page_of(*paths: Path, **options) -> str:
    return build_page(read_sources(paths), **options)


def with_clips(folder: Path, written: list[dict]) -> list[dict]:
    """The first seed of each row with clips, and real ones."""
    classes = ["pong", "space_invaders", "qbert"]
    for number, each in enumerate(written):
        if each["seed"] == 0:
            each |= {"shown": write_clips(folder, f"{number}.npz", moving(3, shift=number)), "classes": classes}
    real = {"study": "paper", "row": "real", "seed": 0, "classes": classes}
    return [*written, real | {"shown": write_clips(folder, "real.npz", moving(3, shift=50))}]


def test_all_that_there_is_is_on_the_page(tmp_path, run):
    written = with_clips(tmp_path, lines(["dense", "sparse"]))
    page = Page(page_of(write(tmp_path / "paper.jsonl", written), run))
    for text in ("paper", "space invaders", "sparse", "e6848bd2d0", "AMD EPYC", "2026-11-27 to 2026-11-28", "torch 2.9.0",
                 "sparsevid study configs/study/paper.yaml", "cannot be told", "1P 2(1M2S1R1D) 1D",
                 "hidden_size: 128"):  # fmt: skip
        assert text in page.words, text
    assert len([1 for tag, _ in page.found if tag == "canvas"]) == 9
    assert "Left out" not in page.words


def test_plot_and_clips_are_files_of_their_own(tmp_path):
    written = with_clips(tmp_path, lines(["dense", "sparse"]))
    studies = read_sources([write(tmp_path / "paper.jsonl", written)]).studies
    plot, clips = write_pictures(studies, tmp_path / "pictures", columns=2)
    assert (plot.name, clips.name) == ("paper.svg", "paper.webp")
    names = {found.text for found in ElementTree.parse(plot).iter("{http://www.w3.org/2000/svg}text")}
    assert {"dense", "sparse"} < names
    with Image.open(clips) as playing:  # three rows of two clips of 3 frames
        assert playing.n_frames == moving(1).shape[2] and playing.height > playing.width / 2
    for each in studies:
        each.name = "../" + HOSTILE
    assert all(path.parent == tmp_path / "pictures" for path in write_pictures(studies, tmp_path / "pictures"))


def test_nothing_comes_from_elsewhere_and_little_from_here(tmp_path, run):
    text = page_of(write(tmp_path / "paper.jsonl", with_clips(tmp_path, lines())), run)
    assert not re.search(r"https?:|//[a-z]|@import|\burl\(", re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))
    page = Page(text)
    for tag, attributes in page.found:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    assert len(text) < 5_000_000
    identities = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(identities) == len(set(identities))


@pytest.mark.parametrize("name", [HOSTILE, "</title><img src=x onerror=alert(1)>", "$style ${body} $$", "a\ud800\0b\u202e"])
def test_names_stay_names(tmp_path, run, name):
    hostile = {"study": name, "note": name, "commit": name, "hardware": {name: name}, "command": name, "date": name,
               "versions": [name], "settings": name}  # fmt: skip
    written = [line("dense", 0) | hostile, line(name, 0) | hostile]
    for each in written:
        each |= {"shown": write_clips(tmp_path, "clips.npz", moving(1)), "classes": [name]}
    path = write(tmp_path / "paper.jsonl", [*written, {"study": name, "row": name, "seed": name}])
    renamed = run.rename(run.with_name(name.translate({ord("/"): "-", 0: "-", 0xD800: "-"})))
    out = tmp_path / "out"
    write_page([path, renamed], out)
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.found].count("script") == 1
    images = [attributes["src"] for tag, attributes in page.found if tag == "img"]
    assert all(source.startswith("data:image/webp") for source in images)
    assert not [attribute for _, attributes in page.found for attribute in attributes if attribute.startswith("on")]
    assert " ".join(name.replace("\ud800", "\\ud800").replace("\0", "\ufffd").split()) in page.words


def test_what_was_not_measured_is_said_to_be_so(tmp_path):
    written = [{"study": "paper", "row": row, "seed": 0} for row in ("dense", "sparse")] + [
        {"study": "b", "row": "x", "seed": 1}
    ]
    page = Page(page_of(write(tmp_path / "paper.jsonl", written)))
    for text in ("No clips were kept", "not measured", "Not measured: no row has both", "Not comparable", "not recorded",
                 "No row says its token schedule"):  # fmt: skip
        assert text in page.words, text


def test_times_of_two_machines_stand_apart(tmp_path):
    timed = [line("dense", seed) | {"hardware": name, "seconds": seconds, "training_seconds": 100.0 * seconds}
             for seed, (name, seconds) in enumerate((("slow", 8.0), ("fast", 2.0)))]  # fmt: skip
    words = Page(page_of(write(tmp_path / "paper.jsonl", timed))).words
    assert "8.00 s on slow , 2.00 s on fast" in words
    assert "13.3 min on slow , 3.33 min on fast" in words
    assert "5.00 s" not in words


def test_damage_is_named_on_the_page(tmp_path):
    path = write(tmp_path / "paper.jsonl", [line("dense", 0) | {"shown": "<gone>.npz", "macs": "many"}])
    path.write_bytes(path.read_bytes() + b'{"study": "paper", "row"')
    deep = '{"study": "paper", "row": "a", "seed": 0, "note": ' + "[" * 100_000
    negative = line("negative", 0) | {"schedule": [[1.0, -5]]}
    many = line("many", 0) | {"clips": 1e30}
    path.write_bytes(path.read_bytes() + b"\n" + "\n".join([deep, json.dumps(negative), json.dumps(many)]).encode() + b"\n")
    words = Page(page_of(path)).words
    assert f"{path}, line 2 is left out" in words and f"{path}, line 3 is left out" in words
    assert "a schedule of fewer than no tokens" in words
    assert "macs of 'dense', seed 0, is passed over: 'many'" in words
    assert "<gone>.npz" in words


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(tmp_path):
    """In processes of other hash seeds, in which sets have other orders."""
    path = write(tmp_path / "paper.jsonl", with_clips(tmp_path, lines(["dense", "sparse"])))
    pages = []
    for seed in "12":
        command = [sys.executable, str(ROOT / "tools" / "report.py"), str(path), "--out", str(tmp_path / seed)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)})
        pages.append((tmp_path / seed / "index.html").read_bytes())
    assert pages[0] == pages[1]


def test_no_more_clips_are_shown_than_asked_for(tmp_path):
    path = write(tmp_path / "paper.jsonl", with_clips(tmp_path, lines(["dense"], seeds=1)))
    for count in (0, 1, 2):
        page = Page(page_of(path, lines=count))
        assert len([1 for tag, _ in page.found if tag == "canvas"]) == 2 * count
        assert ("more classes are not shown" in page.words) == (count > 0)


@pytest.mark.parametrize("name", ["", "none", "notes.txt", "empty", "empty.jsonl"])
def test_what_is_neither_is_refused_with_what_is_accepted(tmp_path, name):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=r"config\.yaml or metrics\.jsonl|no line of results"):
        write_page([tmp_path / name], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_runs_folder_is_read(run):
    problems: list[str] = []
    found = read_run(run, problems)
    assert problems == []
    assert dict(found.metrics["train/loss"])[100] == 7.0  # of a step that was made again, the last
    assert [step for step, _ in found.metrics["train/loss"]] == list(range(10, 210, 10))
    assert found.metrics["validation/loss"] == [(200, 0.5)]
    assert found.sheet.name == "step-0000100.png"
    tokens = [step.tokens for step in found.schedule]
    assert tokens == sorted(tokens, reverse=True)
    assert (found.schedule[0].low, found.schedule[-1].high) == (0.0, 1.0)


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl"])
def test_half_a_run_is_shown_too(tmp_path, run, missing):
    (run / missing).unlink()
    page = Page(page_of(run))
    assert ("what was run is not known" in page.words) == (missing == "config.yaml")
    assert ("Not measured: sparse." in page.words) == (missing == "metrics.jsonl")


def test_a_configuration_of_elsewhere_is_shown_as_it_is(run):
    (run / "config.yaml").write_text("model:\n  hidden_syze: 3  # <b>\n", encoding="utf-8")
    page = Page(page_of(run))
    assert "hidden_syze: 3 # <b>" in page.words
    assert "is shown as it is, but not understood" in page.words


def test_what_the_environment_holds_is_on_no_page(run, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "hunter2")
    (run / "config.yaml").write_text("train: {init_from: '${oc.env:A_TOKEN}'}\n", encoding="utf-8")
    page = Page(page_of(run))
    assert "${oc.env:A_TOKEN}" in page.words and "hunter2" not in page.words


def test_runs_of_one_name_are_told_apart(tmp_path, run):
    other = tmp_path / "others" / "sparse"
    other.mkdir(parents=True)
    (other / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n', encoding="utf-8")
    sources = read_sources([run, other, run])
    assert [each.name for each in sources.runs] == ["runs/sparse", "others/sparse"]
    assert "others/sparse" in Page(build_page(sources)).words
