"""Which calls are repeated, with which key, and how they end without an answer."""

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from keepfit import AsyncClient, Client
from keepfit.client.calling import sending
from keepfit.client.calling.answer_cache import ANSWER_BYTES_MIN, AnswerCache
from keepfit.client.transport import async_connections, sync_connections
from keepfit.client.transport.http1 import Response
from keepfit.errors import DeadlineError, InboxFullError, InvalidError, KeepfitError, UnavailableError, UnloadableError
from tests.keepfit.client.scripted_server import CLOSE, ok, scripted

HASH = "5f" * 32
PREDICTED = ok(json.dumps({"hash": HASH, "version": 1, "rows_seen": 1, "predictions": [1.5]}))
ACCEPTED = ok(json.dumps({"hash": HASH, "accepted": 1, "sequence": 1}), status="202 Accepted")
READY = ok('{"status": "ok"}')
OVERLOADED = ok(
    '{"type": "urn:keepfit:problem:inbox-full", "detail": "Full."}', "Retry-After: 0", status="429 Too Many Requests"
)
AWAY = ok('{"type": "urn:keepfit:problem:unavailable", "detail": "Away."}', status="503 Service Unavailable")
SLOW = ok('{"type": "urn:keepfit:problem:request-timeout"}', "Connection: close", status="408 Request Timeout")
STALE = ok('{"type": "urn:keepfit:problem:stale-model", "detail": "Restored."}', status="409 Conflict")
BROKEN = ok('{"type": "urn:keepfit:problem:unloadable", "detail": "No."}', status="500 Internal Server Error")

Run = Callable[..., Any]


@pytest.fixture(params=["blocking", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Return a function that makes calls with one of the clients: `run(url, call, ...)`, each is given the client."""

    def blocking(url: str, *calls: Callable[[Any], Any], timeout_s: float = 30) -> list[Any]:
        with Client(url, timeout_s=timeout_s) as client:
            return [call(client) for call in calls]

    def awaited(url: str, *calls: Callable[[Any], Any], timeout_s: float = 30) -> list[Any]:
        async def make() -> list[Any]:
            async with AsyncClient(url, timeout_s=timeout_s) as client:
                return [await call(client) for call in calls]

        return asyncio.run(make())

    return blocking if request.param == "blocking" else awaited


def ready(client: Any) -> Any:
    """Reach the gateway, so that it is known to exist."""
    return client.ready()


def predict(client: Any) -> Any:
    """Predict one row."""
    return client.model(HASH).predict([[1.0]])


def learn(client: Any) -> Any:
    """Learn one row."""
    return client.model(HASH).partial_fit([[1.0]], [2.0])


def restore(client: Any) -> Any:
    """Go back to a version, which must not happen twice."""
    return client.model(HASH).restore(version=1)


@pytest.mark.parametrize(
    "failure", [CLOSE, OVERLOADED, AWAY, SLOW, STALE, b"HTTP/1.1 200 OK\r\nbroken\r\n\r\n", PREDICTED[:-5]]
)
def test_a_prediction_is_repeated(run: Run, failure: bytes) -> None:
    """A prediction changes nothing: it is asked again after a lost connection, a refusal or a broken answer."""
    failure = failure if failure != PREDICTED[:-5] else failure.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with scripted([READY, failure, PREDICTED]) as server:
        _, answer = run(server.url, ready, predict)
        assert list(answer) == [1.5]
        assert len(server.received) == 3


def test_rows_are_repeated_with_their_key(run: Run) -> None:
    """Learning has an Idempotency-Key, made once for each call, so that a repeat learns nothing twice."""
    with scripted([READY, CLOSE, AWAY, ACCEPTED, ACCEPTED]) as server:
        run(server.url, ready, learn, learn)
        first, second, third, fourth = (one.fields["idempotency-key"] for one in server.received[1:])
        assert first == second == third != fourth
        assert len({one.body for one in server.received[1:]}) == 1


def test_what_would_act_twice_is_not_repeated(run: Run) -> None:
    """A call without a key is not sent again if it may have been processed; after a 429 it is."""
    with scripted([READY, CLOSE]) as server, pytest.raises(UnavailableError, match="may have been processed"):
        run(server.url, ready, restore)
    assert len(server.received) == 2
    with scripted([READY, OVERLOADED, ok('{"version": 1}')]) as server:
        assert run(server.url, ready, restore)[1] == {"version": 1}


def test_a_500_is_not_repeated(run: Run) -> None:
    """What is broken inside keepfit does not pass by itself: the error comes at once."""
    with scripted([READY, BROKEN, ACCEPTED]) as server, pytest.raises(UnloadableError, match="No"):
        run(server.url, ready, learn)
    assert len(server.received) == 2


def test_a_wrong_url_is_reported_at_once(run: Run) -> None:
    """Nothing has ever answered there: no call is repeated."""
    with scripted([CLOSE, PREDICTED]) as server, pytest.raises(UnavailableError, match="No gateway answers"):
        run(server.url, predict)
    assert len(server.received) == 1
    with pytest.raises(UnavailableError, match=r"No gateway answers at http://127.0.0.1:1: Connection refused"):
        run("http://127.0.0.1:1", predict)


def test_the_last_refusal_is_raised(run: Run) -> None:
    """At the deadline the error is that of the last answer, with its class and its Retry-After."""
    full = OVERLOADED.replace(b"Retry-After: 0", b"Retry-After: 9")
    with scripted([READY, full]) as server, pytest.raises(InboxFullError, match="Full") as error:
        run(server.url, ready, learn, timeout_s=5)
    assert error.value.retry_after_s == 9


def test_silence_ends_at_the_deadline(run: Run) -> None:
    """A gateway that was reached and does not answer is a DeadlineError."""
    with scripted([READY, None]) as server, pytest.raises(DeadlineError, match="timeout_s"):
        run(server.url, ready, predict, timeout_s=0.2)


def test_an_idle_connection_that_was_closed_is_replaced(run: Run) -> None:
    """The gateway closes a connection after its answer: the next call opens another one."""
    closing = PREDICTED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with scripted([closing, closing, PREDICTED, PREDICTED]) as server:
        run(server.url, predict, predict, predict, predict)
        assert (server.connections, len(server.received)) == (3, 4)


@pytest.mark.parametrize(
    ("status", "body", "name"),
    [
        ("404 Not Found", '{"type": "urn:keepfit:problem:not-found", "detail": "None."}', "NotFoundError"),
        ("409 Conflict", '{"type": "urn:keepfit:problem:not-confirmed", "detail": "No."}', "NotConfirmedError"),
        ("422 Unprocessable", '{"type": "urn:keepfit:problem:tomorrow", "detail": "New."}', "KeepfitError"),
        ("413 Too Large", '{"type": "urn:keepfit:problem:request-entity-too-large"}', "TooLargeError"),
        ("401 Unauthorized", '"plain"', "UnauthorizedError"),
        ("418 Teapot", '{"type": "about:blank", "title": "Teapot"}', "KeepfitError"),
        ("500 Error", "<html>", "UnavailableError"),
    ],
)
def test_errors_have_the_class_of_their_type(run: Run, status: str, body: str, name: str) -> None:
    """The type of a problem names its class, also of one that a proxy sends; the detail is the message."""
    with scripted([ok(body, "X-Request-ID: r-7", status=status)]) as server, pytest.raises(KeepfitError) as error:
        run(server.url, predict)
    assert type(error.value).__name__ == name
    if body.startswith("{") and "detail" in body:
        assert str(error.value) == json.loads(body)["detail"]
        assert error.value.__notes__ == ["X-Request-ID: r-7"]


def test_a_key_is_in_no_error() -> None:
    """An API key is sent as a bearer token, and is in no message and no repr."""
    with scripted([PREDICTED]) as server, Client(server.url, "sesame-1") as client:
        predict(client)
        assert server.received[0].fields["authorization"] == "Bearer sesame-1"
        assert "sesame" not in repr(client) + repr(vars(client.model(HASH)))
    with pytest.raises(KeepfitError) as error:
        Client("http://127.0.0.1", "sesame\n1")
    assert "sesame" not in str(error.value)


def test_a_long_answer_is_kept_with_its_etag(run: Run) -> None:
    """The same question is asked with the ETag; after a 304 the kept answer is used, after a 200 the new one."""
    long = json.dumps({"hash": HASH, "version": 1, "rows_seen": 1, "predictions": [0.5] * 1000})
    kept = ok(long, 'ETag: W/"1-1-a"', "Cache-Control: no-cache")
    unchanged = b'HTTP/1.1 304 Not Modified\r\nETag: W/"1-1-a"\r\nContent-Length: 0\r\n\r\n'
    never = ok(long.replace("0.5", "2.5"), 'ETag: W/"1-2-a"', "Cache-Control: no-store")
    with scripted([kept, unchanged, never, PREDICTED]) as server:
        answers = run(server.url, predict, predict, predict, predict)
        assert [one[0] for one in answers] == [0.5, 0.5, 2.5, 1.5]
        tags = [one.fields.get("if-none-match") for one in server.received]
        # What must not be stored is not kept.
        assert tags == [None, 'W/"1-1-a"', 'W/"1-1-a"', None]


def test_threads_share_kept_answers() -> None:
    """Threads that find and keep answers at the same time neither fail nor miscount their space."""
    body = b"x" * ANSWER_BYTES_MIN
    cache = AnswerCache(3 * len(body))
    failures: list[BaseException] = []

    def use(first: int) -> None:
        try:
            for number in range(first, first + 3000):
                cache.note(b"%d" % (number % 5), Response(200, b'ETag: "1"', body))
                cache.find(b"%d" % (number % 7))
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=use, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    assert cache._size == len(body) * len(cache._kept) == 3 * len(body)


@pytest.mark.parametrize("call", [predict, learn, ready])
def test_a_redirect_is_not_followed(run: Run, call: Callable[[Any], Any]) -> None:
    """Neither rows nor an API key are sent to where a proxy points; the error says what is wrong."""
    away = ok("", "Location: https://other/v1", status="308 Permanent Redirect")
    with scripted([away]) as server, pytest.raises(UnavailableError, match="redirects to https://other/v1"):
        run(server.url, call)
    assert len(server.received) == 1


def test_the_name_of_a_job_is_part_of_a_path() -> None:
    """Whatever a program gives as the name of a job, it asks for that job."""
    with scripted([]) as server, Client(server.url) as client:
        client.job("a/b?c d\r\nX: 1")
    assert server.received[0].line == "GET /v1/jobs/a%2Fb%3Fc%20d%0D%0AX%3A%201 HTTP/1.1"


@pytest.mark.parametrize(
    ("call", "attempts"),
    [
        (lambda client: client.request("GET", "/v1/models"), 2),
        (lambda client: client.request("GET", "/v1/models", is_repeated=False), 1),
        (lambda client: client.request("POST", "/v1/models", {"recipe": {}}), 1),
        (lambda client: client.request("POST", "/v1/models", b"{}", {"Idempotency-Key": "k"}), 2),
        (lambda client: client.request("POST", "/v1/models", b"{}", is_repeatable=True), 2),
    ],
)
def test_any_call_is_repeated_where_it_is_safe(run: Run, call: Callable[[Any], Any], attempts: int) -> None:
    """A call that may act twice is not repeated without a key, and none that the caller wants once."""
    with scripted([ok("{}", status="503 x"), ok('{"a": 1}')]) as server:
        if attempts == 2:
            assert run(server.url, call) == [(200, {"a": 1})]
        else:
            with pytest.raises(UnavailableError):
                run(server.url, call)
    assert len(server.received) == attempts
    sent = [one.fields.get("content-type") for one in server.received]
    assert set(sent) == {None if server.received[0].line.startswith("GET") else "application/json"}


def test_a_deletion_is_not_repeated(run: Run) -> None:
    """Meanwhile the model may have been created again: a lost answer is an error, not a second deletion."""
    with scripted([READY, CLOSE]) as server, pytest.raises(UnavailableError):
        run(server.url, ready, lambda client: client.model(HASH).delete())
    assert [each.line.split()[0] for each in server.received] == ["GET", "DELETE"]


@pytest.mark.parametrize("idle_s", [0.0, 30.0])
def test_a_connection_that_was_idle_for_long_is_not_used_again(
    run: Run, idle_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies between the client and the gateway may have forgotten it."""
    for module in (sync_connections, async_connections):
        monkeypatch.setattr(module, "IDLE_S_MAX", idle_s)
    with scripted([READY, READY]) as server:
        run(server.url, ready, ready)
        assert server.connections == (1 if idle_s else 2)


def test_rows_of_an_error_count_from_the_first_of_the_call(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later request of the call is refused: its rows are those that the caller has given."""
    monkeypatch.setattr(sending, "PREDICTED_ROWS_MAX", 500)
    refused = ok(
        json.dumps(
            {
                "type": "urn:keepfit:problem:invalid",
                "detail": "X[1][0] is no number.",
                "errors": [{"detail": "It is no number.", "row": 1, "column": 0}],
            }
        ),
        status="422 Unprocessable Content",
    )
    both = ok(json.dumps({"hash": HASH, "version": 1, "rows_seen": 1, "predictions": [1.5] * 500}))
    with scripted([READY, both, refused]) as server, pytest.raises(InvalidError) as caught:
        run(server.url, ready, lambda client: client.model(HASH).predict(np.zeros((1000, 1))))
    assert [fault.row for fault in caught.value.faults] == [501]
    assert "count from row 500 of the call" in str(caught.value)


@pytest.mark.parametrize(("wait", "field"), [(0.5, "wait=1"), (2.5, "wait=3"), (1e6, "wait=60"), (True, "wait=60")])
def test_prefer_has_whole_seconds(run: Run, wait: float | bool, field: str) -> None:
    """A gateway reads whole seconds, at most 60 (RFC 7240)."""
    learned = ok(json.dumps({"hash": HASH, "accepted": 1, "sequence": 1, "version": 1, "rows_seen": 1}))
    with scripted([learned]) as server:
        run(server.url, lambda client: client.model(HASH).partial_fit([[1.0]], [1.0], wait=wait))
    (request,) = server.received
    assert {name.lower(): value for name, value in request.fields.items()}["prefer"] == field
