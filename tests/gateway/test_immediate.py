"""Immediate answers: those of the other paths, for requests that arrive in one piece and need nothing special."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from keepfit.security.api_keys import LEARN, PREDICT, new_key
from keepfit_gateway import immediate
from keepfit_gateway.handlers.prediction import VALUE_BYTES
from keepfit_gateway.immediate import ImmediateAnswers
from keepfit_gateway.web.responses import COMPRESSED_BYTES_MIN
from tests.conftest import Stack
from tests.gateway.api_client import DEADLINE_S, REGRESSOR, Api, Reply, connected, exchange, serving
from tests.gateway.auth.test_guard import bearer, stored, with_keys
from tests.gateway.prediction.test_http_caching import beside
from tests.gateway.prediction.test_scoring import LABELLED, fresh_row, sources, until_scored
from tests.gateway.raw_requests import JSON, post

NAMED = {"estimator": "SGDRegressor", "features": {"a": "number", "b": "number"}}
MIXED = {"estimator": "SGDRegressor", "features": {"a": "category", "b": "number"}}
MIXED_ROWS = {"X": [["x", 2.0], ["y", 5.0]], "y": [1.0, 2.0]}

# The host of the requests below is one that the gateway has checked before.
PING = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Scoring(NamedTuple):
    """A gateway in this process that has the scorer of a model, and the paths of its immediate answers so far."""

    api: Api
    path: str
    taken: list[str]

    def request(self, document: Any, *lines: str) -> bytes:
        """Return a request to predict."""
        return post(f"{self.path}/predict", json.dumps(document).encode(), JSON, *lines)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the paths of the immediate answers of gateways in this process."""
    found: list[str] = []
    answer = ImmediateAnswers.answer

    def noted(self: ImmediateAnswers, message: Any, content: Any) -> bytes | None:
        response = answer(self, message, content)
        if response is not None:
            found.append(message.path)
        return response

    monkeypatch.setattr(ImmediateAnswers, "answer", noted)
    return found


@pytest.fixture
async def scoring(stack: Stack, metadata: dict[str, Any], taken: list[str]) -> AsyncIterator[Scoring]:
    """Return a gateway with the scorer of a model."""
    async with beside(stack) as (api, _):
        path = await api.make(metadata, REGRESSOR)
        await api.learn(path, **LABELLED)
        await until_scored(api, path, [1.0, 2.0])
        await exchange(api.url, PING)
        taken.clear()
        yield Scoring(api, path, taken)


async def sent(url: str, *pieces: bytes) -> Reply:
    """Send a request in pieces, each in a packet of its own, and return the answer."""
    async with connected(url) as (reader, writer), asyncio.timeout(DEADLINE_S):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            # The gateway has read this piece before the next one is sent: it answers another connection meanwhile.
            await exchange(url, PING)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        return Reply.parse(head + await reader.readexactly(int(length.split(b":")[1])))


def lines(reply: Reply) -> list[tuple[str, str]]:
    """Return the header fields in their order, without values that each answer has of its own."""
    own = {"date", "age", "x-request-id"}
    return [(name, "" if name.lower() in own else value) for name, value in reply.headers.items()]


@pytest.mark.parametrize(
    ("recipe", "labelled", "document"),
    [
        (REGRESSOR, LABELLED, {"X": [[1.0, 2]]}),
        (NAMED, LABELLED, {"X": [{"b": 2.0, "a": 7}]}),
        (MIXED, MIXED_ROWS, {"X": [{"b": 2.0, "a": "y"}]}),
        (REGRESSOR, LABELLED, {"X": [[1.0, 2.0], [3.0, 4.0]]}),
        (REGRESSOR, LABELLED, {"X": [[1.0, 2.0]], "proba": False}),
    ],
    ids=["row", "named", "mixed", "rows", "proba"],
)
@pytest.mark.parametrize("by_metadata", [False, True])
async def test_immediate_answers_are_those_of_the_other_paths(
    stack: Stack,
    metadata: dict[str, Any],
    taken: list[str],
    recipe: dict[str, Any],
    labelled: dict[str, Any],
    document: dict[str, Any],
    by_metadata: bool,
) -> None:
    """Computed or kept, the head and the body are what a request in two pieces gets, to the order of the fields."""
    async with beside(stack) as (api, _):
        path = await api.make(metadata, recipe)
        await api.learn(path, **labelled)
        await until_scored(api, path, labelled["X"][0])
        await exchange(api.url, PING)
        target = "/v1/predict" if by_metadata else f"{path}/predict"
        body = json.dumps({"metadata": metadata, **document} if by_metadata else document).encode()
        request = post(target, body)
        # On a connection's first request, and one after the other: computed twice, the second time stored, then kept.
        for _ in range(3):
            taken.clear()
            at_once = await sent(api.url, request)
            assert taken == [target]
            taken.clear()
            in_pieces = await sent(api.url, request[: -len(body)], body)
            assert taken == []
            assert at_once.of(200) == in_pieces.of(200)
            without_age = [[field for field in lines(each) if field[0] != "Age"] for each in (at_once, in_pieces)]
            assert without_age[0] == without_age[1]
        assert lines(at_once) == lines(in_pieces)
        assert "Age" in at_once.headers


@pytest.fixture
def counted(scoring: Scoring) -> Callable[[], Awaitable[dict[str, float]]]:
    """Return a function that reads the metrics of requests and of the cache."""

    async def read() -> dict[str, float]:
        text = (await scoring.api.get("/metrics")).body.decode()
        names = ("keepfit_requests_total{", "keepfit_request_seconds_count{", "keepfit_cache_")
        found = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(names))
        return {name: float(value) for name, value in found}

    return read


async def test_each_answer_is_counted_once(
    scoring: Scoring, counted: Callable[[], Awaitable[dict[str, float]]]
) -> None:
    """Requests by route and predictions by source count immediate answers as all others."""
    api = scoring.api
    before, scored = await counted(), await sources(api)
    row = {"X": [fresh_row([1.0, 2.0])]}
    for _ in range(4):
        await sent(api.url, scoring.request(row))
    after = await counted()
    difference = {name: after[name] - before.get(name, 0) for name in after if "predict" in name or "_cache_" in name}
    assert len(scoring.taken) == 4
    assert (await sources(api) - scored)["scored"] == 2
    route = 'route="/v1/models/{hash}/predict"'
    assert {value for name, value in difference.items() if route in name and 'status="200"' in name} == {4}
    assert (difference["keepfit_cache_hits_total"], difference["keepfit_cache_misses_total"]) == (2, 2)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("Cache-Control: no-store", 200),
        ('If-None-Match: "1"', 200),
        ("Expect: 100-continue", 200),
        ("Accept-Encoding: identity;q=0", 406),
        ("Origin: http://elsewhere.example", 403),
        ("Sec-Fetch-Site: cross-site", 403),
        ("Connection: close", 200),
        ("Prefer: wait=1", 200),
        ("Authorization: Bearer a\r\nAuthorization: Bearer b", 400),
    ],
)
async def test_special_heads_take_the_regular_path(scoring: Scoring, line: str, status: int) -> None:
    """A field that changes the answer has its effect."""
    data = await exchange_once(scoring.api.url, scoring.request({"X": [[1.0, 2.0]]}, line))
    assert int(data.split(b" ", 2)[1]) == status
    assert scoring.taken == []


async def exchange_once(url: str, data: bytes) -> bytes:
    """Send bytes and return what the first read gives."""
    async with connected(url) as (reader, writer), asyncio.timeout(DEADLINE_S):
        writer.write(data)
        return await reader.readuntil(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("document", "status"),
    [
        ({"X": [[1.0]]}, 422),
        ({"X": [[1.0, "a"]]}, 422),
        ({"X": [[1e300, 1.0]]}, 422),
        ({"X": [[2**53, 1.0]]}, 422),
        ({"X": []}, 422),
        ({"X": [[1.0, 2.0]], "unknown": 1}, 400),
        ({"Y": []}, 400),
        ([], 400),
    ],
)
async def test_errors_are_worded_by_the_regular_path(scoring: Scoring, document: Any, status: int) -> None:
    """A request that cannot be answered is refused with a problem document, and counted once."""
    (await sent(scoring.api.url, scoring.request(document))).problem(status)
    assert scoring.taken == []


async def test_an_unexpected_error_is_a_problem_of_the_regular_path(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails, the request is answered by the regular path."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(immediate, "answer_row", fail)
    (await sent(scoring.api.url, scoring.request({"X": [[1.0, 2.0]]}))).of(200)
    assert scoring.taken == []


async def test_several_requests_in_one_packet_are_answered_in_order(scoring: Scoring) -> None:
    """Pipelined requests are answered one after the other; a last one without its end is not answered."""
    rows = [fresh_row([1.0, 2.0]) for _ in range(4)]
    requests = [scoring.request({"X": [row]}) for row in rows]
    last = scoring.request({"X": [rows[0]]}, "Connection: close")
    expected = [(await scoring.api.post(f"{scoring.path}/predict", {"X": [row]})).of(200) for row in rows]
    found = await exchange(scoring.api.url, b"".join(requests) + last)
    answers = [json.loads(part.split(b"\r\n\r\n")[1]) for part in found.split(b"HTTP/1.1 200 OK")[1:]]
    assert answers == [*expected, expected[0]]
    # One immediately, and the next one of the same connection in two pieces, with a third behind it.
    async with connected(scoring.api.url) as (reader, writer), asyncio.timeout(DEADLINE_S):
        for data in (requests[0], requests[1][:50], requests[1][50:] + requests[2][:9], requests[2][9:] + last):
            writer.write(data)
            await writer.drain()
            await exchange(scoring.api.url, PING)
        assert (await reader.read()).count(b"HTTP/1.1 200 OK") == 4


async def test_what_follows_a_request_for_an_upgrade_is_answered(scoring: Scoring) -> None:
    """A request for an upgrade is answered as plain HTTP, and so is the one behind it, although nothing follows."""
    upgrade = scoring.request({"X": [[1.0, 2.0]]}, "Connection: Upgrade", "Upgrade: websocket")
    assert (await exchange(scoring.api.url, upgrade + PING)).count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("value_bytes", [VALUE_BYTES, 0])
async def test_long_answers_take_the_regular_path(
    scoring: Scoring,
    counted: Callable[[], Awaitable[dict[str, float]]],
    value_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer that may be compressed is, even if it was expected to be short.

    Computed or kept, it is counted once, and it is stored when it is asked for again.
    """
    monkeypatch.setattr(immediate, "VALUE_BYTES", value_bytes)
    rows = {"X": [fresh_row([1.0, 2.0]) for _ in range(COMPRESSED_BYTES_MIN // 8)]}
    assert len(json.dumps(rows)) < 4096
    before, scored = await counted(), await sources(scoring.api)
    for _ in range(3):
        reply = await sent(scoring.api.url, scoring.request(rows, "Accept-Encoding: gzip"))
        assert reply.headers["Content-Encoding"] == "gzip"
    after = await counted()
    assert scoring.taken == []
    assert (await sources(scoring.api) - scored)["scored"] == 2
    kept, computed = "keepfit_cache_hits_total", "keepfit_cache_misses_total"
    assert (after[kept] - before[kept], after[computed] - before[computed]) == (1, 2)


async def test_keys_are_checked(stack: Stack, metadata: dict[str, Any], taken: list[str]) -> None:
    """A key needs the scope; one with a rate, or bound to metadata, takes the path that knows of these."""
    may, limited = new_key("may", [PREDICT, LEARN]), new_key(f"limited-{uuid.uuid4().hex[:8]}", [PREDICT], "0.01/2")
    learner, bound = new_key("learner", [LEARN]), new_key("bound", [PREDICT], where=["type=hats"])
    admin = new_key("admin", ["admin", "predict", "learn"])
    settings = with_keys(stack.settings(), api_keys=stored(may, limited, learner, bound, admin))
    async with serving(settings) as api:
        made = (await api.post("/v1/models", {"metadata": metadata, "recipe": REGRESSOR}, bearer(admin))).of(201)
        path = f"/v1/models/{made['hash']}"
        learn = {**bearer(may), "Prefer": "wait=20"}
        (await api.post(f"{path}/partial_fit", LABELLED, learn)).of(200)
        for _ in range(3):
            (await api.post(f"{path}/predict", {"X": [fresh_row([1.0, 2.0])]}, bearer(may))).of(200)
        await exchange(api.url, PING)
        taken.clear()
        body = json.dumps({"X": [[1.0, 2.0]]}).encode()

        async def status(*lines: str) -> int:
            data = await exchange_once(api.url, post(f"{path}/predict", body, JSON, *lines))
            return int(data.split(b" ", 2)[1])

        named = {
            name: f"Authorization: {bearer(key)['Authorization']}"
            for name, key in (("may", may), ("limited", limited), ("learner", learner), ("bound", bound))
        }
        assert await status(named["may"]) == 200
        assert len(taken) == 1
        assert [await status(named["limited"]) for _ in range(3)] == [200, 200, 429]
        assert await status(named["learner"]) == 403
        assert await status(named["bound"]) == 404
        assert await status() == 401
        assert await status("Authorization: Bearer guessed") == 401
        assert await status(named["may"], named["may"]) == 400
        assert len(taken) == 1


@pytest.mark.parametrize("name", ["abc-1/2:3", "a b"])
async def test_a_request_id_is_repeated_if_it_is_valid(scoring: Scoring, name: str) -> None:
    """X-Request-ID is that of the client, or minted."""
    reply = await sent(scoring.api.url, scoring.request({"X": [[1.0, 2.0]]}, f"X-Request-ID: {name}"))
    assert len(scoring.taken) == 1
    assert (reply.headers["X-Request-ID"] == name) == (" " not in name)
