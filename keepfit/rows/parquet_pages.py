"""The pages of a Parquet file, by their headers: how much memory each takes, before pyarrow takes it.

Owns the walk over the headers (Thrift's compact protocol). Never reads a value. Invariant: a page that passes
:func:`check` announces no more than the limit, and holds each of its values in full; what cannot be walked is refused.
So values take no more memory than their pages, unless rows share those of a dictionary. Format: Apache Parquet 2.x,
`PageHeader` of its parquet.thrift.
"""

from collections.abc import Iterator, Sequence

from keepfit.errors import InvalidError, MalformedError

PAGE_BYTES_MAX = 64 << 20
PAGES_MAX = 100_000
HEADER_BYTES_MAX = 1 << 20
# Types of the compact protocol (Thrift's specification, "Struct encoding").
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
NESTED_MAX = 8
# Numbers of fields have 16 bits: other readers would take a larger one for another field.
FIELDS_END = 1 << 15
# Fields of PageHeader: the two sizes; and those of its structs that hold the encoding, with the number of that field.
INFLATED, STORED, ENCODING_IN = 2, 3, {5: 2, 8: 4}
# Encodings that store each value in full, or its number in a dictionary. In DELTA_BYTE_ARRAY (7) a value is what
# differs from the one before it: a page of a megabyte can hold gigabytes.
ENCODINGS = frozenset((0, 2, 3, 4, 5, 6, 8, 9))


def check(body: bytearray, chunks: Sequence[tuple[int, int, str]]) -> int:
    """Check the pages of column chunks, each (first byte, number of bytes, name); return what they inflate to.

    Raises
    ------
    InvalidError
        If a page has more than :data:`PAGE_BYTES_MAX` bytes when it is inflated, there are too many, or the values of
        one are not stored in full.
    MalformedError
        If the headers are damaged.
    """
    view = memoryview(body)
    total = pages = 0
    for begin, size, name in chunks:
        position, end = begin, begin + size
        if not 0 < begin <= end <= len(view):
            raise MalformedError(f"The body is not Parquet: the column {name[:100]!r} does not lie in it.")
        while position < end:
            head = _Head(view[position : min(position + HEADER_BYTES_MAX, end)])
            inflated, stored = head.sizes()
            if not head.encodings <= ENCODINGS:
                raise InvalidError(
                    f"The column {name[:100]!r} has an encoding like DELTA_BYTE_ARRAY, which does not store values in "
                    "full: write it with a dictionary, or PLAIN."
                )
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
    """One page header; after :meth:`sizes`, `position` is its length, and `encodings` those it names."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.position = 0
        self.encodings: set[int] = set()

    def sizes(self) -> tuple[int, int]:
        """Return the inflated and the stored size that the header announces."""
        found = {INFLATED: -1, STORED: -1}
        try:
            for number, kind in self._fields():
                if number in found and kind == I32:
                    found[number] = self._zigzag()
                elif number in ENCODING_IN and kind == STRUCT:
                    self._read_encoding(ENCODING_IN[number])
                else:
                    self._skip(kind, 0)
        except (IndexError, ValueError):
            raise MalformedError("The body is not Parquet: the header of a page is damaged.") from None
        if min(found.values()) < 0:
            raise MalformedError("The body is not Parquet: the header of a page has no size.")
        return found[INFLATED], found[STORED]

    def _read_encoding(self, place: int) -> None:
        for number, kind in self._fields():
            if number == place and kind == I32:
                self.encodings.add(self._zigzag())
            else:
                self._skip(kind, 1)

    def _fields(self) -> Iterator[tuple[int, int]]:
        number = 0
        while head := self._byte():
            delta, kind = divmod(head, 16)
            number = number + delta if delta else self._zigzag()
            if not 0 < number < FIELDS_END:
                raise ValueError("no number of a field")
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
