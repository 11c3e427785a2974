"""Sessions: a cookie stands for its key, for the gateway's own pages alone, until the key is revoked."""

from collections.abc import AsyncIterator
from http.cookies import Morsel, SimpleCookie
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keepfit.backends import redis_clients, redis_keys
from keepfit.security.api_keys import SCOPES, new_key
from keepfit.settings import Settings
from keepfit_gateway.auth import sessions
from tests.gateway.api_client import REGRESSOR, Api, Reply, eventually, serving

TOKEN, STORED = new_key("operator", SCOPES)
READER, STORED_READER = new_key("reader", ["read"])
OWN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
async def guarded(settings: Settings) -> AsyncIterator[Api]:
    """Run a gateway with two keys."""
    async with serving(with_keys(settings), (TOKEN, READER)) as api:
        yield api


def with_keys(settings: Settings) -> Settings:
    """Return settings with both keys."""
    return Settings(**{**settings.model_dump(), "api_keys": f"{STORED},{STORED_READER}"})


async def sign_in(api: Api, token: str = TOKEN, **headers: str) -> tuple[Reply, "Morsel[str]"]:
    """Begin a session as the page does; return the answer and the cookie."""
    # Not through the client's jar: tests send the cookie themselves.
    reply = await api.call("POST", "/v1/session", {"key": token}, headers={**OWN, **headers})
    assert reply.status == 200, reply.body
    return reply, SimpleCookie(reply.headers["Set-Cookie"])[sessions.COOKIE]


def cookie(morsel: "Morsel[str]", **more: str) -> dict[str, str]:
    """Return the headers of a request of the page in a session."""
    return {"Cookie": f"other=1; {sessions.COOKIE}={morsel.value}", **OWN, **more}


async def test_a_session_has_the_scopes_of_its_key(guarded: Api, metadata: dict[str, Any]) -> None:
    """The cookie does what the key does, and no more; scripts and other sites cannot have it."""
    reply, operator = await sign_in(guarded)
    assert (operator["httponly"], operator["samesite"], operator["path"]) == (True, "Strict", "/")
    assert (operator["max-age"], operator["secure"], operator["domain"]) == (str(sessions.SESSION_S), "", "")
    assert reply.headers["Cache-Control"] == "no-store"
    described = reply.json()
    assert (described["name"], described["scopes"]) == ("operator", sorted(SCOPES))
    assert (await guarded.call("GET", "/v1/caller", headers=cookie(operator))).of(200) == described
    made = {"metadata": metadata, "recipe": REGRESSOR}
    (await guarded.post("/v1/models", made, cookie(operator))).of(201)
    _, reader = await sign_in(guarded, READER)
    assert len((await guarded.call("GET", "/v1/models", headers=cookie(reader))).of(200)["models"]) == 1
    (await guarded.post("/v1/models", made, cookie(reader))).problem(403)
    # A browser that uses HTTPS, here or at a proxy, sends the cookie over HTTPS alone.
    _, secure = await sign_in(guarded, **{"X-Forwarded-Proto": "https"})
    assert secure["secure"] is True
    ended = await guarded.call("DELETE", "/v1/session", headers=OWN)
    assert (ended.status, SimpleCookie(ended.headers["Set-Cookie"])[sessions.COOKIE]["max-age"]) == (204, "0")


async def test_other_pages_cannot_use_a_session(guarded: Api, metadata: dict[str, Any]) -> None:
    """Whatever a page of another origin can have a browser send, the cookie does not count."""
    _, operator = await sign_in(guarded)
    made = {"metadata": metadata, "recipe": REGRESSOR}
    sent = {"Cookie": f"{sessions.COOKIE}={operator.value}"}
    own = {"Origin": guarded.url.rstrip("/")}
    for site in ("cross-site", "same-site", "none"):
        (await guarded.post("/v1/models", made, {**sent, **own, "Sec-Fetch-Site": site})).problem(401)
    for origin in ("https://evil.example", "null", f"{own['Origin']}.evil.example", f"{own['Origin']}0"):
        (await guarded.post("/v1/models", made, {**sent, "Origin": origin})).problem(401)
        for method, document in (("POST", {"key": TOKEN}), ("DELETE", None)):
            reply = await guarded.call(method, "/v1/session", document, headers={"Origin": origin})
            assert "Set-Cookie" not in reply.headers
            assert reply.problem(403)["type"] == "urn:keepfit:problem:foreign-origin"
    # What no browser sends from its own page.
    (await guarded.post("/v1/models", made, sent)).problem(401)
    (await guarded.call("GET", "/v1/models", headers={**sent, "Sec-Fetch-Site": "cross-site"})).problem(401)
    assert (await guarded.call("GET", "/v1/models", headers=cookie(operator))).of(200)["models"] == []
    # Over plain HTTP to another host, browsers name the origin alone.
    (await guarded.post("/v1/models", made, {**sent, **own})).of(201)


async def test_a_cookie_that_is_not_valid_is_no_key(guarded: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed, made up or old cookie answers 401, as no cookie does; a wrong key beside a valid one does, too."""
    _, operator = await sign_in(guarded)
    digest, ends, signature = operator.value.split(".")
    _, reader = await sign_in(guarded, READER)
    other = reader.value.split(".")
    made_up = [
        "", "x", operator.value + "0", f"{digest}.{int(ends) + 1}.{signature}", f"{other[0]}.{ends}.{signature}",
        f"{digest}.{ends}.{'0' * 64}", f"{digest}.{ends}.{other[2]}",
    ]  # fmt: skip
    for value in made_up:
        operator.set(sessions.COOKIE, value, value)
        (await guarded.call("GET", "/v1/models", headers=cookie(operator))).problem(401)
    (await guarded.call("POST", "/v1/session", {"key": "kf_unknown"}, headers=OWN)).problem(401)
    (await guarded.call("GET", "/v1/models", headers=cookie(reader, Authorization="Bearer wrong"))).problem(401)
    (await guarded.call("GET", "/v1/models", headers=cookie(reader))).of(200)
    monkeypatch.setattr(sessions, "SESSION_S", -1)
    _, late = await sign_in(guarded)
    (await guarded.call("GET", "/v1/models", headers=cookie(late))).problem(401)


async def test_sessions_hold_on_all_gateways_until_the_key_is_revoked(settings: Settings, tmp_path: Path) -> None:
    """Gateways share the secret, also a new one after Redis has lost it; a key that is revoked ends its sessions."""
    file = tmp_path / "keys"
    file.write_text(f"{STORED}\n{STORED_READER}\n")
    served = Settings(**{**settings.model_dump(), "api_keys_file": str(file)})
    async with serving(served) as first, serving(served) as second:
        _, operator = await sign_in(first)
        (await second.call("GET", "/v1/models", headers=cookie(operator))).of(200)
        queue = redis_clients.queue_async(settings)
        await queue.delete(redis_keys.SESSIONS)
        await queue.aclose()

        async def shared() -> bool:
            # A gateway looks once a second, so the first one to make the new secret may be either.
            _, renewed = await sign_in(second)
            return (await first.call("GET", "/v1/models", headers=cookie(renewed))).status == 200

        await eventually(shared, "a session with the new secret")
        _, operator = await sign_in(first)
        file.write_text(f"{STORED_READER}\n")

        async def revoked() -> bool:
            return (await first.call("GET", "/v1/models", headers=cookie(operator))).status == 401

        await eventually(revoked, "the end of the session")


async def test_events_end_with_the_session(guarded: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of events that a session has begun ends when the session does."""
    _, operator = await sign_in(guarded)
    async with (
        aiohttp.ClientSession(guarded.url) as http,
        http.get("/v1/events", headers=cookie(operator)) as response,
    ):
        assert response.status == 200
        await response.content.readline()
        monkeypatch.setattr(sessions.Sessions, "find", lambda *_: None)
        await response.content.read()


async def test_a_gateway_without_keys_needs_no_session(workerless: Api) -> None:
    """The page asks who calls, and need not sign in."""
    expected = {"name": "unrestricted", "scopes": sorted(SCOPES), "ends": None}
    assert (await workerless.get("/v1/caller")).of(200) == expected
    reply = await workerless.post("/v1/session", {"key": "kf_none"})
    assert reply.of(200) == expected
    assert "Set-Cookie" not in reply.headers
