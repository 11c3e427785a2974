"""The commands `keepfit create`, `learn` and `predict` on a running stack."""

import csv
import gzip
import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet
import pytest
from backports import zstd

from keepfit import identity
from keepfit.cli.words import parse_metadata
from keepfit.errors import MalformedError
from keepfit.security.api_keys import new_key
from tests.conftest import Stack
from tests.keepfit.cli.command import Done, error_line, keepfit
from tests.keepfit.cli.terminal import on_terminal

ROWS = [("nike", 2001 + i % 20, 4 + i % 7 / 2) for i in range(2500)]
FEATURES = ("--features", "make:category", "year:number")
RECIPE = ("--estimator", "SGDRegressor", *FEATURES, "--scaler", "StandardScaler")


@pytest.fixture
def session() -> str:
    """Return a word that names the models of one test."""
    return uuid.uuid4().hex


@pytest.fixture
def shoes(tmp_path: Path) -> Path:
    """Return a CSV file of 2,500 rows, three requests."""
    return write(tmp_path / "shoes.csv", [{"make": make, "year": year, "fit": fit} for make, year, fit in ROWS])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def run(stack: Stack, cwd: Path, *words: str) -> Done:
    """Run a command on the stack's folder."""
    return keepfit(*words, "--data", str(stack.data), cwd=cwd)


def created(stack: Stack, cwd: Path, session: str, *recipe: str) -> str:
    """Create a model of the session and return its hash."""
    done = run(stack, cwd, "create", "--metadata", "type=shoes", f"session={session}", *(recipe or RECIPE))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def result(done: Done) -> dict[str, Any]:
    """Return the JSON that a command printed."""
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_model_is_created_from_words_or_a_recipe(stack: Stack, session: str, tmp_path: Path) -> None:
    """The same recipe in words and in a file is the same model; the hash is that of the metadata."""
    metadata = {"type": "shoes", "session": session, "size": 40}
    words = ("--metadata", "type=shoes", f"session={session}", "size:=40")
    first = run(stack, tmp_path, "create", *words, *RECIPE, "--params", "alpha=0.001", "penalty=l1")
    assert (first.returncode, first.stdout.strip()) == (0, identity.hash_of(metadata))
    recipe = {
        "estimator": "SGDRegressor", "features": {"make": "category", "year": "number"},
        "scaler": "StandardScaler", "params": {"alpha": 0.001, "penalty": "l1"},
    }  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    again = run(stack, tmp_path, "create", "--recipe", "recipe.json", "--metadata", json.dumps(metadata))
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert again.stderr == "The model exists; it has seen 0 rows.\n"
    other = run(stack, tmp_path, "create", *words, "--estimator", "SGDRegressor")
    assert "exists with another recipe" in error_line(other)
    wrong = run(stack, tmp_path, "create", *words, "--estimator", "SGDRegresor")
    assert "'SGDRegresor' is not an estimator with partial_fit; known: SGDRegressor" in error_line(wrong)
    both = run(stack, tmp_path, "create", *words, "--recipe", "recipe.json", "--scaler", "MinMaxScaler")
    assert "leave out --scaler" in error_line(both)


def test_a_file_is_learned_once(stack: Stack, session: str, shoes: Path, tmp_path: Path) -> None:
    """All rows are learned in order; the same file again learns nothing, and under another run all of it."""
    model_hash = created(stack, tmp_path, session)
    words = ("learn", "shoes.csv", "--target", "fit", "--json")
    first = result(run(stack, tmp_path, *words, "--hash", model_hash[:10]))
    assert first == {
        "hash": model_hash, "rows": 2500, "repeated": 0, "skipped": 0, "version": 3, "rows_seen": 2500,
    }  # fmt: skip
    again = result(run(stack, tmp_path, *words, "--metadata", "type=shoes", f"session={session}"))
    assert (again["rows"], again["repeated"], again["rows_seen"]) == (2500, 2500, 2500)
    other = result(run(stack, tmp_path, *words, "--hash", model_hash, "--run", "second"))
    assert (other["repeated"], other["rows_seen"]) == (0, 5000)


def test_json_and_compressed_files_are_learned_alike(stack: Stack, session: str, tmp_path: Path) -> None:
    """The same rows as CSV, JSON, JSON lines, compressed and on standard input give models with equal predictions."""
    rows = [{"make": make, "year": year, "fit": fit} for make, year, fit in ROWS[:50]]
    write(tmp_path / "a.csv", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    predictions = []
    for number, name in enumerate(("a.csv", "b.json", "c.jsonl.gz")):
        model_hash = created(stack, tmp_path, f"{session}{number}")
        assert (
            result(run(stack, tmp_path, "learn", name, "--target", "fit", "--hash", model_hash, "--json"))["rows"] == 50
        )
        done = run(stack, tmp_path, "predict", name, "--hash", model_hash, "--only", "--output", "out.jsonl")
        assert (done.returncode, done.stdout) == (0, "")
        predictions.append((tmp_path / "out.jsonl").read_text())
    assert len(predictions[0].splitlines()) == 50
    assert predictions[0] == predictions[1] == predictions[2]
    words = ("predict", "-", "--hash", model_hash, "--data", str(stack.data))
    piped = keepfit(*words, cwd=tmp_path, sent="fit,year,make,id\n4,2001,nike,7\n")
    assert piped.returncode == 0, piped.stderr
    header, row = csv.reader(piped.stdout.splitlines())
    assert header == ["fit", "year", "make", "id", "prediction"]
    assert row[:4] == ["4", "2001", "nike", "7"]
    assert float(row[4]) == json.loads(predictions[0].splitlines()[0])["prediction"]


def test_parquet_is_learned_scored_and_predicted_as_csv_is(stack: Stack, session: str, tmp_path: Path) -> None:
    """The same rows as CSV and as Parquet give models with equal predictions and scores, which the output names."""
    rows = [{"make": make, "year": year, "fit": fit} for make, year, fit in ROWS[:300]]
    write(tmp_path / "a.csv", rows)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=100)
    (tmp_path / "a.csv.zst").write_bytes(zstd.compress((tmp_path / "a.csv").read_bytes()))
    found = []
    for number, name in enumerate(("a.csv", "a.parquet", "a.csv.zst")):
        named = ("--hash", created(stack, tmp_path, f"{session}{number}"))
        learned = result(run(stack, tmp_path, "learn", name, "--target", "fit", *named, "--batch", "100", "--json"))
        assert (learned["rows"], learned["version"]) == (300, 3)
        scores = result(run(stack, tmp_path, "score", name, "--target", "fit", *named, "--json"))
        assert scores.pop("hash") == named[1]
        done = run(stack, tmp_path, "predict", name, *named)
        assert done.returncode == 0, done.stderr
        predicted = [float(row["prediction"]) for row in csv.DictReader(done.stdout.splitlines())]
        found.append((scores, predicted))
    assert found[0] == found[1] == found[2]
    scores, predicted = found[0]
    errors = [abs(row["fit"] - guess) for row, guess in zip(rows, predicted, strict=True)]
    assert scores["mean_absolute_error"] == pytest.approx(sum(errors) / 300)
    assert {name: scores[name] for name in ("version", "rows_seen", "rows", "skipped")} == {
        "version": 3, "rows_seen": 300, "rows": 300, "skipped": 0,
    }  # fmt: skip
    shown = run(stack, tmp_path, "score", "a.csv", "--target", "fit", *named).stdout.splitlines()
    assert [line.split("\t")[0] for line in shown] == [
        "score", "rows", "version", "rows_seen", "max_error", "mean_absolute_error", "r2",
    ]  # fmt: skip
    refused = run(stack, tmp_path, "predict", "a.csv", *named, "--output", "b.parquet")
    assert "b.parquet: Parquet is read and not written: name the output .csv or .jsonl." in error_line(refused)


def test_bad_rows_are_scored_on_request_only(stack: Stack, session: str, shoes: Path, tmp_path: Path) -> None:
    """A bad row stops `score` with its place, also if the gateway finds it; --skip-bad leaves out such rows."""
    named = ("--target", "fit", "--hash", created(stack, tmp_path, session))
    assert run(stack, tmp_path, "learn", "shoes.csv", *named).returncode == 0
    lines = shoes.read_text().splitlines()
    whole = result(run(stack, tmp_path, "score", "shoes.csv", *named, "--json"))
    assert (whole["rows"], whole["version"]) == (2500, 3)
    # The first fault is found here, the second by the gateway.
    shoes.write_text("\n".join([*lines[:5], "nike,abc,4", *lines[5:1500], "nike,1e39,4", *lines[1500:]]))
    assert "shoes.csv, line 6: column 'year': 'abc' is not a number." in error_line(
        run(stack, tmp_path, "score", "shoes.csv", *named)
    )
    shoes.write_text("\n".join([*lines[:1500], "nike,1e39,4", *lines[1500:]]))
    assert "shoes.csv, line 1501: column 'year': 1e+39 is not" in error_line(
        run(stack, tmp_path, "score", "shoes.csv", *named)
    )
    shoes.write_text("\n".join([*lines[:5], "nike,abc,4", *lines[5:1500], "nike,1e39,4", *lines[1500:]]))
    done = run(stack, tmp_path, "score", "shoes.csv", *named, "--skip-bad", "--json")
    assert {**result(done), "skipped": 0} == whole
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["shoes.csv, line 6", "shoes.csv, line 1502"]
    shoes.write_text("make,year,fit\n")
    assert "shoes.csv has no rows to score." in error_line(run(stack, tmp_path, "score", "shoes.csv", *named))


def test_a_bad_row_stops_with_its_line_and_column(stack: Stack, session: str, shoes: Path, tmp_path: Path) -> None:
    """The error names line, column and value, and how far it came; after the row is mended the rest is learned."""
    model_hash = created(stack, tmp_path, session)
    lines = shoes.read_text().splitlines()
    good = lines[1200]
    words = ("learn", "shoes.csv", "--target", "fit", "--hash", model_hash)
    for wrong, fault in (
        ("nike,abc,4", "column 'year': 'abc' is not a number"),
        ("nike,2001", "the line has 2 values where the header names 3 columns"),
        ("nike,1e39,4", "column 'year': 1e+39 is not a finite number"),
        ("nike,2001,1e39", "column 'fit': 1e+39 is not a finite number"),
    ):
        lines[1200] = wrong
        shoes.write_text("\n".join(lines))
        line = error_line(run(stack, tmp_path, *words))
        assert line.startswith(f"keepfit: shoes.csv, line 1201: {fault}")
        assert "1000 rows before that are learned, and nothing after them" in line
    lines[1200] = good
    shoes.write_text("\n".join(lines))
    mended = result(run(stack, tmp_path, *words, "--json"))
    assert (mended["rows"], mended["repeated"], mended["rows_seen"]) == (2500, 1000, 2500)


def test_bad_rows_are_left_out_on_request(stack: Stack, session: str, shoes: Path, tmp_path: Path) -> None:
    """--skip-bad leaves out bad rows and names them, also if the gateway finds them; their prediction is empty."""
    model_hash = created(stack, tmp_path, session)
    lines = shoes.read_text().splitlines()
    lines[5], lines[9], lines[1500] = "nike,abc,4", "nike,1e39,4", "nike"
    shoes.write_text("\n".join(lines))
    words = ("learn", "shoes.csv", "--target", "fit", "--hash", model_hash, "--skip-bad")
    for _ in range(2):
        done = run(stack, tmp_path, *words, "--json")
        learned = result(done)
        assert (learned["rows"], learned["skipped"], learned["rows_seen"]) == (2497, 3, 2497)
        assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [
            "shoes.csv, line 6", "shoes.csv, line 10", "shoes.csv, line 1501",
        ]  # fmt: skip
    predict = ("predict", "shoes.csv", "--hash", model_hash, "--output", "out.csv")
    assert "line 6: column 'year': 'abc' is not a number" in error_line(run(stack, tmp_path, *predict))
    assert not (tmp_path / "out.csv").exists()
    assert run(stack, tmp_path, *predict, "--skip-bad").returncode == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert len(rows) == 2500
    assert [number for number, row in enumerate(rows) if not row["prediction"]] == [4, 8, 1499]


def test_labels_and_probabilities(stack: Stack, session: str, tmp_path: Path) -> None:
    """A classifier learns labels of CSV, and predicts them with a column of probability for each class."""
    write(tmp_path / "votes.csv", [{"size": i % 9, "vote": "big" if i % 9 > 4 else "small"} for i in range(90)])
    model_hash = created(
        stack, tmp_path, session, "--estimator", "GaussianNB", "--classes", "big", "small", "--features", "size:number"
    )
    learned = result(run(stack, tmp_path, "learn", "votes.csv", "--target", "vote", "--hash", model_hash, "--json"))
    assert learned["rows"] == 90
    done = run(stack, tmp_path, "predict", "votes.csv", "--hash", model_hash, "--proba", "--column", "guess")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert list(rows[0]) == ["size", "vote", "guess", "guess_big", "guess_small"]
    assert all(row["guess"] == row["vote"] for row in rows)
    assert float(rows[0]["guess_big"]) + float(rows[0]["guess_small"]) == pytest.approx(1)
    write(tmp_path / "evil.csv", [{"size": 1, "note": "\x1b[2J\u202e"}])
    shown = on_terminal("predict", "evil.csv", "--hash", model_hash, "--data", str(stack.data), cwd=tmp_path)
    assert shown == "size,note,prediction\n1,\\x1b[2J\\u202e,small\n"
    taken = run(stack, tmp_path, "predict", "votes.csv", "--hash", model_hash, "--column", "vote")
    assert "has a column 'vote' already; name another one with --column" in error_line(taken)


def test_wrong_words_are_errors(stack: Stack, session: str, shoes: Path, tmp_path: Path) -> None:
    """A missing model, file, target or column, and a gateway that does not answer, are one clear line each."""
    model_hash = created(stack, tmp_path, session)
    named = ("--target", "fit", "--hash", model_hash)
    for words, message in (
        (("learn", "none.csv", *named), "There is no file none.csv."),
        (("learn", "shoes.csv", "--hash", model_hash), "name its column with --target"),
        (("learn", "shoes.csv", "--target", "size", "--hash", model_hash), "column 'size' is missing; the file has"),
        (("learn", "shoes.csv", "--target", "fit"), "Name the model with either --hash or --metadata"),
        (("learn", "shoes.csv", "--target", "fit", "--hash", "xyz"), "'xyz' is not the beginning of a hash"),
        (("learn", "shoes.csv", "--target", "fit", "--hash", "0" * 30), "There is no model whose hash begins with"),
        (("predict", "shoes.csv", "--metadata", "type=none"), 'There is no model with the metadata {"type": "none"}'),
        (("predict", "shoes.csv", "--hash", "00", "--url", "http://127.0.0.1:1"), "Connection refused"),
        (("predict", "shoes.csv", "--hash", "00", "--url", "localhost"), "is not the URL of a gateway"),
    ):  # fmt: skip
        assert message in error_line(run(stack, tmp_path, *words))
    usage = run(stack, tmp_path, "create", "--metadata", "--estimator", "SGDRegressor")
    assert usage.returncode == 2
    assert "a word must follow" in usage.stderr


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=str)
def test_an_interrupted_run_continues(
    stack: Stack, session: str, shoes: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    """A run that is killed or interrupted in a file learns the rest when it is repeated, and no row twice.

    Ctrl-C says how many rows are learned.
    """
    model_hash = created(stack, tmp_path, session)
    options = ["--target", "fit", "--hash", model_hash, "--data", str(stack.data), "--batch", "250"]
    command = [sys.executable, "-m", "keepfit", "learn", "-", *options]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    # A part of the file, after which its source hangs.
    process.stdin.write(b"".join(shoes.read_bytes().splitlines(keepends=True)[:700]))
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while result(run(stack, tmp_path, "models", "--hash", model_hash, "--json"))["rows_seen"] < 500:
        assert time.monotonic() < deadline
    process.send_signal(sent)
    process.wait(30)
    _, notes = process.communicate()
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert notes.decode() == "interrupted: 500 rows are learned; send the file again to continue\n"
    done = result(keepfit("learn", "shoes.csv", *options, "--json", cwd=tmp_path))
    assert (done["rows"], done["repeated"], done["rows_seen"], done["version"]) == (2500, 500, 2500, 10)


class _Flaky(BaseHTTPRequestHandler):
    """A gateway that refuses every first call, or a proxy does, and records the keys of learning calls."""

    calls = 0
    keys: ClassVar[list[tuple[str | None, str | None]]] = []

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def _answer(self, status: int, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status >= 400:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        """Describe a model."""
        recipe = {"estimator": "SGDRegressor", "features": {"make": "category", "year": "number"}}
        self._answer(200, {"recipe": recipe, "rows_seen": 0})

    def do_POST(self) -> None:
        """Refuse every first call with a key, and accept the second one."""
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).keys.append((self.headers["Idempotency-Key"], self.headers["Authorization"]))
        type(self).calls += 1
        if self.calls % 4 == 3:
            self.send_response(502)
            self.end_headers()
            self.wfile.write(b"<html>Bad Gateway</html>")
            self.close_connection = True
            return None
        if self.calls % 2:
            return self._answer(429, {"type": "urn:keepfit:problem:inbox-full", "detail": "full", "status": 429})
        return self._answer(200, {"version": self.calls // 2, "rows_seen": 1000 * self.calls // 2})


@pytest.fixture
def flaky() -> Iterator[str]:
    """Run the flaky gateway; yield its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Flaky)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_refused_requests_are_repeated_with_the_same_key(flaky: str, shoes: Path, tmp_path: Path) -> None:
    """A call that is refused for overload is sent again, with the same Idempotency-Key and the setting's API key."""
    variables = {"KEEPFIT_URL": flaky, "KEEPFIT_API_KEY": "kf_secret"}
    done = keepfit("learn", "shoes.csv", "--target", "fit", "--hash", "0" * 64, cwd=tmp_path, variables=variables)
    assert done.returncode == 0, done.stderr
    keys = [key for key, _ in _Flaky.keys]
    assert keys[::2] == keys[1::2]
    assert len(set(keys)) == 3
    assert {authorization for _, authorization in _Flaky.keys} == {"Bearer kf_secret"}
    assert "kf_secret" not in done.stdout + done.stderr


def test_metadata_on_the_command_line() -> None:
    """KEY=VALUE is text, KEY:=JSON any JSON; anything else is an error."""
    assert parse_metadata(["type=shoes", "a=1=2", "n:=1.5", "t:=true", 'o:={"x": [1]}']) == {
        "type": "shoes", "a": "1=2", "n": 1.5, "t": True, "o": {"x": [1]},
    }  # fmt: skip
    for wrong in (["type"], ["=x", "type=a"], ["type=a", "type=b"], ["type=a", "n:=x"], ["{]"]):
        with pytest.raises(MalformedError):
            parse_metadata(wrong)


class _Closed(_Flaky):
    """A gateway that requires an API key and does not know the one that it gets."""

    def do_GET(self) -> None:
        """Refuse the key."""
        type(self).keys.append((None, self.headers["Authorization"]))
        self._answer(
            401, {"type": "urn:keepfit:problem:unauthorized", "detail": "The API key is not known.", "status": 401}
        )


def test_the_error_of_a_gateway_that_requires_a_key_is_shown(tmp_path: Path) -> None:
    """The key is sent in a header; the gateway's error about it is printed, and the key never is."""
    token, _ = new_key("web", ["learn"], "")
    _Closed.keys = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Closed) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        variables = {"KEEPFIT_URL": f"http://127.0.0.1:{server.server_port}", "KEEPFIT_API_KEY": token}
        done = keepfit("predict", "-", "--hash", "00", cwd=tmp_path, variables=variables)
        server.shutdown()
        thread.join()
    assert error_line(done) == "keepfit: The API key is not known."
    assert {authorization for _, authorization in _Closed.keys} == {f"Bearer {token}"}
    assert token not in done.stderr
    unnamed = keepfit("predict", "-", "--hash", "00", cwd=tmp_path, variables={"KEEPFIT_PORT": "0"})
    assert "name the gateway with --url or KEEPFIT_URL" in error_line(unnamed)
