"""Folders that come with the package beside its code: `datasets/` with cards, `configs/` with runs."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[2]
_SHARE = Path("share/sparsevid")  # as setup.cfg has it


def shipped(name: str) -> Path:
    """Where such a folder is: in a checkout at its root; of an installed package below `share/sparsevid` of its prefix.

    Args:
        name: `datasets` or `configs`.

    Returns:
        The folder; where there is none, where it would be in a checkout.
    """
    root = _PACKAGE.parent
    if (root / "setup.cfg").is_file():  # beside an installed package may lie others of these names
        return root / name
    prefixes = (root, *root.parents[2:3])  # of `pip install --target`; else of <prefix>/lib/<python>/site-packages
    return next((found for prefix in prefixes if (found := prefix / _SHARE / name).is_dir()), root / name)
