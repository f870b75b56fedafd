"""Members of zip archives, read at any place: what was inflated before a place is not inflated again for each read.

The first read of a place inflates all that lies before it. On the way the state of the decoder is kept at a few places, some
40 kB each, and the next read goes on from the last of them before it.
"""

import zipfile
import zlib
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, BinaryIO

_LOCAL_HEADER = 30  # bytes, before name and extra field, whose lengths are its last four
_STEP = 1 << 20  # bytes inflated at once
_SOURCE = 1 << 16  # bytes of the archive read at once
_SPACING = 1 << 22  # bytes between two states that are kept, at least
_STATES = 128  # kept of one member, at most
_STATE_BYTES = 50_000
_ENCRYPTED = 0x1  # of the flags


@dataclass
class _State:
    """A decoder that has inflated a member up to `place`, which is at `source` of the compressed bytes."""

    inflater: Any = field(default_factory=lambda: zlib.decompressobj(-zlib.MAX_WBITS))
    place: int = 0
    source: int = 0
    crc: int = 0

    def copy(self) -> "_State":
        return replace(self, inflater=self.inflater.copy())


class Member:
    """A member of an archive that is stored or deflated.

    Args:
        file: the archive, open.
        info: of the member.

    Attributes:
        inflated: bytes that were inflated so far, by all reads.

    Raises:
        ValueError: it is encrypted, or compressed in another way.
    """

    def __init__(self, file: BinaryIO, info: zipfile.ZipInfo) -> None:
        if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{info.filename} is encrypted, or compressed in way {info.compress_type}; accepted: deflated")
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
        lengths = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
        self._info, self._begin = info, info.header_offset + _LOCAL_HEADER + sum(lengths)
        self._last, self._kept = _State(), [_State()]
        self._spacing = max(_SPACING, info.file_size // _STATES)
        self._lock = Lock()
        self.inflated = 0

    def __len__(self) -> int:
        """Bytes that the kept states may take."""
        return _STATE_BYTES * min(_STATES, 2 + self._info.file_size // self._spacing)

    def read(self, file: BinaryIO, place: int, size: int) -> bytes:
        """Bytes of the member; fewer where it ends.

        Args:
            file: the archive, open.
            place: of the first one, uncompressed.
            size: how many.

        Raises:
            EOFError: the archive ends early.
            zipfile.BadZipFile: the member was read to its end, and is not what its checksum says.
            zlib.error: damaged.
        """
        end = min(place + size, self._info.file_size)
        with self._lock:
            stored = self._info.compress_type == zipfile.ZIP_STORED
            return self._copied(file, place, end) if stored else self._inflated(file, place, end)

    def _copied(self, file: BinaryIO, place: int, end: int) -> bytes:
        """Stored bytes, found at once. Reads that follow each other from the beginning are checked."""
        state = self._last
        begin = state.place if 0 <= place - state.place <= _SOURCE else place
        file.seek(self._begin + begin)
        content = file.read(max(0, end - begin))
        if begin == state.place:
            state.place, state.crc = begin + len(content), zlib.crc32(content, state.crc)
            self._check(state)
        return content[place - begin :]

    def _inflated(self, file: BinaryIO, place: int, end: int) -> bytes:
        state = max((each for each in (*self._kept, self._last) if each.place <= place), key=lambda each: each.place)
        if state is not self._last:
            self._last = state = state.copy()
        content = bytearray()
        try:
            while state.place < end:
                wanted = state.place >= place
                part = self._step(file, state, min(_STEP, (end if wanted else place) - state.place))
                content += part if wanted else b""
        except (EOFError, zlib.error):
            self._last = _State()  # this one is of no further use
            raise
        return bytes(content)

    def _step(self, file: BinaryIO, state: _State, size: int) -> bytes:
        """Inflate up to `size` bytes more, and keep the state now and then."""
        file.seek(self._begin + state.source)
        source = file.read(min(_SOURCE, self._info.compress_size - state.source))
        part = state.inflater.decompress(source, size)
        if not part and not source:
            raise EOFError(f"{self._info.filename} ends after {state.place} of {self._info.file_size} bytes")
        state.source += len(source) - len(state.inflater.unconsumed_tail)
        state.place += len(part)
        state.crc = zlib.crc32(part, state.crc)
        self.inflated += len(part)
        self._check(state)
        if state.place >= self._kept[-1].place + self._spacing:
            self._kept.append(state.copy())
        return part

    def _check(self, state: _State) -> None:
        if state.place == self._info.file_size and state.crc != self._info.CRC:
            self._last = _State()
            raise zipfile.BadZipFile(f"{self._info.filename} does not match its checksum")
