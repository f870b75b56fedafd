"""A small convolutional classifier of clips, trained in seconds: of which class are samples, by pixels alone.

It shares nothing with the detectors, so that what it says does not follow from a distance.

Dimensions: N clips, T frames, H×W pixels, F frames that are looked at, S pixels of their side, K classes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sparsevid.system.atomic import renamed

FRAMES, SIDE = 4, 32  # F and S
WIDTHS = (32, 64, 96)
GROUPS = 8  # of the norms: unlike batch norms they do not depend on the other clips
SHIFT, NOISE = 2, 0.2  # augmentation: pixels, and standard deviation beside inputs of −1 … 1
METADATA_KEY = "sparsevid"


class ClipClassifier(nn.Module):
    """Three strided convolutions over F frames, evenly spaced and stacked as channels, so that it sees what moves and where to.

    Args:
        classes: their names by label.

    Raises:
        ValueError: fewer than two.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        if len(classes) < 2:
            raise ValueError(f"a classifier tells two classes or more apart, got {len(classes)}")
        self.classes = tuple(classes)
        layers, channels = [], 3 * FRAMES
        for width in WIDTHS:
            layers += [nn.Conv2d(channels, width, 5, stride=2, padding=2), nn.GroupNorm(GROUPS, width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(4 * channels, len(classes))

    def forward(self, frames: Tensor) -> Tensor:
        """Logits (N, K) of frames (N, 3·F, S, S) out of `looked_at`."""
        return self.head(self.features(frames))

    @classmethod
    def fit(
        cls,
        clips: Tensor,
        labels: Sequence[int] | Tensor,
        classes: Sequence[str],
        seed: int = 0,
        *,
        steps: int = 500,
        batch: int = 32,
    ) -> "ClipClassifier":
        """Train on clips; the same to the bit for the same seed and threads, and PyTorch's global generator is left as it was.

        Args:
            clips: uint8 (N, 3, T, H, W).
            labels: N, from 0.
            classes: names by label.
            seed: of weights, order, shifts and noise.
            steps: of the optimizer.
            batch: clips of a step.

        Raises:
            ValueError: no clips, another number of labels, or a label without a class.
        """
        labels = torch.as_tensor(labels, dtype=torch.long)
        if len(clips) == 0 or labels.shape != (len(clips),):
            raise ValueError(f"each clip has a label: got {len(clips)} clips and labels of shape {tuple(labels.shape)}")
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            raise ValueError(f"labels of {len(classes)} classes are 0 … {len(classes) - 1}, got {sorted(set(labels.tolist()))}")
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            model = cls(classes)
        frames, generator = looked_at(clips), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        order: list[int] = []
        for _ in range(steps):
            while len(order) < min(batch, len(clips)):
                order += torch.randperm(len(clips), generator=generator).tolist()
            chosen, order = order[:batch], order[batch:]
            loss = F.cross_entropy(model(_augmented(frames[chosen], generator)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return model.eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, clips: Tensor, batch: int = 64) -> Tensor:
        """Logits (N, K) of clips, uint8 (N, 3, T, H, W)."""
        return torch.cat([self(looked_at(part)) for part in clips.split(batch)])

    def accuracy(self, clips: Tensor, labels: Sequence[int] | Tensor) -> float:
        """The share of clips, uint8 (N, 3, T, H, W), whose class is taken for the labels' (N)."""
        return (self.logits(clips).argmax(dim=1) == torch.as_tensor(labels)).double().mean().item()

    def save(self, path: Path) -> None:
        """Write weights and classes as one safetensors file."""
        weights = {name: weight.contiguous() for name, weight in self.state_dict().items()}
        with renamed(path) as draft:
            draft.write_bytes(save(weights, {METADATA_KEY: json.dumps({"classes": self.classes})}))

    @classmethod
    def load(cls, path: Path) -> "ClipClassifier":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is something else.
        """
        try:
            with safe_open(path, "pt") as file:
                model = cls(json.loads(file.metadata()[METADATA_KEY])["classes"])
                model.load_state_dict({name: file.get_tensor(name) for name in model.state_dict()})
        except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} holds no classifier of clips: {error}") from error
        return model.eval().requires_grad_(False)


def shuffled_share(found: Sequence[int], labels: Sequence[int]) -> float:
    """The share of clips whose class is that of a label dealt out to it at random: the mean over all ways to deal them out.

    Args:
        found: the class that each clip is taken for, N.
        labels: N.
    """
    return sum(found.count(label) * labels.count(label) for label in set(labels)) / len(labels) ** 2


def looked_at(clips: Tensor) -> Tensor:
    """What the classifier sees of clips, uint8 (N, 3, T, H, W): float32 −1 … 1 (N, 3·F, S, S).

    Raises:
        ValueError: something else than clips.
    """
    if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[1] != 3 or 0 in clips.shape:
        raise ValueError(f"clips are uint8 (N, 3, T, H, W), got {clips.dtype} {tuple(clips.shape)}")
    chosen = torch.linspace(0, clips.shape[2] - 1, FRAMES).round().long()
    parts = []
    for part in clips.cpu().split(64):  # frames as floats are four times as large
        frames = rearrange(part[:, :, chosen], "n c t h w -> n (t c) h w").float() / 127.5 - 1.0
        parts.append(F.interpolate(frames, (SIDE, SIDE), mode="area"))
    return torch.cat(parts)


def _augmented(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted by some pixels, all alike, and with noise: faint textures are not what a class is known by."""
    shifts = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
    return frames.roll(shifts, (2, 3)) + NOISE * torch.randn(frames.shape, generator=generator)
