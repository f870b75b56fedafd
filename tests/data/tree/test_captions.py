"""Captions are found where a card says, each at its video; what is wrong is named with its line."""

import json
import logging
from dataclasses import replace

import pytest
from data.trees import numbered, plant_frames, plant_video

from sparsevid.data.tree.captions import CaptionRules, captioned, open_captions
from sparsevid.data.tree.cards import load_card
from sparsevid.data.tree.manifest import build_manifest
from sparsevid.data.tree.rules import TreeRules


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Three videos, one of them a folder of frames. Tests write text files and tables into copies of its listing alone."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("train/a.mp4", "train/b#1.avi"):
        plant_video(root / name)
    plant_frames(root / "test" / "c.d", numbered(3))
    return build_manifest(root, TreeRules())


A, B, C = "train/a.mp4", "train/b#1.avi", "test/c.d"


@pytest.fixture
def write(tree):
    """Writes files below the tree, and takes them away again."""
    written = []

    def each(**texts):
        for name, text in texts.items():
            path = tree.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            written.append(path)

    yield each
    for path in written:
        path.unlink()


def of(captions, path):
    return [captions.texts[place] for place in captions.of(path)]


def test_text_files_beside_the_videos(tree, write, caplog):
    write(**{"train/a.txt": "a frog\r\n\n  the frog \n", "train/b#1.txt": '\ufeffa road, "wide"', "test/c.d.txt": " \n"})
    captions = open_captions(tree, CaptionRules("beside"))
    assert of(captions, A) == ["a frog", "the frog"] and of(captions, B) == ['a road, "wide"'] and of(captions, C) == [""]
    assert captions.texts[0] == "" and captions.missing == (C,)
    assert "1 of 3 videos have no caption, such as test/c.d: theirs is the empty one" in caplog.text


def test_text_files_in_a_folder_of_their_own(tree, write):
    write(**{"captions/a.txt": "a frog", "captions/b#1.txt": "a frog", "captions/c.d.txt": "rain"})
    captions = open_captions(tree, CaptionRules("beside", ("captions/{name}.txt",), missing="error"))
    assert captions.texts == ("", "rain", "a frog") and of(captions, A) == of(captions, B) == ["a frog"]


def test_rows_of_csv(tree, write, caplog):
    """As with lists, paths are relative to any folder on the way, and extensions do not matter."""
    rows = [
        "caption,id,path",
        '"a frog, green",1,train/a.mp4',
        "a road,2,a.MP4",
        "nobody,3,z.mp4",
        "rain,4,test/c.d",
        "rain,5,c.d",
    ]
    write(**{"captions.csv": "\n".join(rows)})
    captions = open_captions(tree, CaptionRules("csv"))
    assert of(captions, A) == ["a frog, green", "a road"] and of(captions, C) == ["rain"] and captions.missing == (B,)
    assert captions.notes == {"in captions.csv, not in the tree": ["z.mp4"], "twice in captions.csv": ["c.d: 'rain'"]}
    assert "not in the tree: 1, such as z.mp4" in caplog.text


def test_rows_of_videos_that_are_not_asked_for_are_no_remark(tree, write):
    write(**{"captions.csv": f"path,caption\n{A},x\n{C},y\nz.mp4,z\n"})
    part = replace(tree, videos=tuple(video for video in tree.videos if video.path == A))
    captions = open_captions(part, CaptionRules("csv"), tree=tree)
    assert captions.texts == ("", "x") and captions.notes == {"in captions.csv, not in the tree": ["z.mp4"]}


def test_several_tables_of_other_columns(tree, write):
    write(**{"one.tsv": "folder\tvideo\ttext\ntrain\ta\tx\n", "two.tsv": "video\ttext\tfolder\nb#1\ty\ttrain\nc.d\tz\ttest\n"})
    captions = open_captions(tree, CaptionRules("csv", ("one.tsv", "two.tsv"), "{folder}/{video}", "text"))
    assert [of(captions, path) for path in (A, B, C)] == [["x"], ["y"], ["z"]] and not captions.missing


def test_lines_of_json(tree, write):
    lines = [{"path": A, "caption": ["a frog", "frog"], "more": 1}, {"path": B, "caption": "a\nb"}, {"path": A, "caption": "c"}]
    write(**{"captions.jsonl": "\n\n".join(json.dumps(line) for line in lines)})
    captions = open_captions(tree, CaptionRules("jsonl"))
    assert of(captions, A) == ["a frog", "frog", "c"] and of(captions, B) == ["a\nb"] and captions.missing == (C,)


def test_webvid(tree, write, tmp_path):
    """Columns and paths as WebVid's tables have them, by its card."""
    root = tmp_path / "webvid"
    for path in ("videos/000001_000050/1066674784.mp4", "videos/000051_000100/1066724161.mp4"):
        plant_video(root / path)
    (root / "results_10M_train.csv").write_text(
        "videoid,contentUrl,duration,page_dir,name\n"
        '1066674784,https://example.com/1.mp4,PT00H00M10S,000001_000050,"Frog, crossing a road."\n'
        "1066724161,https://example.com/2.mp4,PT00H00M20S,000051_000100,Rain\n"
        "1000000000,https://example.com/3.mp4,PT00H00M20S,000051_000100,Not downloaded\n"
    )
    card = load_card("webvid")
    captions = open_captions(build_manifest(root, card.rules()), card.captions.rules())
    assert of(captions, "videos/000001_000050/1066674784.mp4") == ["Frog, crossing a road."]
    assert captions.notes == {"in results_10M_train.csv, not in the tree": ["000051_000100/1000000000.mp4"]}


@pytest.mark.parametrize("missing", ["null", "exclude", "error"])
def test_videos_without_a_caption(tree, write, missing, caplog):
    write(**{"train/a.txt": "a frog"})
    rules = CaptionRules("beside", missing=missing)
    text = f"2 of 3 videos have no caption, such as {C}, {B}"
    if missing == "error":
        with pytest.raises(ValueError, match=text):
            open_captions(tree, rules)
        return
    with caplog.at_level(logging.WARNING):
        captions = open_captions(tree, rules)
    assert text in caplog.text and captions.missing == (C, B)
    kept = captioned(tree, captions, rules)
    assert [video.path for video in kept.videos] == ([A] if missing == "exclude" else [C, A, B])


WRONG = {
    "no table": ({}, "no table of captions captions.csv in"),
    "no column": ({"captions.csv": "path,text\na.mp4,x\n"}, "no column 'caption'; there are: path, text"),
    "empty": ({"captions.csv": ""}, "no column 'path'; there are: none"),
    "column twice": ({"captions.csv": "path,caption,caption\na.mp4,x,y\n"}, "the column 'caption' is there 2 times"),
    "commas": ({"captions.csv": "path,caption\na.mp4,x\na.mp4,a frog, green\n"}, "line 3: 3 fields, and 2 columns"),
    "too short": ({"captions.csv": "path,caption\na.mp4\n"}, "line 2: 1 fields, and 2 columns"),
    "quotes": ({"captions.csv": 'path,caption\na.mp4,"x\n'}, "is no CSV, near line"),
    "outside": ({"captions.csv": "path,caption\n../a.mp4,x\n"}, r"line 2: the path '../a.mp4' is not below"),
    "absolute": ({"captions.csv": "path,caption\n/etc/a.mp4,x\n"}, "'/etc/a.mp4' is not below"),
    "no path": ({"captions.csv": "path,caption\n,x\n"}, "the path '' is not below"),
    "bytes": ({"captions.csv": b"path,caption\na.mp4,caf\xe9\n"}, "captions.csv is no UTF-8 text"),
    "no text": ({"train/a.txt": b"caf\xe9"}, "a.txt is no UTF-8 text"),
    "nobody": (
        {"captions.csv": "path,caption\nz.mp4,x\n"},
        "none of 3 videos has a caption; looked for in captions.csv; in captions.csv, not in the tree: 1, such as z.mp4",
    ),
    "no JSON": ({"captions.jsonl": '{"path": "a.mp4", "caption": "x"}\n{'}, "captions.jsonl, line 2 is no JSON"),
    "list": ({"captions.jsonl": "[1]"}, "line 1 is no object"),
    "number": ({"captions.jsonl": '{"path": "a.mp4", "caption": 3}'}, "caption is 3; accepted: a text or a list of texts"),
    "no key": ({"captions.jsonl": '{"path": "a.mp4"}'}, "no column 'caption'; there are: path"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(tree, write, what):
    files, message = WRONG[what]
    write(**files)
    rule = {"txt": "beside", "jsonl": "jsonl"}.get(next(iter(files), "").rpartition(".")[2], "csv")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_captions(tree, CaptionRules(rule))


def test_a_path_that_means_two_videos(tmp_path):
    for folder in ("train", "test"):
        plant_video(tmp_path / folder / "0.mp4")
    (tmp_path / "captions.csv").write_text("path,caption\n0.mp4,x\n")
    with pytest.raises(ValueError, match=r"'0.mp4' means 2 videos, test/0.mp4 and train/0.mp4; accepted: one"):
        open_captions(build_manifest(tmp_path), CaptionRules("csv"))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{rule: text}", "captions.rule is 'text'; accepted: none, beside, csv, jsonl"),
        ("{missing: skip}", "captions.missing is 'skip'; accepted: null, exclude, error"),
        ("{rule: csv, files: [/etc/x.csv]}", "captions.files has '/etc/x.csv'; accepted: paths below the root"),
        ("{rule: beside, files: [a.txt]}", "accepted for captions.rule=beside: one path with {name}"),
        ("{rule: beside, files: ['{nam}/{name}']}", "accepted for captions.rule=beside"),
        ("{rule: csv, path: path}", "captions.path is 'path'; accepted: a path with a column in braces"),
        ("{rule: csv, caption: ''}", "captions.caption is ''"),
        ("{rules: csv}", "rules.*rule"),
    ],
)
def test_a_card_is_checked(tmp_path, section, message):
    path = tmp_path / "card.yaml"
    path.write_text(f"name: x\ncaptions: {section}\n")
    with pytest.raises(ValueError, match=message):
        load_card(path)


def test_a_card_without_captions_has_none(tree):
    with pytest.raises(ValueError, match="says nothing of captions"):
        open_captions(tree, load_card("demo").captions.rules())
