"""The pages of a Parquet file, by their headers: how much memory each takes, before pyarrow takes it.

Owns the walk over the headers (Thrift's compact protocol). Never reads a value. Invariant: a page that passes
:func:`check` announces no more than the limit, and pyarrow takes no more for it than it announces; what cannot be
walked is refused. Format: Apache Parquet 2.x, `PageHeader` of its parquet.thrift.
"""

from typing import Any

from keepfit.errors import InvalidError, MalformedError

PAGE_BYTES_MAX = 64 << 20
PAGES_MAX = 100_000
HEADER_BYTES_MAX = 1 << 20
# Types of the compact protocol (Thrift's specification, "Struct encoding").
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
NESTED_MAX = 8


def check(file: Any, chunks: list[tuple[int, int, str]]) -> int:
    """Check the pages of column chunks, each (first byte, number of bytes, name); return what they inflate to.

    Raises
    ------
    InvalidError
        If a page has more than :data:`PAGE_BYTES_MAX` bytes when it is inflated, or there are too many.
    MalformedError
        If the headers are damaged.
    """
    total = pages = 0
    for begin, size, name in chunks:
        position, end = begin, begin + size
        while position < end:
            file.seek(position)
            head = _Head(file.read(min(HEADER_BYTES_MAX, end - position)))
            inflated, stored = head.sizes()
            if inflated > PAGE_BYTES_MAX or stored > PAGE_BYTES_MAX:
                raise InvalidError(
                    f"The column {name[:100]!r} has a page of {max(inflated, stored)} bytes, more than "
                    f"{PAGE_BYTES_MAX}: write smaller pages."
                )
            pages += 1
            total += inflated
            if pages > PAGES_MAX:
                raise InvalidError(f"The file has more than {PAGES_MAX} pages: write larger ones.")
            position += head.position + stored
    return total


class _Head:
    """One page header; after :meth:`sizes`, `position` is its length."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def sizes(self) -> tuple[int, int]:
        """Return the inflated and the stored size that the header announces."""
        found = {2: -1, 3: -1}
        try:
            for number, kind in self._fields():
                if number in found and kind == I32:
                    found[number] = self._zigzag()
                else:
                    self._skip(kind, 0)
        except (IndexError, ValueError):
            raise MalformedError("The body is not Parquet: the header of a page is damaged.") from None
        if min(found.values()) < 0:
            raise MalformedError("The body is not Parquet: the header of a page has no size.")
        return found[2], found[3]

    def _fields(self) -> Any:
        number = 0
        while head := self._byte():
            delta, kind = divmod(head, 16)
            number = number + delta if delta else self._zigzag()
            yield number, kind

    def _byte(self) -> int:
        value = self._data[self.position]
        self.position += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            part = self._byte()
            value |= (part & 0x7F) << shift
            shift += 7
            if part < 0x80:
                return value
            if shift > 63:
                raise ValueError("too long")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, kind: int, depth: int) -> None:
        """Skip a value."""
        if depth > NESTED_MAX or self.position > len(self._data):
            raise ValueError("too deep")
        if kind in (I16, I32, I64):
            self._varint()
        elif kind in (BYTE, DOUBLE):
            self.position += 1 if kind == BYTE else 8
        elif kind == BINARY:
            length = self._varint()
            self.position += length
        elif kind == STRUCT:
            for _, inner in self._fields():
                self._skip(inner, depth + 1)
        elif kind in (LIST, SET):
            count, inner = divmod(self._byte(), 16)
            for _ in range(self._varint() if count == 15 else count):
                self._skip(BYTE if inner in (TRUE, FALSE) else inner, depth + 1)
        elif kind not in (TRUE, FALSE):
            raise ValueError("a type that page headers do not have")
