"""Measure the evaluator on many encoded videos: peak memory, and the time of decoding, detector and distance.

    python sparsevid/benchmark/evaluator.py FOLDER [--count 2048] [--detector i3d] [--batch 16] [--device cuda]

Makes COUNT real and COUNT generated videos of 16×256×256 below FOLDER, unless they are there, then scores them by the clips of
stylegan-v/fvd2048_16f. I3D has random weights: its cost does not depend on them. Memory is the measuring process's alone.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
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
from sparsevid.system.logging import print_table, progress
from sparsevid.videos.write import write_mp4

FRAMES, SIZE, WEIGHTS = 16, 256, "random_i3d.pt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--detector", choices=("i3d", "transnetv2"), default="i3d")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    make_videos(args.folder, args.count)
    measure(args)


def make_videos(folder: Path, count: int) -> None:
    """Write the videos that are not there, in processes of their own."""
    paths = [(folder / side / f"{i:05d}.mp4", 2 * i + (side == "fake")) for side in ("real", "fake") for i in range(count)]
    missing = [each for each in paths if not each[0].exists()]
    for side in ("real", "fake"):
        (folder / side).mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool() as pool:
        for _ in progress(pool.imap_unordered(make_video, missing, chunksize=16), total=len(missing), desc="videos"):
            pass


def make_video(work: tuple[Path, int]) -> None:
    """A soft pattern that moves on a straight line, drawn from a seed."""
    path, seed = work
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.rand(1, 3, 24, 24, generator=generator) * 255
    image = interpolate(pattern, (SIZE + 4 * FRAMES,) * 2, mode="bicubic").clamp(0, 255).to(torch.uint8)[0]
    dy, dx = torch.randint(0, 5, (2,), generator=generator).tolist()
    frames = [image[:, t * dy : t * dy + SIZE, t * dx : t * dx + SIZE] for t in range(FRAMES)]
    write_mp4(path, torch.stack(frames, dim=1), fps=8)


class TimedClips:
    """Another set of clips; counts the seconds that threads spend on reading, the waiting of all threads added up."""

    def __init__(self, clips: ClipSet) -> None:
        self.clips, self.seconds = clips, 0.0
        self.ids, self.origin, self.fingerprint = clips.ids, clips.origin, clips.fingerprint

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, first: int, last: int) -> Iterator[tuple[str, Tensor]]:
        began = time.perf_counter()
        clips = list(self.clips.read(first, last))
        self.seconds += time.perf_counter() - began
        return iter(clips)


def timed(detector: Detector) -> list[float]:
    """Have a detector note the seconds of each forward, up to its result on the CPU."""
    extract, seconds = detector.extract, []

    def measured(clips: Tensor) -> Tensor:
        began = time.perf_counter()
        features = extract(clips).cpu()
        seconds.append(time.perf_counter() - began)
        return features

    detector.extract = measured
    return seconds


def build(args: argparse.Namespace) -> Detector:
    if args.detector != "i3d":
        return build_detector(args.detector, args.device)
    torch.manual_seed(0)
    torch.save(I3D(1e-5).state_dict(), args.folder / WEIGHTS)
    return build_detector("i3d", args.device, path=args.folder / WEIGHTS)


def measure(args: argparse.Namespace) -> None:
    """Score, and print what it took."""
    counts = {"real_count": args.count, "fake_count": args.count}
    protocol = replace(load_protocol("stylegan-v/fvd2048_16f"), name="measured", detector=args.detector, **counts)
    detector = build(args)
    forwards = timed(detector)
    clips = {role: TimedClips(choose_clips(args.folder / role, role, protocol)) for role in ("real", "fake")}
    began = time.perf_counter()
    options = {"batch_size": args.batch, "protocol": protocol.as_dict()}
    files = [compute_features(each, detector, role=role, **options) for role, each in clips.items()]
    features_done = time.perf_counter()
    record = compare_features(*files)
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows = [
        ["clips", f"{args.count} + {args.count}"],
        [record.metric, f"{record.score:.4f}"],
        ["decoding and resizing, threads added up, s", f"{sum(each.seconds for each in clips.values()):.1f}"],
        ["detector, s", f"{sum(forwards):.1f}"],
        ["features in all, s", f"{features_done - began:.1f}"],
        ["distance, s", f"{ended - features_done:.2f}"],
        ["clips a second", f"{2 * args.count / (ended - began):.1f}"],
        ["peak memory, GiB", f"{peak:.2f}"],
    ]
    if torch.cuda.is_available():
        rows.append(["peak memory of the GPU, GiB", f"{torch.cuda.max_memory_allocated() / 2**30:.2f}"])
    print_table(f"{args.detector} on {args.device}, batch {args.batch}", ["what", "value"], rows)


if __name__ == "__main__":
    main()
