"""A file of rows as the one request that scores it."""

import json
from pathlib import Path
from typing import Any

import pytest

from keepfit import Client
from keepfit.client.files import score_file as module
from keepfit.client.files.row_files import RowFile
from keepfit.client.files.row_values import columns_of
from keepfit.client.files.score_file import score_file
from keepfit.errors import InvalidError, TooLargeError
from tests.keepfit.client.scripted_server import ok, scripted

MODEL = {"recipe": {"estimator": "SGDRegressor", "features": {"x": "number"}}}


def scored(tmp_path: Path, answers: list[tuple[int, dict[str, Any]]], **options: bool) -> tuple[Any, list[Any]]:
    """Score 3,000 rows with a gateway that gives these answers; return the result and the requests."""
    path = tmp_path / "a.csv"
    path.write_text("x,y\n" + "".join(f"{row},{2 * row}\n" for row in range(3000)))
    said = [ok(json.dumps(document), status=f"{status} x") for status, document in answers]
    with RowFile(str(path)) as source, scripted(said) as server, Client(server.url) as client:
        found = score_file(client, "0" * 64, source, columns_of(MODEL, ["y"]), **options)
    return found, [json.loads(one.body) for one in server.received]


def invalid(*rows: int) -> tuple[int, dict[str, Any]]:
    """Return the answer to invalid values in these rows of the request."""
    errors = [{"detail": "wrong", "row": row, "column": "x"} for row in rows]
    return 422, {"type": "urn:keepfit:problem:invalid", "detail": "wrong", "errors": errors}


def test_rows_that_the_gateway_refuses_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are one request, also from a file on the disk; it is sent again without the rows that were refused."""
    monkeypatch.setattr(module, "IN_MEMORY_BYTES_MAX", 1000)
    monkeypatch.setattr(module, "PIECE_BYTES", 5000)
    answers = [invalid(0, 1500), invalid(1, 2997), (200, {"r2": 1.0})]
    (answer, rows, skipped), requests = scored(tmp_path, answers, skip_bad=True)
    assert (answer, rows) == ({"r2": 1.0}, 2996)
    places = [int(place.split(", line ")[1].split(":")[0]) for place in skipped]
    # The header is line 1; the second request lacks the rows 0 and 1500.
    assert places == [2, 1502, 4, 3001]
    left = [row for row in range(3000) if row + 2 not in places]
    assert requests[-1] == {"X": [[row] for row in left], "y": [2 * row for row in left]}
    assert [len(request["X"]) for request in requests] == [3000, 2998, 2996]


def test_a_refused_row_stops_with_its_place(tmp_path: Path) -> None:
    """Without skip_bad the first row that the gateway refuses is an error, with its line."""
    with pytest.raises(InvalidError, match=r"a\.csv, line 12: column 'x': wrong\."):
        scored(tmp_path, [invalid(10)])


def test_a_file_that_does_not_fit_into_a_request_is_named(tmp_path: Path) -> None:
    """The error names the file and the limit."""
    problem = {"type": "urn:keepfit:problem:too-large", "detail": "The body is larger than 5 bytes."}
    with pytest.raises(TooLargeError, match=r"a\.csv does not fit into one request, as scores need: The body is"):
        scored(tmp_path, [(413, problem)])
