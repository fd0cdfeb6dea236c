"""A gzip file read forwards, as far as asked and no further, in time that its author cannot stretch.

`gzip.GzipFile` goes through stored names and empty members in Python, byte by byte and one by one: a file of a few
MiB made of these would keep it busy for minutes. Here zlib does both, and a file in tiny pieces is refused.
"""

import zlib
from typing import IO, Final

from m2s_runtime.errors import UnreadableVolume

MAGIC: Final = b"\x1f\x8b"
_BLOCK: Final = 2**16
_WITH_GZIP_HEADER: Final = 31
_LEAST_PER_MEMBER: Final = 1024
"""Bytes that members must hold on average; those of bgzip hold 64 KiB."""
_FREE_MEMBERS: Final = 1000


class GzipStream:
    """Decompresses a file of one gzip member or several; checksums are compared where a member ends."""

    def __init__(self, file: IO[bytes]) -> None:
        """Read from `file`, which stands at the start of the first member."""
        self._file = file
        self._member = zlib.decompressobj(_WITH_GZIP_HEADER)
        self._input = b""
        self._members, self._produced = 1, 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end of the last member.

        Raises:
            EOFError: the file ends within a member.
            zlib.error: damaged, or something else follows the last member.
            UnreadableVolume: made of so many small members that reading would take for ever.
        """
        pieces: list[bytes] = []
        while size and (piece := self._some(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _some(self, most: int) -> bytes:
        """At least one byte, or none at the end."""
        piece = b""
        while not piece and self._has_member():
            block = self._input or self._file.read(_BLOCK)
            # Without input zlib may still have output; only with neither is this the end.
            piece = self._member.decompress(block, most)
            self._input = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if not (piece or block or self._member.eof):
                raise EOFError("the gzip stream has no end")
        self._produced += len(piece)
        return piece

    def _has_member(self) -> bool:
        """Whether a member is under way; after the end of one, padding is skipped and the next begun."""
        if not self._member.eof:
            return True
        # Tapes and some file systems pad with zeros.
        while not (rest := self._input.lstrip(b"\0")):
            self._input = self._file.read(_BLOCK)
            if not self._input:
                return False
        self._members += 1
        if (self._members - _FREE_MEMBERS) * _LEAST_PER_MEMBER > self._produced:
            raise UnreadableVolume("a gzip file in very many tiny pieces: unpack it and compress it anew")
        self._input = rest
        self._member = zlib.decompressobj(_WITH_GZIP_HEADER)
        return True
