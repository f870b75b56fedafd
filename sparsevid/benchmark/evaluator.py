"""The evaluator on many encoded videos: the time of decoding, detector and distance, and the peak of memory.

Real and generated videos of 16×256×256 are made, and scored by the clips of stylegan-v/fvd2048_16f. I3D has random weights:
its cost does not depend on them.

Dimensions: C = 3 channels (RGB), T frames.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sparsevid.evaluation.clips.clips import choose_clips
from sparsevid.evaluation.detectors import Detector, build_detector
from sparsevid.evaluation.detectors.i3d import I3D
from sparsevid.evaluation.evaluate import compare_features
from sparsevid.evaluation.features import ClipSet, compute_features
from sparsevid.evaluation.protocols import load_protocol
from sparsevid.evaluation.protocols.protocol import Role
from sparsevid.system.atomic import renamed
from sparsevid.system.logging import progress
from sparsevid.training.throughput import peak_memory
from sparsevid.videos.write import write_mp4

EVALUATOR_COLUMNS = ("what", "value")
EVALUATOR_LINES = (
    "decoding and resizing goes on beside the detector, its threads' seconds added up; peak memory: of this process",
)
SIDES: tuple[Role, ...] = ("real", "fake")
FRAMES, SIZE, WEIGHTS = 16, 256, "random_i3d.pt"


@dataclass(frozen=True)
class EvaluatorTime:
    """What one scoring took.

    Attributes:
        clips: on each side.
        metric: name of the score.
        score: between the videos that were made; says nothing.
        reading_seconds: of decoding and resizing, of all threads added up.
        detector_seconds: of its forwards, up to results on the CPU.
        features_seconds: of both together, which go on at once.
        distance_seconds: of the metric, from the features.
        peak_bytes: the most that the process has held, also before.
        device_peak_bytes: the most that its tensors have taken on the GPU; None on a CPU.
    """

    clips: int
    metric: str
    score: float
    reading_seconds: float
    detector_seconds: float
    features_seconds: float
    distance_seconds: float
    peak_bytes: int
    device_peak_bytes: int | None

    @property
    def clips_per_second(self) -> float:
        """Clips of both sides over all the time."""
        return 2 * self.clips / (self.features_seconds + self.distance_seconds)


def measure_evaluator(
    folder: Path, *, count: int = 2048, detector: str = "i3d", batch: int = 16, device: torch.device | str = "cpu"
) -> EvaluatorTime:
    """Make the videos that are not there, score them, and say what the scoring took.

    Args:
        folder: for the videos, made if it is missing; those that an earlier call has made are taken.
        count: videos on each side.
        detector: its name, see `build_detector`; with published weights, but for "i3d".
        batch: clips of a forward.
        device: where the detector computes.

    Raises:
        FileNotFoundError, ModuleNotFoundError: as `build_detector`.
        OSError: the videos cannot be written.
        ValueError: a number is out of range, or there is no such detector.
    """
    if count < 2 or batch < 1:
        raise ValueError(f"need count from 2 (a covariance needs two clips) and batch from 1, got count={count}, batch={batch}")
    device = torch.device(device)
    network = random_i3d(folder, device) if detector == "i3d" else build_detector(detector, device)
    make_videos(folder, count)
    protocol = load_protocol("stylegan-v/fvd2048_16f")
    protocol = replace(protocol, name="measured", detector=detector, real_count=count, fake_count=count)
    forwards = _timed(network)
    clips = {side: _TimedClips(choose_clips(folder / side, side, protocol)) for side in SIDES}
    began = time.perf_counter()
    features = partial(compute_features, detector=network, batch_size=batch, protocol=protocol.as_dict())
    files = {side: features(each, role=side) for side, each in clips.items()}
    features_done = time.perf_counter()
    record = compare_features(files["real"], files["fake"])
    ended = time.perf_counter()
    return EvaluatorTime(
        clips=count,
        metric=record.metric,
        score=record.score,
        reading_seconds=sum(sum(each.seconds) for each in clips.values()),
        detector_seconds=sum(forwards),
        features_seconds=features_done - began,
        distance_seconds=ended - features_done,
        peak_bytes=peak_memory(torch.device("cpu")),
        device_peak_bytes=peak_memory(device) if device.type == "cuda" else None,
    )


def make_videos(folder: Path, count: int) -> int:
    """Write the videos of both sides that are not there, in processes of their own.

    Returns:
        How many were written.
    """
    paths = [(folder / side / f"{i:05d}.mp4", 2 * i + (side == "fake")) for side in SIDES for i in range(count)]
    missing = [each for each in paths if not each[0].exists()]
    for side in SIDES:
        (folder / side).mkdir(parents=True, exist_ok=True)
    if missing:
        with multiprocessing.get_context("spawn").Pool(min(len(missing), os.cpu_count() or 1)) as pool:
            for _ in progress(pool.imap_unordered(_make_video, missing, chunksize=16), total=len(missing), desc="videos"):
                pass
    return len(missing)


def _make_video(work: tuple[Path, int]) -> None:
    """A soft pattern that moves on a straight line, drawn from a seed."""
    path, seed = work
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.rand(1, 3, 24, 24, generator=generator) * 255
    image = interpolate(pattern, (SIZE + 4 * FRAMES,) * 2, mode="bicubic").clamp(0, 255).to(torch.uint8)[0]
    dy, dx = torch.randint(0, 5, (2,), generator=generator).tolist()
    frames = [image[:, t * dy : t * dy + SIZE, t * dx : t * dx + SIZE] for t in range(FRAMES)]
    write_mp4(path, torch.stack(frames, dim=1), fps=8)  # (C,T,H,W)


class _TimedClips:
    """Another set of clips; notes the seconds that threads spend on reading."""

    def __init__(self, clips: ClipSet) -> None:
        self.clips = clips
        self.seconds: list[float] = []  # several threads append
        self.ids, self.origin, self.fingerprint = clips.ids, clips.origin, clips.fingerprint

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, first: int, last: int) -> Iterator[tuple[str, Tensor]]:
        began = time.perf_counter()
        clips = list(self.clips.read(first, last))
        self.seconds.append(time.perf_counter() - began)
        return iter(clips)


def _timed(detector: Detector) -> list[float]:
    """Have a detector note the seconds of each forward, up to its result on the CPU."""
    extract = detector.extract
    seconds: list[float] = []

    def measured(clips: Tensor) -> Tensor:
        began = time.perf_counter()
        features = extract(clips).cpu()
        seconds.append(time.perf_counter() - began)
        return features

    detector.extract = measured  # type: ignore[method-assign]  # of this one, whose forwards are timed
    return seconds


def random_i3d(folder: Path, device: torch.device | str) -> Detector:
    """I3D with random weights, the same at every call; they are written to the folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = I3D(1e-5).state_dict()
    with renamed(folder / WEIGHTS) as draft, draft.open("wb") as file:  # given a path, PyTorch writes its name too
        torch.save(weights, file)
    return build_detector("i3d", device, path=folder / WEIGHTS)


def evaluator_rows(measured: EvaluatorTime) -> list[list[str]]:
    """The table: a row of `EVALUATOR_COLUMNS` for each thing measured."""
    rows = [
        ["clips", f"{measured.clips} + {measured.clips}"],
        [measured.metric, f"{measured.score:.4f}"],
        ["decoding and resizing, s", f"{measured.reading_seconds:.1f}"],
        ["detector, s", f"{measured.detector_seconds:.1f}"],
        ["features in all, s", f"{measured.features_seconds:.1f}"],
        ["distance, s", f"{measured.distance_seconds:.2f}"],
        ["clips a second", f"{measured.clips_per_second:.1f}"],
        ["peak memory, GiB", f"{measured.peak_bytes / 2**30:.2f}"],
    ]
    if measured.device_peak_bytes is not None:
        rows.append(["peak memory of the GPU, GiB", f"{measured.device_peak_bytes / 2**30:.2f}"])
    return rows


def evaluator_as_json(header: dict, measured: EvaluatorTime) -> dict:
    """Everything measured, as plain values: seconds, bytes, clips a second.

    Args:
        header: as `describe_run` gives it.
        measured: as `measure_evaluator` gives it.
    """
    return {"header": header, "result": {**asdict(measured), "clips_per_second": measured.clips_per_second}}
