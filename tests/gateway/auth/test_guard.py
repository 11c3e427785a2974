"""Who comes in: API keys and their scopes on every way into the gateway, rates, request ids, and where it binds."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from keepfit.errors import SettingsError
from keepfit.observability.outage import LogThrottle
from keepfit.security.api_keys import ADMIN, LEARN, OPEN, PREDICT, READ, SCOPES, new_key
from keepfit.settings import Settings
from keepfit_gateway import app
from keepfit_gateway.auth import guard
from keepfit_gateway.routes import OPEN_PATHS, ROUTES, Route
from keepfit_gateway.web import problems
from tests.conftest import Stack
from tests.gateway.api_client import REGRESSOR, WAIT, Api, Reply, connected, eventually, exchange, serving

KEYS = {name: new_key(name, [name]) for name in SCOPES}
ALL = new_key("all", SCOPES)
LABELLED, ROWS = {"X": [[1.0, 2.0]], "y": [1.0]}, {"X": [[1.0, 2.0]]}
SHORT = {"Content-Type": "application/json"}
LONG = {"Content-Type": "application/json; charset=utf-8"}


def bearer(key: tuple[str, str]) -> dict[str, str]:
    """Return the header that sends a key."""
    return {"Authorization": f"Bearer {key[0]}"}


def stored(*keys: tuple[str, str]) -> str:
    """Return keys as the settings have them."""
    return ",".join(line for _, line in keys)


def with_keys(settings: Settings, **more: Any) -> Settings:
    """Return settings that ask for keys."""
    return Settings(**{**settings.model_dump(), "port": 0, "api_keys": stored(*KEYS.values(), ALL), **more})


@pytest.fixture
async def shut(stack: Stack) -> AsyncIterator[Api]:
    """Return a gateway of its own that asks for keys, on the shared stack's servers and workers."""
    async with serving(with_keys(stack.settings()), tuple(token for token, _ in KEYS.values())) as api:
        yield api


@pytest.fixture
async def path(shut: Api, metadata: dict[str, Any]) -> str:
    """Return the path of a model that has learned a row, which the gateway knows."""
    document = {"metadata": metadata, "recipe": REGRESSOR}
    made: dict[str, Any] = (await shut.post("/v1/models", document, bearer(ALL))).of(201)
    learned = await shut.post(f"/v1/models/{made['hash']}/partial_fit", LABELLED, {**bearer(ALL), **WAIT})
    learned.of(200)
    return f"/v1/models/{made['hash']}"


def address(route: Route) -> str:
    """Return a path of a route."""
    return route.path.replace("{hash}", "0" * 64)


# Scopes, on every route.


def test_routes_ask_for_what_the_document_says() -> None:
    """Each route needs the scope that docs/operations/security.md names for it."""
    needs = {(route.method, route.path): route.needs for route in ROUTES}
    for (method, where), scope in needs.items():
        if where in ("/livez", "/readyz", "/openapi.json"):
            assert scope == OPEN
        elif where.endswith(("/predict", "/score")):
            assert scope == PREDICT
        elif where.endswith(("/partial_fit", "/labels")):
            assert scope == LEARN
        else:
            # What was put aside is shown with its rows.
            reads = method == "GET" and not where.endswith("/dead")
            assert scope == (READ if reads else ADMIN), where
    assert {"/livez", "/readyz", "/openapi.json"} == OPEN_PATHS


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_every_route_wants_its_scope(shut: Api, route: Route) -> None:
    """Without a key 401, with all scopes but the right one 403, with the right one neither; HEAD as GET."""
    for method in (route.method, "HEAD") if route.method == "GET" else (route.method,):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
            reply = await shut.call(method, address(route), headers=headers)
            assert (reply.status == 401) is (route.needs != OPEN)
            if reply.status == 401:
                assert reply.headers["WWW-Authenticate"] == "Bearer"
        for scope, key in KEYS.items():
            reply = await shut.call(method, address(route), headers=bearer(key))
            assert (reply.status == 403) is (route.needs not in (OPEN, READ, scope)), scope
            assert reply.status != 401
            if reply.status == 403 and method != "HEAD":
                assert f"'{route.needs}'" in reply.problem(403)["detail"]


@pytest.mark.parametrize("where", ["/", "/nowhere", "/v1/models/", "/x//livez", "/livez/", "/v1/predict/livez"])
async def test_what_is_not_there_is_told_to_who_has_a_key(shut: Api, where: str) -> None:
    """Without a key nobody learns which paths there are: 401; with one it is 404."""
    (await shut.get(where)).problem(401)
    (await shut.call("GET", where, headers=bearer(KEYS[READ]))).problem(404)


async def test_other_methods_are_told_to_who_has_a_key(shut: Api) -> None:
    """405 and what is allowed are for those with a key; probes may be asked by any method, and say 405."""
    (await shut.call("PUT", "/v1/models")).problem(401)
    (await shut.call("PUT", "/v1/models", headers=bearer(KEYS[READ]))).problem(405)
    (await shut.call("POST", "/livez")).problem(405)


async def test_expectations_come_after_the_key(shut: Api) -> None:
    """A client that waits for 100 (Continue), or expects what nobody knows, is asked for its key first."""
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n"
    for expectation in (b"100-continue", b"miracles"):
        answer = await exchange(shut.url, head + b"Expect: " + expectation + b"\r\n\r\n{}")
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"100 Continue" not in answer


async def test_what_is_no_http_reaches_nothing(shut: Api) -> None:
    """Answers of the connection itself need no key and tell nothing."""
    answer = await exchange(shut.url, b"GET /v1/models HTTP/9.9.9\r\n\r\n")
    Reply.parse(answer).problem(400)


async def test_the_description_says_what_is_asked_for(shut: Api, lonely: Api) -> None:
    """The OpenAPI document of a gateway with keys names each operation's scope; without keys it speaks of none."""
    document = (await shut.get("/openapi.json")).of(200)
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        assert operation["security"] == ([] if route.needs == OPEN else [{"key": [route.needs]}])
        assert ({"401", "403", "429"} <= operation["responses"].keys()) is (route.needs != OPEN)
    plain = (await lonely.get("/openapi.json")).of(200)
    assert "security" not in str(plain)


# The short way, and what is kept.


async def send(api: Api, path: str, document: Any, way: dict[str, str], key: tuple[str, str] | None) -> Reply:
    """Send a document on the short or the long way."""
    headers = {**way, **(bearer(key) if key else {})}
    return await api.call("POST", path, data=json.dumps(document).encode(), headers=headers)


@pytest.mark.parametrize("way", [SHORT, LONG], ids=["short", "long"])
async def test_both_ways_want_the_key(shut: Api, path: str, way: dict[str, str]) -> None:
    """Small requests about a known model are refused as all others are: no key 401, another scope 403."""
    for call, document, scope, status in (("predict", ROWS, PREDICT, 200), ("partial_fit", LABELLED, LEARN, 202)):
        (await send(shut, f"{path}/{call}", document, way, None)).problem(401)
        for other in SCOPES:
            reply = await send(shut, f"{path}/{call}", document, way, KEYS[other])
            assert reply.status == (status if other == scope else 403), (call, other)


async def test_what_is_kept_is_given_to_those_who_may(shut: Api, path: str) -> None:
    """A prediction that the gateway could give again at once is not given without the key, on either way, nor a 304."""
    body = json.dumps(ROWS).encode()
    first = await shut.call("POST", f"{path}/predict", data=body, headers={**SHORT, **bearer(KEYS[PREDICT])})
    kept = await shut.call("POST", f"{path}/predict", data=body, headers={**SHORT, **bearer(KEYS[PREDICT])})
    assert "Age" in kept.headers
    assert kept.body == first.body
    for way in (SHORT, LONG):
        for more in ({}, {"If-None-Match": kept.headers["ETag"]}):
            (await shut.call("POST", f"{path}/predict", data=body, headers={**way, **more})).problem(401)
            refused = await shut.call(
                "POST", f"{path}/predict", data=body, headers={**way, **more, **bearer(KEYS[ADMIN])}
            )
            refused.problem(403)


async def test_a_connection_has_no_memory_of_keys(shut: Api, path: str) -> None:
    """On one connection a request with a key opens nothing for the next one without."""
    body = json.dumps(ROWS).encode()

    def request(key: str, last: bool) -> bytes:
        head = f"POST {path}/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{key}"
        return f"{head}Content-Length: {len(body)}\r\n{'Connection: close' if last else 'A: b'}\r\n\r\n".encode() + body

    key = f"Authorization: bearer {KEYS[PREDICT][0]}\r\n"
    answers = await exchange(shut.url, request(key, False) + request("", True))
    assert answers.count(b"HTTP/1.1 200 OK") == answers.count(b"HTTP/1.1 401 Unauthorized") == 1


async def test_no_key_is_in_a_log(shut: Api, path: str) -> None:
    """Neither what was sent, right or wrong, nor what is stored stands in a log or an answer."""
    with structlog.testing.capture_logs() as logged:
        (await shut.call("GET", path, headers={"Authorization": "Bearer kf_hush-hush"})).problem(401)
        (await shut.call("DELETE", path, headers=bearer(KEYS[READ]))).problem(403)
        (await shut.call("GET", path, headers=bearer(KEYS[READ]))).of(200)
    text = str(logged)
    assert "hush" not in text
    assert not [token for token, line in KEYS.values() if token in text or line.split(":")[2] in text]


# Without keys, and where the gateway binds.


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.1.2.3", "example.com"])
async def test_an_address_for_others_takes_keys(settings: Settings, host: str) -> None:
    """Without keys the gateway does not start on an address that others reach, and says what to set."""
    with pytest.raises(SettingsError, match=r"KEEPFIT_API_KEYS.*KEEPFIT_OPEN=true"):
        async with app.serving(settings.model_copy(update={"host": host, "port": 0})):
            pass


@pytest.mark.parametrize(
    "more",
    [{"open": True}, {"api_keys": stored(ALL)}, {"api_keys_file": "/no/matter"}],
    ids=["open", "keys", "file"],
)
def test_an_address_for_others_is_taken_where_it_is_meant(more: dict[str, Any]) -> None:
    """With keys, or where it is said in so many words, every address is fine."""
    guard.check_address(Settings(host="0.0.0.0", **more))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_takes_no_keys(host: str) -> None:
    """On this machine's own addresses the gateway starts without keys."""
    guard.check_address(Settings(host=host))


async def test_the_start_says_whether_keys_are_asked_for(settings: Settings) -> None:
    """A line in the log tells at start whether anybody may come in, and how many keys there are."""
    for more, expected in (
        ({}, {"event": "api_keys_disabled", "host": "127.0.0.1", "log_level": "info"}),
        ({"api_keys": stored(ALL)}, {"event": "api_keys_enabled", "keys": 1, "log_level": "info"}),
    ):
        with structlog.testing.capture_logs() as logged:
            async with serving(Settings(**{**settings.model_dump(), **more})):
                pass
        assert expected in logged


@pytest.mark.parametrize(
    ("inline", "file", "words"),
    [
        ("nonsense", None, "API key 1 is not"),
        ("", "", "hold no key"),
        ("", "# nobody yet\n", "hold no key"),
        (stored(ALL), "nonsense", "API key 2 is not"),
        (stored(ALL), stored(ALL), "same name"),
        ("", "\udcff", "is not text"),
        ("", "missing", "cannot be read: No such file"),
    ],
    ids=["nonsense", "nothing", "a comment", "nonsense in the file", "one name twice", "no text", "no file"],
)
async def test_keys_that_cannot_be_read_stop_the_start(
    settings: Settings, tmp_path: Path, inline: str, file: str | None, words: str
) -> None:
    """A gateway that was told to ask for keys, and has none that it can read, does not start open."""
    path = tmp_path / "keys"
    if file is not None and file != "missing":
        path.write_text(file, errors="surrogateescape")
    where = "" if file is None else str(path)
    with pytest.raises(SettingsError, match=words) as caught:
        async with app.serving(Settings(**{**settings.model_dump(), "api_keys": inline, "api_keys_file": where})):
            pass
    assert "nonsense" not in str(caught.value)


# Rotation.


async def test_keys_change_without_a_restart(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys put into the file open, keys taken out do not any more; the settings' own stay; a slip changes nothing."""
    monkeypatch.setattr(guard, "RELOAD_S", 0.01)
    path, first, second = tmp_path / "keys", new_key("first", [READ]), new_key("second", [READ])
    path.write_text(first[1])
    changed = {"api_keys": stored(ALL), "api_keys_file": str(path)}
    async with serving(Settings(**{**settings.model_dump(), **changed})) as api:

        async def opens(key: tuple[str, str]) -> bool:
            return (await api.call("GET", "/v1/models", headers=bearer(key))).status == 200

        async def logged(event: str) -> bool:
            return event in str(lines)

        with structlog.testing.capture_logs() as lines:
            assert await opens(first)
            assert not await opens(second)
            path.write_text(f"{first[1]}\n{second[1]}\n")
            await eventually(lambda: opens(second), "the new key's opening")
            assert await opens(first)
            path.write_text("a slip of the pen")
            await eventually(lambda: logged("api_keys_unreadable"), "a word about the slip")
            assert await opens(first)
            assert await opens(second)
            path.unlink()
            await eventually(lambda: logged("cannot be read"), "a word about the missing file")
            assert await opens(first)
            path.write_text(second[1])

            async def closed() -> bool:
                return not await opens(first)

            await eventually(closed, "the old key's end")
            assert await opens(second)
            assert await opens(ALL)
    changes = [(line["added"], line["removed"]) for line in lines if line["event"] == "api_keys_changed"]
    assert changes[0] == (["second"], [])
    assert changes[-1] == ([], ["first"])
    assert "slip" not in str(lines)


# Rates.


async def test_a_key_has_its_rate(settings: Settings) -> None:
    """Requests past the burst get 429 with Retry-After; every answer says what is left; other keys go on."""
    slow, other, free = new_key("slow", [READ], "0.01/3"), new_key("other", [READ]), new_key("free", [READ], "0")
    limited = {"api_keys": stored(slow, other, free), "rate_per_s": 0.01}
    async with serving(Settings(**{**settings.model_dump(), **limited})) as api:
        for left in (2, 1, 0):
            reply = await api.call("GET", "/nowhere", headers=bearer(slow))
            reply.problem(404)
            assert reply.headers["RateLimit-Policy"] == '"key";q=3;w=300'
            assert reply.headers["RateLimit"].startswith(f'"key";r={left};t=')
        refused = await api.call("GET", "/v1/models", headers=bearer(slow))
        assert "0.01 requests a second" in refused.problem(429)["detail"]
        assert 1 <= int(refused.headers["Retry-After"]) <= 100
        assert refused.headers["RateLimit"].startswith('"key";r=0;t=')
        assert (await api.call("GET", "/v1/models", headers=bearer(other))).status == 200
        assert (await api.call("GET", "/v1/models", headers=bearer(other))).status == 429
        for _ in range(10):
            reply = await api.call("GET", "/v1/models", headers=bearer(free))
            assert reply.status == 200
            assert "RateLimit" not in reply.headers
        for _ in range(10):
            assert (await api.get("/livez")).status == 200


async def test_the_short_way_has_the_rate_too(stack: Stack, metadata: dict[str, Any]) -> None:
    """Small requests count, and their answers say what is left."""
    limited = new_key("limited", [PREDICT, LEARN, ADMIN], "0.01/4")
    async with serving(with_keys(stack.settings(), api_keys=stored(limited))) as api:
        document = {"metadata": metadata, "recipe": REGRESSOR}
        made: dict[str, Any] = (await api.post("/v1/models", document, bearer(limited))).of(201)
        path = f"/v1/models/{made['hash']}/partial_fit"
        for left in (2, 1, 0):
            reply = await send(api, path, LABELLED, SHORT, limited)
            assert reply.status == 202
            assert reply.headers["RateLimit"].startswith(f'"key";r={left};t=')
        (await send(api, path, LABELLED, SHORT, limited)).problem(429)


# Request ids.


@pytest.mark.parametrize("way", [SHORT, LONG], ids=["short", "long"])
async def test_an_answer_has_the_id_that_was_sent(shut: Api, path: str, way: dict[str, str]) -> None:
    """X-Request-ID comes back on every answer; where none was sent, or one that is no id, the gateway makes one."""
    for call, document in (("predict", ROWS), ("partial_fit", LABELLED), ("predict", {"X": []})):
        body = json.dumps(document).encode()
        made = set()
        for sent in ("abc-1/2:3", None, "x" * 129, "a b", "a;b", "", "é"):
            named = {} if sent is None else {"X-Request-ID": sent}
            reply = await shut.call("POST", f"{path}/{call}", data=body, headers={**way, **bearer(ALL), **named})
            (given,) = reply.headers.getall("X-Request-ID")
            if sent == "abc-1/2:3":
                assert given == sent
            else:
                assert given != sent
                made.add(given)
        assert len(made) == 6


@pytest.mark.parametrize(
    ("method", "where", "status"),
    [("GET", "/livez", 200), ("GET", "/nowhere", 404), ("PUT", "/livez", 405), ("GET", "/v1/models/x", 400)],
)
async def test_every_kind_of_answer_has_an_id(lonely: Api, method: str, where: str, status: int) -> None:
    """Good answers, missing routes, wrong methods and our own errors carry the id."""
    reply = await lonely.call(method, where, headers={"X-Request-ID": "mine"})
    assert (reply.status, reply.headers["X-Request-ID"]) == (status, "mine")


async def test_answers_without_a_request_have_an_id(lonely: Api) -> None:
    """What is no HTTP is answered with an id of the gateway's own."""
    reply = Reply.parse(await exchange(lonely.url, b"nonsense\r\n\r\n"))
    reply.problem(400)
    assert reply.headers["X-Request-ID"]


async def test_a_line_in_the_log_names_the_request(
    settings: Settings, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went wrong on our side is logged with the id that the client has, on both ways."""
    monkeypatch.setattr(problems, "TOLD", LogThrottle(every_s=0.0))
    quick = settings.model_copy(update={"predict_timeout_s": 0.05})
    async with serving(quick) as api:
        path = await api.make(metadata, REGRESSOR)
        with structlog.testing.capture_logs() as logged:
            for way in (SHORT, LONG):
                headers = {**way, "X-Request-ID": f"from-{len(way['Content-Type'])}"}
                reply = await api.call("POST", f"{path}/predict", data=json.dumps(ROWS).encode(), headers=headers)
                reply.problem(503)
    failed = [line["request_id"] for line in logged if line["event"] == "request_failed"]
    assert failed == [f"from-{len(way['Content-Type'])}" for way in (SHORT, LONG)]


async def test_ids_of_two_requests_on_one_connection_are_not_mixed_up(lonely: Api) -> None:
    """A request without an id, after one with an id, gets its own."""
    async with connected(lonely.url) as (reader, writer), asyncio.timeout(30):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-ID: first\r\n\r\n")
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = await reader.read()
    assert data.count(b"X-Request-ID: first\r\n") == 1
    assert data.count(b"X-Request-ID: ") == 2
