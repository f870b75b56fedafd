"""Trees of tiny videos in class folders, whose order by path is that of the classes."""

from pathlib import Path

import numpy as np

SHADE = 20  # grey levels from one class to the next


def write_classes(root: Path, videos: list[int], frames: int = 6, side: int = 8) -> Path:
    """Folders c00, c01, … of as many arrays as said; every pixel of class i is about i · `SHADE`. Returns the root."""
    draws = np.random.default_rng(0)
    for label, number in enumerate(videos):
        folder = root / f"c{label:02d}"
        folder.mkdir(parents=True)
        for video in range(number):
            clip = label * SHADE + draws.integers(0, 4, (frames, side, side, 3))
            np.save(folder / f"v{video:03d}.npy", clip.astype(np.uint8))
    return root


def write_card(folder: Path, root: Path, frames: int = 4, side: int = 8) -> Path:
    """A card of such a tree."""
    card = folder / "classes.yaml"
    clip = f"clip: {{frames: {frames}, stride: 1, size: [{side}, {side}]}}"
    card.write_text(f"name: classes\nroot: {root}\nlabel_rule: folder\n{clip}\n", encoding="utf-8")
    return card
