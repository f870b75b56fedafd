"""CLIP (Radford et al. 2021): pictures and texts as vectors of one space, by `transformers` from a local folder.

Dimensions: N pictures or texts, C = 3 channels (RGB), H×W pixels, D dimensions of the common space, L tokens.
"""

import json
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from sparsevid.system.checksums import file_sha256, json_sha256
from sparsevid.system.distributed import gather_objects, rank, world_size
from sparsevid.system.logging import get_logger

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPModel, PreTrainedTokenizerBase

FORM = "a folder by `save_pretrained` of a CLIPModel and its CLIPProcessor, such as a copy of openai/clip-vit-large-patch14"
TEXTS = 64  # of a forward
CONFIG, WEIGHTS = "config.json", "*.safetensors"
TOKENS = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # one of these
PICTURES = ("processor_config.json", "preprocessor_config.json")  # one of these
READ = (CONFIG, *(name for names in TOKENS for name in names), "tokenizer_config.json", "special_tokens_map.json", *PICTURES)
logger = get_logger(__name__)


class CLIP(nn.Module):
    """Both halves of CLIP, in evaluation mode.

    Args:
        model: the network.
        tokenizer: of texts.
        processor: of pictures: resizing, cutting, scaling as the folder says.
        fingerprint: SHA-256 of all files that were read.
    """

    def __init__(
        self, model: "CLIPModel", tokenizer: "PreTrainedTokenizerBase", processor: "CLIPImageProcessor", fingerprint: str
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.tokenizer, self.processor, self.fingerprint = tokenizer, processor, fingerprint

    @classmethod
    def from_folder(cls, folder: Path) -> "CLIP":
        """Read a folder; only safetensors, no code of it is run.

        Raises:
            FileNotFoundError: there is no such folder, or a file of it is missing.
            ModuleNotFoundError: transformers is not installed.
            ValueError: it holds another model, or its weights do not fit.
        """
        if find_spec("transformers") is None:
            raise ModuleNotFoundError('CLIP needs the package transformers: pip install "sparsevid[text]"')
        fingerprint = _checked(folder)
        library = import_module("transformers")
        try:
            model, report = library.CLIPModel.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
            tokenizer = library.CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
            processor = library.CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, RuntimeError, TypeError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(f"{folder} cannot be read as CLIP: {error}; accepted is {FORM}") from error
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{folder} lacks {len(missing)} of CLIP's weights, such as {missing[0]}; accepted is {FORM}")
        return cls(model, tokenizer, processor, fingerprint)

    @property
    def channels(self) -> int:
        """D."""
        return self.model.config.projection_dim

    @property
    def tokens(self) -> int:
        """L, with those of beginning and end."""
        return self.model.config.text_config.max_position_embeddings

    @property
    def preprocessing(self) -> str:
        """What becomes of pictures, in a line."""
        told = self.processor.to_dict()
        names = ("size", "crop_size", "resample", "image_mean", "image_std")
        return ", ".join(f"{name} {json.dumps(told[name])}" for name in names if told.get(name) is not None)

    @torch.inference_mode()
    def pictures(self, pictures: Tensor) -> Tensor:
        """Unit vectors of pictures.

        Args:
            pictures: uint8 (N, 3, H, W). They are prepared on the CPU: what resizing gives is the same for all devices.

        Returns:
            float32 (N, D), on the network's device.
        """
        prepared = self.processor(images=list(pictures.cpu()), return_tensors="pt")["pixel_values"]
        found = self.model.vision_model(pixel_values=prepared.to(self.model.device)).pooler_output
        return F.normalize(self.model.visual_projection(found), dim=-1)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts. All ranks call it together, with the same texts, and share the work.

        Batches are the same for any number of ranks. A text too long is cut before its last token, with a warning.

        Args:
            texts: N.

        Returns:
            float32 (N, D), on the CPU of every rank.
        """
        ids = [self.tokenizer(text)["input_ids"] for text in texts]
        if cut := [text for text, own in zip(texts, ids, strict=True) if len(own) > self.tokens]:
            logger.warning("%d of %d prompts are longer than CLIP's %d tokens and cut, such as %r",
                           len(cut), len(texts), self.tokens, cut[0])  # fmt: skip
        batches = [list(texts[first : first + TEXTS]) for first in range(0, len(texts), TEXTS)]
        own = {number: self._texts(batches[number]) for number in range(rank(), len(batches), world_size())}
        found = {number: each for some in gather_objects(own) for number, each in some.items()}
        return torch.cat([found[number] for number in range(len(batches))])

    def _texts(self, batch: list[str]) -> Tensor:
        """(N, D). Batches are filled up: every forward has one shape, so that a text's vector is the same in each."""
        full = batch + batch[-1:] * (TEXTS - len(batch))
        rule = {"padding": "max_length", "max_length": self.tokens, "truncation": True, "return_tensors": "pt"}
        tokens = self.tokenizer(full, **rule).to(self.model.device)
        found = self.model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        return F.normalize(self.model.text_projection(found), dim=-1)[: len(batch)].cpu()


def _checked(folder: Path) -> str:
    """The checksum of a folder of CLIP: over names and contents of all files that are read.

    Raises:
        FileNotFoundError: it is not there, or a file is missing.
        ValueError: it is of another model.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} of CLIP; accepted is {FORM}")
    weights = sorted(folder.glob(WEIGHTS))
    if not weights and list(folder.glob("*.bin")):
        raise FileNotFoundError(
            f"{folder} has CLIP's weights as a pickle alone (.bin), which is not read. Write them anew: "
            "`CLIPModel.from_pretrained(FOLDER).save_pretrained(FOLDER)` of transformers"
        )
    there = {name for name in READ if (folder / name).is_file()}
    for what, good in (
        (CONFIG, CONFIG in there),
        (f"{WEIGHTS}, the weights", bool(weights)),
        ("tokenizer.json, or vocab.json and merges.txt", any(set(names) <= there for names in TOKENS)),
        (" or ".join(PICTURES), bool(set(PICTURES) & there)),
    ):
        if not good:
            raise FileNotFoundError(f"{folder} lacks {what}; accepted is {FORM}")
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG} is no configuration: {error}; accepted is {FORM}") from error
    if kind != "clip":
        raise ValueError(f"{folder} holds a model of type {kind!r}, not 'clip'; accepted is {FORM}")
    files = [*sorted(there), *(path.name for path in weights)]
    return json_sha256([[name, file_sha256(folder / name)] for name in files])
