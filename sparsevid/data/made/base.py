"""What a made set says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version

from torch import Tensor

SPLITS = ("train", "test")  # the place of each is part of the key of its clips


@dataclass(frozen=True)
class MadeSettings:
    """What decides the clips of a made set, but for how many there are.

    Attributes:
        size: (H,W) in pixels.
        frames: T of a clip.
        skip: frames that the source goes on from one frame of a clip to the next.
        classes: in the order of their names.
        seed: another one, other clips.
    """

    size: tuple[int, int]
    frames: int
    skip: int
    classes: tuple[str, ...]
    seed: int


class MadeSet:
    """A data set that a program makes, the same on every machine.

    Args:
        settings: of its clips.

    Attributes:
        name: of the set, of its module and of its card.
        distribution: the package that makes it, whose version is said with it.
        all_classes: names that `settings.classes` may have.
        defaults, default_counts: settings, and clips of a class by split, of the set that its card describes.
        rate: frames a second of the source.

    Raises:
        ValueError: an unknown class, with the nearest one, or a number out of range.
    """

    name: str
    distribution: str
    all_classes: tuple[str, ...]
    defaults: MadeSettings
    default_counts: Mapping[str, int]
    rate: float

    def __init__(self, settings: MadeSettings) -> None:
        for each in settings.classes:
            if each not in self.all_classes:
                near = get_close_matches(each, self.all_classes, n=1, cutoff=0.0)
                accepted = ", ".join(self.all_classes)
                raise ValueError(f"{self.name} has no class {each!r}; did you mean {near[0]!r}? Accepted: {accepted}")
        if not settings.classes or list(settings.classes) != sorted(set(settings.classes)):
            raise ValueError(f"classes {list(settings.classes)}: one or more, each once, in the order of their names")
        if min(*settings.size, settings.frames, settings.skip) < 1 or settings.seed < 0:
            own = f"size {list(settings.size)}, frames {settings.frames}, skip {settings.skip}, seed {settings.seed}"
            raise ValueError(f"size, frames and skip are numbers from 1, the seed from 0, got {own}")
        self.settings = settings

    @property
    def fps(self) -> float:
        """Frames a second of the clips."""
        return self.rate / self.settings.skip

    @property
    def made_with(self) -> str:
        """Package and version that make the clips."""
        try:
            return f"{self.distribution} {version(self.distribution)}"
        except PackageNotFoundError:
            return f"{self.distribution} (not installed)"

    def check(self) -> None:
        """Raise ImportError, with what is to be installed, if clips cannot be made here."""
        raise NotImplementedError

    def clip(self, split: int, name: str, index: int) -> Tensor:
        """A clip, a function of its place and of the settings alone.

        Args:
            split: its place in `SPLITS`.
            name: of its class.
            index: its number within split and class, from 0.

        Returns:
            uint8 (C,T,H,W).
        """
        raise NotImplementedError

    def captions(self, name: str, frames: Tensor) -> tuple[str, ...]:
        """Captions of a clip; none for a set that has none.

        Args:
            name: of its class.
            frames: uint8 (T,H,W,C).
        """
        return ()
