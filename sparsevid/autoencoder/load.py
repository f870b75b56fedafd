"""A first stage of any kind, from the folder that it was saved in, or by its kind and source."""

import json
from pathlib import Path
from typing import Any

from sparsevid.autoencoder.base import Autoencoder
from sparsevid.autoencoder.kl import KLAutoencoder
from sparsevid.autoencoder.linear import LinearAutoencoder
from sparsevid.autoencoder.pixels import Pixels
from sparsevid.autoencoder.pretrained import SOURCE_OPTION, PretrainedAutoencoder
from sparsevid.autoencoder.temporal import TemporalAutoencoder
from sparsevid.autoencoder.wan import WanAutoencoder

# Those of diffusers, by kind.
PRETRAINED: dict[str, type[PretrainedAutoencoder]] = {
    each.kind: each for each in (KLAutoencoder, TemporalAutoencoder, WanAutoencoder)
}
KINDS = ("linear", "pixels", *PRETRAINED)
CACHEABLE = ("pixels", *(kind for kind, each in PRETRAINED.items() if each.cache_dtypes))


def load_autoencoder(folder: Path, source: str | None = None, *, option: str | None = None) -> Autoencoder:
    """Load a first stage that `save` wrote.

    Args:
        folder: with `autoencoder.json`.
        source: of those of diffusers, where the weights are now, if not where they were.
        option: how the caller's user says another source, for messages; default: as a run does.

    Raises:
        FileNotFoundError: no `autoencoder.json` there.
        ValueError: an unknown kind, or a damaged file, which the message names.
    """
    path = folder / "autoencoder.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no autoencoder.json: it is not a saved autoencoder")
    header = _read_header(path)
    kind = header["kind"]
    if kind == "linear":
        return LinearAutoencoder.load(folder, header)
    if kind == "pixels":
        return Pixels()
    if kind in PRETRAINED:
        autoencoder = PRETRAINED[kind].from_source(source or header.get("source"), option=option or SOURCE_OPTION)
        autoencoder.tiling, autoencoder.slicing = (bool(header.get(name)) for name in ("tiling", "slicing"))
        return autoencoder
    raise ValueError(f"{path}: unknown kind {kind!r}; known are {', '.join(KINDS)}")


def _read_header(path: Path) -> dict[str, Any]:
    """What `write_header` wrote, with its kind.

    Raises:
        ValueError: something else, which the message names.
    """
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(header, dict) or "kind" not in header:
        raise ValueError(f"{path} is damaged: it is no JSON object with a kind")
    return header
