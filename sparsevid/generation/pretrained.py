"""What a trained model is loaded from: a run, one of its checkpoints, an exported folder, a hub id, a converted public model.

A checkpoint has the models `ema` and `model`, an autoencoder and the run's config (`sparsevid.runs.checkpoints`). An exported
folder is one model, config.json and model.safetensors, with the other two beside it. A converted public checkpoint is the model
alone.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from yaml import YAMLError

from sparsevid import __version__
from sparsevid.autoencoder.base import Autoencoder
from sparsevid.autoencoder.load import PRETRAINED, load_autoencoder
from sparsevid.autoencoder.pixels import Pixels
from sparsevid.models.convert.diffusers_folder import find_diffusers
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.checkpoints import newest_good
from sparsevid.runs.config import ConfigError, RunConfig, TextConfig, load_config
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.home import expand_home
from sparsevid.system.logging import get_logger

HUB_FILES = ["*.json", "*.yaml", "*.safetensors"]
HUB_IGNORED = ["training/*", "*/training/*"]  # what resuming needs: larger than the model
WEIGHTS = ("ema", "model")
TEXT_ENCODER = "text_encoder.json"  # beside a converted model: where what encodes its prompts lies
AUTOENCODER_OPTION = '--autoencoder kl:FOLDER, in Python autoencoder="kl:FOLDER"'
logger = get_logger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """A trained model and what goes with it.

    Attributes:
        model: on the CPU, in evaluation mode.
        autoencoder: on the CPU.
        config: of its run; defaults for a model without one.
        has_config: whether the config is that of the run.
        weights_file: where the model's weights were read.
        autoencoder_fingerprint: of the autoencoder as it was loaded, before it is cast to another type.
    """

    model: DiffusionTransformer
    autoencoder: Autoencoder
    config: RunConfig
    has_config: bool
    weights_file: Path
    autoencoder_fingerprint: str


def open_pretrained(source: str | Path, weights: str | None = None, autoencoder: str | Autoencoder | None = None) -> Pretrained:
    """Load a trained model.

    Args:
        source: a run's folder, a checkpoint, an exported folder, that of a converted public model, or a hub id of one of these.
        weights: of a checkpoint `ema`, the default, or `model`.
        autoencoder: in place of the source's own: `kl:SOURCE`, `temporal:SOURCE`, `wan:SOURCE` (a local folder or a hub id),
            `linear:FOLDER` (with autoencoder.json), `pixels`, or one that is loaded.

    Raises:
        FileNotFoundError: nothing there; the message says what is missing, and what to pass.
        ValueError: a damaged file, parts that do not belong together, or a config of another version.
    """
    folder = find_pretrained(source)
    single = (folder / "config.json").is_file()
    if single and weights is not None:
        raise ValueError(f"weights={weights!r} cannot be chosen: {folder} holds one model")
    if weights is not None and weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r}; a checkpoint has {' and '.join(WEIGHTS)}")
    model_folder = folder if single else folder / (weights or "ema")
    config_file = folder / "config.yaml"
    has_config = config_file.is_file()
    config = _load_config(config_file) if has_config else None
    model = load_model(model_folder).eval()
    config = config or _default_config(folder, model)
    first_stage = _open_autoencoder(folder, config, autoencoder)
    if first_stage.channels != model.spec.in_channels:
        raise ValueError(
            f"{folder}: the autoencoder gives {first_stage.channels} channels, the model takes {model.spec.in_channels}: "
            "they do not belong together"
        )
    weights_file = model_folder / "model.safetensors"
    return Pretrained(model, first_stage, config, has_config, weights_file, first_stage.fingerprint())


def find_pretrained(source: str | Path) -> Path:
    """The folder of a checkpoint or of a single model, fetched from the hub if `source` is no folder.

    Raises:
        FileNotFoundError: no folder with a model, and no hub id that can be fetched.
    """
    path = Path(source)
    if path.is_dir():
        return path if (path / "config.json").is_file() else find_checkpoint_folder(path)
    if path.is_file():
        raise FileNotFoundError(
            f"{source} is a file; accepted are a run, a checkpoint, an exported folder, a hub id. A public .pt, .pth or "
            ".safetensors file is made a folder by `sparsevid convert`"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise FileNotFoundError(
            f"{source} is neither a checkpoint, a run, nor a model's folder, and no hub id (OWNER/NAME); nothing is at "
            f"{path.absolute()}"
        )
    try:
        fetched = Path(snapshot_download(str(source), allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED))
    except (OSError, HFValidationError) as error:
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(
            f"there is no folder {str(source)!r}, and it cannot be fetched from the hub by this id: {reason}"
        ) from error
    return fetched if (fetched / "config.json").is_file() else find_checkpoint_folder(fetched)


def model_folder(source: str | Path) -> Path:
    """The folder with config.json and model.safetensors of a trained model; of a run or checkpoint, that of its average.

    Raises:
        FileNotFoundError: as `find_pretrained`.
    """
    folder = find_pretrained(source)
    return folder if (folder / "config.json").is_file() else folder / "ema"


def find_checkpoint_folder(path: Path) -> Path:
    """`path` itself if it is a checkpoint, else the newest good checkpoint of the run that it is.

    Raises:
        FileNotFoundError: neither.
    """
    if _is_whole(path):
        return path
    found = newest_good(path, for_resuming=False)
    if found is None:
        raise FileNotFoundError(
            f"{path} is neither a checkpoint (config.yaml, ema/, autoencoder/) nor a run with a good checkpoints/step-…, which "
            "`sparsevid train` writes"
        )
    return found


def run_beside(folder: Path) -> Path | None:
    """The folder with the config and the autoencoder of the run that trained a model; None where there is none.

    It is the model's own folder, or the one above, as for `ema/` and `model/` of a checkpoint.
    """
    return next((each for each in (folder, folder.resolve().parent) if _is_whole(each)), None)


def _is_whole(folder: Path) -> bool:
    """Whether a folder has what goes with a model, or with several: config and autoencoder."""
    return (folder / "config.yaml").is_file() and (folder / "autoencoder").is_dir()


def load_model(folder: Path) -> DiffusionTransformer:
    """Read config.json and safetensors of `folder`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a config that this version cannot read, or weights that do not fit it.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            theirs = "; a folder of diffusers becomes one by `sparsevid convert`" if find_diffusers(folder) else ""
            raise FileNotFoundError(f"{folder / name} is missing: not a model that was saved here{theirs}")
    try:
        # Checked here, because huggingface_hub passes over what a dataclass does not know.
        ModelSpec.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8"))["spec"])
        return DiffusionTransformer.from_pretrained(folder, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{folder}: the weights do not fit config.json: {error}") from error
    except SafetensorError as error:
        raise ValueError(f"{folder / 'model.safetensors'} is damaged: {error}") from error
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'} has no {error}: not a model that was saved here") from error
    except (ValueError, TypeError) as error:
        files = [each / "config.yaml" for each in (folder, folder.parent)]
        writer = _written_by(next((file for file in files if file.is_file()), files[0]))
        raise ValueError(f"{folder / 'config.json'} cannot be used: {error}{writer}") from error


def write_text_encoder(folder: Path, source: Path, tokens: int) -> None:
    """Note beside a model where what encodes its prompts lies, and to how many tokens, for `read_text_encoder`."""
    values = {"source": str(source.absolute()), "tokens": tokens}
    (folder / TEXT_ENCODER).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_text_encoder(folder: Path, tokens: int) -> TextConfig:
    """What encodes the prompts of a model without a config, as far as it is noted beside it.

    Args:
        folder: of the model.
        tokens: of a prompt, where nothing is noted.

    Raises:
        ValueError: a note that cannot be read.
    """
    path = folder / TEXT_ENCODER
    if not path.is_file():
        return TextConfig(tokens=tokens)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return TextConfig(encoder=str(values["source"]), tokens=int(values["tokens"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: it is a JSON object with source and tokens ({error!r})") from error


def parse_autoencoder(text: str) -> Autoencoder:
    """Load what `kl:SOURCE`, `temporal:SOURCE`, `wan:SOURCE`, `linear:FOLDER` or `pixels` names.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: another form, or a damaged file.
    """
    kind, _, source = text.partition(":")
    source = expand_home(source)
    if kind in PRETRAINED and source:
        return PRETRAINED[kind].from_source(source, option=AUTOENCODER_OPTION.replace("kl:", f"{kind}:"))
    if kind == "linear" and source:
        return load_autoencoder(Path(source))
    if text == "pixels":
        return Pixels()
    raise ValueError(
        f"autoencoder {text!r}; accepted are kl:SOURCE, temporal:SOURCE, wan:SOURCE (SOURCE a folder or a hub id), "
        "linear:FOLDER, pixels"
    )


def _open_autoencoder(folder: Path, config: RunConfig, given: str | Autoencoder | None) -> Autoencoder:
    if isinstance(given, Autoencoder):
        return given
    if given is not None:
        return parse_autoencoder(given)
    if not (folder / "autoencoder").is_dir():
        raise FileNotFoundError(
            f"{folder} is a model without an autoencoder: pass the one it was trained with, autoencoder=kl:SOURCE "
            "(--autoencoder), SOURCE a folder of AutoencoderKL or a hub id such as stabilityai/sd-vae-ft-ema"
        )
    return load_autoencoder(folder / "autoencoder", config.autoencoder.source, option=AUTOENCODER_OPTION)


def _default_config(folder: Path, model: DiffusionTransformer) -> RunConfig:
    """For a model without its run's config: whether it predicts noise or a velocity shows in its head."""
    config = RunConfig()
    config.objective.kind = "diffusion" if model.spec.learn_sigma else "flow"
    if (run := run_beside(folder)) is not None:  # of a checkpoint whose ema/ or model/ this is
        theirs = _load_config(run / "config.yaml")
        config.objective.label_dropout, config.text = theirs.objective.label_dropout, theirs.text
        config.record.text_encoder = theirs.record.text_encoder
    elif model.spec.conditioned_on == "text":
        # As the original PixArt compares with what its file holds.
        mask = "prompt" if model.spec.null_caption and not model.spec.is_video else config.text.null_mask
        config.text = replace(read_text_encoder(folder, model.spec.text_tokens), null_mask=mask)
    logger.info("%s has no config.yaml: taken for a model of objective %s", folder, config.objective.kind)
    return config


def _load_config(path: Path) -> RunConfig:
    try:
        return load_config(path)
    except ConfigError as error:
        raise ConfigError(f"{error}{_written_by(path)}") from error


def _written_by(config_file: Path) -> str:
    """Which versions wrote a checkpoint, as far as its config says: the end of a message about what cannot be read."""
    here = f"; this is sparsevid {__version__}"
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(config_file))
        versions = values.get("record", {}).get("versions")
    except (OSError, YAMLError, OmegaConfBaseException, AttributeError):
        return here  # the error that is being told says more
    if not isinstance(versions, dict) or not versions:
        return f"{here}, and the checkpoint does not say which version wrote it"
    return f"; it was written with {', '.join(f'{name} {version}' for name, version in versions.items())}{here}"
