"""The body of a request about rows, which become :class:`Rows` once the model's recipe is known.

Owns the choice of the parser: small JSON, large JSON, tables. Never does I/O, and never knows the model. Invariant:
with every parser the same rows are accepted and rejected as by the strict parser and
:func:`keepfit.rows.shaping.shape`. A large body is never in memory twice, nor as lists of Python, unless it holds
something that only the strict parser can judge. Data comes from :mod:`keepfit_gateway.web.bodies`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from aiohttp import hdrs, web

from keepfit import extras, identity
from keepfit.errors import InvalidError, StaleModelError
from keepfit.recipe.features import COLUMNS_MAX
from keepfit.recipe.recipe import Recipe
from keepfit.rows import arrow, npy, tables
from keepfit.rows.chunks import Collector
from keepfit.rows.file_tables import FileTable
from keepfit.rows.rows import BYTES_MAX, Rows
from keepfit.rows.selection import Selection
from keepfit.rows.text_columns import LabelType
from keepfit_gateway import bound_key, schemas
from keepfit_gateway.schemas import Form
from keepfit_gateway.web import fast_json
from keepfit_gateway.web.offload import INLINE_BYTES_MAX
from keepfit_gateway.web.parsed_rows import ParsedRows

NPY = "application/x-npy"
ARROW = "application/vnd.apache.arrow.stream"
CSV, PARQUET = "text/csv", "application/vnd.apache.parquet"
FILES = {CSV: "csv", PARQUET: "parquet"}
# Any of them but CSV: what generated clients send, which know no other binary type.
BINARY = "application/octet-stream"
TABLES = (NPY, ARROW, CSV, PARQUET, BINARY)
# First bytes of an npy file, of a message of an Arrow IPC stream, and of a Parquet file.
BEGINS = {b"\x93NUMPY": NPY, b"\xff\xff\xff\xff": ARROW, b"PAR1": PARQUET}
# A row with more than COLUMNS_MAX columns is longer than this.
NARROW_BYTES_MAX = 2 * COLUMNS_MAX
# Lists of Python use up to 24 times the bytes that the strict parser reads.
STRICT_BYTES_MAX = 4 * 2**20


class RowsBody(Protocol):
    """A parsed body of `size` bytes, about the model `model_hash`; `proba` is true if probabilities are requested."""

    size: int
    proba: bool
    model_hash: str

    def shape(self, recipe: Recipe, *, learning: bool) -> Rows:
        """Check the rows against `recipe` and return them; may be called again."""


class LargeRows:
    """Rows held in one form at a time: the body is released when they are shaped."""

    __slots__ = ("_make", "_recipe", "_shaped", "model_hash", "proba", "size")

    def __init__(self, size: int, make: Callable[..., Rows], *, proba: bool, model_hash: str) -> None:
        self.size = size
        self.proba = proba
        self.model_hash = model_hash
        self._make: Callable[..., Rows] | None = make
        self._recipe: Recipe | None = None
        self._shaped: Rows | None = None

    def shape(self, recipe: Recipe, *, learning: bool) -> Rows:
        """Check the rows against `recipe` and return them; each call returns the same object.

        Raises
        ------
        StaleModelError
            If an earlier call had another recipe: the body is released by then.
        """
        if self._make is not None:
            make, self._make = self._make, None
            self._recipe, self._shaped = recipe, make(recipe, learning=learning)
        if self._shaped is None or recipe != self._recipe:
            raise StaleModelError("The model was created again while these rows were read; send them again.")
        return self._shaped


def parse(body: bytes | bytearray, form: type[Form], model_hash: str | None = None) -> RowsBody:
    """Parse a JSON body of `form`, about the model `model_hash` or, without it, the model that its metadata name.

    Raises
    ------
    MalformedError, InvalidError
        If it is not usable JSON, does not have the form, or its metadata are invalid.
    web.HTTPRequestEntityTooLarge
        If a row has too many columns, or the body is too large for the strict parser and needs it.
    """
    if len(body) > INLINE_BYTES_MAX:
        return _parse_large(body, form, model_hash)
    rows = fast_json.decode(body, form, model_hash)
    if rows is None:
        return _parse_strictly(body, form, model_hash)
    if rows.size > NARROW_BYTES_MAX:
        check_width(max(map(len, rows.X), default=0))
    return rows


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What a table does not say itself: the columns of a file, the type of labels in CSV, its size when inflated."""

    bytes_max: int = BYTES_MAX
    selection: Selection = field(default_factory=Selection)
    label_type: LabelType | None = None


def parse_table(
    body: bytes | bytearray, form: type[Form], media_type: str, model_hash: str, options: TableOptions | None = None
) -> RowsBody:
    """Parse a table, a body of one of the media types :data:`TABLES`; raises as :func:`parse`, and 415 without pyarrow.

    Call it in a thread even for a small table: the first Arrow table imports pyarrow, which takes long.
    """
    data, options = bytearray(body) if isinstance(body, bytes) else body, options or TableOptions()
    if media_type == BINARY:
        media_type = _table_type(data)
        check_media_type(media_type)
    if media_type in FILES:
        file = FileTable(data, FILES[media_type], options.selection, options.label_type, options.bytes_max)
        make_rows = partial(file.shape, weighted=form is schemas.PartialFit)
        return LargeRows(file.size_bytes, make_rows, proba=False, model_hash=model_hash)
    if options.selection != Selection() or options.label_type is not None:
        raise InvalidError("columns, target, sample_weight and label_type are for CSV and Parquet: leave them out.")
    table: tables.Table = (arrow.read_arrow if media_type == ARROW else npy.read_npy)(data)
    learning = form is not schemas.Predict
    check_width(table.width - learning)
    make = partial(table.shape, weighted=form is schemas.PartialFit)
    return LargeRows(len(data), make, proba=False, model_hash=model_hash)


def check_media_type(media_type: str) -> None:
    """Raise a 415 for a media type that this gateway cannot read."""
    if media_type in (ARROW, *FILES) and not arrow.AVAILABLE:
        raise web.HTTPUnsupportedMediaType(
            text=f"This gateway lacks pyarrow: {extras.install('frames')}, or send JSON or application/x-npy.",
            headers={hdrs.ACCEPT: f"application/json, {NPY}"},
        )


def _table_type(body: bytearray) -> str:
    """Return the media type of a table, by its first bytes."""
    found = next((media_type for begin, media_type in BEGINS.items() if body.startswith(begin)), None)
    if found is not None:
        return found
    raise web.HTTPUnsupportedMediaType(
        text=f"The body is not a table: {BINARY} must be an npy file, an Arrow IPC stream or a Parquet file.",
        headers={hdrs.ACCEPT: ", ".join(("application/json", *TABLES))},
    )


def _parse_large(body: bytes | bytearray, form: type[Form], model_hash: str | None) -> RowsBody:
    raw = fast_json.split(body, form, model_hash)
    if raw is None:
        return _parse_strictly(body, form, model_hash)
    make = partial(_shape_chunks, body, form, raw)
    return LargeRows(len(body), make, proba=raw.proba, model_hash=raw.model_hash)


def _parse_strictly(body: bytes | bytearray, form: type[Form], model_hash: str | None) -> ParsedRows:
    """Parse JSON with the strict parser."""
    if len(body) > STRICT_BYTES_MAX:
        raise web.HTTPRequestEntityTooLarge(
            max_size=STRICT_BYTES_MAX,
            actual_size=len(body),
            text="A body of this size must be plain rows: valid JSON, with values that are no lists or objects, and "
            f'without \\" in its strings. Other bodies may have up to {STRICT_BYTES_MAX} bytes; send several requests.',
        )
    request: Any = schemas.convert(identity.parse_json(body), form)
    check_width(max(map(len, request.X), default=0))
    if model_hash is None:
        model_hash = bound_key.hash_of(request.metadata)
    y, weights = getattr(request, "y", None), getattr(request, "sample_weight", None)
    proba, ids = getattr(request, "proba", False), getattr(request, "id", None)
    if ids is not None:
        ids = list(map(str, ids if isinstance(ids, list) else [ids]))
    return ParsedRows(len(body), request.X, y, weights, proba, model_hash, ids)


def _shape_chunks(
    body: bytes | bytearray, form: type[Form], raw: fast_json.RawBody, recipe: Recipe, *, learning: bool
) -> Rows:
    """Shape the rows of large JSON chunk by chunk, or with the strict parser where that is not possible."""
    collector = Collector(recipe, learning=learning)
    invalid: InvalidError | None = None
    try:
        for chunk in fast_json.row_chunks(raw.X):
            check_width(max(map(len, chunk)))
            try:
                if invalid is None:
                    collector.add(chunk)
            except InvalidError as error:
                # Raised after the rest is parsed: an error of the form takes precedence over an error of a value.
                invalid = error
        y = fast_json.decode_values("y", raw.y)
        sample_weight = fast_json.decode_values("sample_weight", raw.sample_weight)
    except fast_json.UnprovenError:
        return _parse_strictly(body, form, raw.model_hash).shape(recipe, learning=learning)
    if invalid is not None:
        try:
            raise invalid
        finally:
            # Error and frame would reference each other, and keep the body until the next garbage collection.
            invalid = None
    return collector.rows(y, sample_weight, learning=learning)


def check_width(width: int) -> None:
    """Reject rows with so many columns that a scan of their values would take seconds.

    Raises
    ------
    web.HTTPRequestEntityTooLarge
        With the limit.
    """
    if width > COLUMNS_MAX:
        text = f"A row has {width} columns; the limit is {COLUMNS_MAX}."
        raise web.HTTPRequestEntityTooLarge(max_size=COLUMNS_MAX, actual_size=width, text=text)
