"""Made sets by name, and the comparison of one with what its card says of it."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from sparsevid.data.made.base import MadeSet
from sparsevid.data.made.folder import Made, make
from sparsevid.data.tree.cards import load_card
from sparsevid.system.logging import get_logger

logger = get_logger(__name__)


class Comparison(NamedTuple):
    """A set with all defaults beside its card: hash and package with version of both."""

    name: str
    sha256: str
    made_with: str
    card_sha256: str
    card_made_with: str

    @property
    def same(self) -> bool:
        return self.sha256 == self.card_sha256

    def say(self) -> int:
        """Log what was found. Returns 0, or 1 if the hashes differ."""
        if self.same:
            logger.info("these are the frames that the card %s describes, made with %s", self.name, self.card_made_with)
            return 0
        logger.warning(
            "these are not the frames that the card %s describes: they have sha256 %s and were made with %s, the card's %s "
            "with %s. Scores on the two cannot be compared",
            self.name, self.sha256, self.made_with, self.card_sha256, self.card_made_with,
        )  # fmt: skip
        return 1


def set_class(name: str) -> type[MadeSet]:
    """The class of a set in `MADE`."""
    return import_module(f"sparsevid.data.made.{name}").SET


def make_default(name: str, folder: Path, workers: int) -> Made:
    """Make the set that its card describes, as far as it is not there, and compare it with the card.

    Args:
        name: a key of `MADE`.
        folder: the set's.
        workers: processes that make clips.

    Raises:
        ImportError, MadeError, LockedError, OSError: see `make`.
    """
    kind = set_class(name)
    made = kind(kind.defaults)
    result = make(made, folder, kind.default_counts, workers)
    if compared := against_card(made, kind.default_counts, result.sha256):
        compared.say()
    return result


def against_card(made: MadeSet, counts: Mapping[str, int], sha256: str) -> Comparison | None:
    """Compare a set with its card.

    Args:
        made: the set.
        counts: clips of a class, by split.
        sha256: over its frames.

    Returns:
        The comparison; None for a set that is not the default one, and where the card is not there or says no hash.
    """
    if made.settings != made.defaults or dict(counts) != dict(made.default_counts):
        return None
    try:
        said = load_card(made.name).made
    except FileNotFoundError:  # cards are not part of the installed package
        logger.info("there is no card %s here to compare the frames with", made.name)
        return None
    return Comparison(made.name, sha256, made.made_with, said.sha256, said.made_with) if said.sha256 else None
