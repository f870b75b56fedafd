"""Clips side by side: a picture of all frames for each row, and the wall that `page.js` plays from them in step.

Dimensions: N clips, C = 3 channels (RGB), T frames, H height, W width.
"""

import base64
import io
import lzma
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import TypeVar

import numpy as np
from PIL import Image

from sparsevid.study.measurements import REAL, StudyResults
from sparsevid.study.page.markup import Markup, element
from sparsevid.study.page.rows import RowStyles

Name = TypeVar("Name")
SIDE = 16383  # the longest side of a WebP picture
QUALITIES = (None, 92, 80, 60, 40)  # None: without loss
# What NumPy raises of an archive that is damaged, or made to be: such as one whose header asks for more memory than there is.
DAMAGED = (EOFError, KeyError, ValueError, RuntimeError, MemoryError, SyntaxError, TokenError, zipfile.BadZipFile,
           zlib.error, lzma.LZMAError)  # fmt: skip


@dataclass(frozen=True)
class ShownClips:
    """Clips of a row.

    Attributes:
        row: name.
        seed: of the measurement that they belong to.
        classes: a name for each clip, as far as there are names.
        clips: uint8 (N, 3, T, H, W).
    """

    row: str
    seed: int
    classes: tuple[str, ...]
    clips: np.ndarray

    @property
    def keys(self) -> list[tuple[str, int]]:
        """What a clip is of: its class, and which one of that class it is."""
        seen: dict[str, int] = {}
        found = []
        for number in range(len(self.clips)):
            name = self.classes[number] if number < len(self.classes) else ""
            seen[name] = seen.get(name, 0) + 1
            found.append((name, seen[name]))
        return found


def read_clips(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """An array of clips, with their names if the file has them.

    Args:
        path: .npy or .npz file; of several arrays in the latter the one that is called `clips`. Names are `classes`.

    Raises:
        ValueError, OSError: it cannot be read, or is no uint8 (N, 3, T, H, W).
    """
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"{path} is no .npy or .npz file")
    names: tuple[str, ...] = ()
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded as archive:
                if not archive.files:
                    raise ValueError("no array in it")
                names = tuple(map(str, archive["classes"].ravel())) if "classes" in archive.files else ()
                loaded = archive["clips" if "clips" in archive.files else archive.files[0]]
    except DAMAGED as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if loaded.dtype != np.uint8 or loaded.ndim != 5 or loaded.shape[1] != 3 or not loaded.size:
        raise ValueError(f"{path} holds {loaded.dtype} {loaded.shape}; accepted are clips, uint8 (N, 3, T, H, W)")
    return loaded, names


def clips_of(study: StudyResults, problems: list[str]) -> list[ShownClips]:
    """Clips of real videos, then of each row; of the lowest seed whose clips can be read."""
    measured = [each for row in study.rows for each in study.of(row)]
    wanted = [(REAL, each, each.shown) for each in study.of(REAL)] + [(REAL, each, each.shown_real) for each in measured]
    wanted += [(each.row, each, each.shown) for each in measured]
    found: dict[str, ShownClips] = {}
    failed: set[Path] = set()
    for row, each, path in wanted:
        if path is None or row in found or path in failed:
            continue
        try:
            clips, names = read_clips(path)
        except (ValueError, OSError) as error:
            failed.add(path)
            problems.append(f"clips of {row!r}, seed {each.seed}, are not shown: {error}")
            continue
        found[row] = ShownClips(row, each.seed, names or each.classes, clips)
    return list(found.values())


def trimmed(each: ShownClips, lines: Sequence[tuple[str, int]]) -> ShownClips:
    """The clips of a row that the wall has lines for, in their order, as many as fit into one picture."""
    _, _, frames, height, width = each.clips.shape
    fit = SIDE // (-(-frames // columns_of(frames, width)) * height)
    chosen = [number for number, key in enumerate(each.keys) if key in lines][:fit]
    names = tuple(each.keys[number][0] for number in chosen)
    return ShownClips(each.row, each.seed, names, each.clips[chosen])


def lines_of(shown: Sequence[ShownClips], most: int | None) -> list[tuple[str, int]]:
    """What the wall has a line for: all that a row has a clip of, in the order of the first row; the first `most` of them."""
    return list(dict.fromkeys(key for each in shown for key in each.keys))[:most]


def sprite(clips: np.ndarray) -> Image.Image:
    """All frames of clips (N, 3, T, H, W) in one picture: frames of a clip from left to right, then on the next line.

    Where W·T is longer than a picture may be, a clip has several lines of frames.
    """
    count, _, frames, height, width = clips.shape
    columns = columns_of(frames, width)
    lines = -(-frames // columns)
    picture = np.zeros((count * lines * height, columns * width, 3), np.uint8)
    for number in range(count):
        for frame in range(frames):
            top, left = (number * lines + frame // columns) * height, frame % columns * width
            picture[top : top + height, left : left + width] = clips[number, :, frame].transpose(1, 2, 0)
    return Image.fromarray(picture)


def columns_of(frames: int, width: int) -> int:
    """Frames beside each other in a picture."""
    return max(1, min(frames, SIDE // width))


def encode(pictures: Mapping[Name, Image.Image], budget: int) -> tuple[dict[Name, str], int | None]:
    """Pictures as data URIs of WebP, all in the best quality that keeps them below a number of bytes, or in the lowest.

    Returns:
        URIs by name, and the quality; None is without loss.
    """
    for quality in QUALITIES:
        written = {name: _webp(picture, quality) for name, picture in pictures.items()}
        if sum(map(len, written.values())) <= budget or quality == QUALITIES[-1]:
            break
    return {name: f"data:image/webp;base64,{text}" for name, text in written.items()}, quality


def wall(
    name: str,
    shown: Sequence[ShownClips],
    lines: Sequence[tuple[str, int]],
    pictures: Mapping[str, tuple[str, str]],
    styles: RowStyles,
    captions: Mapping[str, str],
) -> Markup:
    """The clips of a study, a column a row and a line a class, with what plays them.

    Args:
        name: of the study.
        shown: at least one.
        lines: of `lines_of`.
        pictures: of each row, by its name: what it is called on the page, and its URI.
        styles: of the page.
        captions: what stands below a row's name.
    """
    cells = [element("div", class_="corner")]
    for each in shown:
        head = (element("b", styles.name(each.row)), element("small", captions.get(each.row, "")))
        cells.append(element("div", head, class_="head", data_row=styles.index(each.row)))
    for key in lines:
        title = _title(*key)
        cells.append(element("div", title, class_="line-name"))
        cells += [_cell(each, key, title, pictures[each.row][0], styles) for each in shown]
    frames = max(each.clips.shape[2] for each in shown)
    images = [element("img", src=uri, alt="", hidden=True, class_="sprite", id=called) for called, uri in pictures.values()]
    grid = element("div", cells, class_="wall-grid", style=f"--columns: {len(shown)}")
    box = element("div", grid, class_="box", tabindex=0, role="group", aria_label=f"clips of {name}")
    return element("div", _controls(frames), box, images, class_="wall", data_frames=frames)


def _title(name: str, number: int) -> str:
    """What stands beside a line."""
    if not name:
        return f"clip {number}"
    return name.replace("_", " ") + (f" {number}" if number > 1 else "")


def _cell(each: ShownClips, key: tuple[str, int], title: str, picture: str, styles: RowStyles) -> Markup:
    row = styles.index(each.row)
    if key not in each.keys:
        return element("div", "no clip", class_="cell none", data_row=row)
    _, _, frames, height, width = each.clips.shape
    columns = columns_of(frames, width)
    top = each.keys.index(key) * -(-frames // columns) * height
    place = {"data_sprite": picture, "data_top": top, "data_frames": frames, "data_columns": columns}
    label = f"{title}, {each.row}"
    canvas = element("canvas", width=width, height=height, role="img", aria_label=label, title=label, **place)
    return element("div", canvas, class_="cell", data_row=row)


def _controls(frames: int) -> Markup:
    speeds = [element("option", f"{speed:g}×", value=speed, selected=speed == 1) for speed in (0.25, 0.5, 1, 2, 4)]
    return element(
        "div",
        element("button", "Play", type="button", class_="play", aria_pressed="false"),
        element(
            "button", "‹", type="button", class_="step", data_by=-1, aria_label="one frame back", title="one frame back (←)"
        ),
        element("button", "›", type="button", class_="step", data_by=1, aria_label="one frame on", title="one frame on (→)"),
        element("input", type="range", min=0, max=frames - 1, value=0, class_="seek", aria_label="frame"),
        element("output", f"1 / {frames}", class_="where", aria_live="off"),
        element("label", "speed ", element("select", speeds, class_="speed")),
        class_="controls",
    )


def _webp(picture: Image.Image, quality: int | None) -> str:
    file = io.BytesIO()
    options = {"lossless": True, "quality": 60} if quality is None else {"quality": quality}
    picture.save(file, format="WEBP", method=4, **options)
    return base64.b64encode(file.getvalue()).decode("ascii")
