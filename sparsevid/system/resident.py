"""The memory that a process holds, as Linux tells it."""

from pathlib import Path

STATUS = Path("/proc/self/status")


def resident_bytes(field: str = "VmRSS") -> int:
    """Bytes of this process's resident set: now (VmRSS), or the most that it was (VmHWM).

    Raises:
        OSError: the system does not tell.
        RuntimeError: it does not tell this field.
    """
    for line in STATUS.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {field}")
