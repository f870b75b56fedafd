"""The home folder: `~` in paths wherever they are written, and a folder in its place for a process that has none.

Shells do not see to `~` in `--out=~/x`, nor in a file of YAML. A container that is run under a number without a name has no
home; below it lie the caches: of manifests, of detectors, and of the libraries.
"""

import dataclasses
import os
import pwd
import stat
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from sparsevid.system.logging import get_logger

T = TypeVar("T")
logger = get_logger(__name__)


def ensure_home() -> None:
    """Set HOME if neither it nor the system's list of users says where this user's home is.

    Raises:
        OSError: the folder to take in its place cannot be made, or is another user's.
    """
    if os.environ.get("HOME"):
        return
    user = os.getuid()
    try:
        pwd.getpwuid(user)
    except KeyError:
        os.environ["HOME"] = str(_substitute(user))
        logger.warning(
            "user %d has no HOME: caches are kept in %s; set HOME to choose another folder", user, os.environ["HOME"]
        )
        os.environ.setdefault("USER", str(user))  # PyTorch's compiler asks for a name


def _substitute(user: int) -> Path:
    """A folder that is this user's alone, the same for all processes."""
    folder = Path(tempfile.gettempdir()) / f"sparsevid-home-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()  # the folder for temporary files is everybody's
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user:
        raise OSError(f"there is no home of user {user}, and {folder} is another user's: set HOME to a folder of this user")
    return folder


def expand_home(value: T) -> T:
    """A value with each path in it that begins with `~/` or `~user/` below that home folder.

    A text is taken for such a path by its beginning: no name, pattern or layout has a slash behind a `~`. Without a home
    folder, or a user of that name, it stays as it is.

    Args:
        value: a text, a path, a dataclass, or lists and dictionaries of these; anything else is returned as it is.

    Returns:
        The same type of value.
    """
    expanded: T = _expanded(value)
    return expanded


def _expanded(value: Any) -> Any:
    if isinstance(value, str):
        return os.path.expanduser(value) if value == "~" or (value.startswith("~") and "/" in value) else value
    if isinstance(value, Path):
        return type(value)(_expanded(str(value)))
    if isinstance(value, list):
        return [_expanded(each) for each in value]
    if isinstance(value, dict):
        return {key: _expanded(each) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{item.name: _expanded(getattr(value, item.name)) for item in dataclasses.fields(value)}
        )
    return value
