"""Public checkpoints as files: what is in them, read without running code."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sparsevid.models.convert import ENTRIES
from sparsevid.models.convert.conversion import abbreviate
from sparsevid.models.convert.foreign import check_content, check_name
from sparsevid.system.logging import get_logger

# Of a training checkpoint, the one that gives the better samples first; "module" is DeepSpeed's.
_PIXART_EMA = "state_dict_ema"  # what PixArt's trainer calls the first
_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_REFUSED = re.compile(r"WeightsUnpickler error: (.+?)(?:\. Please|\n|$)")  # without the advice to allow what was refused
logger = get_logger(__name__)


def read_checkpoint(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """Read the state dict of a `.pt`, `.pth` or `.safetensors` file, on the CPU. Code in a pickle is never run.

    Args:
        path: the file. It holds a state dict, or a dictionary with one under `ema`, `model`, `module` or `state_dict`.
        entry: which of these; by default the first of them that the file has, which is logged.

    Returns:
        The tensors, without the prefixes that DistributedDataParallel and torch.compile give to names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a damaged one, one that holds more than data, one without such an entry, or one that
            only looks like a public checkpoint (see `foreign`).
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    check_name(path)
    loaded: object
    if path.suffix == ".safetensors":
        try:
            loaded = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from error
    elif path.suffix in (".pt", ".pth"):
        loaded = read_pickle(path)
    else:
        raise ValueError(f"{path}: a checkpoint ends in .pt, .pth or .safetensors, not in {path.suffix!r}")
    check_content(path, loaded)
    try:
        return unwrap(loaded, entry)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def unwrap(checkpoint: object, entry: str | None = None) -> dict[str, Tensor]:
    """The state dict inside a loaded checkpoint. Arguments, result and errors are those of `read_checkpoint`."""
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"a checkpoint is a dictionary, found {type(checkpoint).__name__}")
    held: Mapping[Any, Any] = checkpoint
    if isinstance(held.get(_PIXART_EMA), Mapping):
        held = {"ema": held[_PIXART_EMA], **held}
    wrapped = [name for name in ENTRIES if isinstance(held.get(name), Mapping)]
    if entry is not None and entry not in wrapped:
        raise ValueError(f"no state dict under {entry!r}; there is {', '.join(wrapped) or 'none under a name of its own'}")
    if wrapped:
        chosen = entry or wrapped[0]
        logger.info("taking the weights under %r; the checkpoint has %s", chosen, ", ".join(wrapped))
        held = held[chosen]
    others = sorted(str(name) for name, value in held.items() if not _is_dense_tensor(value))
    if others or not held:
        raise ValueError(
            f"a state dict holds dense tensors alone, or stands under {', '.join(ENTRIES)}; "
            f"found {abbreviate(others) or 'nothing'}"
        )
    state = {str(name): value for name, value in held.items()}
    while prefix := next((each for each in _WRAPPERS if all(name.startswith(each) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def read_pickle(path: Path) -> object:
    """What `torch.save` wrote, as far as it is data: tensors and plain values, on the CPU.

    Raises:
        ValueError: it is damaged, or holds more.
    """
    # The public trainers put their parsed arguments, plain data, beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # the reader has no error of its own: damage shows as KeyError, IndexError and others
            refused = _REFUSED.search(str(error))
            said = str(error).partition("\n")[0] or f"it has {path.stat().st_size} bytes"  # of an empty file nothing is said
            reason = refused[1] if refused else said
            raise ValueError(f"{path} is damaged, or holds more than tensors and plain data: {reason}") from error


def _is_dense_tensor(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided
