"""The bodies of requests about rows, in the smallest form that holds them: JSON, npy or Arrow, coded above a size.

Owns the choice of the form and of the content coding. Never holds more than some blocks of a large body: it is encoded
while it is sent. Invariant: the gateway gets the same values whatever the form.
"""

import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from keepfit.client.rows import values
from keepfit.client.rows.tables import NUMBER_KINDS, Columns, Frame, Matrix
from keepfit.client.rows.targets import Data
from keepfit.client.transport.exchange import PIECE_BYTES, Report, StreamedBody

JSON, NPY, ARROW = "application/json", "application/x-npy", "application/vnd.apache.arrow.stream"
# Fewer values are sent as JSON, which is as short, and which the gateway answers on its fast path.
CELLS_MIN = 512
# Smaller bodies are not coded.
CODED_BYTES_MIN = 64 << 10
# A coding that saves less than this part of a sample is not worth its time.
SAVED_MIN = 0.2
SAMPLE_BYTES = 64 << 10
CODING_LEVEL = 1


@dataclass(slots=True)
class Encoded:
    """A body with its media type and coding."""

    media_type: str
    body: bytes | StreamedBody
    coding: str | None = None


@dataclass(slots=True)
class Forms:
    """What a gateway takes: Arrow, if it has pyarrow, and which coding is worth its time (None: none)."""

    arrow: bool = True
    coding: str | None = None


def encode(data: Data, first: int, last: int, forms: Forms, more: Mapping[str, Any], report: Report | None) -> Encoded:
    """Return the body for rows from `first` to before `last`; `more` are further fields, which only JSON has.

    `report` is called with the rows that are sent, and all rows of the call.
    """
    table = data.table
    is_small = (last - first) * table.row_bytes < CELLS_MIN * 8
    encoded = None
    if not is_small and not more:
        if isinstance(table, Matrix) and data.weights is None and _fits_npy(table, data.y):
            encoded = Encoded(NPY, NpyBody(data, first, last, report))
        elif isinstance(table, Frame | Columns) and forms.arrow:
            encoded = _arrow(data, first, last, report)
    if encoded is None:
        body = JsonBody(data, first, last, more, report)
        encoded = Encoded(JSON, b"".join(body) if is_small or body.is_short else body)
    return _coded(encoded, forms.coding)


def _fits_npy(table: Matrix, y: Any) -> bool:
    """Whether rows and target become one array without changing a type: a boolean label is no number."""
    if y is None:
        return True
    kind = getattr(getattr(y, "dtype", None), "kind", "")
    return kind != "" and kind in NUMBER_KINDS and y.ndim == 1 and (kind != "b" or table.dtype.kind == "b")


def _arrow(data: Data, first: int, last: int, report: Report | None) -> Encoded | None:
    """Return the rows as Arrow; None without pyarrow, or if a column has the name of the target."""
    from keepfit.client.rows import arrow_tables  # noqa: PLC0415 - looks for pyarrow, which is slow to import

    body = arrow_tables.stream(data, first, last, report)
    return None if body is None else Encoded(ARROW, body)


class JsonBody:
    """``{"X": …, "y": …, "sample_weight": …}`` and further fields, encoded in blocks of rows."""

    def __init__(self, data: Data, first: int, last: int, more: Mapping[str, Any], report: Report | None) -> None:
        self.size: int | None = None
        self._data, self._first, self._last, self._more = data, first, last, more
        self._report = report
        self._step = max(1, int(PIECE_BYTES / 4 / max(1.0, data.table.row_bytes)))

    @property
    def is_short(self) -> bool:
        """Whether it is encoded at once."""
        return self._last - self._first <= self._step

    def __iter__(self) -> Iterator[bytes]:
        yield b'{"X":['
        yield from self._blocks(self._data.table.records, self._report)
        yield b"]"
        for name, of_rows in (("y", self._data.labels), ("sample_weight", self._data.weights_of)):
            if of_rows(self._first, self._first) is not None:
                yield f',"{name}":['.encode()
                yield from self._blocks(cast("Any", of_rows), None)
                yield b"]"
        for name, value in self._more.items():
            yield f',"{name}":'.encode() + values.encode(value)
        yield b"}"

    def _blocks(self, of_rows: Any, report: Report | None) -> Iterator[bytes]:
        for start in range(self._first, self._last, self._step):
            end = min(start + self._step, self._last)
            block = values.encode(of_rows(start, end))[1:-1]
            yield block if start == self._first else b"," + block
            if report is not None:
                report(end, self._data.rows)


class NpyBody:
    """Numbers as ``numpy.save`` writes them, row by row, with the target as the last column."""

    def __init__(self, data: Data, first: int, last: int, report: Report | None) -> None:
        import numpy as np  # noqa: PLC0415 - loaded, because the rows are an array or a matrix

        table = cast("Matrix", data.table)
        self._data, self._first, self._last, self._report = data, first, last, report
        self._dtype = table.dtype if data.y is None else np.result_type(table.dtype, data.y.dtype)
        width = table.width + (data.y is not None)
        head = io.BytesIO()
        shape = (last - first, width)
        described = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(head, described)
        self._head = head.getvalue()
        row_bytes = width * self._dtype.itemsize
        self.size: int | None = len(self._head) + (last - first) * row_bytes
        self._step = max(1, PIECE_BYTES // row_bytes)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        import numpy as np  # noqa: PLC0415 - see above

        yield self._head
        table, y = cast("Matrix", self._data.table), self._data.y
        for start in range(self._first, self._last, self._step):
            end = min(start + self._step, self._last)
            block = table.block(start, end)
            if y is not None:
                joined = np.empty((end - start, table.width + 1), self._dtype)
                joined[:, :-1], joined[:, -1] = block, y[start:end]
                block = joined
            yield np.ascontiguousarray(block, self._dtype).reshape(-1).view(np.uint8).data
            if self._report is not None:
                self._report(end, self._data.rows)


class Coder(Protocol):
    """A compressor, as zlib and zstd have it."""

    def compress(self, data: Any, /) -> bytes:
        """Take data; return what is coded by now."""
        ...

    def flush(self) -> bytes:
        """Return the rest."""
        ...


class CodedBody:
    """A body in a content coding, encoded while it is sent."""

    def __init__(self, body: StreamedBody, coding: str) -> None:
        self.size: int | None = None
        self._body, self._coding = body, coding

    def __iter__(self) -> Iterator[bytes]:
        coder = coder_of(self._coding)
        for piece in self._body:
            if coded := coder.compress(piece):
                yield coded
        yield coder.flush()


def best_coding() -> str:
    """Return the better one of the codings that this Python has: zstd, else gzip."""
    try:
        coder_of("zstd")
    except ImportError:
        return "gzip"
    return "zstd"


def coder_of(coding: str) -> Coder:
    """Return a compressor. Raise ImportError for zstd where there is none."""
    if coding == "gzip":
        return zlib.compressobj(CODING_LEVEL, wbits=16 + zlib.MAX_WBITS)
    from backports import zstd  # noqa: PLC0415 - optional in the client

    return zstd.ZstdCompressor(CODING_LEVEL)


def _coded(encoded: Encoded, coding: str | None) -> Encoded:
    """Return a body in a coding if that makes a sample of it much shorter."""
    if coding is None:
        return encoded
    if isinstance(encoded.body, bytes):
        if len(encoded.body) >= CODED_BYTES_MIN and _is_worth_it(encoded.body[:SAMPLE_BYTES], coding):
            coder = coder_of(coding)
            encoded.body, encoded.coding = coder.compress(encoded.body) + coder.flush(), coding
        return encoded
    sample = b""
    for piece in encoded.body:
        sample += bytes(memoryview(piece)[:SAMPLE_BYTES])
        if len(sample) >= SAMPLE_BYTES:
            break
    if len(sample) >= CODED_BYTES_MIN and _is_worth_it(sample, coding):
        encoded.body, encoded.coding = CodedBody(encoded.body, coding), coding
    return encoded


def _is_worth_it(sample: bytes, coding: str) -> bool:
    coder = coder_of(coding)
    return len(coder.compress(sample) + coder.flush()) < (1 - SAVED_MIN) * len(sample)
