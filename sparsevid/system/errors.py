"""What a user can mend."""

import errno

from safetensors import SafetensorError


class ExpectedError(RuntimeError):
    """An error whose message says what to do; commands print it without a traceback.

    Plain ValueErrors, OSErrors and their like count as expected too; a plain RuntimeError does not.
    """


# What a user can mend, as all that talks to one knows it. Other plain RuntimeErrors are not.
EXPECTED_ERRORS = (ExpectedError, ValueError, KeyError, OSError, ImportError, SafetensorError)
MORE_ROOM = "no space left on the device: make room, or give another path, and give the same command again"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "out of memory")  # of PyTorch, on CPUs and on GPUs


def told(error: BaseException) -> str:
    """What an expected error says to a user."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])  # its own text is in quotation marks
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:  # of the system, and terse
        return _of_system(error)
    return f"{MORE_ROOM}: {error}" if is_disk_full(error) else str(error)


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no room to write, also where a library that writes by itself says so in an error of its own."""
    return (isinstance(error, OSError) and error.errno in _FULL) or f"(os error {errno.ENOSPC})" in str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, of this machine or of its GPU."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in _NO_MEMORY)
    )


def _of_system(error: OSError) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{error.filename} is a file, where a folder is wanted: give another path"
    if isinstance(error, IsADirectoryError):
        return f"{error.filename} is a folder, where a file is wanted: give another path"
    if isinstance(error, FileNotFoundError):
        return f"there is no file or folder {error.filename}: give another path"
    if isinstance(error, PermissionError):
        return f"{error.filename} may not be read or written: change its permissions, or give another path"
    if error.errno in _FULL:
        return f"{MORE_ROOM}: {error.filename}"
    return str(error)
