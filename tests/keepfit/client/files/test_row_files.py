"""Files of rows: formats, places of rows, and what is no row."""

import gzip
import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from backports import zstd

from keepfit.client.files.row_files import FileRow, RowFile
from keepfit.errors import InvalidError, KeepfitError, MalformedError, NotFoundError


def read(path: Path, **options: str) -> list[FileRow]:
    """Return the rows of a file."""
    with RowFile(str(path), **options) as source:  # type: ignore[arg-type]
        return list(source)


def test_the_same_rows_are_read_from_every_format(tmp_path: Path) -> None:
    """CSV (with a byte order mark, quotes and Windows line ends), TSV, JSON and JSON lines, plain and compressed."""
    rows = [{"make": "nike, Inc.", "note": 'two\nlines "quoted"'}, {"make": "größe", "note": ""}]
    texts = {
        "rows.csv": '\ufeffmake,note\r\n"nike, Inc.","two\nlines ""quoted"""\r\ngröße,\r\n\r\n',
        "rows.tsv": 'make\tnote\nnike, Inc.\t"two\nlines ""quoted"""\ngröße\t\n',
        "rows.json": json.dumps(rows, indent=1),
        "rows.jsonl": "".join(json.dumps(row) + "\n\n" for row in rows),
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        (tmp_path / f"{name}.zst").write_bytes(zstd.compress(text.encode()))
        for path in (tmp_path / name, tmp_path / f"{name}.gz", tmp_path / f"{name}.zst"):
            assert [row.values for row in read(path)] == rows, path
    assert [row.place for row in read(tmp_path / "rows.csv")] == ["line 2", "line 4"]
    assert [row.place for row in read(tmp_path / "rows.jsonl")] == ["line 1", "line 3"]
    (tmp_path / "semicolons").write_text("make;note\nnike;a,b\n")
    assert read(tmp_path / "semicolons", format_="csv", delimiter=";")[0].values == {"make": "nike", "note": "a,b"}


def test_lines_that_are_no_rows_have_a_fault(tmp_path: Path) -> None:
    """A line with too few values, or of invalid JSON, is a row with a fault; the rows after it are read."""
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3\n4,5,6\n7,8\n")
    assert [(row.place, row.fault) for row in read(tmp_path / "a.csv")] == [
        ("line 2", ""),
        ("line 3", "the line has 1 values where the header names 2 columns"),
        ("line 4", "the line has 3 values where the header names 2 columns"),
        ("line 5", ""),
    ]
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n{"x": \n[1]\n{"x": NaN}\n{"x": 1, "x": 2}\n{"x": 2}\n')
    faults = [row.fault for row in read(tmp_path / "a.jsonl")]
    assert [bool(fault) for fault in faults] == [False, True, True, True, True, False]
    assert faults[1].startswith("The line is not JSON")


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.csv", b"", MalformedError, "is empty: its first line must name the columns"),
        ("a.csv", b"x,x\n1,2\n", MalformedError, "the header names the column 'x' twice"),
        ("a.csv", b'x,y\n1,"2\n3,4\n', MalformedError, "not CSV after line 1: unexpected end of data"),
        ("a.csv", b"x,y\n1,2\n3,\xff\n", MalformedError, "not UTF-8 text after line"),
        ("a.csv.gz", b"x,y\n1,2\n", MalformedError, "not a whole gzip file"),
        ("a.csv.gz", gzip.compress(b"x,y\n1,2\n" * 99, mtime=0)[:-9], MalformedError, "not a whole gzip file"),
        ("a.csv.zst", b"x,y\n1,2\n", MalformedError, "not a whole zstd file"),
        ("a.csv.zst", zstd.compress(b"x,y\n1,2\n" * 99)[:-3], MalformedError, "not a whole zstd file"),
        ("a.parquet", b"x,y\n1,2\n", MalformedError, "a.parquet: The source is not Parquet"),
        ("a.json", b'{"X": [[1]]}', MalformedError, "must be a list of rows"),
        ("a.json", b"[1", MalformedError, "The file is not JSON"),
        ("a.txt", b"x", MalformedError, "ends in no known format"),
        ("a.csv", None, NotFoundError, "There is no file"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(
    tmp_path: Path, name: str, content: bytes | None, error: type[KeepfitError], message: str
) -> None:
    """An error names the file, what is wrong with it and after which line."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message) as raised:
        read(tmp_path / name)
    assert name in str(raised.value)


def test_parquet_has_the_values_that_json_has(tmp_path: Path) -> None:
    """Numbers, texts, booleans and decimals are as in JSON, times are seconds, a null or NaN is missing."""
    day = datetime(2026, 11, 20, 12, 30, 0, 250000, tzinfo=UTC)
    table = pa.table(
        {
            "number": [1.5, math.nan, None, 4.0],
            "count": pa.array([1, 2, None, 4], pa.int8()),
            "text": pa.array(["größe", None, "", "d"]).dictionary_encode(),
            "flag": [True, False, None, True],
            "time": pa.array([day, None, day, day], pa.timestamp("ns", "Europe/Berlin")),
            "day": pa.array([day.date()] * 4),
            "price": pa.array([Decimal("1.10")] * 4, pa.decimal128(5, 2)),
            "nothing": pa.nulls(4),
        }
    )
    for path, rows_of_group in ((tmp_path / "a.parquet", 3), (tmp_path / "b.parquet.gz", 4)):
        pyarrow.parquet.write_table(table, path, row_group_size=rows_of_group)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
        with RowFile(str(path)) as source:
            assert source.columns == table.column_names
            rows = list(source)
        assert [row.place for row in rows] == ["row 1", "row 2", "row 3", "row 4"]
        seconds, midnight = day.timestamp(), day.replace(hour=0, minute=0, microsecond=0).timestamp()
        assert [list(row.values.values()) for row in rows] == [
            [1.5, 1, "größe", True, seconds, midnight, 1.1, None],
            [None, 2, None, False, None, midnight, 1.1, None],
            [None, None, "", None, seconds, midnight, 1.1, None],
            [4.0, 4, "d", True, seconds, midnight, 1.1, None],
        ]


def test_parquet_with_a_column_that_has_no_meaning_is_an_error(tmp_path: Path) -> None:
    """The error names the file, the column and its type."""
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"x": [[1, 2]]}), path)
    with pytest.raises(InvalidError, match=r"a\.parquet: column 'x' has the type list"):
        read(path)
