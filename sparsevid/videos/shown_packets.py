"""Which packets of a stream give a frame that is shown: in most codecs each of them does.

MPEG-4 (Xvid, DivX) has placeholders that say "not coded". Where two frames were packed into one packet, the placeholder that
follows stands for the second; alone it repeats a frame, and FFmpeg gives none for it.

VP8 and VP9 have hidden frames ("alt-ref"), which later ones are predicted from. In VP8 each has a packet of its own; in VP9 a
superframe mostly holds it together with a frame that is shown. AV1 puts both into one packet, a temporal unit, in any case.
"""

from collections.abc import Callable

_FRAME_START = b"\x00\x00\x01\xb6"  # of a frame in MPEG-4
_PLACEHOLDER_BYTES = 8  # at most, with the 4 of its start; a coded frame of 64x64 pixels or more is longer


def shows_frame(codec: str) -> Callable[[bytes], bool] | None:
    """What tells of the packets of a stream, in their order, whether each gives a frame; None where all do.

    Args:
        codec: FFmpeg's name of it.
    """
    if codec == "mpeg4":
        return _Packing().gives_frame
    return {"vp8": _vp8, "vp9": _vp9}.get(codec)


class _Packing:
    """Which packets of MPEG-4 give a frame."""

    def __init__(self) -> None:
        self._waiting = False  # a second frame, for the place of a placeholder

    def gives_frame(self, packet: bytes) -> bool:
        """Whether the next packet of the stream gives one."""
        if packet.count(_FRAME_START) > 1:
            self._waiting = True
        elif len(packet) <= _PLACEHOLDER_BYTES:
            given, self._waiting = self._waiting, False
            return given
        return True


def _vp8(packet: bytes) -> bool:
    """RFC 6386, section 9.1: the fourth bit of the frame tag is `show_frame`."""
    return bool(packet[0] & 0x10)


def _vp9(packet: bytes) -> bool:
    """VP9 bitstream specification, annex B: a superframe ends with an index of its frames' sizes."""
    mark = packet[-1]
    count, width = (mark & 7) + 1, (mark >> 3 & 3) + 1
    index = 2 + count * width
    if mark & 0xE0 != 0xC0 or len(packet) < index or packet[-index] != mark:
        return _vp9_frame(packet[0])
    start, shown = 0, False
    for i in range(len(packet) - index + 1, len(packet) - 1, width):
        shown = shown or _vp9_frame(packet[start])
        start = min(start + int.from_bytes(packet[i : i + width], "little"), len(packet) - 1)
    return shown


def _vp9_frame(head: int) -> bool:
    """VP9 bitstream specification, 6.2: marker, profile, in profile 3 a zero; `show_existing_frame`, type, `show_frame`."""
    bits = head >> (0 if head & 0x30 == 0x30 else 1)
    return bool(bits & 0b101)
