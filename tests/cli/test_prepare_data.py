"""The command `prepare_data`: its report says what the manifest says, its sheet shows what training sees."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from videos.made import write_video

from sparsevid.cli import run_tool
from sparsevid.cli.prepare_data import describe, open_clips, print_report
from sparsevid.data.loader import SampleOrder
from sparsevid.data.tree.cards import load_card, resolve_root
from sparsevid.data.tree.manifest import Manifest, Video, build_manifest
from sparsevid.videos.sheets import contact_sheet

CARD = """
name: birds
title: Birds of two kinds
source: here
licence: mine
label_rule: folder
class_list: classes.txt
split:
  rule: folders
  folders: {train: [train], test: [test]}
  default: train
clip: {frames: 4, stride: 2, size: [32, 48], flip: true}
counts: {videos: 6, train: 3, test: 3, val: 0}
"""


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Every test works in a folder of its own, and keeps manifests there."""
    monkeypatch.setenv("SPARSEVID_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def birds(tmp_path) -> Path:
    """A card, and its tree: classes whose official order is not the sorted one, odd names, a short video, a text file."""
    root = tmp_path / "data"
    for name, frames in (
        ("train/robin/ä #1.mp4", 12),
        ("train/robin/-2.mp4", 9),
        ("train/auk/1.mp4", 6),
        ("test/auk/2.mp4", 8),
    ):
        write_video(root / name, frames=frames)
    (root / "test/robin").mkdir()
    (root / "test/robin/broken.mp4").write_text("no video")
    (root / "classes.txt").write_text("1 robin\n2 auk\n")
    card = tmp_path / "birds.yaml"
    card.write_text(f"{CARD}root: {root}\n")
    return card


def prepare(*arguments) -> int:
    return run_tool("prepare_data", [*map(str, arguments)])


def report_of(*arguments) -> dict:
    """The JSON report of a run without a contact sheet."""
    assert prepare(*arguments, "--clips", 0, "--json", "report.json") == 0
    return json.loads(Path("report.json").read_text(encoding="utf-8"))


def cells(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in printed.splitlines()]


def test_report_says_what_the_manifest_says(birds):
    report = report_of(birds)
    card = load_card(birds)
    manifest = build_manifest(resolve_root(card), card.rules())
    assert {name: value for name, value in report.items() if name != "kept"} == describe(card, manifest)
    assert report["fingerprint"] == manifest.fingerprint
    assert report["counts"] == {
        "videos": {"found": 4, "expected": 6},
        "frames": {"found": 35, "expected": None},
        "classes": {"found": 2, "expected": None},
        "test": {"found": 1, "expected": 3},
        "train": {"found": 3, "expected": 3},
        "val": {"found": 0, "expected": 0},
    }
    train = report["splits"]["train"]
    assert train["frames"] == {"min": 6, "median": 9, "max": 12, "sum": 27}
    assert train["shorter_than_a_clip"] == 1  # 6 frames, and a clip spans 7
    assert train["fps"] == {"25": 3} and train["sizes"] == {"112×48": 3}
    assert report["classes"] == {"robin": 2, "auk": 2}
    assert [paths for paths in report["rejects"].values()] == [["test/robin/broken.mp4"]]
    assert report["others"] == {"no video or image: .txt": ["classes.txt"]}
    assert Path(report["kept"]).is_file()


def test_tables_mark_what_differs_from_the_card(birds, capsys):
    assert prepare(birds, "--clips", 0) == 0
    printed = capsys.readouterr().out
    rows = cells(printed)
    assert ["videos", "4", "6", "-2", "differs"] in rows
    assert ["test", "1", "3", "-2", "differs"] in rows
    assert ["train", "3", "3", "0", ""] in rows and ["frames", "35", "–", "–", ""] in rows
    assert "This copy is not complete." in printed
    assert (
        "1 videos are shorter than the 7 frames that a clip spans; the card's clip.short is exclude (clip.frames, " in printed
    )
    assert "test/robin/broken.mp4" in printed and ["0 robin", "2"] in rows and ["1 auk", "2"] in rows


def test_a_complete_copy_is_not_called_incomplete(birds, capsys):
    birds.write_text(
        birds.read_text().replace("counts: {videos: 6, train: 3, test: 3, val: 0}", "counts: {videos: 4, train: 2}")
    )
    assert prepare(birds, "--clips", 0) == 0
    printed = capsys.readouterr().out
    assert ["train", "3", "2", "+1", "differs"] in cells(printed)
    assert "not complete" not in printed


@pytest.mark.parametrize(("seed", "images"), [(0, 0), (3, 2)])
def test_sheet_shows_the_first_clips_of_a_training_run(birds, seed, images):
    birds.write_text(birds.read_text().replace("flip: true", f"flip: true, images: {images}"))
    assert prepare(birds, "--clips", 5, "--seed", seed) == 0
    card = load_card(birds)
    dataset = open_clips(card, build_manifest(resolve_root(card), card.rules()), seed)
    assert {video.split for video in dataset.videos} == {"train"} and len(dataset) == 2
    order = SampleOrder(len(dataset), seed)
    clips = [dataset[order[position]]["clip"] for position in range(5)]
    assert all(clip.shape == (3, 4 + images, 32, 48) for clip in clips)
    with Image.open("birds.png") as sheet:
        shown, expected = np.asarray(sheet), np.asarray(contact_sheet(clips, [""] * 5, scale=2))
    assert shown.shape == expected.shape
    height, line, gap = 64, 14, 2
    for row in range(5):
        top = row * (height + line + gap) + line
        assert (shown[top : top + height] == expected[top : top + height]).all()
        assert (shown[top - line : top] < 128).any()  # a caption


def test_names_of_the_sheet_and_of_the_report(birds, tmp_path, capsys):
    assert prepare(birds, "--out", "sheet.png", "--clips", 1) == 0
    assert "sheet.png" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"birds.yaml", "cache", "data", "sheet.png"}


def test_label_order_and_fold_of_the_command_line_rule(birds):
    assert list(report_of(birds)["classes"]) == ["robin", "auk"]
    assert list(report_of(birds, "--label-order", "sorted")["classes"]) == ["auk", "robin"]
    lists = "split:\n  rule: lists\n  lists: {train: 'train{fold:02d}.txt'}\n"
    birds.write_text(birds.read_text().replace(CARD[CARD.index("split:") : CARD.index("clip:")], lists + "  default: train\n"))
    birds.write_text(birds.read_text().replace("class_list:", "containers: [train, test]\nclass_list:"))
    for fold, names in ((1, "robin/-2.mp4 1\n"), (2, "auk/1.mp4 2\r\nauk/2.mp4 2\r\n")):
        (birds.parent / f"data/train{fold:02d}.txt").write_text(names, newline="")
    assert report_of(birds)["splits"]["train"]["videos"] == 1
    assert report_of(birds, "--fold", 2)["splits"]["train"]["videos"] == 2


def test_a_tree_without_classes_splits_or_counts(birds, tmp_path, capsys):
    plain = tmp_path / "plain.yaml"
    plain.write_text("name: plain\nclip: {frames: 4, stride: 2, size: [32, 48]}\n")
    report = report_of(plain, "--root", tmp_path / "data")
    assert report["classes"] == {} and list(report["splits"]) == [""]
    assert "(none)" in capsys.readouterr().out
    assert prepare(plain, "--root", tmp_path / "data", "--clips", 2) == 0
    assert Path("plain.png").is_file()


def test_names_that_could_be_taken_for_markup_or_are_no_text(birds, capsys):
    folder = birds.parent / "data/train/auk"
    write_video(folder / "x.mkv", frames=9)
    for name in ("[/red].mp4", "[bold]x.mp4", os.fsdecode(b"\xff.mp4")):  # the first is a file in a folder called [
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
        shutil.copy(folder / "x.mkv", folder / f"{name}.mkv")
    assert prepare(birds, "--clips", 6) == 0
    assert "[/red].mp4" in capsys.readouterr().out
    assert len(report_of(birds)["rejects"]["empty file (0 bytes)"]) == 3


def test_strict_stops_with_the_reason(birds, capsys):
    assert prepare(birds, "--strict") == 2
    message = capsys.readouterr().err
    assert "sparsevid prepare_data: error: " in message and "broken.mp4" in message


def test_what_is_kept_is_used_until_it_is_to_be_rebuilt(birds):
    first = report_of(birds)
    kept = Path(first["kept"])
    written = kept.stat().st_mtime_ns
    assert report_of(birds) == first and kept.stat().st_mtime_ns == written
    assert report_of(birds, "--rebuild") == first
    assert list(kept.parent.iterdir()) == [kept] and kept.stat().st_mtime_ns > written


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--out", "nowhere/sheet.png"], "--out nowhere/sheet.png: there is no folder"),
        (["--json", "nowhere/report.json"], "--json nowhere/report.json: there is no folder"),
        (["--clips", "-1"], "--clips -1"),
        (["--root", "nowhere"], "no data folder nowhere"),
    ],
)
def test_bad_input_gets_a_message_that_names_it(birds, arguments, reason, capsys):
    assert prepare(birds, *arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("sparsevid prepare_data: error: ") and reason in message


def test_no_sheet_where_no_video_is_as_long_as_a_clip(birds, capsys):
    birds.write_text(birds.read_text().replace("frames: 4", "frames: 40"))
    assert prepare(birds) == 0
    printed = capsys.readouterr().out
    assert "no contact sheet: " in printed and "none of 3 videos is as long as a clip" in printed
    assert ["videos", "4", "6", "-2", "differs"] in cells(printed)
    assert prepare(birds, "--out", "sheet.mp4") == 2


def test_counts_are_those_of_the_fold():
    """A complete copy of UCF101 is complete in each of its official divisions."""
    card = load_card("ucf101")
    for fold, (train, test) in {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}.items():
        video = Video("v.avi", 1, 100, 25.0, 320, 240, 3.96)
        videos = [replace(video, split="train")] * train + [replace(video, split="test")] * test
        manifest = Manifest(Path("."), tuple(videos), (), {}, {}, {"test": test, "train": train})
        counts = describe(card, manifest, fold)["counts"]
        assert all(count["expected"] in (None, count["found"]) for count in counts.values())
        assert counts["train"] == {"found": train, "expected": train}


def test_demo_copy_is_complete(capsys):
    assert prepare("demo", "--clips", 2) == 0
    printed = capsys.readouterr().out
    assert "differs" not in printed and ["videos", "4", "4", "0", ""] in cells(printed)
    assert Path("demo.png").is_file()


def test_report_without_videos_in_a_class_names_it_or_of_many_classes_how_many(birds, capsys):
    for more in (1, 12):
        (birds.parent / "data/classes.txt").write_text("robin\nauk\n" + "".join(f"wren{index}\n" for index in range(more)))
        print_report(report_of(birds))
        rows = cells(capsys.readouterr().out)
        assert (["2 wren0", "0"] in rows) == (more == 1) and (["without a video", "12"] in rows) == (more == 12)


def test_command_explains_itself(capsys):
    with pytest.raises(SystemExit) as done:
        prepare("--help")
    assert done.value.code == 0
    assert "sparsevid prepare_data ucf101 --fold 2 --label-order sorted" in capsys.readouterr().out


def test_captions_are_counted(birds, tmp_path, capsys):
    """Also where they cannot be read: classes can be trained on all the same."""
    birds.write_text(f"{birds.read_text()}captions: {{rule: csv}}\n")
    command = [str(birds), "--clips", "0", "--json", "report.json"]
    assert run_tool("prepare_data", command) == 0
    assert "no table of captions captions.csv" in json.loads(Path("report.json").read_text())["captions"]["error"]
    rows = [
        "path,caption",
        "robin/-2.mp4,a robin",
        "robin/-2.mp4,it sings",
        "train/auk/1.mp4,a robin",
        "train/auk/9.mp4,an auk",
    ]
    (tmp_path / "data" / "captions.csv").write_text("\n".join(rows))
    assert run_tool("prepare_data", command) == 0
    report = json.loads(Path("report.json").read_text())["captions"]
    assert (report["captions"], report["several"], report["error"]) == (2, 1, None)
    assert report["missing"] == ["test/auk/2.mp4", "train/robin/ä #1.mp4"]
    assert report["notes"] == {"in captions.csv, not in the tree": ["train/auk/9.mp4"]}
    assert "2, such as test/auk/2.mp4" in capsys.readouterr().out
