"""The four datasets, and a tree of images, are read as people have them, by their cards alone."""

import shutil
from dataclasses import replace
from pathlib import PurePosixPath

import pytest
from data import trees

from sparsevid.data.tree.cards import load_card
from sparsevid.data.tree.manifest import build_manifest
from sparsevid.data.tree.walk import own_name
from sparsevid.videos.read import DecodeError, read_frames

UCF = load_card("ucf101")


@pytest.fixture(scope="module")
def ucf_root(tmp_path_factory):
    """UCF101 as it is unpacked: `UCF-101` and `ucfTrainTestlist` side by side. Tests change copies of it."""
    root = trees.ucf101(tmp_path_factory.mktemp("ucf") / "ucf101")
    trees.ucf_lists(root / "ucfTrainTestlist", list(UCF.classes))
    return root


def class_of(manifest):
    """Own name without extension → class name."""
    return {
        PurePosixPath(v.path).name.removesuffix(".avi").removesuffix(".mp4"): manifest.classes[v.label] for v in manifest.videos
    }


def splits_of(manifest):
    """Own name without extension → split."""
    return {own_name(video.path): video.split for video in manifest.videos}


UCF_CLASS_OF = {file.removesuffix(".avi"): name for name, file, _ in trees.ucf_videos()}
UCF_SPLIT_OF = {file.removesuffix(".avi"): "test" if test else "train" for _, file, test in trees.ucf_videos()}


def test_faceforensics_as_downloaded(tmp_path):
    manifest = build_manifest(trees.faceforensics(tmp_path), load_card("faceforensics").rules())
    assert manifest.splits == {"test": 1, "train": 2, "val": 1} and not manifest.rejects
    assert all("/original/" in video.path for video in manifest.videos), "masks and altered versions are no videos"
    assert {PurePosixPath(v.path).stem for v in manifest.select("train").videos} == {"a_bc-_x1y2z_0_-_bc-_x1y2z_3", "k2_0_k2_1"}


def test_faceforensics_cropped(tmp_path):
    manifest = build_manifest(trees.faceforensics_cropped(tmp_path), load_card("faceforensics").rules())
    assert manifest.splits == {"test": 1, "train": 1, "val": 1}
    (video,) = manifest.select("train").videos
    assert (video.path, video.frames, video.width, video.height, video.fps) == ("train/a_0_a_1", 4, 48, 32, 30)
    assert video.seconds == pytest.approx(3 / 30)


@pytest.mark.parametrize("card", ["faceforensics", "faceforensics_pp"])
def test_faceforensics_pp_gives_its_originals_in_the_official_splits(tmp_path, card):
    manifest = build_manifest(trees.faceforensics_pp(tmp_path), load_card(card).rules(), strict=True)
    assert splits_of(manifest) == {
        "000": "train", "003": "train", "054": "val", "071": "val", "300": "test", "301": "test", "01__exit_phone_room": None,
    }  # fmt: skip
    assert not manifest.rejects and all(video.path.startswith("original_sequences/") for video in manifest.videos)


@pytest.mark.parametrize("card", ["faceforensics", "faceforensics_pp"])
def test_of_a_tree_of_faceforensics_pp_without_lists_the_originals_are_read(tmp_path, card):
    manifest = build_manifest(trees.faceforensics_pp(tmp_path, lists=False), load_card(card).rules())
    assert len(manifest.videos) == 7 and not manifest.splits
    assert all(video.path.startswith("original_sequences/") for video in manifest.videos)


def test_manipulated_videos_are_in_the_split_of_their_pair(tmp_path):
    options = ["ignore=[original_sequences, masks, FaceShifter]", "split.max_missing=1"]
    manifest = build_manifest(trees.faceforensics_pp(tmp_path), load_card("faceforensics_pp", options).rules())
    assert splits_of(manifest) == {"000_003": "train", "003_000": "train", "071_054": "val", "300_301": "test"}
    assert {video.path.split("/")[1] for video in manifest.videos} == {"Deepfakes"}


@pytest.mark.parametrize("text", ["{}", '[["a", 1]]', "[3]", '[""]', "[[", "null"])
def test_a_list_in_json_that_names_no_videos_is_refused(tmp_path, text):
    root = trees.faceforensics_pp(tmp_path)
    (root / "splits" / "val.json").write_text(text)
    with pytest.raises(ValueError, match=r"val\.json"):
        build_manifest(root, load_card("faceforensics_pp").rules())


def test_faceforensics_of_which_only_the_train_split_is_there(tmp_path):
    trees.plant_video(tmp_path / "train" / "videos" / "x_0.mp4")
    manifest = build_manifest(tmp_path, load_card("faceforensics").rules())
    assert manifest.splits == {"train": 1}
    with pytest.raises(ValueError, match=r"no video is in split 'test'; splits: train \(1 videos\)"):
        manifest.select("test")


def test_sky_timelapse(tmp_path):
    manifest = build_manifest(trees.sky_timelapse(tmp_path), load_card("sky_timelapse").rules())
    assert manifest.splits == {"test": 3, "train": 3}
    train = manifest.select("train").videos
    assert [v.path for v in train] == [f"sky_train/-aB_c/-aB_c_{k}" for k in (1, 2, 10)] and {v.frames for v in train} == {5}
    assert manifest.rejects == {"empty folder": ["sky_train/-aB_c/-aB_c_11"]}
    assert not manifest.notes, "numbers that start anywhere leave no gaps"


@pytest.mark.parametrize("frames", [False, True])
def test_taichi_hd(tmp_path, frames):
    manifest = build_manifest(trees.taichi_hd(tmp_path, frames), load_card("taichi_hd").rules())
    assert {v.path: v.split for v in manifest.videos} == {
        "train/-a1B#000261#000596.mp4": "train", "test/z_9#000000#000128.mp4": "test"
    }  # fmt: skip
    for video in manifest.videos:
        assert read_frames(manifest.root / video.path, [video.frames - 1]).shape == (1, 3, video.height, video.width)


def test_imagenet(tmp_path):
    manifest = build_manifest(trees.imagenet(tmp_path), load_card("imagenet").rules())
    assert manifest.classes == ("n01440764", "n01443537") and manifest.splits == {"train": 5, "val": 2}
    assert {(v.frames, v.seconds) for v in manifest.videos} == {(1, 0.0)}
    assert all(manifest.classes[v.label] == v.path.split("/")[1] for v in manifest.videos)
    assert {(v.height, v.width) for v in manifest.videos} == {(20, 30), (21, 30), (9, 7)}


def test_imagenet_as_kaggle_has_it(tmp_path):
    trees.imagenet(tmp_path / "ILSVRC" / "Data" / "CLS-LOC")
    trees.plant_frames(tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "test", ["a.JPEG"])
    trees.plant_video(tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val" / "stray.mp4")
    manifest = build_manifest(tmp_path, load_card("imagenet").rules())
    assert manifest.classes == ("n01440764", "n01443537") and len(manifest.videos) == 7
    assert list(manifest.rejects) == ["a video, where images are read"]


def test_ucf101_as_unpacked(ucf_root):
    manifest = build_manifest(ucf_root, UCF.rules())
    assert len(manifest.videos) == 10 and len(manifest.classes) == 101 and not manifest.rejects and not manifest.notes
    assert class_of(manifest) == UCF_CLASS_OF and splits_of(manifest) == UCF_SPLIT_OF
    assert manifest.classes == tuple(UCF.classes)


def test_ucf101_with_lists_beside_the_tree(ucf_root):
    inner = build_manifest(ucf_root / "UCF-101", UCF.rules())
    assert class_of(inner) == UCF_CLASS_OF and splits_of(inner) == UCF_SPLIT_OF


@pytest.mark.parametrize("layout", ["UCF-101", "splits", "flat", "converted"])
def test_ucf101_layouts(tmp_path, layout):
    """All layouts have the same labels and the same splits, whatever files and folders are called."""
    trees.ucf101(tmp_path, layout)
    trees.ucf_lists(tmp_path / "ucfTrainTestlist", list(UCF.classes))
    manifest = build_manifest(tmp_path, UCF.rules())
    assert class_of(manifest) == UCF_CLASS_OF and splits_of(manifest) == UCF_SPLIT_OF


def test_ucf101_without_lists(tmp_path):
    """Classes come from the card, splits from folders if there are any."""
    by_folder = build_manifest(trees.ucf101(tmp_path / "a", "splits"), UCF.rules())
    assert class_of(by_folder) == UCF_CLASS_OF and splits_of(by_folder) == UCF_SPLIT_OF
    whole = build_manifest(trees.ucf101(tmp_path / "b"), UCF.rules())
    assert whole.splits == {} and whole.select("train", or_all=True) == whole, "warned, and all of it used"


def test_label_trap(ucf_root):
    """Sorted and official order differ for four classes, and no other."""
    orders = {}
    for order in ("official", "sorted"):
        manifest = build_manifest(ucf_root, replace(UCF.rules(), label_order=order))
        orders[order] = {name: label for label, name in enumerate(manifest.classes)}
        assert class_of(manifest) == UCF_CLASS_OF, "a class keeps its name in either order"
    official, by_name = orders["official"], orders["sorted"]
    differ = {name for name in official if official[name] != by_name[name]}
    assert differ == {"Hammering", "HammerThrow", "JumpingJack", "JumpRope"}
    assert (official["Hammering"], by_name["Hammering"]) == (by_name["HammerThrow"], official["HammerThrow"]) == (34, 35)


def test_case_trap(ucf_root, tmp_path):
    """Folders and files may be spelled in other cases than the lists; the list's spelling counts."""
    root = shutil.copytree(ucf_root, tmp_path / "ucf")
    (root / "UCF-101" / "HandstandPushups").rename(root / "UCF-101" / "HandStandPushups")
    for path in (root / "UCF-101" / "JumpRope").iterdir():
        path.rename(path.with_name(path.name.lower()))
    manifest = build_manifest(root, UCF.rules())
    assert sorted(class_of(manifest).values()) == sorted(UCF_CLASS_OF.values()) and manifest.splits == {"test": 5, "train": 5}


def test_broken_clips_and_lists_are_no_classes(ucf_root, tmp_path):
    root = shutil.copytree(ucf_root, tmp_path / "ucf")
    trees.plant_video(root / "UCF-101" / "Biking_broken_clips" / "v_Biking_g01_c01.avi")
    assert class_of(build_manifest(root, UCF.rules())) == UCF_CLASS_OF


def test_extra_class_folder_is_an_error_that_names_it(ucf_root, tmp_path):
    root = shutil.copytree(ucf_root, tmp_path / "ucf")
    trees.plant_video(root / "UCF-101" / "HammeringX" / "v_x_g01_c01.avi")
    with pytest.raises(ValueError, match="'HammeringX' is not among the 101 .*nearest: 'Hammering'.*`ignore`"):
        build_manifest(root, UCF.rules())


def test_missing_videos_are_counted_up_to_a_share(ucf_root, tmp_path):
    root = shutil.copytree(ucf_root, tmp_path / "ucf")
    gone = root / "UCF-101" / "JumpRope" / "v_JumpRope_g08_c01.avi"
    gone.unlink()
    with pytest.raises(
        ValueError, match=r"1 of 10 entries of trainlist01.txt, testlist01.txt .*JumpRope/v_JumpRope_g08_c01.avi"
    ):
        build_manifest(root, UCF.rules())
    card = load_card("ucf101")
    card.split.max_missing = 0.1
    manifest = build_manifest(root, card.rules())
    assert manifest.notes == {"listed in trainlist01.txt, not in the tree": ["JumpRope/v_JumpRope_g08_c01.avi"]}
    assert manifest.splits == {"test": 5, "train": 4}


def test_videos_in_no_list_are_in_no_split(ucf_root, tmp_path):
    root = shutil.copytree(ucf_root, tmp_path / "ucf")
    trees.plant_video(root / "UCF-101" / "Biking" / "v_Biking_g01_c01.avi")
    manifest = build_manifest(root, UCF.rules())
    assert splits_of(manifest) == UCF_SPLIT_OF | {"v_Biking_g01_c01": None}
    assert len(manifest.select(None).videos) == 11 and len(manifest.select("train").videos) == 5


def test_fold_that_is_not_there(ucf_root):
    card = load_card("ucf101")
    card.split.fold = 2
    with pytest.raises(FileNotFoundError, match=r"ucfTrainTestlist/trainlist02.txt in .* or beside it \(fold 2\)"):
        build_manifest(ucf_root, card.rules())


def test_a_bad_video_of_a_list_is_not_missing(ucf_root, tmp_path):
    root = shutil.copytree(ucf_root, tmp_path / "ucf")
    bad = root / "UCF-101" / "JumpRope" / "v_JumpRope_g08_c01.avi"
    bad.write_bytes(bad.read_bytes()[:40])
    manifest = build_manifest(root, UCF.rules())
    assert not manifest.notes and [path for paths in manifest.rejects.values() for path in paths] == [
        "UCF-101/JumpRope/v_JumpRope_g08_c01.avi"
    ]
    with pytest.raises(DecodeError, match="v_JumpRope_g08_c01"):
        build_manifest(root, UCF.rules(), strict=True)
