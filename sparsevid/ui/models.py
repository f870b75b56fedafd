"""The models that the page offers, opened when they are chosen."""

from collections.abc import Sequence
from typing import Any

from sparsevid.benchmark.savings_cases import model_names
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.generation.pretrained import find_pretrained

KEPT = 2  # models in memory at once: those of the two sides


class Models:
    """Models by short names, the last ones used kept in memory.

    Args:
        sources: as of `VideoPipeline.from_pretrained`: runs, checkpoints, exported folders, hub ids.
        loading: its options, the same for all.

    Raises:
        FileNotFoundError: no model at one of the sources.
        ValueError: a source is given twice.
    """

    def __init__(self, sources: Sequence[str], **loading: Any) -> None:
        self._sources = dict(zip(model_names(sources), sources, strict=True))
        for source in sources:
            find_pretrained(source)  # raises before a page is shown
        self._loading = loading
        self._opened: dict[str, VideoPipeline] = {}  # the last one used is the last

    @property
    def names(self) -> list[str]:
        """Of all models, in the order in which they were given."""
        return list(self._sources)

    def open(self, name: str) -> VideoPipeline:
        """The pipeline of a model; of a run its newest checkpoint at the time when it is read.

        Raises:
            ValueError: no such name, or as `VideoPipeline.from_pretrained`.
        """
        if name not in self._sources:
            raise ValueError(f"no model {name!r}; on offer are {', '.join(self._sources)}")
        if name not in self._opened:
            while len(self._opened) >= KEPT:
                del self._opened[next(iter(self._opened))]
            self._opened[name] = VideoPipeline.from_pretrained(self._sources[name], **self._loading)
        self._opened[name] = self._opened.pop(name)
        return self._opened[name]
