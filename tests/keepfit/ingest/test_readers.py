"""Each format gives the rows that the same rows in JSON give, divided alike wherever reading begins."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from backports import zstd
from pyarrow import parquet

from keepfit.errors import InvalidError, KeepfitError
from keepfit.ingest import chunks, readers, sources
from keepfit.recipe import recipe
from keepfit.rows import arrow_files, shaping
from keepfit.rows.rows import Rows
from keepfit.store.pull_jobs import PullRequest

SHOES = recipe.parse(
    {
        "estimator": "SGDRegressor",
        "features": {
            "make": "category",
            "year": "number",
            "sold": {"type": "timestamp", "missing": "zero"},
            "new": "boolean",
        },
    }
)
CLASSIFIER = recipe.parse({"estimator": "SGDClassifier", "features": {"year": "number"}, "classes": [0, 1]})
MATRIX = recipe.parse({"estimator": "SGDRegressor"})
N, COUNT = 53, 10


def rows_of_shoes(n: int = N) -> list[dict[str, Any]]:
    """Return rows with values of each kind."""
    rng = np.random.default_rng(3)
    return [
        {
            "size": float(rng.normal()),
            "make": f'make, {i % 5}\n"{i % 3}"',
            "other": "unread",
            "year": float(rng.normal() * 10.0 ** int(rng.integers(-30, 30))),
            "sold": None if i % 7 == 0 else f"2024-02-{i % 28 + 1:02d}T12:30:00Z",
            "new": bool(i % 2),
        }
        for i in range(n)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows in the format that the name of `path` says."""
    data = b""
    names = list(rows[0])
    if ".jsonl" in path.name:
        data = b"".join(json.dumps(row).encode() + b"\n\n" for row in rows)
    elif ".csv" in path.name:
        texts = [names, *([_csv(row[name]) for name in names] for row in rows)]
        data = "\n".join(",".join(values) for values in texts).encode()
    else:
        table = pa.table({name: [row[name] for row in rows] for name in names})
        parquet.write_table(table, path, row_group_size=17)
        return
    if path.suffix == ".gz":
        # Two members, as `cat a.gz b.gz` makes.
        data = gzip.compress(data[:100]) + gzip.compress(data[100:])
    if path.suffix == ".zst":
        data = zstd.compress(data[:100]) + zstd.compress(data[100:])
    path.write_bytes(data)


def _csv(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return '"' + value.replace('"', '""') + '"'
    return str(value).lower() if isinstance(value, bool) else repr(value)


def read(path: Path, rules: Any = SHOES, count: int = COUNT, skip: int = 0, **fields: Any) -> list[Rows]:
    """Return the chunks of a source from row `skip` on."""
    request = PullRequest(url=path.as_uri(), rows_per_call=count, **fields)
    seekable = path.suffix in (".parquet", ".npy")
    source = sources.open_source(request.url, path.parent.as_uri(), 2**40, seekable=seekable)
    try:
        reader = readers.open_reader(source.file, request, rules)
        return [batch.shape(rules, None) for batch in reader.batches(count, skip)]
    finally:
        source.close()


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.zst", "a.parquet", "a.jsonl", "a.jsonl.gz"])
def test_a_source_gives_the_rows_of_json(tmp_path: Path, name: str) -> None:
    """The rows are bit for bit those of the same rows in JSON, from whichever chunk reading begins."""
    rows = rows_of_shoes()
    write(tmp_path / name, rows)
    expected = []
    for begin in range(0, N, COUNT):
        some = rows[begin : begin + COUNT]
        X = [{key: row[key] for key in ("make", "year", "sold", "new")} for row in some]
        expected.append(shaping.shape(SHOES, X, [row["size"] for row in some], learning=True).encode())
    for chunk in range(len(expected) + 1):
        found = [one.encode() for one in read(tmp_path / name, skip=chunk * COUNT, target="size")]
        assert found == expected[chunk:]


def test_columns_are_mapped_by_name(tmp_path: Path) -> None:
    """`columns` gives the model's columns other names, and for a plain matrix their order."""
    write(tmp_path / "a.csv", [{**row, "new_label": int(row["new"])} for row in rows_of_shoes()])
    mapped, *_ = read(tmp_path / "a.csv", CLASSIFIER, columns={"year": "size"}, target="new_label")
    assert np.frombuffer(mapped.numbers).tolist() == [row["size"] for row in rows_of_shoes()[:COUNT]]
    first, *_ = read(tmp_path / "a.csv", MATRIX, columns=["year", "size"], target="size")
    values = [[row["year"], row["size"]] for row in rows_of_shoes()[:COUNT]]
    assert np.frombuffer(first.numbers).reshape(-1, 2).tolist() == values


def test_labels_of_csv_have_the_type_of_the_classes(tmp_path: Path) -> None:
    """Labels of CSV are integers for integer classes, text without classes, and never guessed."""
    (tmp_path / "a.csv").write_text("year,y\n1,0\n2,1\n")
    assert read(tmp_path / "a.csv", CLASSIFIER)[0].y == [0, 1]
    free = recipe.parse({"estimator": "SGDClassifier", "features": {"year": "number"}})
    assert read(tmp_path / "a.csv", free)[0].y == ["0", "1"]
    assert read(tmp_path / "a.csv", free, label_type="integer")[0].y == [0, 1]
    (tmp_path / "a.csv").write_text("year,y\n1,x\n")
    for rules, fields in ((CLASSIFIER, {}), (free, {"label_type": "integer"})):
        with pytest.raises(InvalidError, match="'x' is not"):
            read(tmp_path / "a.csv", rules, **fields)


@pytest.mark.parametrize("skip", [0, 7])
def test_npy_has_the_target_in_its_last_column(tmp_path: Path, skip: int) -> None:
    """The rows of an array are read chunk by chunk, from any row on."""
    values = np.random.default_rng(1).normal(size=(23, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    found = read(tmp_path / "a.npy", MATRIX, 5, skip)
    numbers = np.concatenate([np.frombuffer(rows.numbers).reshape(-1, 2) for rows in found])
    assert np.array_equal(numbers, values[skip:, :2].astype(float))
    named = np.zeros(9, [("year", "f8"), ("y", "i4")])
    np.save(tmp_path / "b.npy", named)
    assert [rows.n for rows in read(tmp_path / "b.npy", CLASSIFIER, 4)] == [4, 4, 1]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"a,a,y\n1,2,3\n", "twice"),
        ("a.csv", b"year\n1\n", "no column 'y'"),
        ("a.csv", b'y,year\n1,"2' + b"\n" * 5_000_000, "never closed"),
        ("a.csv", b",".join(b"%d" % i for i in range(1_000_000)) + b"\n", "more than 10000 columns"),
        ("a.csv", b"year,y\n\xff\xff,2\n", "not CSV"),
        ("a.csv.gz", b"year,y\n1,2\n", "cannot be inflated"),
        ("a.csv.gz", gzip.compress(b"year,y\n1,2\n" * 1000, mtime=0)[:-20], "cannot be inflated"),
        ("a.parquet", b"PAR1 no parquet PAR1", "not Parquet"),
        ("a.parquet", b"", "not Parquet"),
        ("a.npy", b"\x93NUMPY", "not an npy file"),
        ("a.jsonl", b"{" * 5_000_000, "more than 4194304 bytes"),
    ],
)
def test_damaged_sources_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    """What is no source of its format says so, and takes no memory for it."""
    (tmp_path / name).write_bytes(data)
    rules = MATRIX if name == "a.npy" else CLASSIFIER
    with pytest.raises(KeepfitError, match=message), sources.readable():
        read(tmp_path / name, rules)


def test_an_inflated_source_has_a_limit(tmp_path: Path) -> None:
    """A small file that inflates to more than the limit is refused where the limit is reached."""
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"year,y\n" + b"1,1\n" * 5_000_000))
    source = sources.open_source((tmp_path / "a.csv.gz").as_uri(), tmp_path.as_uri(), 10**6, seekable=False)
    with pytest.raises(InvalidError, match="more than 1000000 bytes"):
        source.file.read()
    source.close()


def test_a_large_row_group_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column chunk that would take too much memory is refused before it is read."""
    write(tmp_path / "a.parquet", rows_of_shoes())
    monkeypatch.setattr(arrow_files, "COLUMN_CHUNK_BYTES_MAX", 50)
    with pytest.raises(InvalidError, match="write smaller row groups"):
        read(tmp_path / "a.parquet", target="size")
    write(tmp_path / "b.parquet", [{"size.eu": row["size"], "new": int(row["new"])} for row in rows_of_shoes()])
    with pytest.raises(InvalidError, match=r"'size\.eu'"):
        read(tmp_path / "b.parquet", CLASSIFIER, columns={"year": "size.eu"}, target="new")


def test_rows_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    """Of a chunk the valid rows are shaped as if they were alone; the others are reported with their numbers."""
    text = "year,y\n" + "".join(f"{'x' if i in (3, 8) else i},{'' if i == 5 else i % 2}\n" for i in range(20))
    (tmp_path / "a.csv").write_text(text)
    request = PullRequest(url=(tmp_path / "a.csv").as_uri())
    with (tmp_path / "a.csv").open("rb") as file:
        (batch,) = readers.open_reader(file, request, CLASSIFIER).batches(20, 0)
        chunk = chunks.shape_valid(batch, CLASSIFIER, 100, 3)
        beyond = chunks.shape_valid(batch, CLASSIFIER, 100, 2)
    assert [one.row for one in chunk.skipped] == [103, 105, 108]
    kept = [i for i in range(20) if i not in (3, 5, 8)]
    expected = shaping.shape(CLASSIFIER, [{"year": i} for i in kept], [i % 2 for i in kept], learning=True)
    assert chunk.rows is not None
    assert chunk.rows.encode() == expected.encode()
    assert beyond.rows is None


def test_lines_with_other_numbers_of_values_are_counted(tmp_path: Path) -> None:
    """They are no rows: they move no row to another chunk, and are counted alike from any chunk on."""
    (tmp_path / "a.csv").write_text("year,y\n1,0\n2\n3,1\n4,1,1\n5,0\n")
    for skip in (0, 2):
        reader = readers.open_reader(
            io.BytesIO((tmp_path / "a.csv").read_bytes()), PullRequest(url="file:///a.csv"), CLASSIFIER
        )
        assert sum(batch.n for batch in reader.batches(1, skip)) == 3 - skip
        assert reader.malformed[0] == 2
        assert "1 values where the header has 2" in reader.malformed[1][0]


def test_a_value_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    """What a number is in CSV is the same whether all others are numbers or not."""
    spellings = ["1", " 1.5 ", "1e3", "+2", "1_000", "nan", "inf", "1e400", "0x10", "", '""', "-0.0", "x"]
    alone = {}
    for spelling in spellings:
        (tmp_path / "a.csv").write_text(f"year,y\n{spelling},0\n")
        try:
            alone[spelling] = read(tmp_path / "a.csv", CLASSIFIER)[0].numbers
        except InvalidError:
            alone[spelling] = b""
    (tmp_path / "a.csv").write_text("year,y\n" + "".join(f"{spelling},0\n" for spelling in spellings))
    with (tmp_path / "a.csv").open("rb") as file:
        (batch,) = readers.open_reader(file, PullRequest(url="file:///a.csv"), CLASSIFIER).batches(20, 0)
        chunk = chunks.shape_valid(batch, CLASSIFIER, 0, 20)
    assert chunk.rows is not None
    assert [one.row for one in chunk.skipped] == [i for i, one in enumerate(spellings) if not alone[one]]
    assert chunk.rows.numbers == b"".join(alone[one] for one in spellings)
