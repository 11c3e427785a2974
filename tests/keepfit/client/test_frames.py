"""Data frames, arrays and other forms of rows give the predictions of the same rows as JSON, in every size."""

import gzip
import math
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse

from keepfit import Client
from keepfit.client.calling import sending
from keepfit.client.rows import arrow_tables, bodies
from keepfit.client.rows.bodies import ARROW, JSON, NPY, Forms
from keepfit.client.rows.targets import data_of
from keepfit.errors import InboxFullError, InvalidError, MalformedError, NotFoundError
from tests.conftest import Stack
from tests.keepfit.client.scripted_server import ok, scripted

FEATURES = {
    "make": "category",
    "code": {"type": "category", "missing": "indicator"},
    "year": {"type": "number", "missing": "mean"},
    "when": {"type": "timestamp", "missing": "mean", "expand": ["hour", "weekday"]},
    "ok": {"type": "boolean", "missing": "zero"},
    "note": {"type": "text", "missing": "zero", "n_features": 16},
}
ROWS = 3000


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Client]:
    """Open a client for all tests of the module."""
    with Client(stack.url) as opened:
        yield opened


def make_frame() -> pd.DataFrame:
    """Return columns of every type, with a time zone and missing values."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "make": pd.Categorical(random.choice(["nike", "puma", "adidas"], ROWS)),
            "code": pd.array(random.integers(0, 9, ROWS), "Int64"),
            "year": random.integers(1990, 2020, ROWS).astype(float),
            "when": pd.date_range("2024-01-01", periods=ROWS, freq="37min", tz="Europe/Berlin"),
            "ok": pd.array(random.random(ROWS) > 0.5, "boolean"),
            "note": random.choice(["red shoe", "blue shoe", "größer"], ROWS),
        }
    )
    for step, name in enumerate(("code", "year", "when", "ok", "note"), 7):
        frame.loc[::step, name] = None
    return frame


def as_json(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as a program without keepfit would write them in JSON."""

    def plain(value: Any) -> Any:
        if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
            return None
        return value.isoformat() if isinstance(value, pd.Timestamp) else value

    return [{name: plain(value) for name, value in row.items()} for row in frame.to_dict("records")]


def test_every_form_gives_the_predictions_of_json(client: Client, metadata: dict[str, Any]) -> None:
    """pandas, polars, pyarrow and dicts of columns, large or small, arrive as the columns that the recipe names."""
    frame = make_frame()
    rows = as_json(frame)
    model = client.create(metadata, estimator="SGDRegressor", features=FEATURES, scaler="StandardScaler")
    size = np.arange(ROWS) % 17 / 4
    learned = model.partial_fit(frame.assign(size=size), target="size", wait=True)
    assert learned["rows_seen"] == ROWS
    expected = model.predict(rows)
    expected_small = [model.predict(row)[0] for row in rows[:10]]
    forms = {
        "pandas": (frame, lambda form, at: form.iloc[at : at + 1]),
        "polars": (pl.from_pandas(frame), lambda form, at: form.slice(at, 1)),
        "pyarrow": (pa.Table.from_pandas(frame, preserve_index=False), lambda form, at: form.slice(at, 1)),
        "columns": (
            {name: frame[name].tolist() for name in frame},
            lambda form, at: {name: values[at : at + 1] for name, values in form.items()},
        ),
    }
    for name, (form, take) in forms.items():
        assert model.predict(form) == expected, name
        assert [model.predict(take(form, at))[0] for at in range(10)] == expected_small, name


def test_all_forms_are_learned_alike(client: Client, metadata: dict[str, Any]) -> None:
    """The same rows and targets give the same model, as JSON, as npy and as Arrow."""
    random = np.random.default_rng(1)
    X, y = random.normal(size=(600, 4)), random.integers(0, 3, 600)
    names = ["a", "b", "c", "d"]
    frame = pd.DataFrame(X, columns=names)
    forms: list[tuple[Any, Any]] = [
        (X.tolist(), y.tolist()),
        (X, y),
        (X, y.astype(float)),
        (frame, pd.Series(y)),
        (frame.assign(kind=y), "kind"),
        (pl.DataFrame(frame), pl.Series(y)),
        (scipy.sparse.csc_matrix(X), y),
        (np.rec.fromarrays(X.T, names=names), y),
        (frame.assign(kind=y).to_dict("records"), "kind"),
    ]  # fmt: skip
    answers = []
    for number, (rows, target) in enumerate(forms):
        model = client.create(
            {**metadata, "form": number}, estimator="GaussianNB", features=dict.fromkeys(names, "number")
        )
        assert model.partial_fit(rows, target, wait=True)["rows_seen"] == 600
        model.partial_fit(X[:2], y[:2].astype(float), sample_weight=[1.0, 2.0], wait=True)
        answers.append((model.predict(X, proba=True).probabilities, model.score(X, y)["accuracy"]))
    assert all(answer == answers[0] for answer in answers)


def test_several_targets(client: Client, metadata: dict[str, Any]) -> None:
    """Names of several columns, and an array of two dimensions, are several outputs."""
    model = client.create(
        metadata, {"estimator": "MultiOutputRegressor", "params": {"estimator": {"SGDRegressor": {}}}}
    )
    X = np.random.default_rng(2).normal(size=(300, 3))
    frame = pd.DataFrame(np.column_stack([X, X[:, :2]]), columns=["a", "b", "c", "one", "two"])
    model.partial_fit(frame.to_numpy()[:, :3], frame[["one", "two"]].to_numpy(), wait=True)
    assert np.asarray(model.predict(X)).shape == (300, 2)
    assert model.partial_fit(X.tolist(), frame[["one", "two"]], wait=True)["rows_seen"] == 600


def test_rows_are_divided_where_they_must(
    client: Client, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than a request may have go in several, in order; a repeat with the key of the call learns nothing."""
    monkeypatch.setattr(sending, "CALL_BYTES_MAX", 40_000)
    monkeypatch.setattr(sending, "PREDICTED_ROWS_MAX", 700)
    X, y = np.random.default_rng(3).normal(size=(3000, 3)), np.arange(3000.0)
    whole = client.create(metadata, estimator="PassiveAggressiveRegressor")
    steps: list[tuple[int, int]] = []
    answer = whole.partial_fit(X, y, idempotency_key="k", wait=True, progress=lambda *step: steps.append(step))
    assert (answer["accepted"], answer["rows_seen"]) == (3000, 3000)
    assert answer["sequence"] > 1
    assert steps[-1] == (3000, 3000)
    assert steps == sorted(steps)
    again = whole.partial_fit(X, y, idempotency_key="k", wait=True)
    assert again["rows_seen"] == 3000
    assert len(whole.predict(X)) == 3000
    with pytest.raises(InvalidError, match="rows of the call before that are accepted"):
        whole.partial_fit(np.vstack([X, [[np.nan] * 3]]), np.append(y, 0.0))


def test_a_part_that_is_too_large_is_halved() -> None:
    """After a 413 the rows are divided, until they fit; the key of each part names its first row."""
    too_large = ok('{"type": "urn:keepfit:problem:too-large", "detail": "No."}', status="413 Too Large")
    accepted = ok('{"accepted": 2, "sequence": 1}', status="202 Accepted")
    with scripted([too_large, accepted, accepted]) as server, Client(server.url) as client:
        answer = client.model("5f" * 32).partial_fit([[1], [2], [3], [4]], [1, 2, 3, 4], idempotency_key="k")
    assert answer["accepted"] == 4
    assert [one.fields["idempotency-key"] for one in server.received] == ["k", "k-0", "k-2"]


def test_the_form_is_the_smallest_that_holds_the_rows() -> None:
    """Small rows are JSON, numbers npy, frames Arrow; what a form cannot hold goes as JSON."""
    X = np.zeros((500, 5))
    frame = pd.DataFrame(X, columns=list("abcde"))
    cases: list[tuple[Any, Any, str]] = [
        (X[:3], None, JSON),
        (X, None, NPY),
        (X, np.ones(500), NPY),
        (X.astype("f4"), np.ones(500, int), NPY),
        (X, np.ones(500, bool), JSON),
        (X, ["a"] * 500, JSON),
        (frame, None, ARROW),
        (frame, ["a"] * 500, ARROW),
        (frame.rename(columns={"a": "y"}), np.ones(500), JSON),
        (frame, [[1, 2]] * 500, JSON),
        (X.tolist(), None, JSON),
    ]
    for rows, y, media_type in cases:
        data = data_of(rows, y)
        assert bodies.encode(data, 0, data.rows, Forms(), {}, None).media_type == media_type
    data = data_of(frame)
    assert bodies.encode(data, 0, 500, Forms(arrow=False), {}, None).media_type == JSON
    assert bodies.encode(data, 0, 500, Forms(), {"id": "a"}, None).media_type == JSON


def test_a_gateway_without_pyarrow_gets_json() -> None:
    """After a 415 that names pyarrow the rows go as JSON, and so do those of later calls."""
    lacks = ok(
        '{"type": "urn:keepfit:problem:unsupported-media-type", "detail": "This gateway lacks pyarrow."}',
        status="415 Unsupported Media Type",
    )
    predicted = ok('{"hash": "5f", "version": 1, "rows_seen": 1, "predictions": [1]}')
    frame = pd.DataFrame(np.zeros((500, 5)), columns=list("abcde"))
    with scripted([lacks, predicted, predicted]) as server, Client(server.url) as client:
        for _ in range(2):
            client.model("5f" * 32).predict(frame)
    assert [one.fields["content-type"] for one in server.received] == [ARROW, JSON, JSON]


def test_without_pyarrow_a_frame_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow is optional for clients, too."""
    monkeypatch.setattr(arrow_tables, "AVAILABLE", False)
    data = data_of(make_frame())
    encoded = bodies.encode(data, 0, data.rows, Forms(), {}, None)
    assert encoded.media_type == JSON
    body = encoded.body if isinstance(encoded.body, bytes) else b"".join(map(bytes, encoded.body))
    assert body.count(b'"make":') == ROWS


def test_a_body_is_coded_if_that_saves_much() -> None:
    """Zeros are coded, random numbers and short bodies are not; the coded body is the same."""
    zeros, noise = np.zeros((9000, 5)), np.random.default_rng(4).random((9000, 5))
    for coding in ("gzip", "zstd"):
        coded, plain, short = (
            bodies.encode(data_of(rows), 0, len(rows), Forms(coding=coding), {}, None)
            for rows in (zeros, noise, zeros[:500])
        )
        assert (coded.coding, plain.coding, short.coding) == (coding, None, None)
        if coding == "gzip":
            whole = bodies.encode(data_of(zeros), 0, 9000, Forms(), {}, None).body
            assert gzip.decompress(b"".join(map(bytes, coded.body))) == b"".join(map(bytes, whole))  # type: ignore[arg-type]


def test_coded_bodies_are_learned(stack: Stack, metadata: dict[str, Any]) -> None:
    """A gateway reads what the client codes, in each coding and each form."""
    frame = pd.DataFrame(np.zeros((20_000, 4)), columns=list("abcd"))
    with Client(stack.url) as client:
        model = client.create(metadata, estimator="SGDRegressor", features=dict.fromkeys("abcd", "number"))
        for coding in ("gzip", "zstd"):
            client._calls.forms.coding = coding
            for rows in (frame, frame.to_numpy(), frame.to_numpy()[:9000].tolist()):
                model.partial_fit(rows, np.zeros(len(rows)), wait=True)
        assert model.describe()["rows_seen"] == 2 * 49_000


def test_a_large_body_is_encoded_while_it_is_sent() -> None:
    """Whatever the size of the rows, no piece of a body is larger than some megabytes."""
    rows = 400_000
    frame = pd.DataFrame(
        {"a": np.zeros(rows), "b": np.arange(rows), "make": pd.Categorical(["nike", "puma"] * (rows // 2))}
    )
    for form in (frame, pl.from_pandas(frame), frame[["a", "b"]].to_numpy(), scipy.sparse.csr_matrix((rows, 3))):
        data = data_of(form, np.zeros(rows))
        body = bodies.encode(data, 0, rows, Forms(), {}, None).body
        assert not isinstance(body, bytes)
        sizes = [memoryview(piece).nbytes for piece in body]
        assert max(sizes) < 4 << 20 < sum(sizes)
        if body.size is not None:
            assert body.size == sum(sizes)


def test_an_error_says_how_many_rows_went_before() -> None:
    """It stays the error that it was, with the time after which to try again and the id of the request."""
    too_large = ok('{"type": "urn:keepfit:problem:too-large", "detail": "No."}', status="413 Too Large")
    accepted = ok('{"accepted": 2, "sequence": 1}', status="202 Accepted")
    full = ok(
        '{"type": "urn:keepfit:problem:inbox-full", "detail": "Full."}', "Retry-After: 70", "X-Request-ID: r-7",
        status="429 Too Many Requests",
    )  # fmt: skip
    said = r"Full\. 2 rows of the call before that are accepted\."
    with (
        scripted([too_large, accepted, full]) as server,
        Client(server.url) as client,
        pytest.raises(InboxFullError, match=said) as error,
    ):
        client.model("5f" * 32).partial_fit([[1], [2], [3], [4]], [1, 2, 3, 4])
    assert (error.value.retry_after_s, error.value.__notes__) == (70, ["X-Request-ID: r-7"])


@pytest.mark.parametrize(
    ("X", "y", "error"),
    [
        ("abc", None, MalformedError),
        (3, None, MalformedError),
        ([1, 2], None, MalformedError),
        (np.zeros(3), None, MalformedError),
        ([[1], [2]], [1], InvalidError),
        ([[1], [float("inf")]], None, InvalidError),
        ([{"a": object()}], None, InvalidError),
        ({"a": [1, 2], "b": [1]}, None, InvalidError),
        ([[1]], "size", InvalidError),
        ([{"a": 1}], "size", InvalidError),
        (np.zeros((2, 2)), "size", InvalidError),
        (pd.DataFrame({"a": [1]}), "size", InvalidError),
        ([], None, InvalidError),
    ],
)
def test_what_is_no_rows_is_refused(X: Any, y: Any, error: type[Exception]) -> None:
    """Nothing is sent, and the message says what would be right."""
    with Client("http://127.0.0.1:1") as client, pytest.raises(error):
        client.model("5f" * 32).partial_fit(X, y)


def test_an_early_answer_ends_the_sending() -> None:
    """A refusal that comes before the end of a large body is the error of the call."""
    refused = ok('{"type": "urn:keepfit:problem:not-found", "detail": "None."}', "Connection: close", status="404 No")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.sendall(refused)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 20):
                pass
            connection.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url, timeout_s=20) as client, pytest.raises(NotFoundError, match="None"):
            client.model("5f" * 32).predict(np.zeros((200_000, 8)))
        thread.join()
