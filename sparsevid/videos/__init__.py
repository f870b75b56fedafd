"""Clips as files: one clip (`files`), whether a file is whole (`whole`), many clips in one picture or video (`sheets`).

Dimensions: N clips, C = 3 channels (RGB), T frames, H height, W width. A clip is a uint8 tensor (C,T,H,W).

Files appear whole: they are written under a temporary name in their folder and renamed; so are folders of frames.
"""

from sparsevid.video.files import (
    FORMATS,
    MAX_GIF_FPS,
    clip_path,
    gif_time,
    write_clip,
    write_ffv1,
    write_frames,
    write_gif,
    write_mp4,
    write_npz,
)
from sparsevid.video.sheets import (
    BLOCK_GAP,
    CAPTION_HEIGHT,
    GAP,
    board,
    clip_grid,
    contact_sheet,
    write_board,
    write_contact_sheet,
    write_grid,
)
from sparsevid.video.whole import clip_file_is_whole

__all__ = [
    "BLOCK_GAP",
    "CAPTION_HEIGHT",
    "FORMATS",
    "GAP",
    "MAX_GIF_FPS",
    "board",
    "clip_file_is_whole",
    "clip_grid",
    "clip_path",
    "contact_sheet",
    "gif_time",
    "write_board",
    "write_clip",
    "write_contact_sheet",
    "write_ffv1",
    "write_frames",
    "write_gif",
    "write_grid",
    "write_mp4",
    "write_npz",
]
