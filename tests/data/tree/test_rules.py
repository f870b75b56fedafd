"""Rules say what they mean: classes, orders, lists and splits, on trees of names alone."""

from dataclasses import replace

import pytest

from sparsevid.data.tree.rules import SplitRules, TreeRules, apply_rules

FOLDER = TreeRules(label_rule="folder")
LISTS = SplitRules("lists", lists={"train": "l/train{fold}.txt", "test": "l/test{fold:02d}.txt"}, max_missing=0.0)


def class_of(root, paths, rules):
    found = apply_rules(root, paths, rules)
    return {path: found.classes[label] for path, label in found.labels.items()}


def splits_of(root, paths, train="", test="", **changes):
    """Splits of a tree that has these two lists."""
    (root / "l").mkdir(exist_ok=True)
    (root / "l" / "train1.txt").write_bytes(train.encode())
    (root / "l" / "test01.txt").write_bytes(test.encode())
    return apply_rules(root, paths, replace(TreeRules(**changes), split=LISTS)).splits


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("owl/a.mp4", "owl"),
        ("owl/night/a.mp4", "owl"),
        ("train/owl/a.mp4", "owl"),
        ("box/train/owl/a.mp4", "owl"),
        ("training/a.mp4", "training"),  # split folders are whole components
        ("train/v_owl_g01.mp4", "owl"),  # no folder says it, the name does
        ("v_owl_g01", "owl"),
        ("wren/v_owl_g01.mp4", "wren"),  # the folder comes first
    ],
)
def test_class_of_a_path(tmp_path, path, name):
    rules = replace(FOLDER, containers=["box"], label_pattern="v_(.+)_g", split=SplitRules("folders", {"train": ["train"]}))
    assert class_of(tmp_path, [path], rules) == {path: name}


def test_paths_without_a_class_are_left_out(tmp_path):
    assert class_of(tmp_path, ["a.mp4", "x/a.mp4"], FOLDER) == {"x/a.mp4": "x"}


@pytest.mark.parametrize("names", [["b", "B2", "a"], ["Zebra", "ant", "Äsche"]])
def test_without_a_list_classes_are_sorted_in_either_order(tmp_path, names):
    paths = [f"{name}/1.mp4" for name in names]
    for order in ("sorted", "official"):
        assert apply_rules(tmp_path, paths, replace(FOLDER, label_order=order)).classes == tuple(sorted(names))


@pytest.mark.parametrize("text", ["1 wren\n2 owl\n3 Ant\n", "wren\r\n\r\n  owl \r\nAnt", "\ufeff1 wren\n2 owl\n3\tAnt\n"])
@pytest.mark.parametrize("below", [True, False])
def test_class_list(tmp_path, text, below):
    """It indexes all its names, present or not, in either order; it is looked for below the tree and beside it."""
    root = tmp_path / "root"
    root.mkdir()
    ((root if below else tmp_path) / "classes.txt").write_bytes(text.encode())
    rules = replace(FOLDER, class_list="classes.txt", classes=["not", "these"])
    official, by_name = (apply_rules(root, ["OWL/a.mp4"], replace(rules, label_order=o)) for o in ("official", "sorted"))
    assert official.classes == ("wren", "owl", "Ant") and by_name.classes == ("Ant", "owl", "wren")
    assert official.labels == by_name.labels == {"OWL/a.mp4": 1}


@pytest.mark.parametrize("text", ["", "2 a\n1 b\n", "1 a\n3 b\n", "a\nA\n", b"\xff\xfe\x00\x01"])
def test_class_lists_that_are_none(tmp_path, text):
    (tmp_path / "classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"classes\.txt"):
        apply_rules(tmp_path, ["a/1.mp4"], replace(FOLDER, class_list="classes.txt"))


def test_class_list_that_is_missing(tmp_path):
    rules = replace(FOLDER, class_list="classes.txt")
    with pytest.raises(FileNotFoundError, match=r"no class list classes\.txt"):
        apply_rules(tmp_path, ["a/1.mp4"], rules)
    assert apply_rules(tmp_path, ["a/1.mp4"], replace(rules, classes=["b", "a"])).labels == {"a/1.mp4": 1}


def test_folder_splits_are_whole_components(tmp_path):
    split = SplitRules("folders", {"train": ["train", "sky_train"], "test": ["test"]})
    paths = ["train/a.mp4", "x/sky_train/b.mp4", "test/train/c.mp4", "testing/d.mp4", "train.mp4", "mytrain/e.mp4"]
    assert apply_rules(tmp_path, paths, TreeRules(split=split)).splits == {
        "train/a.mp4": "train", "x/sky_train/b.mp4": "train", "test/train/c.mp4": "test"
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "c/a.mp4\n", "c/a.mp4 7\r\n\r\n", "\ufeffc/a.mp4\t7", "  c/a.mp4  ", "./c/a.mp4", "c\\a.mp4", "C/A.MP4", "c/a",
        "c/a.avi", "deep/c/a.mp4",
    ],
)  # fmt: skip
def test_entries_are_found_however_they_are_written(tmp_path, text):
    assert splits_of(tmp_path, ["x/deep/c/a.mp4"], text) == {"x/deep/c/a.mp4": "train"}


@pytest.mark.parametrize("entry", ["b/a.mp4", "a/c.mp4", "other/deep/c/a.mp4", "mp4", "c"])
def test_entries_of_other_videos_are_missing(tmp_path, entry):
    with pytest.raises(ValueError, match="1 of 1 entries .* accepted: a share of 0"):
        splits_of(tmp_path, ["deep/c/a.mp4", "c/d"], entry)


def test_the_exact_spelling_comes_first(tmp_path):
    """Names that differ only in case, extension or a number at the end are different videos."""
    paths = ["c/a.mp4", "c/A.mp4", "c/a.avi", "c/a 1", "c/a"]
    found = splits_of(tmp_path, paths, train="c/A.mp4\nc/a.avi\nc/a 1\n", test="c/a.mp4\nc/a 2\n")
    assert found == {"c/A.mp4": "train", "c/a.avi": "train", "c/a 1": "train", "c/a.mp4": "test", "c/a": "test"}


def test_own_names_match_in_flat_trees_alone(tmp_path):
    assert splits_of(tmp_path, ["v_1", "k/v_2"], "k/v_1.avi 1\nk/v_2.avi 1\n") == {"v_1": "train", "k/v_2": "train"}
    with pytest.raises(ValueError, match=r"1 of 1 entries .*: k/v_1\.avi"):
        splits_of(tmp_path, ["other/v_1"], "k/v_1.avi")


def test_a_video_in_two_splits_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"'c/a.mp4' is in split 'train' too"):
        splits_of(tmp_path, ["c/a.mp4"], "c/a.mp4\n", "c/a.mp4\n")


@pytest.mark.parametrize(("label", "meant"), [(1, "wren"), (3, "no class"), (0, "no class")])
@pytest.mark.parametrize("order", ["official", "sorted"])
def test_labels_of_a_list_must_be_those_of_the_class_list(tmp_path, label, meant, order):
    changes = {"label_rule": "folder", "classes": ["wren", "owl"], "label_order": order}
    assert splits_of(tmp_path, ["owl/a.mp4"], "owl/a.mp4 2", **changes) == {"owl/a.mp4": "train"}
    with pytest.raises(
        ValueError, match=f"'owl/a.mp4' has label {label}, which is {meant} in the class list, and its class is owl"
    ):
        splits_of(tmp_path, ["owl/a.mp4"], f"owl/a.mp4 {label}", **changes)


def test_the_share_of_missing_entries(tmp_path):
    paths, entries = [f"c/{i}.mp4" for i in range(98)], "".join(f"c/{i}.mp4\n" for i in range(100))
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "all.txt").write_text(entries)
    rules = TreeRules(split=SplitRules("lists", lists={"all": "l/all.txt"}, max_missing=0.02))
    found = apply_rules(tmp_path, paths, rules)
    assert len(found.splits) == 98 and found.notes == {"listed in all.txt, not in the tree": ["c/98.mp4", "c/99.mp4"]}
    with pytest.raises(ValueError, match=r"2 of 100 entries of all.txt .*: c/98.mp4, c/99.mp4"):
        apply_rules(tmp_path, paths, replace(rules, split=replace(rules.split, max_missing=0.019)))


def test_lists_and_folds(tmp_path):
    assert LISTS.list_paths() == {"train": "l/train1.txt", "test": "l/test01.txt"}
    assert replace(LISTS, fold=12).list_paths() == {"train": "l/train12.txt", "test": "l/test12.txt"}
    rules = TreeRules(split=replace(LISTS, folders={"train": ["train"]}))
    assert apply_rules(tmp_path, ["train/a.mp4"], rules).splits == {"train/a.mp4": "train"}, "no lists at all: folders"
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "train1.txt").write_text("train/a.mp4\n")
    with pytest.raises(FileNotFoundError, match=r"l/test01.txt .*\(fold 1\)"):
        apply_rules(tmp_path, ["train/a.mp4"], rules)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TreeRules(label_rule="folders"), "label_rule is 'folders'; accepted: none, folder, file"),
        (lambda: TreeRules(label_order="alphabetic"), "accepted: official, sorted"),
        (lambda: TreeRules(media="audio"), "accepted: video, image"),
        (lambda: TreeRules(fps=0), "fps is 0"),
        (lambda: TreeRules(class_list="../x.txt"), "accepted: a path below the root"),
        (lambda: TreeRules(class_list="/etc/passwd"), "accepted: a path below the root"),
        (lambda: TreeRules(classes=["a", "A"]), "'A' is empty or named twice"),
        (lambda: TreeRules(label_pattern="("), "no regular expression"),
        (lambda: TreeRules(label_pattern="v_.+"), "0 groups; accepted: one"),
        (lambda: SplitRules("list"), "accepted: none, folders, lists"),
        (lambda: SplitRules("lists"), "names none"),
        (lambda: SplitRules("folders"), "names none"),
        (lambda: SplitRules(fold=0), "fold is 0"),
        (lambda: SplitRules(max_missing=1.5), "max_missing is 1.5"),
        (lambda: SplitRules(lists={"train": "../../x"}), "accepted: a path below the root"),
        (lambda: SplitRules(folders={"train": ["a"], "test": ["a"]}), "'a' stands for 'train' and for 'test'"),
    ],
)
def test_values_that_are_not_accepted(build, message):
    with pytest.raises(ValueError, match=message):
        build()
