"""CSV and Parquet as bodies: the rows of the same JSON, and clear errors for what is no such file."""

import io
import json
import weakref
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from keepfit.errors import InvalidError, KeepfitError
from keepfit.recipe import recipe
from keepfit.rows.file_tables import FileTable
from keepfit.rows.selection import Selection
from keepfit.rows.tables import NamedColumns
from tests.gateway.api_client import WAIT, Api

CSV, PARQUET = {"Content-Type": "text/csv"}, {"Content-Type": "application/vnd.apache.parquet"}
RECIPE = {
    "estimator": "SGDRegressor",
    "features": {
        "make": "category",
        "year": "number",
        "sold": {"type": "timestamp", "missing": "zero"},
        "new": "boolean",
    },
    "scaler": "StandardScaler",
    "encoding": "onehot",
    "max_categories": 8,
}
CLASSIFIER = {"estimator": "SGDClassifier", "features": {"year": "number"}}


def shoes(n: int = 40) -> list[dict[str, Any]]:
    """Return rows with values of each kind, a column that is not read, and a target."""
    rng = np.random.default_rng(2)
    return [
        {
            "size": float(rng.normal()), "make": f'a, "{i % 3}"', "unread": i, "year": float(rng.normal()),
            "sold": None if i % 5 == 0 else "2024-02-29T12:30:00Z", "new": bool(i % 2),
        }
        for i in range(n)
    ]  # fmt: skip


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    """Return rows as CSV."""

    def text(value: Any) -> str:
        if isinstance(value, str):
            return '"' + value.replace('"', '""') + '"'
        return "" if value is None else json.dumps(value)

    lines = [",".join(rows[0]), *(",".join(map(text, row.values())) for row in rows)]
    return "\n".join(lines).encode()


def as_parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    """Return rows as Parquet."""
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), file, **options)
    return file.getvalue()


OCTETS = {"Content-Type": "application/octet-stream"}
FORMS = {"csv": (as_csv, CSV), "parquet": (as_parquet, PARQUET), "octets": (as_parquet, OCTETS)}


@pytest.mark.parametrize("kind", FORMS)
async def test_a_file_is_the_same_rows(api: Api, metadata: dict[str, Any], kind: str) -> None:
    """Learning, predicting and scoring with a file gives what JSON gives, to the last bit."""
    write, headers = FORMS[kind]
    rows = shoes()
    first, second = (
        await api.make({**metadata, "form": "json"}, RECIPE),
        await api.make({**metadata, "form": kind}, RECIPE),
    )
    X = [{name: row[name] for name in ("make", "year", "sold", "new")} for row in rows]
    labelled = {"X": X, "y": [row["size"] for row in rows]}
    for call, document, query in (
        ("partial_fit", labelled, "?target=size"),
        ("predict", {"X": X}, "?target=size"),
        ("score", labelled, "?target=size"),
    ):
        expected = (await api.post(f"{first}/{call}", document, headers=WAIT)).of(200)
        got = (await api.call("POST", f"{second}/{call}{query}", data=write(rows), headers={**headers, **WAIT})).of(200)
        assert {**got, "hash": ""} == {**expected, "hash": ""}


async def test_columns_and_labels_are_named_in_the_query(api: Api, metadata: dict[str, Any]) -> None:
    """`columns` selects and orders the columns of a plain matrix; `label_type` gives labels of CSV their type."""
    path = await api.make(metadata, CLASSIFIER)
    data = b"year,y\n1,0\n2,1\n3,0\n"
    (await api.call("POST", f"{path}/partial_fit?label_type=integer", data=data, headers={**CSV, **WAIT})).of(200)
    predictions = (await api.call("POST", f"{path}/predict", data=data, headers=CSV)).of(200)["predictions"]
    assert set(predictions) <= {0, 1}
    matrix = await api.make({**metadata, "form": "matrix"}, {"estimator": "SGDRegressor"})
    learned = await api.call(
        "POST", f"{matrix}/partial_fit?columns=b&columns=a&target=c&sample_weight=d", data=b"a,b,c,d\n1,2,3,4\n",
        headers={**CSV, **WAIT},
    )  # fmt: skip
    assert learned.of(200)["rows_seen"] == 1
    odd = await api.call("POST", f"{matrix}/predict?columns=a&columns=b&columns=c", data=b"a,b,c\n1,2,3\n", headers=CSV)
    assert "3 values" in odd.problem(422)["detail"]


def bomb() -> bytes:
    """Return a small Parquet file with a page that is large when it is inflated."""
    file, table = io.BytesIO(), pa.table({"year": np.zeros(10_000_000), "y": np.zeros(10_000_000)})
    sizes = {"data_page_size": 2**30, "write_batch_size": 10**8, "max_rows_per_page": 10**8, "row_group_size": 10**8}
    parquet.write_table(table, file, compression="zstd", use_dictionary=False, **sizes)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "headers", "status", "detail"),
    [
        (b"", CSV, 400, "is empty"),
        (b"year,y\n1\n", CSV, 422, "1 values where the header has 2"),
        (b'year,y\n1,2\n"3,4\n', CSV, 400, "never closed"),
        (b"year,y\nabc,1\n", CSV, 422, "'abc' is not a number"),
        (b"year\n1\n", CSV, 422, "no column 'y'"),
        (b"year,y\n", CSV, 422, "at least one row"),
        (b"y,year," + b",".join(b"c%d" % i for i in range(100_000)) + b"\n", CSV, 422, "more than 10000 columns"),
        (b"year,y\n\xff\xff,1\n", CSV, 400, "not CSV"),
        (b"PAR1 something PAR1", PARQUET, 400, "not Parquet"),
        (b"year,y\n1,2\n", PARQUET, 400, "not Parquet"),
        (as_parquet([{"year": [1], "y": 1}]), PARQUET, 422, "has the type"),
        (as_parquet([{"year": 1}]), PARQUET, 422, "no column 'y'"),
    ],
)
async def test_files_that_are_refused(
    api: Api, metadata: dict[str, Any], data: bytes, headers: dict[str, str], status: int, detail: str
) -> None:
    """What is no file of its type, and what does not fit the model, says why; nothing changes."""
    path = await api.make(metadata, {"estimator": "SGDRegressor", "features": {"year": "number"}})
    reply = await api.call("POST", f"{path}/partial_fit", data=data, headers=headers)
    assert detail in reply.problem(status)["detail"]
    assert (await api.model(path))["inbox"] == (await api.model(path))["rows_seen"] == 0


def invalid_text(**options: Any) -> bytes:
    """Return a Parquet file with text that is no UTF-8."""
    texts = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    file = io.BytesIO()
    parquet.write_table(pa.table({"year": texts, "y": [1.0]}), file, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "status", "detail"),
    [
        (invalid_text(), 400, "UTF8"),
        (invalid_text(use_dictionary=False), 400, "UTF8"),
        (
            as_parquet([{"year": "a", "y": 1.0}], use_dictionary=False,
                       column_encoding={"year": "DELTA_BYTE_ARRAY", "y": "PLAIN"}),
            422, "DELTA_BYTE_ARRAY",
        ),
    ],
)  # fmt: skip
async def test_texts_of_parquet_that_are_refused(
    api: Api, metadata: dict[str, Any], data: bytes, status: int, detail: str
) -> None:
    """Text that is not UTF-8, and text that is stored as what differs from the text before it."""
    rules = {"estimator": "SGDRegressor", "features": {"year": "category"}, "encoding": "onehot", "max_categories": 8}
    path = await api.make(metadata, rules)
    reply = await api.call("POST", f"{path}/partial_fit", data=data, headers=PARQUET)
    assert detail in reply.problem(status)["detail"]


@pytest.mark.parametrize("length", [50, 500_000])
def test_texts_that_rows_share_are_in_memory_once(length: int) -> None:
    """A dictionary with one text for all rows takes the memory of one text, however long it is."""
    rules = recipe.parse({**RECIPE, "features": {"make": "category"}, "scaler": None})
    table = pa.table({"make": ["a" * length] * 200, "size": [1.0] * 200})
    file = io.BytesIO()
    parquet.write_table(table, file, compression="zstd")
    pool = pa.proxy_memory_pool(pa.system_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(InvalidError) if length > 1024 else nullcontext():
            body = FileTable(bytearray(file.getvalue()), "parquet", Selection(target="size"), None, 2**30)
            assert body.shape(rules, learning=True).n == 200
    finally:
        pa.set_memory_pool(before)
    assert 0 < pool.max_memory() < 10_000_000


class Body(bytearray):
    """A body that says whether it is in memory."""


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_body_is_released_before_its_rows_are_made(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is not in memory as it came, as columns and as rows at the same time."""
    body = Body(b"year,y\n1,2\n" if kind == "csv" else as_parquet([{"year": 1.0, "y": 2.0}]))
    table, is_alive = FileTable(body, kind, Selection(), None, 2**20), weakref.ref(body)
    del body
    shape, seen = NamedColumns.shape, list[Any]()

    def record(columns: NamedColumns, *args: Any, **options: Any) -> Any:
        seen.append(is_alive())
        return shape(columns, *args, **options)

    monkeypatch.setattr(NamedColumns, "shape", record)
    assert is_alive() is not None
    assert table.shape(recipe.parse({**RECIPE, "features": {"year": "number"}}), learning=True).n == 1
    assert seen == [None]


async def test_a_page_that_inflates_to_much_is_refused(api: Api, metadata: dict[str, Any]) -> None:
    """A few kilobytes that announce 80 MB are refused before that memory is taken."""
    path, data = await api.make(metadata, {"estimator": "SGDRegressor", "features": {"year": "number"}}), bomb()
    assert len(data) < 2**20
    reply = await api.call("POST", f"{path}/partial_fit", data=data, headers=PARQUET)
    assert "write smaller pages" in reply.problem(422)["detail"]


@pytest.mark.parametrize("query", ["target=a&target=b", "label_type=float"])
async def test_malformed_queries(api: Api, metadata: dict[str, Any], query: str) -> None:
    """A parameter that occurs twice, or has another value, is refused."""
    path = await api.make(metadata, CLASSIFIER)
    (await api.call("POST", f"{path}/partial_fit?{query}", data=b"year,y\n1,0\n", headers=CSV)).problem(400)


def test_every_truncation_is_refused() -> None:
    """A Parquet file that is cut anywhere, or has other bytes in its pages, is refused or read, and never crashes."""
    rules, data = recipe.parse(CLASSIFIER), as_parquet([{"year": float(i), "y": i % 2} for i in range(50)])
    rng = np.random.default_rng(4)
    for i in range(0, len(data), 7):
        changed = bytearray(data)
        changed[i] = int(rng.integers(256))
        for body in (bytearray(data[:i]), changed):
            try:
                FileTable(body, "parquet", Selection(), None, 2**20).shape(rules, learning=True)
            except KeepfitError:
                continue
