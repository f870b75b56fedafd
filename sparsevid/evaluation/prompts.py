"""What generated clips were to show: the prompts that their job's record or a file says, clip by clip."""

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from sparsevid.evaluation.clips.archives import is_file
from sparsevid.evaluation.clips.clips import ClipGenerator, ClipSource, ProtocolClips
from sparsevid.evaluation.detectors import Detector
from sparsevid.evaluation.metrics.clip_score import Prompts
from sparsevid.generation.formats import RECORD
from sparsevid.generation.prompts import read_prompts
from sparsevid.system.checksums import json_sha256
from sparsevid.system.distributed import from_main
from sparsevid.system.home import expand_home
from sparsevid.system.seeding import Purpose, keyed_generator

_MADE = re.compile(r"sample ([0-9]+)")  # by a generator


@dataclass(frozen=True)
class ClipPrompts:
    """The prompts of chosen clips.

    Attributes:
        texts: of each clip, in the clips' order.
        origin: where they are from, for the record.
    """

    texts: tuple[str, ...]
    origin: dict[str, Any]

    def seen_by(self, detector: Detector) -> Prompts:
        """As a detector that has vectors of texts sees them. All ranks call it together."""
        different = list(dict.fromkeys(self.texts))
        numbers = {text: number for number, text in enumerate(different)}
        groups = torch.tensor([numbers[text] for text in self.texts])
        return Prompts(detector.texts(different)[groups], groups, self.origin)


def prompts_of(clips: ProtocolClips, source: ClipSource, file: Path | None = None) -> ClipPrompts:
    """The prompt of each of the clips: sample i has prompt i modulo their number, as sampling goes through them.

    All ranks call it together; rank 0 reads.

    Args:
        clips: chosen from `source`.
        source: of generated clips; without `file` a job's folder, or the archive beside it that it was packed into.
        file: a prompt a line, in place of those that the job's record says.

    Raises:
        FileNotFoundError: there is no such file, or no record.
        ValueError: it holds no prompts, or a clip has no number.
    """
    numbers: list[int] = []
    for name in clips.ids:
        number = _number(name, archive=is_file(source))
        if number is None:
            raise ValueError(
                f"which prompt a clip has is told by its number, and {name!r} has none: samples are 000000.…, and so on"
            )
        numbers.append(number)
    path = _record_of(source) if file is None else expand_home(file)
    listed = from_main(lambda: _recorded(path) if file is None else listed_in(path))
    texts = tuple(listed[number % len(listed)] for number in numbers)
    return ClipPrompts(texts, {"file": str(path), "listed": len(listed), "used": len(set(texts)), "sha256": digest_of(listed)})


def digest_of(prompts: list[str]) -> str:
    """SHA-256 over prompts in their order."""
    return json_sha256(prompts)


def draw_prompts(path: Path, count: int | None = None, seed: int = 0) -> list[str]:
    """Prompts drawn from captions: images in a drawn order, and of each one of its captions, all alike.

    Args:
        path: captions as COCO has them, a `.json` with `annotations` that have `image_id` and `caption`; or a `.txt` with one
            a line, each of an image of its own.
        count: of images; None: all.
        seed: of the draw.

    Returns:
        The captions, with single spaces for all white space.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another layout, or fewer images.
    """
    path = expand_home(path)
    if path.suffix.lower() not in (".json", ".txt"):
        raise ValueError(f"{path}: accepted are captions as COCO has them (.json), and a text file with one a line (.txt)")
    images = _coco(path) if path.suffix.lower() == ".json" else [[text] for text in listed_in(path)]
    wanted = len(images) if count is None else count
    if not 1 <= wanted <= len(images):
        raise ValueError(f"{wanted} prompts are asked for, of different images: {path} has captions of {len(images)}")
    generator = keyed_generator(Purpose.PROMPTS, seed)
    chosen = [images[number] for number in torch.randperm(len(images), generator=generator)[:wanted].tolist()]
    return [own[int(torch.randint(len(own), (), generator=generator))] for own in chosen]


def _coco(path: Path) -> list[list[str]]:
    """Captions by image, in the order of images' numbers and captions' places in the file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} of captions")
    images: dict[int, list[str]] = {}
    try:
        for each in json.loads(path.read_text(encoding="utf-8"))["annotations"]:
            images.setdefault(int(each["image_id"]), []).append(" ".join(each["caption"].split()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no captions as COCO has them, `annotations` with `image_id` and `caption`: {error!r}"
        ) from error
    empty = [image for image, captions in images.items() if "" in captions]
    if empty:
        raise ValueError(f"{path}: image {empty[0]} has an empty caption")
    return [images[number] for number in sorted(images)]


def listed_in(path: Path) -> list[str]:
    """The prompts of a text file, as sampling reads them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `generation.prompts.read_prompts`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} of prompts, one a line")
    return read_prompts([str(path)])


def _recorded(path: Path) -> list[str]:
    """The prompts in a job's record."""
    other = "or name a file of prompts, one a line (--prompts)"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}, which would say what prompts the clips are of: give a job's folder, {other}"
        )
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))["settings"].get("prompts")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a record of generated clips: {error!r}") from error
    if not prompts:
        raise ValueError(f"{path} names no prompts: these clips are of no model of text; {other}")
    if not isinstance(prompts, list) or not all(isinstance(each, str) for each in prompts):
        raise ValueError(f"{path} is not a record of generated clips: its prompts are no list of texts")
    return prompts


def _record_of(source: ClipSource) -> Path:
    if not isinstance(source, str | Path):
        what = source.name if isinstance(source, ClipGenerator) else source
        raise ValueError(f"{what} has no record of prompts: name a file of prompts, one a line (--prompts)")
    folder = expand_home(Path(source))
    return (folder.with_suffix("") if is_file(source) else folder) / RECORD


def _number(name: str, archive: bool) -> int | None:
    """The number of a sample by a clip's name; None if it has none."""
    if made := _MADE.fullmatch(name):
        return int(made[1])
    path, _, position = name.rpartition("@")
    text = position if archive else PurePosixPath(path).stem
    return int(text) if text.isdecimal() else None
