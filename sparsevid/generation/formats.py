"""The formats of a job's folder, and which of them stands for its clips."""

import json
from pathlib import Path

RECORD = "samples.json"
SHEET = "contact_sheet.png"  # beside the clips, and none of them
OF_VIDEOS = ("ffv1", "npz", "frames", "mp4", "gif")  # that which loses least first
LOSSLESS_FIRST = ("png", *OF_VIDEOS)


def folder_of_clips(folder: Path) -> Path:
    """Where each clip of a job lies once.

    Args:
        folder: of a job, or any other.

    Returns:
        Of a job of several formats, which has a folder for each, the one of the format that loses least; else the folder.
    """
    try:
        formats = json.loads((folder / RECORD).read_text(encoding="utf-8"))["settings"]["formats"]
        several = len(formats) > 1
    except (OSError, ValueError, KeyError, TypeError):  # no job's, or of one that kept no record of formats
        return folder
    there = (folder / name for name in LOSSLESS_FIRST if several and name in formats)
    return next((each for each in there if each.is_dir()), folder)


def clip_of_job(folder: Path) -> tuple[int, int | None] | None:
    """Frames of a job's clips, and the stride of the real ones that its model was trained on.

    Args:
        folder: of a job, or in it of one of its formats.

    Returns:
        (T, stride), of which the second is None where it is not one number; None of any other folder, or of a job of
        before these were recorded.
    """
    for place in (folder, *([folder.parent] if folder.name in LOSSLESS_FIRST else [])):
        try:
            clip = json.loads((place / RECORD).read_text(encoding="utf-8"))["clip"]
            frames, stride = clip["frames"], clip["stride"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if all(type(each) is int and each >= 1 for each in (frames, 1 if stride is None else stride)):
            return frames, stride
    return None
