"""Prompts of samples: which they are, what they are compared with, and what the model is told of them.

Dimensions: B clips, L tokens of a prompt, C channels of its features.
"""

import gc
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsevid.diffusion import MASKS
from sparsevid.diffusion.null_text import NullText
from sparsevid.generation import NULL_CAPTIONS, PADDINGS, GenerationError
from sparsevid.generation.networks import Condition
from sparsevid.generation.sampling import Sampling
from sparsevid.models.text import null_caption
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import RunConfig
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.system.logging import get_logger, progress
from sparsevid.text.cache import NULL
from sparsevid.text.encoder import EncodedText, TextEncoder, source_fingerprint

AT_ONCE = 64  # prompts of a call of the encoder, whose features lie on its device
FILE_SUFFIXES = (".txt",)  # by which an argument that is no file is known to be meant as one
GIVE_ENCODER = (
    "text_encoder=SOURCE (--text-encoder), SOURCE a folder with a T5 encoder and its tokenizer, a pipeline's, or a hub id"
)
logger = get_logger(__name__)


def read_prompts(arguments: Sequence[str]) -> list[str]:
    """Prompts of a command: of an argument that is the path of a file its lines, but for empty ones; else the argument itself.

    Raises:
        FileNotFoundError: an argument that ends in .txt, and no such file.
        ValueError: a file without a line, or that is no text in UTF-8.
    """
    found: list[str] = []
    for argument in arguments:
        try:
            is_file = Path(argument).is_file()
        except (OSError, ValueError):  # too long for a path, or with what no path has
            is_file = False
        if not is_file and argument.endswith(FILE_SUFFIXES):
            raise FileNotFoundError(f"there is no file {argument!r} of prompts; a prompt itself does not end in .txt")
        if not is_file:
            found.append(argument)
            continue
        try:
            lines = Path(argument).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{argument} is no text in UTF-8, with a prompt in each line: {error}") from error
        prompts = [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise ValueError(f"{argument} has no line with a prompt")
        found += prompts
    return found


def text_settings(
    spec: ModelSpec,
    usual_mask: str,
    guidance: float,
    *,
    prompts: Sequence[str] | str | None,
    negative: str | None,
    null_caption: str | None,
    null_mask: str | None,
    padding: str | None,
) -> dict[str, Any]:
    """The fields of `Sampling` that are of prompts, with what is left out filled in; none for a model that is not of text.

    Args:
        usual_mask: `text.null_mask` of the run's config.
        guidance: the scale; at 1 nothing stands for "no prompt".
        prompts, negative, null_caption, null_mask, padding: see `VideoPipeline.sampling`.

    Raises:
        ValueError: no prompts for a model of text, prompts for another, or settings that do not go together.
    """
    options = {"negative": negative, "null_caption": null_caption, "null_mask": null_mask, "padding": padding}
    if spec.conditioned_on != "text":
        given = [name for name, value in {"prompts": prompts, **options}.items() if value is not None]
        kind = f"has {spec.num_classes} classes" if spec.num_classes else "is unconditional"
        if given:
            instead = ": classes say what is sampled (--classes)" if spec.num_classes else ""
            raise ValueError(f"{', '.join(given)}: the model {kind} and takes no prompts{instead}")
        return {}
    listed = _listed(prompts)
    for name, accepted in (("null_caption", NULL_CAPTIONS), ("null_mask", MASKS), ("padding", PADDINGS)):
        if options[name] not in (None, *accepted):
            raise ValueError(f"{name} = {options[name]!r}; accepted are {', '.join(accepted)}")
    if null_caption == "file" and not spec.null_caption:
        raise ValueError("null_caption = 'file': the model's file holds no features of 'no prompt'; accepted is encoded")
    if negative is not None and not isinstance(negative, str):
        raise ValueError(f"negative = {negative!r}; it is a text")
    if negative is not None and null_caption is not None:
        raise ValueError(f"negative = {negative!r} and null_caption = {null_caption!r}: guidance compares with one of both")
    if negative is not None and guidance == 1.0:
        raise ValueError(f"negative = {negative!r} has no effect without guidance: give a scale, such as guidance=4.5")
    padding = padding or "masked"
    if padding == "heard" and null_mask is not None:
        raise ValueError(f"null_mask = {null_mask!r}: with padding='heard' there is no mask")
    if guidance == 1.0:
        null_caption = null_mask = None
    elif negative is None:
        null_caption = null_caption or ("file" if spec.null_caption else "encoded")
    if guidance != 1.0 and padding == "masked":
        null_mask = null_mask or (usual_mask if negative is None else "own")
    return {
        "prompts": listed, "negative": negative, "null_caption": null_caption, "null_mask": null_mask, "padding": padding,
    }  # fmt: skip


def _listed(prompts: Sequence[str] | str | None) -> tuple[str, ...]:
    if prompts is None:
        raise ValueError('the model is of text and needs prompts: prompts=["…"], in commands --prompts')
    listed = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if not listed:
        raise ValueError("no prompt is given; the model is of text and takes one or more")
    if others := [each for each in listed if not isinstance(each, str)]:
        raise ValueError(f"a prompt = {others[0]!r}; it is a text")
    return listed


class PromptFeatures:
    """What a text encoder makes of prompts, for one model. The encoder is loaded when a prompt is not known yet.

    Features lie on the CPU; of a prompt its own tokens alone, so that many need little room.

    Args:
        model: that is told of them.
        encoder: a source as `TextEncoder.from_pretrained` takes it, or one that is loaded; None: only what is remembered is
            known.
        config: of the run, whose encoder is taken where none is given.
    """

    def __init__(self, model: DiffusionTransformer, encoder: str | TextEncoder | None, config: RunConfig) -> None:
        self.model, self.tokens = model, encoder.tokens if isinstance(encoder, TextEncoder) else config.text.tokens
        self.source = encoder if isinstance(encoder, str) else config.text.encoder
        self._trained_with = config.record.text_encoder
        self._encoder = self._given = encoder if isinstance(encoder, TextEncoder) else None
        self._known: dict[str, tuple[Tensor, Tensor]] = {}  # features (L, C) and mask (L,)
        self._whole: set[str] = set()  # of which padding is known, too
        self._remembered: set[str] = set()

    def remember(self, captions: Sequence[str], encoded: EncodedText) -> None:
        """Know features of these captions, so that they are not encoded; see `VideoPipeline.remember`."""
        text, mask = encoded.text, encoded.mask
        if text.ndim != 3 or mask.shape != text.shape[:2] or len(text) != len(captions):
            raise ValueError(
                f"{len(captions)} captions have features ({len(captions)}, L, C) and a mask of the same shape without C; got "
                f"{tuple(text.shape)} and {tuple(mask.shape)}"
            )
        self._check_channels(text.shape[-1], "the features")
        for caption, features, heard in zip(captions, text.cpu(), mask.cpu() != 0, strict=True):
            self._known[caption] = features, heard
            self._whole.add(caption)
            self._remembered.add(caption)

    def check(self, sampling: Sampling) -> None:
        """Raise ValueError if there are prompts that are not known, and nothing that encodes them."""
        unknown = self._missing(sampling, range(len(sampling.prompts)))
        if not unknown or self._given is not None:
            return
        if self.source is None:
            raise ValueError(f"no text encoder is known for the prompt {unknown[0]!r}: give {GIVE_ENCODER}")
        if Path(self.source).is_absolute() and not Path(self.source).is_dir():
            raise ValueError(f"there is no text encoder in {self.source}, as the model's should be: give {GIVE_ENCODER}")

    def encode(self, sampling: Sampling, indices: Sequence[int]) -> None:
        """Know the prompts of samples, and what stands for "no prompt" beside them; then let go of the encoder.

        Raises:
            GenerationError: the encoder cannot be loaded, or is not that of the model; the message says what to do.
        """
        missing, null = self._missing(sampling, indices), _null_of(sampling)
        if missing:
            encoder = self._open()
            parts = [missing[first : first + AT_ONCE] for first in range(0, len(missing), AT_ONCE)]
            shown = progress(parts, desc="encode prompts", unit="batch") if len(parts) > 1 else parts
            for part in shown:
                self._take(part, encoder(part, padding=True), null)
        self._release()

    def fingerprint(self, sampling: Sampling) -> str:
        """SHA-256 of what the features of the prompts come from: the encoder's own, and of those remembered theirs.

        Raises:
            GenerationError: the encoder cannot be found.
        """
        null = _null_of(sampling)
        texts = sorted({*sampling.prompts, *([] if null is None else [null])})
        kept = [text for text in texts if text in self._remembered]
        own = self._encoder_fingerprint() if len(kept) < len(texts) else ""
        if not kept:
            return own
        digest = hashlib.sha256(own.encode())
        for text in kept:
            features, heard = self._known[text]
            digest.update(text.encode() + features[heard].float().numpy().tobytes())
        return digest.hexdigest()

    def condition(self, sampling: Sampling, indices: Sequence[int]) -> Condition:
        """What a batch of these samples is told: keys and values of all layers, computed once for all steps.

        Raises:
            GenerationError: as `encode`.
        """
        self.encode(sampling, indices)
        own = [features[heard] for features, heard in map(self._known.__getitem__, _prompts_of(sampling, indices))]
        masked, guided = sampling.padding == "masked", sampling.guidance != 1.0
        null, null_heard = self._null(sampling) if guided else (own[0][:0], torch.zeros(0, dtype=torch.bool))
        if not masked and len(own) == 1:  # as the public pipeline of Latte-1
            length = len(own[0])
        else:
            length = max(self.tokens, *map(len, own), int(null_heard.nonzero().max()) + 1 if null_heard.any() else 0)
        text = torch.stack([_padded(each, length) for each in own])  # (B, L, C)
        mask = torch.arange(length) < torch.tensor([len(each) for each in own])[:, None]  # (B, L)
        given = {"text": self._prepared(text, mask if masked else None)}
        if not guided:
            return Condition(given, {})
        heard = _padded(null_heard[:, None], length)[None, :, 0] if masked and sampling.null_mask == "own" else None
        prepared = self._prepared(_padded(null, length)[None], heard)
        return Condition(given, {"null_text": NullText(prepared, heard=sampling.null_mask or "own")})

    def _prepared(self, text: Tensor, mask: Tensor | None) -> Any:
        device = next(self.model.parameters()).device
        return self.model.prepare_text(text.to(device), None if mask is None else mask.to(device))

    def _null(self, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """Features (L, C) and mask (L,) of what guidance compares with."""
        null = _null_of(sampling)
        if null is not None:
            return self._known[null]
        text, mask = (each[0].cpu() for each in null_caption(self.model))
        if not mask.any():
            raise GenerationError(
                "the model's file holds only zeros for 'no prompt', which guidance compares with: null_caption = 'encoded' "
                "(--null-caption) takes the empty text"
            )
        return text, mask

    def _missing(self, sampling: Sampling, indices: Sequence[int]) -> list[str]:
        """What has to be encoded for these samples, each text once."""
        missing: dict[str, None] = dict.fromkeys(each for each in _prompts_of(sampling, indices) if each not in self._known)
        null = _null_of(sampling)
        if null is not None and null not in self._whole:
            missing[null] = None
        return list(missing)

    def _take(self, texts: Sequence[str], encoded: EncodedText, null: str | None) -> None:
        for text, features, heard in zip(texts, encoded.text.cpu(), encoded.mask.cpu() != 0, strict=True):
            if text == null:  # of which tokens behind its own may be heard
                self._known[text] = features, heard
                self._whole.add(text)
            else:
                self._known[text] = features[heard], heard[heard]

    def _encoder_fingerprint(self) -> str:
        if self._given is not None:
            found = self._given.fingerprint()
        else:
            with _naming_encoder(self.source) as source:
                found = source_fingerprint(source, self.tokens)
        if self._trained_with not in (None, found):
            logger.warning("%s is not the text encoder that the model was trained with", self.source or "the given one")
        return found

    def _open(self) -> TextEncoder:
        if self._encoder is None:
            with _naming_encoder(self.source) as source:
                self._encoder = TextEncoder.from_pretrained(
                    source, tokens=self.tokens, device=next(self.model.parameters()).device
                )
        self._check_channels(self._encoder.channels, f"the text encoder {self._encoder.source}")
        return self._encoder

    def _release(self) -> None:
        """Let go of an encoder that was loaded here: the model needs the memory."""
        if self._encoder is None or self._encoder is self._given:
            return
        self._encoder = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _check_channels(self, found: int, what: str) -> None:
        if found != self.model.spec.text_channels:
            raise GenerationError(
                f"{what} gives features of {found} channels, the model takes {self.model.spec.text_channels}: it was trained "
                "with another encoder"
            )


@contextmanager
def _naming_encoder(source: str | None) -> Iterator[str]:
    """The source of an encoder, which is opened inside; if it cannot be, the error is one of generation."""
    if source is None:
        raise GenerationError(f"no text encoder is known: give {GIVE_ENCODER}")
    try:
        yield source
    except (OSError, ImportError, ValueError) as error:
        raise GenerationError(f"prompts cannot be encoded: {error}") from error


def _prompts_of(sampling: Sampling, indices: Iterable[int]) -> list[str]:
    """The prompts of these samples, of a model of text, which has one for each."""
    return [prompt for index in indices if (prompt := sampling.prompt(index)) is not None]


def _null_of(sampling: Sampling) -> str | None:
    """The text that stands for "no prompt"; None without guidance, and where the model's file has its features."""
    if sampling.guidance == 1.0 or sampling.null_caption == "file":
        return None
    return NULL if sampling.negative is None else sampling.negative


def _padded(values: Tensor, length: int) -> Tensor:
    """(L, C) → (length, C): cut, or with zeros behind."""
    return F.pad(values[:length], (0, 0, 0, max(0, length - len(values))))
