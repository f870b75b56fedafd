"""Folders of diffusers' transformers, read and written; and what a whole pipeline's folder says beside them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsevid.models.convert.conversion import (
    Change,
    Conversion,
    ConversionReport,
    abbreviate,
    check_weights,
    expected_shapes,
    with_own_storage,
)
from sparsevid.models.convert.diffusers_config import DIT, class_of, config_of, spec_of
from sparsevid.models.convert.diffusers_names import NULL_CAPTION, Theirs, diffusers_names
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.logging import get_logger

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
HALF = ("diffusion_pytorch_model.fp16.safetensors", f"{WEIGHTS}.index.fp16.json")  # where a folder has the variant fp16 alone
SUBFOLDER = "transformer"  # of a pipeline's folder
TABLES = ("pos_embed.pos_embed", "temp_pos_embed")  # buffers that some versions wrote; positions are computed
# What the Gaussian process here is; samplers are chosen when sampling.
PROCESS = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 1000,
           "prediction_type": "epsilon", "trained_betas": None, "rescale_betas_zero_snr": False}  # fmt: skip
logger = get_logger(__name__)


def find_diffusers(folder: Path) -> Path | None:
    """The folder of a transformer of diffusers: this one, or in a pipeline's; None if there is none."""
    for each in (folder, folder / SUBFOLDER):
        if (each / "config.json").is_file() and "_class_name" in _read_json(each / "config.json"):
            return each
    return None


def from_diffusers(folder: Path, *, original_dit: bool = False) -> Conversion:
    """Convert a folder that `save_pretrained` of diffusers wrote, or a pipeline's, to ours.

    Args:
        folder: with config.json and safetensors, one file or several with an index, or their variant fp16; or with
            `transformer/`.
        original_dit: see `diffusers_config.spec_of`.

    Returns:
        Weights that `DiffusionTransformer(spec).load_state_dict` accepts and safetensors can write, the spec, and a report.

    Raises:
        FileNotFoundError: no such folder, or no weights in it.
        ValueError: a model that ours cannot express, a damaged file, or keys that do not fit; the message names them.
    """
    found = find_diffusers(folder)
    if found is None:
        raise FileNotFoundError(f"{folder} has no config.json of a transformer of diffusers, nor has its {SUBFOLDER}/")
    config = _read_json(found / "config.json")
    try:
        spec = spec_of(config, original_dit=original_dit)
        return convert_names(_read_weights(found), spec, class_of(config))
    except ValueError as error:
        raise ValueError(f"{found}: {error}") from error


def convert_names(weights: Mapping[str, Tensor], spec: ModelSpec, kind: str) -> Conversion:
    """Weights under their names as ours.

    Args:
        weights: of one of diffusers' classes; the original Latte-1 has the same names.
        spec: of the model.
        kind: their class.

    Raises:
        ValueError: keys that do not fit, or embedders of DiT's blocks that differ.
    """
    shapes = expected_shapes(spec)
    names = diffusers_names(shapes, kind, spec.depth)
    dropped = tuple(Change(name, "positions are computed") for name in TABLES if name in weights)
    theirs = {name: value for name, value in weights.items() if name not in TABLES}
    check_weights(theirs, {name: shape for ours, shape in shapes.items() for name, shape in _shapes(names[ours], shape)})
    ours = {name: _joined(name, names[name], theirs) for name in shapes}
    return Conversion(with_own_storage(ours), spec, ConversionReport(len(ours), dropped))


def to_diffusers(
    weights: Mapping[str, Tensor], spec: ModelSpec
) -> tuple[dict[str, Tensor], dict[str, Any], tuple[Change, ...]]:
    """Our dense weights as diffusers has them; the inverse of `from_diffusers`, to the bit.

    Returns:
        Tensors that safetensors can write, config.json, and what has no place there: the null caption.

    Raises:
        ValueError: a spec that no class of diffusers can express, or keys that do not fit the spec.
    """
    config = config_of(spec)
    shapes = expected_shapes(spec)
    check_weights(weights, shapes)
    names = diffusers_names([name for name in shapes if name != NULL_CAPTION], config["_class_name"], spec.depth)
    found: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        value = weights[ours]
        parts = [value] * len(theirs.names) if theirs.copies else value.chunk(len(theirs.names))
        found |= dict(zip(theirs.names, parts, strict=True))
    if config["_class_name"] == DIT and not spec.frequency_shift:
        logger.warning(
            "%s has other frequencies of time than this model, and so gives other values: weights are written as they are", DIT
        )
    dropped = (Change(NULL_CAPTION, "diffusers encodes the empty text"),) if NULL_CAPTION in shapes else ()
    return with_own_storage(found), config, dropped


def write_diffusers(weights: Mapping[str, Tensor], spec: ModelSpec, folder: Path) -> tuple[Change, ...]:
    """Write a folder that `from_pretrained` of diffusers reads; see `to_diffusers`."""
    theirs, config, dropped = to_diffusers(weights, spec)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(theirs, folder / WEIGHTS, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return dropped


def pipeline_autoencoder(folder: Path) -> Path | None:
    """The autoencoder of a pipeline's folder; None where there is none.

    Raises:
        ValueError: the pipeline's scheduler says another noise process than the one here.
    """
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        found = _read_json(scheduler)
        other = [
            f"{name} = {found[name]!r}, here {value!r}" for name, value in PROCESS.items() if found.get(name, value) != value
        ]
        if other:
            raise ValueError(f"{scheduler} is of another noise process: {'; '.join(other)}")
    return folder / "vae" if (folder / "vae" / "config.json").is_file() else None


def pipeline_text_encoder(folder: Path) -> Path | None:
    """A pipeline's folder itself, where it holds a text encoder with a tokenizer; else None."""
    found = (folder / "text_encoder" / "config.json").is_file() and (folder / "tokenizer").is_dir()
    return folder if found else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object")
    return found


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder: of one file, or of those that an index names."""
    found = _weights_file(folder)
    if found.suffix == ".safetensors":
        return _load(found)
    listed = _read_json(found).get("weight_map", {})
    weights: dict[str, Tensor] = {}
    for file in sorted(set(listed.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise FileNotFoundError(f"{found} names {file}, which is not there")
        weights |= _load(folder / file)
    if missing := listed.keys() - weights.keys():
        raise ValueError(f"{found.name} names tensors that its files do not hold: {abbreviate(missing)}")
    return weights


def _weights_file(folder: Path) -> Path:
    """The file of a folder's weights, or the index of its files. Raises FileNotFoundError if there is neither."""
    found = next((folder / name for name in (WEIGHTS, INDEX, *HALF) if (folder / name).is_file()), None)
    if found is not None:
        return found
    if pickled := sorted(folder.glob("*.bin")):
        kind = class_of(_read_json(folder / "config.json"))
        raise FileNotFoundError(
            f"{folder} has {pickled[0].name} and no .safetensors, and pickled weights are not opened. Convert them once, where "
            f'you trust the file: python -c "from diffusers import {kind} as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    there = abbreviate([path.name for path in folder.iterdir()])
    raise FileNotFoundError(f"{folder} has neither {WEIGHTS} nor {INDEX}, nor their variants fp16; there is {there}")


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file.name} is damaged: {error}") from error


def _shapes(theirs: Theirs, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Their names of one of our tensors with the shape of each."""
    rows = shape[0] if theirs.copies else shape[0] // len(theirs.names)
    return [(name, (rows, *shape[1:])) for name in theirs.names]


def _joined(name: str, theirs: Theirs, weights: Mapping[str, Tensor]) -> Tensor:
    parts = [weights[each] for each in theirs.names]
    if not theirs.copies:
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    if other := next((each for each in theirs.names if not torch.equal(weights[each], parts[0])), None):
        raise ValueError(f"{other} differs from {theirs.names[0]}; ours is one for all blocks, {name}, as in every public DiT")
    return parts[0]
