"""API keys and their scopes on every path into the gateway, rate limits, request ids, and the address it binds to."""

import asyncio
import json
import os
import socket
import threading
import uuid
from base64 import b64decode
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr
from sklearn.linear_model import SGDRegressor

from keepfit.errors import SettingsError
from keepfit.objects import dump
from keepfit.observability.outage import LogThrottle
from keepfit.security.api_keys import ADMIN, LEARN, OPEN, PREDICT, READ, SCOPES, new_key
from keepfit.security.envelope import new_signing_key
from keepfit.settings import Settings
from keepfit.settings_check import check_host
from keepfit_gateway import app
from keepfit_gateway.auth import guard
from keepfit_gateway.routes import OPEN_PATHS, PAGE_FILES, ROUTES, Route
from keepfit_gateway.web import problems
from tests.conftest import Stack
from tests.gateway.api_client import REGRESSOR, WAIT, Api, Reply, address_of, connected, eventually, exchange, serving

KEYS = {name: new_key(name, [name]) for name in SCOPES}
ALL = new_key("all", SCOPES)
RENEWED = new_key(LEARN, [LEARN])
OPEN_ROUTES = {
    "/", "/livez", "/readyz", "/openapi.json", "/docs", "/v1/session", "/v2", "/v2/health/live", "/v2/health/ready",
    "/ping", "/health",
}  # fmt: skip
LEARNING = ("/partial_fit", "/train_score_predict", "/labels", "/pull", "/write")
LABELLED, ROWS = {"X": [[1.0, 2.0]], "y": [1.0]}, {"X": [[1.0, 2.0]]}
FAST = {"Content-Type": "application/json"}
REGULAR = {"Content-Type": "application/json; charset=utf-8"}


def bearer(key: tuple[str, str]) -> dict[str, str]:
    """Return the header that sends a key."""
    return {"Authorization": f"Bearer {key[0]}"}


def stored(*keys: tuple[str, str]) -> str:
    """Return keys in the form of the settings."""
    return ",".join(line for _, line in keys)


def with_keys(settings: Settings, **more: Any) -> Settings:
    """Return settings that require keys."""
    return Settings(**{**settings.model_dump(), "port": 0, "api_keys": stored(*KEYS.values(), ALL, RENEWED), **more})


@pytest.fixture
async def guarded(stack: Stack) -> AsyncIterator[Api]:
    """Return a gateway of the test's own that requires keys, on the servers and workers of the shared stack."""
    async with serving(with_keys(stack.settings()), tuple(token for token, _ in KEYS.values())) as api:
        yield api


@pytest.fixture
async def path(guarded: Api, metadata: dict[str, Any]) -> str:
    """Return the path of a model that has learned a row and that the gateway has cached."""
    document = {"metadata": metadata, "recipe": REGRESSOR}
    made: dict[str, Any] = (await guarded.post("/v1/models", document, bearer(ALL))).of(201)
    learned = await guarded.post(f"/v1/models/{made['hash']}/partial_fit", LABELLED, {**bearer(ALL), **WAIT})
    learned.of(200)
    return f"/v1/models/{made['hash']}"


async def test_an_idempotency_key_belongs_to_a_name(guarded: Api, path: str) -> None:
    """Two callers may use the same Idempotency-Key for different rows; each is known, also with a new key."""
    sequences = []
    for caller, later, rows in (
        (KEYS[LEARN], RENEWED, LABELLED),
        (ALL, ALL, {"X": [[3.0, 4.0]], "y": [2.0]}),
    ):
        headers = {"Idempotency-Key": "batch-1"}
        first = (await guarded.post(f"{path}/partial_fit", rows, {**bearer(caller), **headers})).of(202)
        again = (await guarded.post(f"{path}/partial_fit", rows, {**bearer(later), **headers})).of(202)
        assert again["sequence"] == first["sequence"]
        sequences.append(first["sequence"])
    assert sequences == [2, 3]


# Scopes, on every route.


def test_routes_require_the_documented_scopes() -> None:
    """Each route requires the scope that docs/operations/security.md names for it."""
    needs = {(route.method, route.path): route.needs for route in ROUTES}
    for (method, where), scope in needs.items():
        if where in OPEN_ROUTES:
            assert scope == OPEN
        elif where.endswith(("/predict", "/score", "/infer")):
            assert scope == PREDICT
        elif where.endswith(LEARNING) or "/jobs" in where or (method, where) == ("POST", "/v1/history"):
            assert scope == LEARN
        else:
            # Dead letters are shown with their rows; an estimator is all that a model has learned.
            reads = method == "GET" and not where.endswith(("/dead", "/estimator"))
            assert scope == (READ if reads else ADMIN), where
    assert OPEN_ROUTES | PAGE_FILES.keys() == OPEN_PATHS


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_every_route_requires_its_scope(guarded: Api, route: Route) -> None:
    """Without a key a route answers 401, with other scopes 403, with its scope neither; HEAD as GET."""
    for method in (route.method, "HEAD") if route.method == "GET" else (route.method,):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
            reply = await guarded.call(method, address_of(route.path), headers=headers)
            assert (reply.status == 401) is (route.needs != OPEN)
            if reply.status == 401:
                assert reply.headers["WWW-Authenticate"] == "Bearer"
        for scope, key in KEYS.items():
            reply = await guarded.call(method, address_of(route.path), headers=bearer(key))
            lacking = {*route.scopes} - {OPEN, READ, scope}
            assert (reply.status == 403) is bool(lacking), scope
            assert reply.status != 401
            if reply.status == 403 and method != "HEAD":
                named = reply.refusal(403, route.path)
                assert any(f"'{each}'" in named for each in lacking)


async def test_reasons_are_for_admin_keys(settings: Settings) -> None:
    """While a dependency fails, probes and 503s name its address to an admin key and in the log, and to no one else."""
    with socket.socket() as silent, structlog.testing.capture_logs() as logs:
        # Bound, so that no other process gets the port, and not listening.
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        broken = with_keys(settings, mongo_url=f"mongodb://{address}/keepfit")
        async with serving(broken) as api:
            # Each answer waits until the driver gives up.
            some = (bearer(KEYS[ADMIN]), {}, bearer(KEYS[READ]))
            ready = await asyncio.gather(*(api.call("GET", "/readyz", headers=headers) for headers in some))
            # Possibly that no answer came in time.
            assert [reply.json()["mongo"] not in ("ok", "fails") for reply in ready] == [True, False, False]
            keys = (KEYS[ADMIN], KEYS[READ], KEYS[PREDICT])
            listed = await asyncio.gather(*(api.call("GET", "/v1/models", headers=bearer(key)) for key in keys))
            for reply, knows in zip(listed, (True, False, False), strict=True):
                problem = reply.problem(503)
                assert (address in problem["detail"]) is knows
                assert "MongoDB is unavailable" in problem["detail"]
            assert address in str(logs)
        async with serving(broken.model_copy(update={"api_keys": SecretStr("")})) as keyless:
            ready, listed = await asyncio.gather(keyless.get("/readyz"), keyless.get("/v1/models"))
            assert ready.json()["mongo"] == "fails"
            assert address not in listed.problem(503)["detail"]


async def test_the_bytes_of_an_object_are_for_admin_keys(settings: Settings, metadata: dict[str, Any]) -> None:
    """A pickle is shown to an admin key alone; other keys see the name of its class, its size and its digest."""
    upload_key = new_signing_key()
    text = dump(SGDRegressor(), upload_key)
    described = {
        "name": "SGDRegressor",
        "size_bytes": len(b64decode(text)),
        "sha256": sha256(text.encode()).hexdigest(),
    }
    async with serving(with_keys(settings, upload_keys=upload_key)) as api:
        made = await api.post("/v1/models", {"metadata": metadata, "recipe": {"object": text}}, bearer(KEYS[ADMIN]))
        assert made.of(201)["recipe"]["object"] == text
        for key, shown in (
            (KEYS[ADMIN], text),
            *((KEYS[name], f"sha256:{described['sha256']}") for name in (READ, PREDICT, LEARN)),
        ):
            found = (await api.call("GET", made.headers["Location"], headers=bearer(key))).of(200)
            listed = (await api.call("GET", "/v1/models", headers=bearer(key), params={"type": metadata["type"]})).of(
                200
            )
            assert found["recipe"]["object"] == shown
            assert found["object"] == described
            assert text not in str(listed)
            assert described in [model.get("object") for model in listed["models"]]


@pytest.mark.parametrize("where", ["/nowhere", "/v1/mode/", "/x//livez", "/livez/x", "/v1/predict/livez"])
async def test_an_unknown_path_is_404_only_with_a_key(guarded: Api, where: str) -> None:
    """An unknown path answers 401 without a key, so that it reveals no routes, and 404 with a key."""
    (await guarded.get(where)).problem(401)
    (await guarded.call("GET", where, headers=bearer(KEYS[READ]))).problem(404)


async def test_a_wrong_method_is_405_only_with_a_key(guarded: Api) -> None:
    """A wrong method answers 401 without a key and 405 with one; on open paths it answers 405."""
    (await guarded.call("PUT", "/v1/models")).problem(401)
    (await guarded.call("PUT", "/v1/models", headers=bearer(KEYS[READ]))).problem(405)
    (await guarded.call("POST", "/livez")).problem(405)


async def test_an_expectation_is_checked_after_the_key(guarded: Api) -> None:
    """A request with `Expect: 100-continue` or an unknown expectation answers 401 without a key."""
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n"
    for expectation in (b"100-continue", b"miracles"):
        answer = await exchange(guarded.url, head + b"Expect: " + expectation + b"\r\n\r\n{}")
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"100 Continue" not in answer


async def test_two_keys_are_refused(guarded: Api, path: str) -> None:
    """Two Authorization headers answer 400, even with the same key: a proxy may have checked the other one."""
    for other in (KEYS[READ][0], ALL[0]):
        for media_type in ("application/json", "application/json; charset=utf-8"):
            head = f"POST {path}/predict HTTP/1.1\r\nHost: x\r\nContent-Type: {media_type}\r\nContent-Length: 2\r\n"
            head += f"Authorization: Bearer {ALL[0]}\r\nauthorization: Bearer {other}\r\nConnection: close\r\n\r\n{{}}"
            detail = Reply.parse(await exchange(guarded.url, head.encode())).problem(400)["detail"]
            assert "Authorization" in detail


async def test_invalid_http_needs_no_key(guarded: Api) -> None:
    """Responses to invalid HTTP need no key and reveal nothing."""
    answer = await exchange(guarded.url, b"GET /v1/models HTTP/9.9.9\r\n\r\n")
    Reply.parse(answer).problem(400)


async def test_the_openapi_document_names_the_scopes(guarded: Api, workerless: Api) -> None:
    """The OpenAPI document of a gateway with keys names the scope of each operation; without keys they are optional."""
    document = (await guarded.get("/openapi.json")).of(200)
    scheme = document["components"]["securitySchemes"]["key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        assert operation["security"] == ([] if route.needs == OPEN else [{"key": [*route.scopes]}])
        # A session begins with a key in the body.
        if route.path != "/v1/session":
            assert ({"401", "403", "429"} <= operation["responses"].keys()) is (route.needs != OPEN)
    plain = (await workerless.get("/openapi.json")).of(200)
    assert plain["components"]["securitySchemes"]["key"] == scheme
    assert plain["security"] == [{}, {"key": []}]
    assert not [item for path in plain["paths"].values() for item in path.values() if "security" in item]


# The fast path, and cached answers.


async def send(api: Api, path: str, document: Any, path_headers: dict[str, str], key: tuple[str, str] | None) -> Reply:
    """Send a document on the fast or the regular path."""
    headers = {**path_headers, **(bearer(key) if key else {})}
    return await api.call("POST", path, data=json.dumps(document).encode(), headers=headers)


@pytest.mark.parametrize("path_headers", [FAST, REGULAR], ids=["fast", "regular"])
async def test_both_paths_require_the_key(guarded: Api, path: str, path_headers: dict[str, str]) -> None:
    """Small requests about a cached model are refused like all others: 401 without a key, 403 with another scope."""
    for call, document, scope, status in (("predict", ROWS, PREDICT, 200), ("partial_fit", LABELLED, LEARN, 202)):
        (await send(guarded, f"{path}/{call}", document, path_headers, None)).problem(401)
        for other in SCOPES:
            reply = await send(guarded, f"{path}/{call}", document, path_headers, KEYS[other])
            assert reply.status == (status if other == scope else 403), (call, other)


async def test_a_cached_answer_requires_the_key(guarded: Api, path: str) -> None:
    """A cached prediction, or a 304, is not returned without the key on either path."""
    body = json.dumps(ROWS).encode()
    first = await guarded.call("POST", f"{path}/predict", data=body, headers={**FAST, **bearer(KEYS[PREDICT])})
    cached = await guarded.call("POST", f"{path}/predict", data=body, headers={**FAST, **bearer(KEYS[PREDICT])})
    assert "Age" in cached.headers
    assert cached.body == first.body
    for path_headers in (FAST, REGULAR):
        for more in ({}, {"If-None-Match": cached.headers["ETag"]}):
            (await guarded.call("POST", f"{path}/predict", data=body, headers={**path_headers, **more})).problem(401)
            refused = await guarded.call(
                "POST", f"{path}/predict", data=body, headers={**path_headers, **more, **bearer(KEYS[ADMIN])}
            )
            refused.problem(403)


async def test_a_key_counts_for_its_request_only(guarded: Api, path: str) -> None:
    """On one connection a request without a key is refused after one with a key."""
    body = json.dumps(ROWS).encode()

    def request(key: str, last: bool) -> bytes:
        head = f"POST {path}/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{key}"
        return f"{head}Content-Length: {len(body)}\r\n{'Connection: close' if last else 'A: b'}\r\n\r\n".encode() + body

    key = f"Authorization: bearer {KEYS[PREDICT][0]}\r\n"
    answers = await exchange(guarded.url, request(key, False) + request("", True))
    assert answers.count(b"HTTP/1.1 200 OK") == answers.count(b"HTTP/1.1 401 Unauthorized") == 1


async def test_no_key_is_logged(guarded: Api, path: str) -> None:
    """No log line holds a sent key, valid or not, or a stored one."""
    with structlog.testing.capture_logs() as logged:
        (await guarded.call("GET", path, headers={"Authorization": "Bearer kf_hush-hush"})).problem(401)
        (await guarded.call("DELETE", path, headers=bearer(KEYS[READ]))).problem(403)
        (await guarded.call("GET", path, headers=bearer(KEYS[READ]))).of(200)
    text = str(logged)
    assert "hush" not in text
    assert not [token for token, line in KEYS.values() if token in text or line.split(":")[2] in text]


# Without keys, and where the gateway binds.


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.1.2.3", "example.com"])
async def test_a_network_address_requires_keys(settings: Settings, host: str) -> None:
    """Without keys the gateway does not start on a network address; the error names the settings."""
    with pytest.raises(SettingsError, match=r"KEEPFIT_API_KEYS.*KEEPFIT_OPEN=true"):
        async with app.serving(settings.model_copy(update={"host": host, "port": 0})):
            pass


@pytest.mark.parametrize(
    "more",
    [{"open": True}, {"api_keys": stored(ALL)}, {"api_keys_file": "/no/matter"}],
    ids=["open", "keys", "file"],
)
def test_a_network_address_is_accepted_with_keys_or_open(more: dict[str, Any]) -> None:
    """With keys, or with KEEPFIT_OPEN, every address is accepted."""
    check_host(Settings(host="0.0.0.0", **more))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_requires_no_keys(host: str) -> None:
    """On a loopback address the gateway starts without keys."""
    check_host(Settings(host=host))


async def test_the_start_logs_whether_keys_are_required(settings: Settings) -> None:
    """At start one log line says whether keys are required, and how many there are."""
    for more, expected in (
        ({}, {"event": "api_keys_disabled", "host": "127.0.0.1", "log_level": "info"}),
        ({"api_keys": stored(ALL)}, {"event": "api_keys_enabled", "keys": 1, "log_level": "info"}),
    ):
        with structlog.testing.capture_logs() as logged:
            async with serving(Settings(**{**settings.model_dump(), **more})):
                pass
        assert expected in logged


@pytest.mark.parametrize(
    ("inline", "file", "message"),
    [
        ("nonsense", None, "key 1 is not"),
        ("", "", "hold no key"),
        ("", "# none yet\n", "hold no key"),
        (stored(ALL), "nonsense", "key 2 is not"),
        (stored(ALL), stored(ALL), "same token"),
        ("", "\udcff", "is not text"),
        ("", "missing", "cannot be read: No such file"),
    ],
    ids=["nonsense", "nothing", "a comment", "nonsense in the file", "one key twice", "no text", "no file"],
)
async def test_unreadable_keys_prevent_the_start(
    settings: Settings, tmp_path: Path, inline: str, file: str | None, message: str
) -> None:
    """A gateway that requires keys and cannot read any does not start."""
    path = tmp_path / "keys"
    if file is not None and file != "missing":
        path.write_text(file, errors="surrogateescape")
    where = "" if file is None else str(path)
    with pytest.raises(SettingsError, match=message) as caught:
        async with app.serving(Settings(**{**settings.model_dump(), "api_keys": inline, "api_keys_file": where})):
            pass
    assert "nonsense" not in str(caught.value)


# Rotation.


async def test_keys_change_without_a_restart(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys added to the file work, removed ones stop; the settings' keys stay; a malformed file changes nothing."""
    monkeypatch.setattr(guard, "RELOAD_S", 0.01)
    path, first, second = tmp_path / "keys", new_key("first", [READ]), new_key("second", [READ])
    path.write_text(first[1])
    changed = {"api_keys": stored(ALL), "api_keys_file": str(path)}
    async with serving(Settings(**{**settings.model_dump(), **changed})) as api:

        async def accepted(key: tuple[str, str]) -> bool:
            return (await api.call("GET", "/v1/models", headers=bearer(key))).status == 200

        async def logged(event: str) -> bool:
            return event in str(lines)

        with structlog.testing.capture_logs() as lines:
            assert await accepted(first)
            assert not await accepted(second)
            path.write_text(f"{first[1]}\n{second[1]}\n")
            await eventually(lambda: accepted(second), "the new key to work")
            assert await accepted(first)
            path.write_text("a malformed line")
            await eventually(lambda: logged("api_keys_unreadable"), "a log line about the malformed file")
            assert await accepted(first)
            assert await accepted(second)
            path.unlink()
            await eventually(lambda: logged("cannot be read"), "a log line about the missing file")
            assert await accepted(first)
            path.write_text(second[1])

            async def revoked() -> bool:
                return not await accepted(first)

            await eventually(revoked, "the old key to stop working")
            assert await accepted(second)
            assert await accepted(ALL)
    changes = [(line["added"], line["removed"]) for line in lines if line["event"] == "api_keys_changed"]
    assert changes[0] == (["second"], [])
    assert changes[-1] == ([], ["first"])
    assert "malformed" not in str(lines)


async def test_changes_of_a_key_are_logged(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log says which key has other scopes, another token or another rate, without the token."""
    monkeypatch.setattr(guard, "RELOAD_S", 0.01)
    path, first, second = tmp_path / "keys", new_key("web", [READ]), new_key("web", [READ])
    path.write_text(first[1])
    async with serving(Settings(**{**settings.model_dump(), "api_keys_file": str(path)})):
        for content, parts in (
            (first[1].replace(":read:", ":read+learn:"), ["scopes"]),
            ("\n".join(line.replace(":read:", ":read+learn:") for _, line in (first, second)), ["digest"]),
            (second[1].replace(":read:", ":read+learn:"), ["digest"]),
            (second[1] + ":5/10", ["scopes", "rate_per_s", "burst"]),
        ):
            with structlog.testing.capture_logs() as logged:
                path.write_text(content)

                async def is_logged() -> bool:
                    return bool(logged)

                await eventually(is_logged, "a log line about the change")
            assert [line["changed"] for line in logged] == [{"web": parts}]
            assert [token for token, line in (first, second) if token in str(logged) or line[-64:] in str(logged)] == []


async def test_a_keys_file_is_a_regular_file(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO, a folder or a device as the file of keys is refused at start; later it is logged, and the keys stay."""
    monkeypatch.setattr(guard, "RELOAD_S", 0.01)
    fifo, path, key = tmp_path / "fifo", tmp_path / "keys", new_key("web", [READ])
    os.mkfifo(fifo)
    for other in (fifo, tmp_path, Path("/dev/zero")):
        with pytest.raises(SettingsError, match=r"KEEPFIT_API_KEYS_FILE.*it is not a regular file"):
            async with serving(Settings(**{**settings.model_dump(), "api_keys_file": str(other)})):
                pass
    (tmp_path / "real").write_text(key[1])
    # Kubernetes mounts a Secret as links.
    path.symlink_to(tmp_path / "real")
    async with serving(Settings(**{**settings.model_dump(), "api_keys_file": str(path)})) as api:
        with structlog.testing.capture_logs() as logged:
            path.unlink()
            path.symlink_to(fifo)

            async def is_logged() -> bool:
                return "not a regular file" in str(logged)

            await eventually(is_logged, "a log line about the FIFO")
        (await api.call("GET", "/v1/models", headers=bearer(key))).of(200)


async def test_a_keys_file_that_hangs_is_noticed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that does not answer stops the start; later it is logged once, and the keys stay."""
    monkeypatch.setattr(guard, "RELOAD_S", 0.01)
    monkeypatch.setattr(guard, "READ_S_MAX", 0.2)
    path, key, more = tmp_path / "keys", new_key("web", [READ]), new_key("more", [READ])
    path.write_text(key[1])
    answers, read, calls = threading.Event(), guard.read_api_keys_file, list[Path]()

    def hang(file: Path) -> bytes:
        calls.append(file)
        answers.wait()
        return read(file)

    monkeypatch.setattr(guard, "read_api_keys_file", hang)
    served = Settings(**{**settings.model_dump(), "api_keys_file": str(path)})
    try:
        with pytest.raises(SettingsError, match=r"KEEPFIT_API_KEYS_FILE.*no answer within 0\.2 s"):
            async with serving(served):
                pass
        answers.set()
        async with serving(served) as api:
            with structlog.testing.capture_logs() as logged:
                answers.clear()

                async def is_logged() -> bool:
                    return "no answer" in str(logged)

                await eventually(is_logged, "a log line about the hanging file")
                hanging = len(calls)
                await asyncio.sleep(0.5)
                assert len(calls) == hanging
                (await api.call("GET", "/v1/models", headers=bearer(key))).of(200)
                path.write_text(f"{key[1]}\n{more[1]}")
                answers.set()

                async def works() -> bool:
                    return (await api.call("GET", "/v1/models", headers=bearer(more))).status == 200

                await eventually(works, "the new key to work")
            assert [line["event"] for line in logged] == ["api_keys_unreadable", "api_keys_changed"]
    finally:
        answers.set()


# Rates.


async def test_a_key_has_its_rate_limit(settings: Settings) -> None:
    """Requests above the burst get 429 with Retry-After; responses have the remaining quota; names are independent."""
    # Tests share a Redis, and so the tokens of keys with one name.
    run = uuid.uuid4().hex[:8]
    slow, renewed = (new_key(f"slow-{run}", [READ], "0.01/3") for _ in range(2))
    other, free = new_key(f"other-{run}", [READ]), new_key("free", [READ], "0")
    limited = {"api_keys": stored(slow, renewed, other, free), "rate_per_s": 0.01}
    async with serving(Settings(**{**settings.model_dump(), **limited})) as api:
        for left, key in ((2, slow), (1, renewed), (0, slow)):
            reply = await api.call("GET", "/nowhere", headers=bearer(key))
            reply.problem(404)
            assert reply.headers["RateLimit-Policy"] == '"key";q=3;w=300'
            assert reply.headers["RateLimit"].startswith(f'"key";r={left};t=')
        refused = await api.call("GET", "/v1/models", headers=bearer(renewed))
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


async def test_the_fast_path_has_the_rate_limit(stack: Stack, metadata: dict[str, Any]) -> None:
    """Requests on the fast path count, and their responses have the remaining quota."""
    limited = new_key(f"limited-{uuid.uuid4().hex[:8]}", [PREDICT, LEARN, ADMIN], "0.01/4")
    async with serving(with_keys(stack.settings(), api_keys=stored(limited))) as api:
        document = {"metadata": metadata, "recipe": REGRESSOR}
        made: dict[str, Any] = (await api.post("/v1/models", document, bearer(limited))).of(201)
        path = f"/v1/models/{made['hash']}/partial_fit"
        for left in (2, 1, 0):
            reply = await send(api, path, LABELLED, FAST, limited)
            assert reply.status == 202
            assert reply.headers["RateLimit"].startswith(f'"key";r={left};t=')
        (await send(api, path, LABELLED, FAST, limited)).problem(429)


# Request ids.


@pytest.mark.parametrize("path_headers", [FAST, REGULAR], ids=["fast", "regular"])
async def test_a_response_has_the_request_id_of_the_client(
    guarded: Api, path: str, path_headers: dict[str, str]
) -> None:
    """A response repeats X-Request-ID; without one, or with an invalid one, the gateway mints an id."""
    for call, document in (("predict", ROWS), ("partial_fit", LABELLED), ("predict", {"X": []})):
        body = json.dumps(document).encode()
        made = set()
        for sent in ("abc-1/2:3", None, "x" * 129, "a b", "a;b", "", "é"):
            named = {} if sent is None else {"X-Request-ID": sent}
            reply = await guarded.call(
                "POST", f"{path}/{call}", data=body, headers={**path_headers, **bearer(ALL), **named}
            )
            (found,) = reply.headers.getall("X-Request-ID")
            if sent == "abc-1/2:3":
                assert found == sent
            else:
                assert found != sent
                made.add(found)
        assert len(made) == 6


@pytest.mark.parametrize(
    ("method", "where", "status"),
    [("GET", "/livez", 200), ("GET", "/nowhere", 404), ("PUT", "/livez", 405), ("GET", "/v1/models/x", 400)],
)
async def test_every_kind_of_response_has_an_id(workerless: Api, method: str, where: str, status: int) -> None:
    """Successes, unknown routes, wrong methods and errors carry the request id."""
    reply = await workerless.call(method, where, headers={"X-Request-ID": "mine"})
    assert (reply.status, reply.headers["X-Request-ID"]) == (status, "mine")


async def test_a_response_to_invalid_http_has_an_id(workerless: Api) -> None:
    """The response to invalid HTTP has an id that the gateway minted."""
    reply = Reply.parse(await exchange(workerless.url, b"nonsense\r\n\r\n"))
    reply.problem(400)
    assert reply.headers["X-Request-ID"]


async def test_a_log_line_has_the_request_id(
    settings: Settings, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed request is logged with the id of the client, on both paths."""
    monkeypatch.setattr(problems, "THROTTLE", LogThrottle(every_s=0.0))
    quick = settings.model_copy(update={"predict_timeout_s": 0.05})
    async with serving(quick) as api:
        path = await api.make(metadata, REGRESSOR)
        with structlog.testing.capture_logs() as logged:
            for path_headers in (FAST, REGULAR):
                headers = {**path_headers, "X-Request-ID": f"from-{len(path_headers['Content-Type'])}"}
                reply = await api.call("POST", f"{path}/predict", data=json.dumps(ROWS).encode(), headers=headers)
                reply.problem(503)
    failed = [line["request_id"] for line in logged if line["event"] == "request_failed"]
    assert failed == [f"from-{len(path_headers['Content-Type'])}" for path_headers in (FAST, REGULAR)]


async def test_request_ids_of_one_connection_are_independent(workerless: Api) -> None:
    """A request without an id, after one with an id on the same connection, gets an id of its own."""
    async with connected(workerless.url) as (reader, writer), asyncio.timeout(30):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: first\r\n\r\n")
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        data = await reader.read()
    assert data.count(b"X-Request-ID: first\r\n") == 1
    assert data.count(b"X-Request-ID: ") == 2
