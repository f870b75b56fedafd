"""Measure a video decoder: frame accuracy, clips a second, memory over many opens, and what it does with damaged files.

    python sparsevid/benchmark/decoders.py {pyav,decord} FILE...

"pyav" is `sparsevid.videos.read`; "decord" is whatever package imports by that name (decord, or its fork decord2), alone,
without the library's checks. Every file is measured in a process of its own with a time limit: a decoder may crash or hang.
The reference is PyAV's sequential decode. Prints rows of a Markdown table;
words "accuracy", "speed" or "growth" among the files choose what is measured.
"""

import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import av
import numpy as np

SPAN, STRIDE = 46, 3  # 16 frames
SECONDS = 4.0  # of processor time, which other load on the machine does not change
OPENS, WARM_OPENS = 2000, 200
LIMIT = 300  # seconds of a process
OTHER_COLOURS = 12.0  # mean absolute difference up to which a frame is the same in another colour conversion


def reader(backend: str):
    """A function (path, indices) → uint8 (T,H,W,C) that opens the file anew each time."""
    if backend == "pyav":
        from sparsevid.videos.read import read_frames

        return lambda path, indices: read_frames(path, indices).permute(0, 2, 3, 1).numpy()
    import decord

    return lambda path, indices: decord.VideoReader(str(path), num_threads=1).get_batch(list(indices)).asnumpy()


def reference(path: Path) -> list[np.ndarray]:
    """All intact frames (H,W,3) in order of presentation, up to where the file breaks off."""
    frames = []
    with suppress(av.FFmpegError), av.open(str(path)) as container:  # where the file breaks off, what came before counts
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24"))
    return frames


def accuracy(backend: str, path: Path) -> str:
    """Every frame by random access, four at a time, against the reference."""
    read, expected = reader(backend), reference(path)
    order = list(range(len(expected)))
    if not expected:
        return f"opens and gives {len(read(path, [0]))} frame, where FFmpeg decodes none"
    random.Random(0).shuffle(order)
    exact = colours = wrong = failed = 0
    reason = ""
    for start in range(0, len(order), 4):
        chosen = order[start : start + 4]
        try:
            frames = read(path, chosen)
        except Exception as error:
            failed, reason = failed + len(chosen), f" ({type(error).__name__})"
            continue
        for i, frame in zip(chosen, frames, strict=True):
            around = {j: np.abs(frame.astype(int) - expected[j]).mean() for j in range(i - 3, i + 4) if 0 <= j < len(expected)}
            exact += around[i] == 0
            like = around[i] <= OTHER_COLOURS and around[i] == min(around.values())
            colours += around[i] > 0 and like
            wrong += not like
    parts = {"other colours": colours, "wrong": wrong, f"refused{reason}": failed}
    return f"{exact}/{len(expected)} exact" + "".join(f", {number} {name}" for name, number in parts.items() if number)


def speed(backend: str, path: Path) -> str:
    """16 frames at stride 3 from random starts, each with an opening of the file."""
    read, frames, draw = reader(backend), len(reference(path)), random.Random(0)
    clips, begin = 0, time.process_time()
    while time.process_time() - begin < SECONDS:
        start = draw.randrange(frames - SPAN + 1)
        read(path, range(start, start + SPAN, STRIDE))
        clips += 1
    return f"{clips / (time.process_time() - begin):.1f} clips/s"


def growth(backend: str, path: Path) -> str:
    """Resident memory gained over 2,000 openings that each read one frame."""
    read = reader(backend)
    for i in range(WARM_OPENS + OPENS):
        if i == WARM_OPENS:
            before = resident()
        read(path, [i % 20])
    return f"{resident() - before:+.1f} MB"


def resident() -> float:
    """Resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


MEASURES = {"accuracy": accuracy, "speed": speed, "growth": growth}


def main(backend: str, names: list[str], measures: list[str]) -> None:
    for name in names:
        for measure in measures:
            command = [sys.executable, __file__, "--one", backend, measure, name]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
                result = done.stdout.strip() if done.returncode == 0 else f"exit {done.returncode}: {done.stderr.strip()[-80:]}"
            except subprocess.TimeoutExpired:
                result = f"hangs (> {LIMIT} s)"
            print(f"| {backend} | {measure} | {Path(name).name} | {result} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(MEASURES[sys.argv[3]](sys.argv[2], Path(sys.argv[4])))
    else:
        chosen = [word for word in sys.argv[2:] if word in MEASURES]
        main(sys.argv[1], [word for word in sys.argv[2:] if word not in MEASURES], chosen or list(MEASURES))
