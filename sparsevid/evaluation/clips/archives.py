"""Files that stand for a set of clips: images in an archive, statistics of features, or both, as other evaluators keep them.

- `.npz` with `arr_0`, uint8 (N,H,W,3), images, and `arr_1`, (N,), their classes: samples as ADM's evaluator takes them;
- the same with `mu`, `sigma`, `mu_s`, `sigma_s`: ADM's reference files, of which the images may be some of those behind the
  statistics;
- `.npz` with `mu` and `sigma` alone: pytorch-fid and others;
- `.pkl` with sums over features, `num_items`, `raw_mean`, `raw_cov`: cd-fvd.

Dimensions: N images, H×W pixels, D feature dimensions.
"""

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from sparsevid.data.tree.manifest import Video
from sparsevid.evaluation.clips.choice import draws, video_order
from sparsevid.evaluation.clips.clip_readers import BACKEND, Choice, ClipShape, VideoClips
from sparsevid.evaluation.detectors import detector_class
from sparsevid.evaluation.metrics.distances import Moments
from sparsevid.evaluation.protocols import Protocol, Role
from sparsevid.system.checksums import file_sha256, json_sha256
from sparsevid.system.distributed import from_main
from sparsevid.system.home import expand_home
from sparsevid.videos.read import describe_decoder
from sparsevid.videos.write import IMAGES, write_image_archive

SUFFIXES = (".npz", ".pkl")
STATISTICS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # output of a detector → its arrays
ACCEPTED = f"{IMAGES}, uint8 (N,H,W,3), with or without mu (D,), sigma (D,D), mu_s and sigma_s; or mu and sigma alone"
# All that a pickle of plain numbers and NumPy arrays names. Nothing else is looked up, so no code of a file is run.
_PLAIN = {
    ("numpy", "ndarray"), ("numpy", "dtype"),
    *((f"{core}.multiarray", name) for core in ("numpy.core", "numpy._core") for name in ("_reconstruct", "scalar")),
    *((f"{core}.numeric", "_frombuffer") for core in ("numpy.core", "numpy._core")),
}  # fmt: skip


def is_file(source: Any) -> TypeGuard[str | Path]:
    """Whether a source of clips is the path of such a file, by its name."""
    return isinstance(source, str | Path) and Path(source).suffix.lower() in SUFFIXES


def from_file(source: str | Path, role: Role, protocol: Protocol, shape: ClipShape, count: int | None) -> Choice:
    """The images of a file, each a clip of one frame, and in the role "real" its statistics.

    Args:
        source: its path.
        role: "real" or "fake".
        protocol: the rules; its detector says how many dimensions statistics have.
        shape: of the clips.
        count: images at most; None: all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another layout, statistics of other dimensions, or no images where they are needed.
    """
    path = expand_home(Path(source))
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} of {role} clips")
    moments, behind = read_statistics(path, protocol) if role == "real" else ({}, None)
    frames, height, width = _image_shape(path)
    if not frames and not moments:
        raise ValueError(f"{path} holds no images ({IMAGES}), of which {role} clips are to be made; accepted: {ACCEPTED}")
    if frames and shape.rule.frames != 1:
        raise ValueError(f"{path} holds images, and protocol {protocol.name} takes clips of {shape.rule.frames} frames")
    names = [f"{path.name}@{number}" for number in range(frames)]
    side = protocol.side(role)
    order = video_order(names, "spread" if side.selection == "sorted" else side.selection, draws(role, protocol.seed))
    chosen = sorted(order[:count])
    state = path.stat()
    video = Video(path.name, state.st_size, frames, 1.0, width, height, 0.0)
    origin: dict[str, Any] = {
        "root": str(path),
        "card": None,
        "split": None,
        "intended": frames if side.count is None else side.count,
        "videos": frames,
        "too_short": 0,
        "rejected": {},
        "formats": {path.suffix.lower(): len(chosen)},
        "decoder": describe_decoder(BACKEND),
        "warnings": [],
    }
    if moments:
        dims = {name: len(each.mean) for name, each in moments.items()}
        digest = from_main(lambda: file_sha256(path))
        origin["statistics"] = {"file": str(path), "sha256": digest, "dimensions": dims, "clips": behind}
    data = json_sha256([path.name, state.st_size, frames, height, width])
    reader = VideoClips(path.parent, tuple((video, number) for number in chosen), shape)
    return Choice(reader, tuple(names[number] for number in chosen), data, origin, moments)


def read_statistics(path: Path, protocol: Protocol) -> tuple[dict[str, Moments], int | None]:
    """Statistics in a file, by the output of the protocol's detector, and the number of clips behind them where it is told.

    Those of outputs that the detector does not have are passed over: FID alone needs no `mu_s`.

    Raises:
        ValueError: another layout, or other dimensions than those of the detector.
    """
    found, count = _cdfvd_statistics(path) if path.suffix.lower() == ".pkl" else (_archive_statistics(path), None)
    outputs = detector_class(protocol.detector).outputs()
    moments = {name: each for name, each in found.items() if name in outputs}
    for name, each in moments.items():
        if (end := outputs[name].stop) is None:  # its weights say how many
            continue
        if len(each.mean) != (wanted := end - outputs[name].start):
            raise ValueError(
                f"{path}: statistics of {len(each.mean)} dimensions, and the {name} of detector {protocol.detector!r} have "
                f"{wanted}: they are of another detector, or of another of its layers"
            )
    return moments, count


def write_reference(path: Path, images: Iterable[Tensor], count: int, moments: Mapping[str, Moments]) -> None:
    """Write a reference file as ADM's evaluator reads it: images, and statistics of all that they were drawn from.

    Args:
        path: ends in `.npz`.
        images: uint8 (3,1,H,W), of one size; one at a time is held.
        count: of the images.
        moments: by the detector's output.

    Raises:
        ValueError: images of several sizes, or another number of them.
        OSError: the file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, each in moments.items():
        mean, covariance = STATISTICS[name]
        arrays |= {mean: each.mean.numpy(), covariance: each.covariance.numpy()}
    write_image_archive(path, images, count, arrays)


def _image_shape(path: Path) -> tuple[int, int, int]:
    """(N,H,W) of the images in an archive; all 0 without any."""
    if path.suffix.lower() != ".npz":
        return 0, 0, 0
    shapes = _shapes(path)
    if IMAGES not in shapes:
        if not any(name in shapes for names in STATISTICS.values() for name in names):
            held = ", ".join(f"{name} {shape}" for name, (_, shape) in shapes.items()) or "nothing"
            raise ValueError(f"{path} has another layout: it holds {held}; accepted: {ACCEPTED}")
        return 0, 0, 0
    dtype, shape = shapes[IMAGES]
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise ValueError(f"{path}: {IMAGES} is {dtype} {shape}; accepted: uint8 (N,H,W,3)")
    return shape[:3]


def _shapes(path: Path) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Type and shape of each array in an archive, without reading them."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    version = np.lib.format.read_magic(member)
                    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
                    shape, _, dtype = read(member)
                found[name.removesuffix(".npy")] = dtype, shape
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as an archive of arrays: {error}") from error
    return found


def _archive_statistics(path: Path) -> dict[str, Moments]:
    shapes, moments = _shapes(path), {}
    for output, names in STATISTICS.items():
        there = [name for name in names if name in shapes]
        if len(there) == 1:
            raise ValueError(f"{path} holds {there[0]} without the other of {' and '.join(names)}; accepted: {ACCEPTED}")
        if there:
            with np.load(path, allow_pickle=False) as archive:
                moments[output] = _moments(path, *(archive[name] for name in names))
    return moments


def _cdfvd_statistics(path: Path) -> tuple[dict[str, Moments], int]:
    """What cd-fvd saves: plain values by name, sums over features and over their products."""
    try:
        with path.open("rb") as file:
            values = _PlainUnpickler(file).load()
        count, total, products = (values[name] for name in ("num_items", "raw_mean", "raw_cov"))
        mean = np.asarray(total, np.float64) / count
        covariance = np.asarray(products, np.float64) / count - np.outer(mean, mean)  # divisor N, as there
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path} holds no statistics of cd-fvd ({error}); accepted: num_items, raw_mean and raw_cov by name as arrays"
        ) from error
    return {"features": _moments(path, mean, covariance)}, int(count)


def _moments(path: Path, mean: np.ndarray, covariance: np.ndarray) -> Moments:
    try:
        return Moments(*(torch.from_numpy(np.ascontiguousarray(each, np.float64)) for each in (mean, covariance)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts, containers and NumPy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"it holds more than numbers and arrays: {module}.{name}")
        return super().find_class(module, name)
