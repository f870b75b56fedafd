"""Motion of a clip by a classical tracker, as histograms: the form of FVMD (Liu et al., arXiv 2407.16124) without its network.

FVMD follows points by PIPs++. Here pyramidal Lucas-Kanade of OpenCV follows them, so distances have a name of their own and
compare with each other alone. What becomes of the tracks is FVMD's: velocities and accelerations, in cubes of 4 frames × 5×5
points, as histograms of directions.

Dimensions: B clips, S frames, N = P×P points, H×W pixels.
"""

import hashlib
import importlib.util
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from sparsevid.evaluation.detectors.base import Detector, Setting

POINTS = 20  # P: of a side of the grid
FRAMES = 16
MARGIN = 8  # pixels between the grid and the frame's border
CELL, CUBE = 5, 4  # points of a side, and frames, of a cube
ANGLES, MAGNITUDES = 8, 256  # directions of a histogram; lengths are cut to the second, in pixels
WINDOW, LEVELS = (21, 21), 3  # of the tracker


class MotionDetector(Detector):
    """Histograms of velocity and of acceleration of 400 points over 16 frames, 1024 numbers a clip."""

    name = "motion-lucas-kanade"
    metric = "FVMD-LK"
    preprocessing = "grey by OpenCV; 20x20 points followed from the first frame, pyramidal Lucas-Kanade, 21x21 pixels, 3 levels"
    dim = 2 * (FRAMES // CUBE) * (POINTS // CELL) ** 2 * ANGLES
    parts: ClassVar[Mapping[str, slice]] = {"features": slice(0, dim), "motion": slice(0, dim)}  # FVMD's distance is of motion
    min_frames = FRAMES

    def __init__(self, version: str) -> None:
        """Build the detector, which has no weights: `version` of OpenCV stands for them."""
        super().__init__()
        self.grid = nn.Parameter(torch.linspace(0, 1, POINTS), requires_grad=False)
        self.fingerprint = hashlib.sha256(f"opencv {version}".encode()).hexdigest()
        self.eval()

    @classmethod
    def from_weights(cls, path: Path | None = None, trust: bool = False, **options: Setting) -> "MotionDetector":
        """Build the detector; see `Detector`.

        Raises:
            ModuleNotFoundError: OpenCV is not installed.
            ValueError: a weight file is given.
        """
        cls.complete_options(options)
        if path is not None:
            raise ValueError(f"detector {cls.name!r} has no weights, got {path}")
        if importlib.util.find_spec("cv2") is None:
            raise ModuleNotFoundError(f'detector {cls.name!r} needs the package opencv: pip install "sparsevid[motion]"')
        import cv2

        return cls(cv2.__version__)

    def extract(self, clips: Tensor) -> Tensor:
        """Histograms (B, 1024) of clips (B, 3, 16, H, W).

        Raises:
            ValueError: another number of frames, or frames smaller than twice the margin.
        """
        if clips.shape[2] != FRAMES or min(clips.shape[3:]) <= 2 * MARGIN:
            raise ValueError(
                f"detector {self.name!r} takes clips of {FRAMES} frames of more than {2 * MARGIN} pixels a side, got "
                f"{clips.shape[2]} of {clips.shape[3]}×{clips.shape[4]}"
            )
        height, width = (MARGIN + self.grid.cpu() * (side - 2 * MARGIN) for side in clips.shape[3:])
        y, x = torch.meshgrid(height, width, indexing="ij")
        start = torch.stack([x, y], dim=-1).reshape(-1, 2)  # (N, 2)
        tracks = torch.stack([follow(clip, start) for clip in clips.cpu()])
        return motion_histograms(tracks).float().to(clips.device)


def follow(clip: Tensor, start: Tensor) -> Tensor:
    """Where points of the first frame are in each frame. A point that is lost stays where it was last seen.

    Args:
        clip: uint8 (3, S, H, W), on the CPU.
        start: (N, 2), x and y in pixels.

    Returns:
        float32 (S, N, 2).
    """
    import cv2

    frames = [cv2.cvtColor(np.ascontiguousarray(frame.permute(1, 2, 0)), cv2.COLOR_RGB2GRAY) for frame in clip.unbind(1)]
    places = [start.numpy().astype(np.float32)]
    for before, frame in pairwise(frames):
        moved, found, _ = cv2.calcOpticalFlowPyrLK(before, frame, places[-1][:, None], None, winSize=WINDOW, maxLevel=LEVELS)
        places.append(np.where(found == 1, moved[:, 0], places[-1]))
    return torch.from_numpy(np.stack(places))


def motion_histograms(tracks: Tensor) -> Tensor:
    """FVMD's features of tracks.

    Velocities are differences of places and accelerations differences of velocities, with zeros before the first of them. In
    each cube a vector counts in one of 8 directions, by ⌈log₂(1 + length)⌉ / 8.

    Args:
        tracks: (B, S, N, 2), N a square.

    Returns:
        float64 (B, 2 · ⌊S/4⌋ · ⌊P/5⌋² · 8): of velocities, then of accelerations.

    Raises:
        ValueError: another shape, or too few points or frames for a cube.
    """
    side = math.isqrt(tracks.shape[2]) if tracks.ndim == 4 else 0
    if tracks.ndim != 4 or tracks.shape[3] != 2 or side * side != tracks.shape[2] or side < CELL or tracks.shape[1] < CUBE:
        raise ValueError(f"tracks are (B, S ≥ {CUBE}, P², 2) with P ≥ {CELL}, got {tuple(tracks.shape)}")
    moved = torch.diff(tracks, dim=1)
    velocity = torch.cat([torch.zeros_like(tracks[:, :1]), moved], dim=1)
    acceleration = torch.cat([torch.zeros_like(tracks[:, :2]), torch.diff(moved, dim=1)], dim=1)
    return torch.cat([_histograms(each, side) for each in (velocity, acceleration)], dim=1)


def _histograms(vectors: Tensor, side: int) -> Tensor:
    """Histograms (B, cubes · 8) of vectors (B, S, N, 2)."""
    cubes, cells = vectors.shape[1] // CUBE, side // CELL
    grid = rearrange(vectors, "b s (h w) two -> b s h w two", h=side)[:, : cubes * CUBE, : cells * CELL, : cells * CELL]
    grid = rearrange(grid, "b (s f) (h i) (w j) two -> b (s h w) (f i j) two", f=CUBE, i=CELL, j=CELL)
    angles = torch.atan2(grid[..., 0], grid[..., 1])
    bins = torch.div(angles + math.pi, 2 * math.pi / ANGLES, rounding_mode="floor").clamp(0, ANGLES - 1).long()
    lengths = torch.log2(grid.norm(dim=-1).clamp(0, MAGNITUDES - 1) + 1).clamp(0, int(math.log2(MAGNITUDES)))
    weights = lengths.ceil().double() / math.log2(MAGNITUDES)
    counted = torch.zeros(*bins.shape[:2], ANGLES, dtype=torch.float64).scatter_add_(2, bins, weights)
    return counted.flatten(1)
