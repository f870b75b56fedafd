"""Video decoders: frame accuracy, clips a second, memory over many openings, and what they do with damaged files.

`pyav` is `sparsevid.videos.read`; `decord` is whatever package imports by that name (decord, or its fork decord2), alone,
without the library's checks. The reference is PyAV's sequential decode, in stored pixels.

A decoder may crash or hang: each measurement is made in a process of its own, with a time limit.

Dimensions: T frames, H height, W width, C = 3 channels (RGB).
"""

import multiprocessing
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np
import torch

from sparsevid.benchmark import DECODER_LIMIT, DECODER_MEASURES
from sparsevid.system.logging import printable, progress
from sparsevid.system.resident import resident_bytes
from sparsevid.videos import decode_decord, decode_file
from sparsevid.videos.read import BACKENDS, read_frames

DECODER_COLUMNS = ("decoder", "measure", "file", "result")
DECODER_LINES = (
    "accuracy: every frame by random access against FFmpeg's sequential decode; other colours: the right frame, converted "
    "otherwise; wrong: another frame. Speed: clips of 16 frames at stride 3, an opening each, by second of processor time, "
    "one thread. Growth: resident memory over 2,000 openings",
)
SPAN, STRIDE = 46, 3  # of a timed clip: 16 frames
SECONDS = 4.0  # of processor time, which other load on the machine does not change
OPENS, WARM_OPENS, OPENED = 2000, 200, 20  # openings that count, openings before, frames they go through
OTHER_COLOURS = 12.0  # mean absolute difference up to which a frame is the same in another colour conversion

Reader = Callable[[Path, Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Accuracy:
    """How many frames of a file are right by random access, four at a time.

    Attributes:
        frames: intact ones of the reference.
        exact: equal to the reference.
        other_colours: near to it, and to no frame around it nearer.
        wrong: neither; of a file without intact frames, those that were given all the same.
        refused: not given.
        error: class of the last refusal's error; empty without one.
    """

    frames: int
    exact: int = 0
    other_colours: int = 0
    wrong: int = 0
    refused: int = 0
    error: str = ""

    def __str__(self) -> str:
        if not self.frames:
            return f"opens and gives {self.wrong} frame, where FFmpeg decodes none"
        parts = {"other colours": self.other_colours, "wrong": self.wrong, f"refused ({self.error})": self.refused}
        return f"{self.exact}/{self.frames} exact" + "".join(f", {number} {name}" for name, number in parts.items() if number)


@dataclass(frozen=True)
class Speed:
    """Clips of 16 frames at stride 3 from random starts, each with an opening of the file, by second of processor time."""

    clips_per_second: float

    def __str__(self) -> str:
        return f"{self.clips_per_second:.1f} clips/s"


@dataclass(frozen=True)
class Growth:
    """Resident memory that a process gains over many openings, each of which reads one frame."""

    gained_bytes: int

    def __str__(self) -> str:
        return f"{self.gained_bytes / 1e6:+.1f} MB"


@dataclass(frozen=True)
class Failure:
    """What stands in the place of a measurement: an error, the end of the process, or that it did not end."""

    failure: str

    def __str__(self) -> str:
        return self.failure


@dataclass(frozen=True)
class DecoderResult:
    """One decoder's measurement on one file; `found` is printed as it reads by `str`."""

    decoder: str
    measure: str
    file: Path
    found: Accuracy | Speed | Growth | Failure


def measure_accuracy(read: Reader, path: Path) -> Accuracy:
    """Every frame by random access, four at a time in a drawn order, against the reference."""
    expected = reference(path)
    if not expected:
        return Accuracy(0, wrong=len(read(path, [0])))
    order = list(range(len(expected)))
    random.Random(0).shuffle(order)
    exact = colours = wrong = refused = 0
    error = ""
    for start in range(0, len(order), 4):
        chosen = order[start : start + 4]
        try:
            frames = read(path, chosen)
        except Exception as refusal:  # decoders have classes of their own
            refused, error = refused + len(chosen), type(refusal).__name__
            continue
        for i, frame in zip(chosen, frames, strict=True):
            around = _differences(frame, expected, i)
            like = around[i] <= OTHER_COLOURS and around[i] == min(around.values())
            exact += around[i] == 0
            colours += around[i] > 0 and like
            wrong += not like
    return Accuracy(len(expected), int(exact), int(colours), int(wrong), refused, error)


def _differences(frame: np.ndarray, expected: Sequence[np.ndarray], i: int) -> dict[int, float]:
    """Mean absolute differences of a frame (H,W,C) to the expected frame i and three on each side; ∞ to other shapes."""
    near = range(max(0, i - 3), min(len(expected), i + 4))
    return {
        j: np.abs(frame.astype(int) - expected[j]).mean() if frame.shape == expected[j].shape else float("inf") for j in near
    }


def measure_speed(read: Reader, path: Path, seconds: float = SECONDS) -> Speed:
    """Clips from random starts, for so many seconds of processor time.

    Raises:
        ValueError: the file is shorter than a clip.
    """
    frames, draw = len(reference(path)), random.Random(0)
    if frames < SPAN:
        raise ValueError(f"a clip spans {SPAN} frames, and there are {frames}")
    clips, begin = 0, time.process_time()
    while time.process_time() - begin < seconds:
        start = draw.randrange(frames - SPAN + 1)
        read(path, range(start, start + SPAN, STRIDE))
        clips += 1
    return Speed(clips / (time.process_time() - begin))


def measure_growth(read: Reader, path: Path, opens: int = OPENS) -> Growth:
    """Resident memory gained over so many openings, after a tenth of them; each reads one of the first 20 frames."""
    warm = opens * WARM_OPENS // OPENS
    before = 0
    for i in range(warm + opens):
        if i == warm:
            before = resident_bytes()
        read(path, [i % OPENED])
    return Growth(resident_bytes() - before)


MEASURES: dict[str, Callable[..., Accuracy | Speed | Growth]] = dict(
    zip(DECODER_MEASURES, (measure_accuracy, measure_speed, measure_growth), strict=True)
)


def open_decoder(name: str) -> Reader:
    """A function (path, indices) → uint8 (T,H,W,C) in stored pixels that opens the file anew each time.

    Raises:
        ImportError: decord is not installed.
        ValueError: there is no such decoder.
    """
    if name not in BACKENDS:
        raise ValueError(f"no decoder {name!r}; the decoders are {', '.join(BACKENDS)}")
    if name == "pyav":
        return lambda path, indices: read_frames(path, indices, display=False).permute(0, 2, 3, 1).numpy()
    decord = decode_decord.imported()
    return lambda path, indices: decord.VideoReader(str(path), num_threads=1).get_batch(list(indices)).asnumpy()


def describe_decoders(names: Sequence[str]) -> str:
    """The decoders that are measured, with versions."""
    described = {"pyav": decode_file.describe, "decord": decode_decord.describe}
    return ", ".join(described[name]() for name in names)


def reference(path: Path) -> list[np.ndarray]:
    """All intact frames (H,W,C) in order of presentation, up to where the file breaks off."""
    frames = []
    with suppress(av.FFmpegError), av.open(str(path)) as container:  # where the file breaks off, what came before counts
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24"))
    return frames


def measure_decoders(
    files: Sequence[str | Path],
    decoders: Sequence[str] = BACKENDS,
    measures: Sequence[str] = tuple(MEASURES),
    *,
    limit: float = DECODER_LIMIT,
    seconds: float = SECONDS,
    opens: int = OPENS,
) -> list[DecoderResult]:
    """Measure decoders on video files, each measurement in a process of its own.

    Args:
        files: video files, damaged ones too.
        decoders: of `BACKENDS`.
        measures: of `MEASURES`.
        limit: seconds that a measurement may take; then its process is ended.
        seconds: of processor time that speed is measured for.
        opens: openings that growth is measured over.

    Returns:
        A result for each file, measure and decoder, in this order. What a decoder refuses, dies of or hangs on is one.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: decord is asked for and not installed.
        ValueError: no such decoder or measure, or a number out of range.
    """
    if not 0 < limit < float("inf") or not 0 < seconds < float("inf") or opens < 1:
        raise ValueError(
            f"need limit and seconds above 0, and opens from 1, got limit={limit}, seconds={seconds}, opens={opens}"
        )
    if unknown := [name for name in measures if name not in MEASURES]:
        raise ValueError(f"no measure {unknown[0]!r}; the measures are {', '.join(MEASURES)}")
    for name in decoders:
        open_decoder(name)
    paths = [Path(file) for file in files]
    if missing := [path for path in paths if not path.exists() or path.is_dir()]:
        raise FileNotFoundError(f"{missing[0]} is no file; decoders are measured on video files")
    options: dict[str, dict[str, float]] = {"speed": {"seconds": seconds}, "growth": {"opens": opens}}
    cases = [(decoder, name, path) for path in paths for name in measures for decoder in decoders]
    return [
        DecoderResult(decoder, name, path, _apart(decoder, partial(MEASURES[name], **options.get(name, {})), path, limit))
        for decoder, name, path in progress(cases, desc="measurements")
    ]


def _apart(decoder: str, measure: Callable, path: Path, limit: float) -> Accuracy | Speed | Growth | Failure:
    """A measurement in a process of its own; it is gone when this returns, however that is."""
    spawn = multiprocessing.get_context("spawn")  # a fork would take along what decoders have set up here
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_measure, args=(sender, decoder, measure, path, limit), daemon=True)
    process.start()
    sender.close()  # else this process would hold it open when the other one has died
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return Failure(_describe_end(process.exitcode or 0, limit))
    finally:
        process.kill()
        process.join()
        receiver.close()


def _measure(sender: Connection, decoder: str, measure: Callable, path: Path, limit: float) -> None:
    """Send what is measured, or what speaks against it."""
    # The system's clock ends a decoder that hangs without returning to Python, also when nothing waits for it any more.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limit)
    torch.set_num_threads(1)  # threads that wait for each other on a busy machine take processor time
    try:
        found = measure(open_decoder(decoder), path)
    except Exception as error:  # decoders have classes of their own
        found = Failure(f"{type(error).__name__}: {error}")
    sender.send(found)


def _describe_end(code: int, limit: float) -> str:
    """How a process ended that sent nothing."""
    if code == -signal.SIGALRM:
        return f"hangs (> {limit:g} s)"
    return f"dies of {signal.Signals(-code).name}" if code < 0 else f"ends with exit code {code}"


def decoder_rows(measured: Sequence[DecoderResult]) -> list[list[str]]:
    """The table: a row of `DECODER_COLUMNS` for each measurement. Names and errors are on one line, and end no cell."""
    return [[_cell(text) for text in (each.decoder, each.measure, each.file.name, str(each.found))] for each in measured]


def _cell(text: str) -> str:
    return " ".join(printable(text).split()).replace("|", "\\|")


def decoders_as_json(header: dict, measured: Sequence[DecoderResult]) -> dict:
    """Everything measured, as plain values: frames, clips a second, bytes, or the failure in their place.

    Args:
        header: as `describe_run` gives it.
        measured: as `measure_decoders` gives it.
    """
    results = [
        {"decoder": each.decoder, "measure": each.measure, "file": printable(str(each.file)), **asdict(each.found)}
        for each in measured
    ]
    return {"header": header, "results": results}
