"""A home folder for a process that has none, as in a container that is run under a number without a name.

Below it lie the caches: of manifests, of detectors, and of the libraries.
"""

import os
import pwd
import stat
import tempfile
from pathlib import Path

from sparsevid.logging import get_logger

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
