"""Files that would be taken for a public checkpoint of ours and are something else: shards of DeepSpeed, and models of SiT.

A shard holds a rank's part of the weights, under ZeRO-3 with empty tensors in place of them. SiT (Ma et al., 2024) has DiT's
layers under DiT's names, and predicts a velocity at times from 0 (noise) to 1 (data): as a DiT it would give noise.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

_SHARD = re.compile(r"zero_pp_rank_[0-9]+_mp_rank_[0-9]+_(model|optim)_states")
_SIT = re.compile(r"(?<![A-Za-z])SiT-(S|B|L|XL)(?![A-Za-z])")
_SIT_ARGUMENTS = {"path_type", "prediction"}  # of its trainer, and of trainers after it, such as REPA's


def check_name(path: Path) -> None:
    """Raise ValueError if a file's name is that of a shard: what it holds is often more than data, and is not read."""
    if _SHARD.search(path.name):
        _refuse_shard(path)


def check_content(path: Path, loaded: object) -> None:
    """Raise ValueError if what a file holds is a shard of DeepSpeed or a model of SiT."""
    if not isinstance(loaded, Mapping):
        return
    module = loaded.get("module")
    weights = module.values() if isinstance(module, Mapping) else ()
    empty = any(isinstance(each, Tensor) and not each.numel() for each in weights)
    if ("param_shapes" in loaded and empty) or {"optimizer_state_dict", "ds_version"} <= loaded.keys():
        _refuse_shard(path)
    arguments = loaded.get("args")
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    told = isinstance(arguments, Mapping) and arguments.keys() >= _SIT_ARGUMENTS
    if told or _SIT.search(path.name):
        sign = f"its args have {', '.join(sorted(_SIT_ARGUMENTS))}" if told else "by its name"
        raise ValueError(
            f"{path} is a checkpoint of SiT ({sign}): it has DiT's layers, and predicts a velocity at times from 0 (noise) to "
            "1 (data), so that as a DiT it would give noise. Accepted are Latte, DiT and SparseDiT. To start a run of "
            "objective.kind=flow from its weights all the same, save its state dict alone, under another name"
        )


def _refuse_shard(path: Path) -> None:
    raise ValueError(
        f"{path} is a shard of a DeepSpeed ZeRO checkpoint, one rank's part of weights or optimizer. Join all of them by the "
        "script that lies above them, `python zero_to_fp32.py --safe_serialization . joined`, and give joined/model.safetensors"
    )
