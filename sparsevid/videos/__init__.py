"""Every video file, read and written: `read` by frame index, `write`, `check` whether a file is whole, `sheets` of many clips.

In come files, folders of frames and arrays as people have them, and out come clips, uint8 (C,T,H,W); and the other way round.
Files appear whole: they are written under a temporary name in their folder and renamed; so are folders of frames. Each library
that decodes or encodes stands behind a module of this room.

It imports `system`.
"""
