"""Small trees in the layouts in which people have the datasets, of real videos and real images."""

import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from videos.made import moving_pictures, write_video

# (class folder, name of its videos): the classes whose official and sorted orders differ, and the one whose files are
# spelled in another way than their folder.
UCF_CLASSES = {
    "Hammering": "Hammering",
    "HammerThrow": "HammerThrow",
    "HandstandPushups": "HandStandPushups",
    "JumpingJack": "JumpingJack",
    "JumpRope": "JumpRope",
}


@cache
def video_bytes(frames: int = 6, extension: str = ".mp4", movflags: str = "") -> bytes:
    """A small video of `frames` frames."""
    codec = {".avi": "mpeg4"}.get(extension, "libx264")
    with tempfile.TemporaryDirectory() as folder:
        return write_video(Path(folder) / f"v{extension}", codec, frames, movflags=movflags, size=(32, 48)).read_bytes()


def plant_video(path: Path, frames: int = 6, movflags: str = "") -> Path:
    """Write a small video; the extension gives the container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(video_bytes(frames, path.suffix, movflags))
    return path


def plant_frames(folder: Path, names: list[str], size: tuple[int, int] = (32, 48)) -> Path:
    """Write images of `size` (height, width), each different from the others; the extensions give the formats."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(names, moving_pictures(len(names), *size), strict=True):
        Image.fromarray(picture).save(folder / name)
    return folder


def numbered(count: int, start: int = 0, pattern: str = "{:06d}.jpg") -> list[str]:
    """Names of frames that count from `start`."""
    return [pattern.format(i) for i in range(start, start + count)]


def faceforensics(root: Path) -> Path:
    """As it is downloaded: videos with masks and altered versions beside them. Ids hold `_` and `-`."""
    for split, names in {
        "train": ["a_bc-_x1y2z_0_-_bc-_x1y2z_3", "k2_0_k2_1"],
        "val": ["v_0_v_1"],
        "test": ["t-_0_t-_1"],
    }.items():
        for kind in ("original", "mask", "altered"):
            for name in names:
                plant_video(root / split / kind / f"{name}.avi")
    return root


def faceforensics_cropped(root: Path) -> Path:
    """Cropped to faces: a folder of frames for each video."""
    for split, name in {"train": "a_0_a_1", "val": "b_0_b_1", "test": "c_0_c_1"}.items():
        plant_frames(root / split / name, numbered(4))
    return root


def faceforensics_pp(root: Path, lists: bool = True) -> Path:
    """FaceForensics++ as its script downloads it: originals, what was made of pairs of them, masks; and the lists of pairs."""
    for name in ("000", "003", "071", "054", "300", "301"):
        plant_video(root / "original_sequences" / "youtube" / "c23" / "videos" / f"{name}.mp4")
    plant_video(root / "original_sequences" / "actors" / "c23" / "videos" / "01__exit_phone_room.mp4")
    for method in ("Deepfakes", "FaceShifter"):
        for name in ("000_003", "003_000", "071_054", "300_301"):
            for kind in ("c23/videos", "masks/videos"):
                plant_video(root / "manipulated_sequences" / method / kind / f"{name}.mp4")
    pairs = {"train": [["000", "003"]], "val": [["054", "071"]], "test": [["301", "300"]]} if lists else {}
    for split, names in pairs.items():
        (root / "splits").mkdir(exist_ok=True)
        (root / "splits" / f"{split}.json").write_text(json.dumps(names, indent=2))
    return root


def sky_timelapse(root: Path) -> Path:
    """Frame folders two levels down, numbered from anywhere, one of them empty."""
    for split, name in {"sky_train": "-aB_c", "sky_test": "Xy#z"}.items():
        for k, start in ((1, 86552), (2, 7), (10, 0)):
            plant_frames(root / split / name / f"{name}_{k}", numbered(5, start, name + "_frames_{:08d}.jpg"))
    (root / "sky_train" / "-aB_c" / "-aB_c_11").mkdir()
    return root


def ucf_videos() -> list[tuple[str, str, bool]]:
    """(class folder, file, whether it is in the test list), two for each class."""
    return [(folder, f"v_{name}_g{group:02d}_c01.avi", group == 1) for folder, name in UCF_CLASSES.items() for group in (1, 8)]


def ucf_lists(folder: Path, classes: list[str], newline: str = "\r\n") -> Path:
    """Lists of one fold: Windows line ends, blank lines, labels after the paths of the train list alone."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"train": [], "test": []}
    for name, file, test in ucf_videos():
        label = "" if test else f" {classes.index(name) + 1}"
        rows["test" if test else "train"].append(f"{name}/{file}{label}")
    for split, lines in rows.items():
        (folder / f"{split}list01.txt").write_bytes((newline.join([*lines, "", ""])).encode())
    index = newline.join(f"{i} {name}" for i, name in enumerate(classes, 1))
    (folder / "classInd.txt").write_bytes((index + newline).encode())
    return folder


def ucf101(root: Path, layout: str = "UCF-101") -> Path:
    """UCF101's videos: `UCF-101`, `splits` (folders train and test), `flat` (frame folders), `converted` (MP4 by class)."""
    for name, file, test in ucf_videos():
        if layout == "flat":
            plant_frames(root / file.removesuffix(".avi"), numbered(3, 1, "frame{}.jpg"))
        elif layout == "splits":
            plant_video(root / ("test" if test else "train") / name / file)
        elif layout == "converted":
            plant_video((root / name / file).with_suffix(".mp4"))
        else:
            plant_video(root / "UCF-101" / name / file)
    return root


def taichi_hd(root: Path, frames: bool = False) -> Path:
    """Names with `#` and a leading `-`; as files, or as folders that are named like files."""
    for split, name in {"train": "-a1B#000261#000596.mp4", "test": "z_9#000000#000128.mp4"}.items():
        if frames:
            plant_frames(root / split / name, numbered(4, 0, "{:07d}.png"))
        else:
            plant_video(root / split / name)
    return root


def imagenet(root: Path) -> Path:
    """Images by class: of several sizes, one of them grey."""
    for split, count in {"train": 2, "val": 1}.items():
        for i, name in enumerate(("n01440764", "n01443537")):
            plant_frames(root / split / name, numbered(count, 0, name + "_{}.JPEG"), (20 + i, 30))
    Image.fromarray(np.full((9, 7), 40, np.uint8)).save(root / "train" / "n01440764" / "grey.JPEG")
    return root
