"""What a score answers to: real clips, damaged more and more, scored against themselves undamaged.

Dimensions: C channels, T frames, H×W pixels of a clip.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sparsevid.evaluation.clips.clips import ClipSource, choose_clips
from sparsevid.evaluation.detectors import Detector
from sparsevid.evaluation.distortions import DISTORTIONS, SET_DISTORTIONS, STRENGTHS
from sparsevid.evaluation.evaluate import check_detector, compute_metrics, one_split
from sparsevid.evaluation.features import ClipSet, compute_features
from sparsevid.evaluation.protocols import Protocol
from sparsevid.system.seeding import Purpose, keyed_generator

MONOTONE = ("blur", "noise", "frame shuffling", "freezing")  # a detector of videos should answer to more of these by more


@dataclass(frozen=True)
class Sensitivity:
    """Scores by distortion and strength.

    Attributes:
        metric: name of the value.
        clips: number of clips.
        strengths: increasing, above 0; at 0 a Fréchet distance is 0.
        scores: distortion → the score at each strength.
    """

    metric: str
    clips: int
    strengths: tuple[float, ...]
    scores: dict[str, tuple[float, ...]]

    @property
    def not_monotone(self) -> list[str]:
        """Of `MONOTONE`, those that were measured and do not raise the score at each step, from 0 on."""
        rising = {name: all(a < b for a, b in zip((0.0, *each), each, strict=False)) for name, each in self.scores.items()}
        return [name for name in MONOTONE if not rising.get(name, True)]


class DistortedClips:
    """The clips of another set, damaged as they are read. Clip i is drawn from (seed, i) alone, whatever the strength;
    damage to the set from the seed.

    Args:
        clips: the undamaged ones.
        distortion: a name of `DISTORTIONS` or `SET_DISTORTIONS`.
        strength: 0 to 1.
        seed: of the draws.
    """

    def __init__(self, clips: ClipSet, distortion: str, strength: float, seed: int) -> None:
        self.clips, self.distortion, self.strength, self.seed = clips, distortion, strength, seed
        self.ids = clips.ids
        self.origin: dict[str, Any] = {**clips.origin, "distortion": distortion, "strength": strength}
        self.fingerprint = hashlib.sha256(f"{clips.fingerprint} {distortion} {strength!r} {seed}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, first: int, last: int) -> Iterator[tuple[str, Tensor]]:
        """Name and damaged clip, uint8 (C, T, H, W), of positions first … last − 1."""
        if self.distortion in SET_DISTORTIONS:
            yield from map(self._of_set, range(first, last))
            return
        for position, (name, clip) in enumerate(self.clips.read(first, last), first):
            generator = keyed_generator(Purpose.DISTORTION, self.seed, position)
            yield name, DISTORTIONS[self.distortion](clip, self.strength, generator)

    def _of_set(self, position: int) -> tuple[str, Tensor]:
        damage, generator = SET_DISTORTIONS[self.distortion], keyed_generator(Purpose.DISTORTION, self.seed)
        return self.ids[position], damage(self._undamaged, len(self), position, self.strength, generator)

    def _undamaged(self, position: int) -> Tensor:
        ((_, clip),) = self.clips.read(position, position + 1)
        return clip


def measure_sensitivity(
    source: ClipSource,
    detector: Detector,
    protocol: Protocol,
    *,
    limit: int | None = None,
    split: str | None = None,
    distortions: Sequence[str] = tuple(DISTORTIONS),
    strengths: Sequence[float] = STRENGTHS,
    batch_size: int = 16,
) -> Sensitivity:
    """Score real clips in each distortion and strength against the same clips undamaged. All ranks call it together.

    Args:
        source: of real clips, see `choose_clips`.
        detector: the protocol's.
        protocol: its rule for real clips, and its first metric, which is a distance.
        limit: take fewer clips than the protocol's count.
        split: of the real data; needed where the protocol reports several.
        distortions: names of `DISTORTIONS`.
        strengths: increasing, above 0 and up to 1.
        batch_size: clips of a forward pass.

    Raises:
        ValueError: a distortion is unknown, strengths do not increase, or see `choose_clips` and `compute_features`.
    """
    unknown = [name for name in distortions if name not in DISTORTIONS]
    if unknown:
        raise ValueError(f"unknown distortions {', '.join(unknown)}; accepted: {', '.join(DISTORTIONS)}")
    if not all(a < b for a, b in zip((0.0, *strengths), strengths, strict=False)) or not strengths:
        raise ValueError(f"strengths increase from above 0, got {tuple(strengths)}")
    check_detector(detector, protocol)
    rules = replace(protocol, split=split or one_split(protocol, "real"))
    clips = choose_clips(source, "real", rules, limit=limit)
    real = compute_features(clips, detector, batch_size=batch_size)
    scores, metric = {}, ""
    for name in distortions:
        found = []
        for strength in strengths:
            damaged = DistortedClips(clips, name, strength, protocol.seed)
            values = compute_metrics(real, compute_features(damaged, detector, batch_size=batch_size), protocol)
            metric = next(iter(values))
            found.append(values[metric])
        scores[name] = tuple(found)
    return Sensitivity(metric, len(clips), tuple(strengths), scores)
