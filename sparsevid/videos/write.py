"""One clip as a file: lossless FFV1, H.264, GIF, PNG frames, a NumPy archive; and many images as one archive.

Dimensions: C = 3 channels (RGB), T frames, H height, W width. A clip is a uint8 tensor (C,T,H,W).

The same clip gives the same bytes: encoders run on one thread (x264's choices depend on their number), and nothing random or of
the clock is written.
"""

import zipfile
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from einops import rearrange
from PIL import GifImagePlugin, Image, ImageChops
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sparsevid.system.atomic import renamed

MAX_GIF_FPS = 100  # a GIF counts hundredths of a second
GIF_TRAILER = b"\x3b"
MP4_CRF = 18  # x264's constant rate factor; differences are hard to see
IMAGES = "arr_0"  # of an archive of images
MAX_RATE_DENOMINATOR = 1001  # of the broadcast rates, such as 30000/1001


def write_ffv1(path: str | Path, clip: Tensor, fps: float, title: str | None = None) -> None:
    """Write FFV1 in Matroska with RGB pixels: decoding gives the same bytes. Each slice of a frame carries a checksum.

    Args:
        path: the file; its folder exists.
        clip: uint8 (C,T,H,W), of any size.
        fps: frames a second.
        title: kept as the file's tag of this name.

    Raises:
        ValueError: not a uint8 clip, or a rate that is not positive.
        OSError: the file cannot be written.
    """
    _encode(Path(path), frames_of(clip), fps, "matroska", "ffv1", "bgr0", {"level": "3", "slicecrc": "1"}, title)


def write_mp4(path: str | Path, clip: Tensor, fps: float, crf: int = MP4_CRF, title: str | None = None) -> None:
    """Write H.264 in 4:2:0, which every player shows. It needs even sides: an odd one is padded by a copy of its edge.

    Args:
        path: the file; its folder exists.
        clip: uint8 (C,T,H,W).
        fps: frames a second.
        crf: constant rate factor of x264, 0 (lossless but for the colour subsampling) to 51.
        title: kept as the file's tag of this name.

    Raises:
        ValueError: not a uint8 clip, or a number out of range.
        OSError: the file cannot be written.
    """
    frames = frames_of(clip)
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must lie within 0 to 51, got {crf}")
    height, width = mp4_size(*frames.shape[1:3])
    frames = np.pad(frames, ((0, 0), (0, height - frames.shape[1]), (0, width - frames.shape[2]), (0, 0)), mode="edge")
    _encode(Path(path), frames, fps, "mp4", "libx264", "yuv420p", {"crf": str(crf)}, title)


def mp4_size(height: int, width: int) -> tuple[int, int]:
    """(H,W) of an MP4 file of clips of this size: sides are even."""
    return height + height % 2, width + width % 2


def write_gif(path: str | Path, clip: Tensor, fps: float, scale: int = 1) -> None:
    """Write an endless GIF, in which each frame of the clip is one, also if it equals the one before. A comment says how many.

    Args:
        path: the file; its folder exists.
        clip: uint8 (C,T,H,W).
        fps: frames a second, at most 100 (many viewers slow down above 50). Each frame lasts whole hundredths of a
            second, spread so that the sum is right.
        scale: each pixel becomes this many in width and in height.

    Raises:
        ValueError: not a uint8 clip, or a number out of range.
        OSError: the file cannot be written.
    """
    if not 0 < fps <= MAX_GIF_FPS:
        raise ValueError(f"a GIF shows above 0 and up to {MAX_GIF_FPS} frames a second, got fps={fps}")
    images = [enlarge(frame, scale).convert("P", palette=Image.Palette.ADAPTIVE) for frame in frames_of(clip)]
    times = [gif_time(index, fps) for index in range(len(images) + 1)]
    header, _ = GifImagePlugin.getheader(images[0], info={"loop": 0, "comment": gif_comment(len(images))})
    with renamed(Path(path)) as draft, draft.open("wb") as file:
        file.writelines(header)
        # `Image.save` would make one frame of equal neighbours.
        for image, before, (begin, end) in zip(images, [None, *images[:-1]], pairwise(times), strict=True):
            box = _changed(image, before)
            options = {"duration": 10 * (end - begin), "include_color_table": True}  # milliseconds
            file.writelines(GifImagePlugin.getdata(image.crop(box), box[:2], **options))
        file.write(GIF_TRAILER)


def _changed(image: Image.Image, before: Image.Image | None) -> tuple[int, int, int, int]:
    """The part of a GIF's frame that is not as in the one before; of equal ones a pixel."""
    if before is None:
        return (0, 0, *image.size)
    return ImageChops.difference(image.convert("RGB"), before.convert("RGB")).getbbox() or (0, 0, 1, 1)


def gif_time(index: int, fps: float) -> int:
    """When frame `index` of a clip begins in a GIF, in hundredths of a second."""
    return round(100 * index / fps)


def gif_comment(frames: int) -> bytes:
    """What a GIF of so many frames says in its comment."""
    return f"{frames} frames".encode("ascii")


def write_frames(folder: str | Path, clip: Tensor, title: str | None = None) -> None:
    """Write `000000.png`, `000001.png`, … without loss. The folder appears with all of them.

    Args:
        folder: missing, empty, or with frames of an earlier clip, which are replaced.
        clip: uint8 (C,T,H,W).
        title: kept in each file as its text `Title`.

    Raises:
        ValueError: not a uint8 clip.
        FileExistsError: the folder holds something that is not a frame of this number.
        OSError: the frames cannot be written.
    """
    folder = Path(folder)
    frames = frames_of(clip)
    names = frame_names(len(frames))
    if folder.is_dir():
        others = sorted({entry.name for entry in folder.iterdir()} - set(names))
        if others:
            raise FileExistsError(f"{folder} holds {others[0]}, not of this clip of {len(frames)} frames; empty it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with renamed(folder) as draft:
        draft.mkdir()
        for name, frame in zip(names, frames, strict=True):
            Image.fromarray(frame).save(draft / name, format="PNG", pnginfo=_png_text(title))


def frame_names(frames: int) -> list[str]:
    """File names of a folder of frames."""
    return [f"{index:06d}.png" for index in range(frames)]


def write_npz(path: str | Path, clip: Tensor, fps: float) -> None:
    """Write a compressed NumPy archive: `frames`, uint8 (T,H,W,C), and `fps`, float64.

    Args:
        path: the file; its folder exists.
        clip: uint8 (C,T,H,W).
        fps: frames a second.

    Raises:
        ValueError: not a uint8 clip, or a rate that is not positive.
        OSError: the file cannot be written.
    """
    frames = frames_of(clip)
    _check_rate(fps)
    with renamed(Path(path)) as draft, draft.open("wb") as file:
        np.savez_compressed(file, frames=frames, fps=np.float64(fps))


def write_png(path: str | Path, clip: Tensor, fps: float, title: str | None = None) -> None:
    """Write a clip of one frame as a PNG file, without loss.

    Args:
        path: the file; its folder exists.
        clip: uint8 (C,1,H,W).
        fps: has no meaning for an image.
        title: kept as the file's text `Title`.

    Raises:
        ValueError: not a uint8 clip of one frame.
        OSError: the file cannot be written.
    """
    frames = frames_of(clip)
    if len(frames) != 1:
        raise ValueError(f"a PNG file is one image, and the clip has {len(frames)} frames; take the format frames")
    with renamed(Path(path)) as draft:
        Image.fromarray(frames[0]).save(draft, format="PNG", pnginfo=_png_text(title))


def write_image_archive(
    path: str | Path, images: Iterable[Tensor], count: int, arrays: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write images as one array `arr_0`, uint8 (N,H,W,C), of a NumPy archive, as ADM's evaluator takes them.

    It is not compressed, so that any image is found at once; one at a time is held.

    Args:
        path: the file; its folder exists.
        images: uint8 (C,1,H,W), all of one size.
        count: N.
        arrays: more arrays by name, such as `arr_1`, labels.

    Raises:
        ValueError: not uint8 images, several sizes, or another number of them.
        OSError: the file cannot be written.
    """
    written, size = 0, None
    with renamed(Path(path)) as draft, zipfile.ZipFile(draft, "w") as archive:
        with archive.open(zipfile.ZipInfo(f"{IMAGES}.npy"), "w", force_zip64=True) as member:
            for written, image in enumerate(images, 1):
                (frame,) = frames_of(image)
                if size is None:
                    size = frame.shape
                    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *size)}
                    np.lib.format.write_array_header_1_0(member, header)
                if frame.shape != size:
                    raise ValueError(f"image {written - 1} has size {frame.shape[:2]}, those before it {size[:2]}")
                member.write(frame.tobytes())
        if written != count or not count:
            raise ValueError(f"an archive of {count} images (at least 1) was to be written, and {written} came")
        for name, array in (arrays or {}).items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


class ClipFormat(NamedTuple):
    """A way to keep a clip.

    Attributes:
        suffix: of the file's name; empty for a folder.
        write: of path, clip, frames a second and, if there is one, title.
    """

    suffix: str
    write: Callable[..., None]


FORMATS = {
    "ffv1": ClipFormat(".mkv", write_ffv1),
    "mp4": ClipFormat(".mp4", lambda path, clip, fps, title=None: write_mp4(path, clip, fps, title=title)),
    "gif": ClipFormat(".gif", lambda path, clip, fps, title=None: write_gif(path, clip, fps)),
    "frames": ClipFormat("", lambda folder, clip, fps, title=None: write_frames(folder, clip, title)),
    "npz": ClipFormat(".npz", lambda path, clip, fps, title=None: write_npz(path, clip, fps)),
}
EVERY_FORMAT = FORMATS | {"png": ClipFormat(".png", write_png)}  # with what takes clips of one frame alone


def clip_path(stem: str | Path, format: str) -> Path:
    """Where `write_clip` puts a clip.

    Raises:
        ValueError: no such format.
    """
    if format not in EVERY_FORMAT:
        raise ValueError(f"no clip format {format!r}; accepted are {', '.join(EVERY_FORMAT)}")
    stem = Path(stem)
    return stem.with_name(stem.name + EVERY_FORMAT[format].suffix)


def write_clip(stem: str | Path, clip: Tensor, fps: float, format: str, title: str | None = None) -> Path:
    """Write a clip in one of `EVERY_FORMAT`.

    Args:
        stem: path without the format's suffix; its folder exists.
        clip: uint8 (C,T,H,W).
        fps: frames a second.
        format: `ffv1`, `npz`, `frames` and, of one frame, `png` are lossless, `mp4` and `gif` are not.
        title: kept in the file, such as the prompt that the clip was made of; `gif` and `npz` have no place for it.

    Returns:
        The path of the file, or of the folder of frames.

    Raises:
        ValueError: no such format, not a uint8 clip, or a rate out of range.
        OSError: it cannot be written; nothing is left behind.
    """
    path = clip_path(stem, format)
    EVERY_FORMAT[format].write(path, clip, fps, title)
    return path


def frames_of(clip: Tensor) -> np.ndarray:
    """A clip as an array (T,H,W,C).

    Raises:
        ValueError: not a uint8 clip.
    """
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[0] != 3 or 0 in clip.shape:
        raise ValueError(f"a clip is uint8 (3,T,H,W) with at least one frame, got {clip.dtype} {tuple(clip.shape)}")
    return np.ascontiguousarray(rearrange(clip, "c t h w -> t h w c").cpu().numpy())


def enlarge(frame: np.ndarray, scale: int) -> Image.Image:
    """A frame (H,W,C) as an image, each pixel a square of `scale` pixels.

    Raises:
        ValueError: a scale below 1.
    """
    if scale < 1:
        raise ValueError(f"scale must be a whole number from 1, got {scale}")
    image = Image.fromarray(frame)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _encode(
    path: Path,
    frames: np.ndarray,
    fps: float,
    container: str,
    codec: str,
    pixels: str,
    options: dict[str, str],
    title: str | None,
) -> None:
    """Write frames (T,H,W,C) as a video. FFmpeg's errors while writing are OSErrors, also when the last buffer is flushed."""
    _check_rate(fps)
    with (
        renamed(path) as draft,
        av.open(str(draft.absolute()), "w", format=container, options={"fflags": "+bitexact"}) as output,
    ):
        stream: Any = output.add_stream(codec, rate=Fraction(fps).limit_denominator(MAX_RATE_DENOMINATOR), options=options)
        if title is not None:
            output.metadata["title"] = title
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        stream.codec_context.thread_count = 1
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))


def _png_text(title: str | None) -> PngInfo | None:
    """What a PNG file says beside its pixels, in any language's letters."""
    if title is None:
        return None
    text = PngInfo()
    text.add_itxt("Title", title)
    return text


def _check_rate(fps: float) -> None:
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
