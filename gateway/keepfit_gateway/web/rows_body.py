"""What a request about one model holds: rows, which become :class:`Rows` once the model's recipe is known.

Owns the choice between the ways to read them: small and large JSON, tables. Never knows the model. Invariant: whatever
the way, rows are accepted or refused as the strict parser and :func:`keepfit.rows.shaping.shape` would have it. A large
body is never in memory twice, nor as Python's lists, unless something in it is for the strict parser to judge.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

from aiohttp import web

from keepfit import identity
from keepfit.errors import InvalidError, MalformedError, StaleModelError
from keepfit.recipe.features import COLUMNS_MAX
from keepfit.recipe.recipe import Recipe
from keepfit.rows import arrow, shaping, tables
from keepfit.rows.chunks import Collector
from keepfit.rows.rows import Rows
from keepfit.rows.tables import Table
from keepfit.settings import Settings
from keepfit_gateway import schemas
from keepfit_gateway.schemas import Form
from keepfit_gateway.web import bodies, fast_json
from keepfit_gateway.web.offload import INLINE_BYTES_MAX, run_in_thread_if_large

NPY = "application/x-npy"
ARROW = "application/vnd.apache.arrow.stream"
TABLES = (NPY, ARROW)
# A row with more columns than may be is longer than this.
NARROW_BYTES_MAX = 2 * COLUMNS_MAX
# Lists of Python take up to 24 times what the strict parser made them of.
STRICT_BYTES_MAX = 32 * 2**20
PROBA = {"true": True, "false": False}


class RowsBody(Protocol):
    """A request's rows, of `size` bytes; `proba` tells whether probabilities are asked for."""

    size: int
    proba: bool

    def shape(self, recipe: Recipe, *, learning: bool) -> Rows:
        """Check the rows against `recipe` and return them; may be called again."""


class ParsedRows:
    """Rows as lists: a JSON request that is small, or that only the strict parser could read."""

    __slots__ = ("X", "proba", "sample_weight", "size", "y")

    def __init__(self, size: int, X: Any, y: Any, sample_weight: Any, proba: bool) -> None:
        self.size = size
        self.X = X
        self.y = y
        self.sample_weight = sample_weight
        self.proba = proba

    def shape(self, recipe: Recipe, *, learning: bool) -> Rows:
        """Check the rows against `recipe` and return them."""
        return shaping.shape(recipe, self.X, self.y, self.sample_weight, learning=learning)


class LargeRows:
    """Rows of which there is one form at a time: the body, used up and let go once they are shaped."""

    __slots__ = ("_make", "_recipe", "_shaped", "proba", "size")

    def __init__(self, size: int, proba: bool, make: Callable[..., Rows]) -> None:
        self.size = size
        self.proba = proba
        self._make: Callable[..., Rows] | None = make
        self._recipe: Recipe | None = None
        self._shaped: Rows | None = None

    def shape(self, recipe: Recipe, *, learning: bool) -> Rows:
        """Check the rows against `recipe` and return them, the same ones for each call.

        Raises
        ------
        StaleModelError
            If it was called with another recipe before: what the rows came as is gone.
        """
        if self._make is not None:
            make, self._make = self._make, None
            self._recipe, self._shaped = recipe, make(recipe, learning=learning)
        if self._shaped is None or recipe != self._recipe:
            raise StaleModelError("The model was made again while these rows were read; send them again.")
        return self._shaped


async def read(
    request: web.Request, settings: Settings, form: type[Form], model_hash: str | None = None
) -> tuple[str, RowsBody]:
    """Read a request: return the hash of the model it is about (the path's, else its metadata's), and its rows.

    Raises
    ------
    MalformedError, InvalidError
        If the body is damaged, not the form asked for, or its metadata name no model.
    web.HTTPException
        408 if it drips in, 413 over the limits of size and width, 415 for another type or encoding.
    UnavailableError
        If other bodies take all the memory for bodies.
    """
    media_type = bodies.check_type(request, TABLES)
    proba = model_hash is not None and form is schemas.Predict and _is_proba_asked(request)
    if media_type != bodies.JSON:
        return await _read_table(request, settings, form, media_type, model_hash, proba)
    text = await bodies.read(request, settings)
    size = len(text)
    if size <= INLINE_BYTES_MAX:
        found = fast_json.decode(text, form)
        if found is not None:
            if size > NARROW_BYTES_MAX:
                _check_width(max(map(len, found.X), default=0))
            sent = ParsedRows(size, found.X, found.y, found.sample_weight, found.proba or proba)
            return model_hash or cast("str", found.hash), sent
    else:
        split = await asyncio.to_thread(fast_json.split, text, form)
        if split is not None:
            make = partial(_shape_parts, text, form, split)
            return model_hash or cast("str", split.hash), LargeRows(size, split.proba or proba, make)
    named, lists = await run_in_thread_if_large(size, _read_strictly, text, form)
    lists.proba |= proba
    return model_hash or cast("str", named), lists


def _read_strictly(text: bytes | bytearray, form: type[Form]) -> tuple[str | None, ParsedRows]:
    """Read JSON by the strict parser; return the hash that metadata give, and the rows."""
    if len(text) > STRICT_BYTES_MAX:
        raise web.HTTPRequestEntityTooLarge(
            max_size=STRICT_BYTES_MAX,
            actual_size=len(text),
            text="A body this large must be plain rows: JSON without an error, without true or false in its rows, "
            f'and without \\" in its strings. Others are read up to {STRICT_BYTES_MAX} bytes; send this in parts.',
        )
    found: Any = schemas.convert(identity.parse_json(text), form)
    _check_width(max(map(len, found.X), default=0))
    named = identity.hash_of(identity.check_metadata(found.metadata)) if hasattr(found, "metadata") else None
    y, weights = getattr(found, "y", None), getattr(found, "sample_weight", None)
    return named, ParsedRows(len(text), found.X, y, weights, getattr(found, "proba", False))


def _shape_parts(
    text: bytes | bytearray, form: type[Form], split: fast_json.Found, recipe: Recipe, *, learning: bool
) -> Rows:
    """Shape the rows of large JSON, a part at a time where that is possible."""
    collector = Collector(recipe)
    wrong: InvalidError | None = None
    try:
        for part in fast_json.parts(split.X):
            _check_width(max(map(len, part)))
            try:
                if wrong is None:
                    collector.add(part)
            except InvalidError as error:
                # Told only once the rest is seen to be of the form asked for: what is not, is said first.
                wrong = error
        y = fast_json.values("y", split.y)
        sample_weight = fast_json.values("sample_weight", split.sample_weight)
    except fast_json.UnprovenError:
        _, lists = _read_strictly(text, form)
        return lists.shape(recipe, learning=learning)
    if wrong is not None:
        try:
            raise wrong
        finally:
            # Error and frame would hold each other, and the body, until the next collection of garbage.
            wrong = None
    return collector.rows(y, sample_weight, learning=learning)


async def _read_table(
    request: web.Request, settings: Settings, form: type[Form], media_type: str, model_hash: str | None, proba: bool
) -> tuple[str, RowsBody]:
    if model_hash is None:
        raise web.HTTPUnsupportedMediaType(
            text=f"A table has no place for metadata: send {media_type} to /v1/models/{{hash}}/…, or JSON here."
        )
    if media_type == ARROW and not arrow.AVAILABLE:
        raise web.HTTPUnsupportedMediaType(
            text="This gateway has no Arrow: pip install 'keepfit[frames]' there, or send JSON or application/x-npy."
        )
    data = await bodies.read(request, settings)
    if isinstance(data, bytes):
        data = bytearray(data)
    opened = arrow.read_arrow if media_type == ARROW else tables.read_npy
    # In a thread although it may be small: the first time pyarrow is imported, which takes a while.
    table: Table = await asyncio.to_thread(opened, data)
    learning = form is not schemas.Predict
    _check_width(table.width - learning)
    return model_hash, LargeRows(len(data), proba, partial(table.shape, weighted=form is schemas.PartialFit))


def _is_proba_asked(request: web.Request) -> bool:
    """Tell whether the query asks for probabilities, as it has to where the rows are a table."""
    asked = request.query.getall("proba", ["false"])
    if len(asked) != 1 or asked[0] not in PROBA:
        raise MalformedError("proba must be true or false, once.")
    return PROBA[asked[0]]


def _check_width(width: int) -> None:
    """Refuse rows so wide that only looking at their values would take seconds."""
    if width > COLUMNS_MAX:
        text = f"A row has {width} columns, more than {COLUMNS_MAX}."
        raise web.HTTPRequestEntityTooLarge(max_size=COLUMNS_MAX, actual_size=width, text=text)
