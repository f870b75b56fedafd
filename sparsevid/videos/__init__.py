"""Every video file, read and written: `read` by frame index, `write`, `check` whether a file is whole, `sheets` of many clips.

Read are files, folders of frames and arrays as people have them (`kinds` tells which), as uint8 (T,C,H,W); clips (C,T,H,W) are
written. Files appear whole: they are written under a temporary name in their folder and renamed; so are folders of frames.

`read` asks `decode_file` (PyAV), `decode_decord`, `frame_folder`, `array_files` or `animations`. Of a file, `packet_index`
knows what its packets say, `seeking` whether random access can be trusted (where not, it is read from its start),
`shown_packets` which of them are shown, and `display` how. The package decodes and encodes nowhere else, but in what measures
decoders.

It imports `system`.
"""

# Of `read`, which takes seconds to import: the decoders, as commands offer them.
BACKENDS = ("pyav", "decord")
