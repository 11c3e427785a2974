"""A remote object as a file: read in blocks, the last ones of which are kept.

Owns which bytes are asked for, and when again. Never knows how: a function fetches a range. Invariant: memory is that
of a fixed number of blocks, whatever the object's size; a range that comes back shorter or longer is an error.
"""

import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from keepfit.errors import UnavailableError

# Memory of the blocks. Many small ones for a file that is read at many places (each column of Parquet is one), few
# large ones for a file that is read from its start to its end.
CACHE_BYTES, BLOCK_BYTES, STREAM_BLOCK_BYTES = 24 << 20, 256 * 1024, 4 << 20


def block_bytes(*, seekable: bool) -> int:
    """Return the size of the blocks of a file that is read at many places, or from its start to its end."""
    return BLOCK_BYTES if seekable else STREAM_BLOCK_BYTES


class RangeFile(io.RawIOBase):
    """An object of `size` bytes. `fetch` returns the bytes from the first number up to the second, exclusive."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, block_bytes: int = BLOCK_BYTES) -> None:
        super().__init__()
        self._fetch, self._size, self._block_bytes = fetch, size, block_bytes
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position; nothing is fetched."""
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(begin + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read up to the end of a block."""
        view = memoryview(buffer).cast("B")
        number, begin = divmod(self._position, self._block_bytes)
        if self._position >= self._size or not view.nbytes:
            return 0
        part = memoryview(self._block(number))[begin : begin + view.nbytes]
        view[: part.nbytes] = part
        self._position += part.nbytes
        return part.nbytes

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        begin = number * self._block_bytes
        end = min(begin + self._block_bytes, self._size)
        data = self._fetch(begin, end)
        if len(data) != end - begin:
            raise UnavailableError("The source sent another number of bytes than it was asked for.")
        self._blocks[number] = data
        while len(self._blocks) > CACHE_BYTES // self._block_bytes:
            self._blocks.popitem(last=False)
        return data
