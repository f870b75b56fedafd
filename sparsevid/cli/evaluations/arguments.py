"""Options that the commands of `sparsevid evaluate` share, and what they name."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from sparsevid.evaluation.detectors import DETECTORS
from sparsevid.evaluation.protocols import list_protocols, with_fields
from sparsevid.system.atomic import check_writable

if TYPE_CHECKING:
    from sparsevid.evaluation.clips.clips import ClipSource
    from sparsevid.evaluation.detectors import Detector
    from sparsevid.evaluation.protocols import Protocol

KEEP = "keep feature files here, and use those that are there: what was stopped goes on"


def add_detector_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detector", choices=tuple(DETECTORS), help="default: the protocol's, if there is one")
    parser.add_argument("--detector-path", metavar="FILE", type=Path, help="its weights; default: the cache, or a download")
    parser.add_argument("--trust-detector", action="store_true", help="run a TorchScript file, which is code, whoever made it")
    parser.add_argument(
        "--detector-option", metavar="K=V", action="append", default=[], help="of the detector; the protocol gets another name"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: the GPU if there is one, else the CPU")


def add_measuring_arguments(parser: argparse.ArgumentParser, protocol: str | None = None) -> None:
    add_detector_arguments(parser)
    own = protocol or "the detector's"
    protocols = f"{', '.join(list_protocols())}, or a YAML file; default: {own}"
    parser.add_argument("--protocol", metavar="NAME", default=protocol, help=protocols)
    option = "a field of the protocol, such as real_stride=2 or size=[64,64], which gets another name; may be given again"
    parser.add_argument("--protocol-option", metavar="KEY=VALUE", action="append", default=[], help=option)
    parser.add_argument("--count", metavar="N", type=int, help="fewer clips than the protocol's: biases scores upwards")
    parser.add_argument("--batch", metavar="B", type=int, default=16, help="clips of a forward pass")


@overload
def video_source(args: argparse.Namespace, source: str) -> "ClipSource": ...
@overload
def video_source(args: argparse.Namespace, source: None) -> None: ...
def video_source(args: argparse.Namespace, source: str | None) -> "ClipSource | None":
    """Videos that the arguments name, by a card as they change it."""
    from sparsevid.evaluation.clips.clips import CardSource

    if not args.card_option:
        return source
    if source is None:
        raise ValueError("--card-option is about the card of real videos, and none is given (--real)")
    return CardSource(source, args.card_option)


def measuring(args: argparse.Namespace) -> "tuple[Detector, Protocol]":
    """The detector and the protocol that the arguments name."""
    protocol = chosen_protocol(args)
    return built_detector(args, protocol.detector, protocol.detector_options), protocol


def chosen_protocol(args: argparse.Namespace) -> "Protocol":
    """The protocol that the arguments name, with their own fields and options of its detector."""
    from sparsevid.evaluation.evaluate import resolve_protocol, with_options

    protocol = with_fields(resolve_protocol(args.detector, args.protocol), args.protocol_option)
    return with_options(protocol, detector_options(args))


def detector_options(args: argparse.Namespace) -> dict[str, str]:
    """Options of the detector, as texts by name."""
    unusable = [each for each in args.detector_option if not all(each.partition("="))]
    if unusable:
        raise ValueError(f"--detector-option is of the form K=V, got {', '.join(map(repr, unusable))}")
    return dict(each.split("=", 1) for each in args.detector_option)


def built_detector(args: argparse.Namespace, name: str, options: dict[str, Any]) -> "Detector":
    from sparsevid.evaluation.detectors import build_detector
    from sparsevid.system.distributed import default_device

    device = args.device or default_device()
    return build_detector(name, device, path=args.detector_path, trust=args.trust_detector, options=options)


def check_output(path: Path, ending: str, *, makes_folders: bool = False) -> None:
    """Refuse a file that could not be written when all is computed."""
    if path.suffix.lower() != ending:
        raise ValueError(f"the file to write ends with {ending}, got {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and was to be a file")
    folder = path.parent
    while makes_folders and not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to write {path.name} into")
    check_writable(folder)


def check_folder(path: Path) -> None:
    """Refuse a folder, to be made with those above it, in which no file could be written when something is computed."""
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        raise ValueError(f"{path} is a file, and was to be a folder")
    check_writable(path)
