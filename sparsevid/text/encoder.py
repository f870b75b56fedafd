"""Prompts into features of their tokens by the encoder of a T5, as PixArt and Latte-1 were trained to hear them.

Dimensions: B prompts, L tokens of each, C channels of the features.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparsevid.system.home import expand_home
from sparsevid.system.logging import get_logger, progress

TOKENS = 120  # of a prompt, as PixArt-alpha and Latte-1 take them
AT_ONCE = 16  # prompts of a forward pass, which bounds memory
MODEL, TOKENIZER = "text_encoder", "tokenizer"  # where a pipeline of diffusers keeps them
HALF = ".fp16"  # in the names of files of that variant
USUAL = ("model.safetensors", "model.safetensors.index.json")  # by one of these transformers knows weights
VOCABULARIES = ("spiece.model", "tokenizer.json")  # either is enough; the first is T5's own
HUB_FILES = ("*.json", "*.safetensors", "*.model")  # nothing that is pickled
EXAMPLE = "PixArt-alpha/PixArt-XL-2-1024-MS"

logger = get_logger(__name__)


class EncodedText(NamedTuple):
    """Prompts as a model hears them.

    Attributes:
        text: (B,L,C) features; zero where `mask` is not set.
        mask: (B,L) bool, which tokens are there.
        cut: of each prompt, how many tokens it had beyond L, which are not heard.
    """

    text: Tensor
    mask: Tensor
    cut: tuple[int, ...]


class _T5(Protocol):
    """What is used of transformers' class, which is imported when it is needed."""

    config: Any
    device: torch.device
    dtype: torch.dtype

    def __call__(self, **inputs: Any) -> Any: ...
    def eval(self) -> Any: ...
    def to(self, device: torch.device | str) -> Any: ...


class TextEncoder:
    """The encoder of a T5 with its tokenizer; `from_pretrained` opens one.

    Args:
        model: a `T5EncoderModel`.
        tokenizer: its tokenizer.
        source: where they came from.
        folders: of the weights and of the tokenizer, for `fingerprint`.
        tokens: L, tokens of every prompt.

    Attributes:
        channels: C.
        tokens: L.
        source: a folder's whole path, or a hub id.
    """

    def __init__(self, model: _T5, tokenizer: Any, source: str, folders: tuple[Path, Path], tokens: int = TOKENS) -> None:
        self.model: _T5 = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.source, self.folders, self.tokens = source, folders, tokens
        self.channels: int = model.config.d_model
        self._fingerprint: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        tokens: int = TOKENS,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "TextEncoder":
        """Open an encoder. No code of its folder is run, and nothing is unpickled.

        Args:
            source: a folder with a T5's config.json, *.safetensors and tokenizer; the folder of a pipeline of diffusers, with
                text_encoder/ and tokenizer/; or the hub id of either.
            tokens: L, at least 1; longer prompts are cut, shorter ones padded.
            dtype: of weights and features; default: bfloat16 on a GPU, else float32.
            device: default: the GPU if there is one, else the CPU.

        Raises:
            ImportError: transformers is not installed.
            FileNotFoundError: no such folder or hub id, or weights or tokenizer are missing there.
            ValueError: it holds something else, or `tokens` is below 1.
        """
        if tokens < 1:
            raise ValueError(f"tokens = {tokens}; a prompt has at least 1")
        library = _transformers()
        folder = _local(str(source))
        name = str(folder.absolute()) if Path(expand_home(str(source))).is_dir() else str(source)
        weights, vocabulary = _parts(folder)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        try:
            model, found = library.T5EncoderModel.from_pretrained(
                weights, dtype=dtype, variant=_variant(weights), use_safetensors=True, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{weights} holds no T5 encoder that can be read: {_first_line(error)}") from error
        if found["missing_keys"]:
            missing = sorted(found["missing_keys"])
            raise ValueError(f"{weights} lacks {len(missing)} of the encoder's weights, such as {missing[0]}")
        return cls(model.to(device), _tokenizer(library, vocabulary), name, (weights, vocabulary), tokens)

    @property
    def device(self) -> torch.device:
        """Where it runs, and its features are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its features."""
        return self.model.dtype

    def to(self, device: torch.device | str) -> "TextEncoder":
        """Move it to a device. Returns itself."""
        self.model.to(device)
        return self

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt, none cut off."""
        return [len(ids) for ids in self.tokenizer(_cleaned(prompts), verbose=False)["input_ids"]]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], *, padding: bool = False) -> EncodedText:
        """Encode prompts. White space around them and capital letters do not count; "" is the null caption.

        Args:
            prompts: B texts, at least one.
            padding: keep what the encoder gives behind a prompt's own tokens, in place of zeros: the public pipeline of Latte-1
                lets its model hear it of "no prompt".

        Returns:
            Their features, on the encoder's device. Those of a prompt do not depend on the others. Tokens that were cut off are
            counted, and a warning says so.

        Raises:
            TypeError: a single text in place of a sequence of texts.
            ValueError: no prompts, or one that holds half of a character, as broken JSON can.
        """
        prompts = _cleaned(prompts)
        cut = tuple(max(0, length - self.tokens) for length in self.lengths(prompts))
        warn_cut(prompts, cut, self.tokens)
        parts = [self.encode(prompts[first : first + AT_ONCE], padding) for first in range(0, len(prompts), AT_ONCE)]
        text, mask = (torch.cat(each) for each in zip(*parts, strict=True))
        return EncodedText(text, mask, cut)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], padding: bool = False) -> tuple[Tensor, Tensor]:
        """Features (B,L,C) and mask (B,L) of prompts in one forward pass; nothing is counted or said."""
        given = self.tokenizer(
            _cleaned(prompts), padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        ).to(self.device)  # fmt: skip
        features = self.model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
        mask = given["attention_mask"].bool()
        return features if padding else features.masked_fill(~mask[..., None], 0.0), mask

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over weights, tokenizer and L: the same for the same files, in whatever type and wherever
        they are loaded. It reads all weights, once.
        """
        self._fingerprint = self._fingerprint or fingerprint(*self.folders, self.tokens)
        return self._fingerprint


def source_fingerprint(source: str | Path, tokens: int, *, fetch: bool = True) -> str:
    """What `TextEncoder.fingerprint` would give of a source, without building the encoder.

    Args:
        source: as for `TextEncoder.from_pretrained`.
        tokens: L.
        fetch: get what a hub id names, if it is not here yet.

    Raises:
        FileNotFoundError, ValueError: as `TextEncoder.from_pretrained`.
    """
    return fingerprint(*_parts(_local(str(source), fetch=fetch)), tokens)


def fingerprint(weights: Path, vocabulary: Path, tokens: int) -> str:
    """SHA-256, in hexadecimal, over the tensors of a folder, however they are dealt out to files, a tokenizer's file, and L."""
    half = _variant(weights) is not None
    files = [path for path in sorted(weights.glob("*.safetensors")) if (HALF in path.name) == half]
    where = {name: path for path in files for name in _names(path)}
    digest = hashlib.sha256(f"{tokens}\n".encode())
    for name in progress(sorted(where), desc="checksum of the text encoder", delay=2):
        with safe_open(where[name], "pt") as file:
            tensor = file.get_tensor(name)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    file = next(vocabulary / name for name in VOCABULARIES if (vocabulary / name).is_file())
    digest.update(file.read_bytes())
    return digest.hexdigest()


def warn_cut(prompts: Iterable[str], cut: Sequence[int], tokens: int) -> None:
    """Log, once for all of them, that prompts are longer than what is heard of them."""
    longest = max(zip(cut, prompts, strict=True), key=lambda each: each[0], default=(0, ""))
    if longest[0]:
        logger.warning(
            "%d of %d prompts are longer than %d tokens: %d tokens are cut off, the most, %d, of %r",
            sum(each > 0 for each in cut), len(cut), tokens, sum(cut), longest[0], longest[1][:80],
        )  # fmt: skip


def _cleaned(prompts: Sequence[str]) -> list[str]:
    if isinstance(prompts, str):
        raise TypeError(f"prompts are a sequence of texts, got the text {prompts!r}: put it into a list")
    if not prompts:
        raise ValueError("no prompts; accepted: at least one")
    for prompt in prompts:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:  # of a JSON file, or of a shell that speaks no UTF-8
            raise ValueError(f"{prompt!r} is no text: it holds half of a character ({error.reason})") from error
    return [prompt.strip().lower() for prompt in prompts]  # as PixArt's own code and both pipelines of diffusers


def _transformers() -> ModuleType:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ImportError(f'prompts are encoded by transformers ({error}): pip install "sparsevid[text]"') from error
    return transformers


def _local(source: str, *, fetch: bool = True) -> Path:
    """A source's folder here; of a hub id, what is needed of it is fetched first. Raises FileNotFoundError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    folder = Path(expand_home(source))
    if folder.is_dir():
        return folder
    where = f"no folder {folder.absolute()}"
    try:
        parts = [f"{part}/{pattern}" for part in (MODEL, TOKENIZER) for pattern in HUB_FILES]
        fetched = Path(snapshot_download(source, allow_patterns=parts, local_files_only=not fetch))
        if not (fetched / MODEL / "config.json").is_file():
            top = list(HUB_FILES)
            fetched = Path(snapshot_download(source, allow_patterns=top, ignore_patterns=["*/*"], local_files_only=not fetch))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"text encoder {source!r}: {where}, and not to be had as a hub id ({_first_line(error)}). {_expected()}"
        ) from error
    return fetched


def _parts(folder: Path) -> tuple[Path, Path]:
    """The folders of an encoder's weights and of its tokenizer. Raises FileNotFoundError, ValueError if one is no such."""
    weights = folder / MODEL if (folder / MODEL).is_dir() else folder
    vocabulary = next((each for each in (folder / TOKENIZER, weights) if each.is_dir()), weights)
    config = weights / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"text encoder: {weights} has no config.json. {_expected()}")
    try:
        kind = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{config} is not the configuration of a model: {error!r}") from error
    if kind != "t5":
        raise ValueError(f"{config} is of a model {kind!r}; accepted as a text encoder: t5")
    if not any(weights.glob("*.safetensors")):
        pickled = next(iter(sorted(weights.glob("*.bin"))), None)
        if pickled is not None:
            raise FileNotFoundError(
                f"text encoder: {weights} has {pickled.name} and no .safetensors, and pickled weights are not opened. Convert "
                'them once, where you trust the file: python -c "from transformers import T5EncoderModel as M; '
                f"M.from_pretrained('{weights}').save_pretrained('{weights}')\""
            )
        raise FileNotFoundError(f"text encoder: {weights} has no weights (*.safetensors). {_expected()}")
    if not any((vocabulary / name).is_file() for name in VOCABULARIES):
        raise FileNotFoundError(f"text encoder: {vocabulary} has no tokenizer ({' or '.join(VOCABULARIES)}). {_expected()}")
    return weights, vocabulary


def _variant(weights: Path) -> str | None:
    """Which files of a folder are its weights: the usual ones, None; or, where there are only these, the variant fp16."""
    half = any(HALF in path.name for path in weights.glob("*.safetensors"))
    return "fp16" if half and not any((weights / name).is_file() for name in USUAL) else None


def _tokenizer(library: ModuleType, folder: Path) -> Any:
    """The tokenizer of a folder, which pads behind prompts.

    Raises:
        ImportError: it needs a package that is not installed.
        ValueError: it cannot be read, or does not mark a prompt's end.
    """
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, padding_side="right"
        )  # fmt: skip
    except ImportError as error:
        raise ImportError(f'{folder}: {_first_line(error)}: pip install "sparsevid[text]"') from error
    except Exception as error:  # tokenizers has no error of its own
        raise ValueError(f"{folder} holds no tokenizer that can be read: {_first_line(error)}") from error
    if tokenizer.pad_token is None or not tokenizer("")["input_ids"]:
        lacks = "no token to pad with" if tokenizer.pad_token is None else "no token that ends a prompt"
        raise ValueError(f"{folder}: the tokenizer has {lacks}, and T5's has one; without it an empty prompt is nothing")
    return tokenizer


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _expected() -> str:
    return (
        "Accepted are a folder with config.json, *.safetensors and the tokenizer of a T5 encoder, the folder of a pipeline of "
        f"diffusers with {MODEL}/ and {TOKENIZER}/, and a hub id such as {EXAMPLE}"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), repr(error))
