"""Files of rows: formats, places of rows, and what is no row."""

import gzip
import json
from pathlib import Path

import pytest

from keepfit.client.row_files import FileRow, RowFile
from keepfit.errors import KeepfitError, MalformedError, NotFoundError


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
        for path in (tmp_path / name, tmp_path / f"{name}.gz"):
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
