"""One table in every form that a client may send gives the same rows and the same bundle, bit for bit."""

import io
import json
import unicodedata
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepfit.model.bundle import Bundle
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows.rows import Rows
from keepfit.rows.values import NUMBER_MAX
from keepfit_gateway.schemas import PartialFit
from keepfit_gateway.web import fast_json, rows_body
from tests import catalogue

HASH = "a" * 64
EPOCH = datetime(1970, 1, 1)
# Columns by name, each a list with None for a missing value; `y` among them.
Values = Mapping[str, list[Any]]
Kinds = Mapping[str, str]

present: dict[str, Any] = {
    "number": st.floats(-NUMBER_MAX, NUMBER_MAX, allow_nan=False),
    "timestamp": st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)),
    "boolean": st.booleans(),
    "category": st.sampled_from(["", " ", "1", "é", "e\u0301", "\u212b", "null", 'a"b', "x" * 900]),
    "text": st.sampled_from(["", "red shoes", "cafe\u0301 crème", "x" * 2000]),
}
targets: dict[str, Any] = {
    "SGDRegressor": st.floats(-1e3, 1e3),
    "SGDClassifier": st.sampled_from(["oui", "à", "a\u0300"]),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[str, Any], Values]:
    """Draw a recipe and a table for it, whose columns may be named in another Unicode form than the recipe's."""
    kinds = draw(st.dictionaries(st.sampled_from(["a", "b", "é", "x y"]), st.sampled_from(list(present)), min_size=1))
    nullable = {name: draw(st.booleans()) for name in kinds}
    n = draw(st.integers(1, 6))
    values = {
        unicodedata.normalize("NFD", name): draw(
            st.lists(present[kind] | (st.none() if nullable[name] else st.nothing()), min_size=n, max_size=n)
        )
        for name, kind in kinds.items()
    }
    estimator = draw(st.sampled_from(list(targets)))
    values["y"] = draw(st.lists(targets[estimator], min_size=n, max_size=n))
    document = {
        "estimator": estimator,
        "encoding": draw(st.sampled_from(["ordinal", "onehot", "hash"])),
        "features": {
            name: {"type": kind, **({"missing": "zero"} if nullable[name] else {})} for name, kind in kinds.items()
        },
    }
    return document, values


def kinds_of(recipe: Recipe) -> Kinds:
    """Return the kinds of columns by the names that the tables have."""
    return {unicodedata.normalize("NFD", column.name): column.kind for column in recipe.layout.columns}


def of_json(values: Values, kinds: Kinds, *, at: Callable[[datetime], Any] = datetime.isoformat) -> bytes:
    """Return a table as JSON rows by name; times as `at` writes them."""
    columns = {
        name: [at(value) if isinstance(value, datetime) else value for value in column]
        for name, column in values.items()
    }
    rows = [{name: columns[name][i] for name in kinds} for i in range(len(values["y"]))]
    return json.dumps({"X": rows, "y": columns["y"]}).encode()


def in_two_hours(value: datetime) -> str:
    """Return a time as text with an offset."""
    return f"{(value - timedelta(hours=2)).isoformat()}-02:00" if value.year > 1 else value.isoformat() + "Z"


def seconds(value: datetime) -> float:
    """Return a time as seconds since 1970, as Python's datetime computes them."""
    return value.replace(tzinfo=UTC).timestamp()


def small(body: bytes, recipe: Recipe) -> Rows:
    """Read JSON as the gateway does."""
    return rows_body.parse(body, PartialFit, HASH).shape(recipe, learning=True)


def strict(body: bytes, recipe: Recipe) -> Rows:
    """Read JSON with the strict parser."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_json, "decode", lambda *_: None)
        return small(body, recipe)


def large(body: bytes, recipe: Recipe) -> Rows:
    """Read JSON chunk by chunk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_body, "INLINE_BYTES_MAX", 0)
        patch.setattr(fast_json, "STEP_BYTES", 50)
        return small(body, recipe)


def table(body: bytes, media_type: str, recipe: Recipe) -> Rows:
    """Read a table as the gateway does."""
    return rows_body.parse_table(body, PartialFit, media_type, HASH).shape(recipe, learning=True)


def stream(frame: pa.Table, rows_in_batch: int | None = None) -> bytes:
    """Return an Arrow stream."""
    file = io.BytesIO()
    with pa.ipc.new_stream(file, frame.schema) as writer:
        writer.write_table(frame, max_chunksize=rows_in_batch)
    return file.getvalue()


def arrow_types(kinds: Kinds, time: pa.DataType, text: pa.DataType) -> pa.Schema:
    """Return the schema of a table; the target is text or a double."""
    types = {"number": pa.float64(), "boolean": pa.bool_(), "timestamp": time, "category": text, "text": text}
    return pa.schema([(name, types[kind]) for name, kind in kinds.items()])


def of_arrow(values: Values, kinds: Kinds, time: pa.DataType, text: pa.DataType) -> pa.Table:
    """Return a table of pyarrow, with the target first and the columns in reverse order."""
    schema = arrow_types(kinds, time, text)
    columns = {"y": pa.array(values["y"])}
    for name in reversed(schema.names):
        if pa.types.is_dictionary(schema.field(name).type):
            columns[name] = pa.array(values[name], pa.string()).dictionary_encode()
        else:
            columns[name] = pa.array(values[name], schema.field(name).type)
    return pa.table(columns)


def of_polars(values: Values, kinds: Kinds, text: Any) -> bytes:
    """Return the newest stream that polars writes."""
    types: dict[str, Any] = {
        "number": pl.Float64,
        "boolean": pl.Boolean,
        "timestamp": pl.Datetime("us"),
        "category": text,
        "text": pl.String,
    }
    frame = pl.DataFrame({name: pl.Series(values[name], dtype=types[kind]) for name, kind in kinds.items()})
    file = io.BytesIO()
    frame.with_columns(y=pl.Series(values["y"])).write_ipc_stream(file, compat_level=pl.CompatLevel.newest())
    return file.getvalue()


def of_pandas(values: Values, kinds: Kinds) -> bytes:
    """Return the stream of a pandas data frame whose index is not the number of the row."""
    types = {"number": "float64", "boolean": "boolean", "timestamp": "datetime64[us]", "category": "str", "text": "str"}
    columns = {name: pd.Series(values[name], dtype=types[kind]) for name, kind in kinds.items()}
    frame = pd.DataFrame({**columns, "y": values["y"]})
    return stream(pa.Table.from_pandas(frame.set_index(pd.Index([f"row {i}" for i in range(len(frame))]))))


def of_numpy(values: Values, kinds: Kinds) -> bytes:
    """Return an array with named fields, for tables without text."""
    types = {"number": "<f8", "boolean": "<f4", "timestamp": "<M8[us]"}
    array = np.empty(len(values["y"]), [*((name, types[kind]) for name, kind in kinds.items()), ("y", "<f8")])
    for name in array.dtype.names or ():
        absent = np.datetime64("NaT") if array.dtype[name].kind == "M" else np.nan
        array[name] = [absent if value is None else value for value in values[name]]
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(3, 0))
    return file.getvalue()


def readings(recipe: Recipe, values: Values) -> dict[str, Callable[[], Rows]]:
    """Return a function for each form of the table, by a name for messages."""
    kinds = kinds_of(recipe)
    bodies = {
        "naive": of_json(values, kinds),
        "offset": of_json(values, kinds, at=in_two_hours),
        "seconds": of_json(values, kinds, at=seconds),
    }
    found: dict[str, Callable[[], Rows]] = {}
    for name, body in bodies.items():
        for read in (small, strict, large):
            found[f"JSON {name} {read.__name__}"] = lambda read=read, body=body: read(body, recipe)  # type: ignore[misc]
    zoned, plain = pa.timestamp("us", "Asia/Kolkata"), pa.timestamp("us")
    streams: dict[str, Callable[[], bytes]] = {
        "string": lambda: stream(of_arrow(values, kinds, plain, pa.string())),
        "large_string": lambda: stream(of_arrow(values, kinds, zoned, pa.large_string()), 1),
        "string_view": lambda: stream(of_arrow(values, kinds, zoned, pa.string_view()), 2),
        "dictionary": lambda: stream(of_arrow(values, kinds, plain, pa.dictionary(pa.int32(), pa.string()))),
        "sliced": lambda: stream(
            pa.concat_tables([of_arrow(values, kinds, plain, pa.string())] * 2)[len(values["y"]) :]
        ),
        "polars": lambda: of_polars(values, kinds, pl.String),
        "polars categorical": lambda: of_polars(values, kinds, pl.Categorical),
        "pandas": lambda: of_pandas(values, kinds),
    }
    for name, make in streams.items():
        found[name] = lambda make=make: table(make(), rows_body.ARROW, recipe)  # type: ignore[misc]
    if not recipe.layout.non_numeric and recipe.entry.target == "numbers":
        found["npy"] = lambda: table(of_numpy(values, kinds), rows_body.NPY, recipe)
    return found


@settings(deadline=None, max_examples=60)
@given(tables())
def test_every_form_of_a_table_gives_the_same_bundle(drawn: tuple[dict[str, Any], Values]) -> None:
    """JSON by three parsers, Arrow of pyarrow, polars and pandas, and npy give the same rows and the same bundle."""
    document, values = drawn
    recipe = parse(document)
    expected = small(of_json(values, kinds_of(recipe), at=seconds), recipe)
    learned = Bundle.new(recipe)
    learned.partial_fit_unchecked(expected)
    for name, read in readings(recipe, values).items():
        rows = read()
        assert rows.encode() == expected.encode(), name
        bundle = Bundle.new(recipe)
        bundle.partial_fit_unchecked(Rows.decode(rows.encode()))
        parts = [(one.columns, one.labels, one.estimator) for one in (bundle, learned)]
        assert catalogue.state(parts[0]) == catalogue.state(parts[1]), name
    assert all(unicodedata.is_normalized("NFC", text) for column in expected.categories for text in column if text)


@pytest.mark.parametrize("scale", [1, 5, 30])
def test_decimals_are_the_nearest_doubles(scale: int) -> None:
    """A decimal gives the double that JSON gives for its digits."""
    recipe = parse({"estimator": "SGDRegressor", "features": {"a": "number"}})
    values = [Decimal(digits).scaleb(-scale) for digits in (1, -7, 10**17 + 1, 123_456_789_012_345_678_901_234_567)]
    frame = pa.table({"a": pa.array(values, pa.decimal128(38, scale)), "y": [0.0] * 4})
    X = ",".join(f"[{value:E}]" for value in values)
    body = f'{{"X":[{X}],"y":[0.0,0.0,0.0,0.0]}}'
    assert table(stream(frame), rows_body.ARROW, recipe) == small(body.encode(), recipe)
