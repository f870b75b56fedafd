"""`~` at the beginning of a path, wherever it is written: shells do not see to it in `--out=~/x`, nor in a file of YAML."""

import dataclasses
import os
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def expand_home(value: T) -> T:
    """A value with each path in it that begins with `~/` or `~user/` below that home folder.

    A text is taken for such a path by its beginning: no name, pattern or layout has a slash behind a `~`. Without a home
    folder, or a user of that name, it stays as it is.

    Args:
        value: a text, a path, a dataclass, or lists and dictionaries of these; anything else is returned as it is.
    """
    if isinstance(value, str):
        return os.path.expanduser(value) if value == "~" or (value.startswith("~") and "/" in value) else value
    if isinstance(value, Path):
        return type(value)(expand_home(str(value)))
    if isinstance(value, list):
        return [expand_home(each) for each in value]
    if isinstance(value, dict):
        return {key: expand_home(each) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{item.name: expand_home(getattr(value, item.name)) for item in dataclasses.fields(value)}
        )
    return value
