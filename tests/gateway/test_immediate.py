"""Immediate answers: those of the other paths, for requests that arrive in one piece and need nothing special."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from keepfit.security.api_keys import LEARN, PREDICT, new_key
from keepfit_gateway import immediate
from keepfit_gateway.auth import guard
from keepfit_gateway.handlers.prediction import VALUE_BYTES
from keepfit_gateway.immediate import ImmediateAnswers
from keepfit_gateway.web.responses import COMPRESSED_BYTES_MIN
from tests.conftest import Stack
from tests.gateway.api_client import DEADLINE_S, REGRESSOR, Api, Reply, connected, eventually, exchange, serving
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
    """A gateway in this process that has the scorer of a model, and the paths of its immediate answers so far.

    `unparsed` has the paths of those whose head was known.
    """

    api: Api
    path: str
    taken: list[str]
    unparsed: list[str]

    def request(self, document: Any, *lines: str) -> bytes:
        """Return a request to predict."""
        return post(f"{self.path}/predict", json.dumps(document).encode(), JSON, *lines)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the paths of the immediate answers of gateways in this process."""
    found: list[str] = []
    answer = ImmediateAnswers.answer

    def noted(self: ImmediateAnswers, message: Any, content: Any, data: bytes | None) -> bytes | None:
        response = answer(self, message, content, data)
        if response is not None:
            found.append(message.path)
        return response

    monkeypatch.setattr(ImmediateAnswers, "answer", noted)
    return found


@pytest.fixture
def unparsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the paths of the immediate answers of gateways in this process to requests with known heads."""
    found: list[str] = []
    answer = ImmediateAnswers.answer_known

    def noted(self: ImmediateAnswers, data: bytes) -> bytes | None:
        response = answer(self, data)
        if response is not None:
            found.append(data.split(b" ")[1].decode())
        return response

    monkeypatch.setattr(ImmediateAnswers, "answer_known", noted)
    return found


@pytest.fixture
async def scoring(
    stack: Stack, metadata: dict[str, Any], taken: list[str], unparsed: list[str]
) -> AsyncIterator[Scoring]:
    """Return a gateway with the scorer of a model."""
    async with beside(stack) as (api, _):
        path = await api.make(metadata, REGRESSOR)
        await api.learn(path, **LABELLED)
        await until_scored(api, path, [1.0, 2.0])
        await exchange(api.url, PING)
        taken.clear()
        unparsed.clear()
        yield Scoring(api, path, taken, unparsed)


async def sent(url: str, *pieces: bytes) -> Reply:
    """Send a request in pieces, each in a packet of its own, and return the answer."""
    async with connected(url) as (reader, writer), asyncio.timeout(DEADLINE_S):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            # The gateway has read this piece before the next one is sent: it answers another connection meanwhile.
            await exchange(url, PING)
        return await read_reply(reader)


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """Return the next answer of a connection."""
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


async def on_one_connection(url: str, *requests: bytes) -> list[Reply]:
    """Send requests one after the other, each in a packet of its own, and return their answers."""
    found = []
    async with connected(url) as (reader, writer), asyncio.timeout(DEADLINE_S):
        for request in requests:
            writer.write(request)
            found.append(await read_reply(reader))
    return found


def without_hash(path: str) -> str:
    """Return a path of another model, which does not exist."""
    begin, _, operation = path.rpartition("/")
    return f"{begin[:-64]}{'0' * 64}/{operation}"


async def test_a_known_head_is_not_parsed_again(scoring: Scoring) -> None:
    """From the third request of a connection on, heads are recognised; the answers are those of other connections."""
    rows = [fresh_row([1.0, 2.0]) for _ in range(5)]
    requests = [scoring.request({"X": [row]}) for row in rows]
    found = await on_one_connection(scoring.api.url, *requests, requests[0])
    assert len(scoring.unparsed) >= 1
    assert len(scoring.taken) + len(scoring.unparsed) == 6
    assert set(scoring.taken + scoring.unparsed) == {f"{scoring.path}/predict"}
    for row, reply in zip([*rows, rows[0]], found, strict=True):
        again = await sent(scoring.api.url, scoring.request({"X": [row]}))
        assert reply.of(200) == again.of(200)
        assert [each for each in lines(reply) if each[0] != "Age"] == [
            each for each in lines(again) if each[0] != "Age"
        ]


async def test_a_head_is_known_for_every_model(scoring: Scoring, metadata: dict[str, Any]) -> None:
    """Only the hash differs: another model answers for itself, and an unknown one is 404."""
    other = await scoring.api.make({**metadata, "type": "other"}, REGRESSOR)
    await scoring.api.learn(other, X=[[1.0, 2.0]], y=[9.0])
    await until_scored(scoring.api, other, [1.0, 2.0])
    scoring.unparsed.clear()
    body = json.dumps({"X": [[1.0, 2.0]]}).encode()
    paths = [f"{path}/predict" for path in (scoring.path, scoring.path, scoring.path, other)]
    first, *_, last = await on_one_connection(scoring.api.url, *(post(path, body) for path in paths))
    assert scoring.unparsed[-1] == f"{other}/predict"
    assert last.of(200) == (await scoring.api.post(f"{other}/predict", {"X": [[1.0, 2.0]]})).of(200)
    assert last.of(200)["hash"] != first.of(200)["hash"]
    unknown = without_hash(paths[0])
    replies = await on_one_connection(scoring.api.url, *(post(path, body) for path in (*paths[:3], unknown, paths[0])))
    assert [reply.status for reply in replies] == [200, 200, 200, 404, 200]


async def test_a_known_head_with_another_body_is_parsed(scoring: Scoring) -> None:
    """Bodies of another length, in pieces, pipelined, invalid or learned meanwhile are answered as ever."""
    known = scoring.request({"X": [[1.5, 2.5]]})
    head, _, body = known.partition(b"\r\n\r\n")
    (expected,) = await on_one_connection(scoring.api.url, known)
    async with connected(scoring.api.url) as (reader, writer), asyncio.timeout(DEADLINE_S):
        for _ in range(3):
            writer.write(known)
            assert (await read_reply(reader)).of(200) == expected.of(200)
        assert scoring.unparsed
        # The head, and then the body; the body in two pieces; two requests at once; one and a half.
        for pieces in (
            (head + b"\r\n\r\n", body),
            (known[:-5], known[-5:]),
            (known + known,),
            (known + known[:-9], known[-9:]),
        ):
            count = sum(map(len, pieces)) // len(known)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await exchange(scoring.api.url, PING)
            for _ in range(count):
                assert (await read_reply(reader)).of(200) == expected.of(200)
        # As long as announced, and invalid.
        writer.write(head + b"\r\n\r\n" + b"]" * len(body))
        (await read_reply(reader)).problem(400)
        writer.write(known)
        assert (await read_reply(reader)).of(200) == expected.of(200)
        await scoring.api.learn(scoring.path, X=[[1.5, 2.5]], y=[50.0])
        writer.write(known)
        assert (await read_reply(reader)).of(200)["version"] == expected.of(200)["version"] + 1


async def test_a_known_head_does_not_outlive_its_key(
    scoring: Scoring, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key of a known head is looked up with each request: once it is removed, requests get 401."""
    monkeypatch.setattr(guard, "RELOAD_S", 0.01)
    removed, kept, file = new_key("removed", [PREDICT]), new_key("kept", [PREDICT]), tmp_path / "keys"
    file.write_text(f"{removed[1]}\n{kept[1]}\n")
    async with serving(with_keys(stack.settings(), api_keys_file=str(file))) as api:
        for _ in range(3):
            (await api.post(f"{scoring.path}/predict", {"X": [fresh_row([1.0, 2.0])]}, bearer(kept))).of(200)
        line = f"Authorization: {bearer(removed)['Authorization']}"
        request = scoring.request({"X": [[1.0, 2.0]]}, line)
        scoring.unparsed.clear()
        assert [each.status for each in await on_one_connection(api.url, *[request] * 3)] == [200] * 3
        assert scoring.unparsed
        file.write_text(kept[1])

        async def is_refused() -> bool:
            first, last = await on_one_connection(api.url, request, request)
            return (first.status, last.status) == (401, 401)

        await eventually(is_refused, "the removed key to be refused")
