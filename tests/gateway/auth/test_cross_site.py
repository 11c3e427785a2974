"""Web pages of other sites: host names, origins, CORS, on the fast and on the regular path."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from keepfit.errors import SettingsError
from keepfit.security.api_keys import SCOPES, new_key
from keepfit.settings import Settings
from keepfit_gateway.auth.cross_site import ALLOWED_HEADERS, EXPOSED_HEADERS, CrossSitePolicy
from keepfit_gateway.routes import ROUTES, methods_of_paths
from tests.conftest import Stack
from tests.gateway.api_client import REGRESSOR, Api, Reply, address_of, exchange, serving
from tests.gateway.conformance import DOCUMENT

PAGE = "https://app.example.com"
EVIL = "http://evil.example"
BODY = b'{"X":[[1.0,2.0]],"y":[1.0]}'
FAST = {"Content-Type": "application/json"}
REGULAR = {"Content-Type": "application/json; charset=utf-8"}
KEY = new_key("all", SCOPES)
BEARER = {"Authorization": f"Bearer {KEY[0]}"}


def head(target: str, *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    """Return the head of the last request on a connection."""
    return "\r\n".join((f"{method} {target} HTTP/{version}", *lines, "Connection: close", "", "")).encode()


async def sent(api: Api, data: bytes) -> Reply:
    """Send bytes and return the answer."""
    return Reply.parse(await exchange(api.url, data))


@pytest.fixture
async def path(api: Api, metadata: dict[str, Any]) -> str:
    """Return the path of a model that has learned a row."""
    made = await api.make(metadata, REGRESSOR)
    await api.learn(made, [[1.0, 2.0]], [1.0])
    return made


@pytest.fixture
async def cors(stack: Stack) -> AsyncIterator[Api]:
    """Return a gateway without keys, on the stack's servers, that permits pages of one origin."""
    async with serving(stack.settings().model_copy(update={"cors_origins": PAGE})) as served:
        yield served


# Host names.


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:80",
        "localhost.",
        "localhost.:8000",
        "a.localhost",
        "127.0.0.1",
        "127.3.2.1:1",
        "[::1]",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "localhost:",
    ],
)
async def test_loopback_names_are_served(api: Api, host: str) -> None:
    """A gateway on loopback answers to every name and address of loopback, with any port."""
    assert (await sent(api, head("/livez", f"Host: {host}"))).of(200) == {"status": "ok"}


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "notlocalhost",
        "x",
        "10.0.0.1",
        "0.0.0.0",
        "[2001:db8::1]",
        "[::ffff:10.0.0.1]:80",
        "localhost..",
        "evil.example.",
    ],
)
async def test_other_names_are_refused(api: Api, path: str, host: str) -> None:
    """A page whose name was rebound to loopback gets 421 on both paths and on every route, and teaches nothing."""
    for lines in ((f"Host: {host}",), (f"Host: {host}", f"Origin: http://{host}")):
        detail = (await sent(api, head("/v1/models", *lines))).problem(421)["detail"]
        assert "KEEPFIT_ALLOWED_HOSTS" in detail
        for media_type in ("application/json", "application/json; charset=utf-8", "text/plain"):
            learn = head(
                f"{path}/partial_fit", *lines, f"Content-Type: {media_type}", f"Content-Length: {len(BODY)}",
                method="POST",
            )  # fmt: skip
            (await sent(api, learn + BODY)).problem(421)
    model = await api.model(path)
    assert (model["inbox"], model["rows_seen"]) == (0, 1)


@pytest.mark.parametrize("host", ["a b", "user@localhost", "localhost:port", "[::1", "localhost/", ""])
async def test_a_host_that_is_none_is_malformed(api: Api, host: str) -> None:
    """A Host that is neither a name nor an address answers 400."""
    (await sent(api, head("/livez", f"Host: {host}"))).problem(400)


async def test_the_host_of_an_absolute_target_counts(api: Api) -> None:
    """The host of a target with scheme and host replaces the Host header (RFC 9112, 3.2.2)."""
    assert (await sent(api, head("http://localhost:1/livez", "Host: evil.example"))).status == 200
    (await sent(api, head("http://evil.example/livez", "Host: localhost"))).problem(421)
    (await sent(api, head("http://localhost@evil.example/livez", "Host: localhost"))).problem(400)


async def test_a_request_without_a_host(api: Api) -> None:
    """HTTP/1.0 may omit the Host, which no browser does; HTTP/1.1 may not, and two are never allowed."""
    assert (await sent(api, head("/livez", version="1.0"))).status == 200
    assert "Host" in (await sent(api, head("/livez"))).problem(400)["detail"]
    assert "Host" in (await sent(api, head("/livez", "Host: localhost", "Host: evil.example"))).problem(400)["detail"]


async def test_names_can_be_allowed(settings: Settings) -> None:
    """KEEPFIT_ALLOWED_HOSTS adds names, and * allows all."""
    for allowed, refused in (("gw.example, [fd00::1]", "evil.example"), ("*", None)):
        async with serving(settings.model_copy(update={"allowed_hosts": allowed})) as api:
            for host in ("gw.example", "GW.example.:80", "[fd00::1]:80", "localhost"):
                assert (await sent(api, head("/livez", f"Host: {host}"))).status == 200
            if refused:
                (await sent(api, head("/livez", f"Host: {refused}"))).problem(421)


async def test_other_gateways_check_names_only_on_request(settings: Settings) -> None:
    """With API keys, or on a network address, any name is served, unless KEEPFIT_ALLOWED_HOSTS is set."""
    keys = {"api_keys": KEY[1]}
    network = {"open": True, "host": "0.0.0.0"}
    for more in (keys, network):
        served = Settings(**{**settings.model_dump(), **more})
        async with serving(served) as api:
            assert (await sent(api, head("/livez", "Host: gw.example"))).status == 200
        async with serving(served.model_copy(update={"allowed_hosts": "gw.example"})) as api:
            assert (await sent(api, head("/livez", "Host: gw.example"))).status == 200
            # Probes use the address at which they reach the gateway.
            assert (await sent(api, head("/livez", "Host: 127.0.0.1"))).status == 200
            (await sent(api, head("/livez", "Host: other.example"))).problem(421)


@pytest.mark.parametrize(
    "more",
    [
        {"allowed_hosts": "http://gw.example"},
        {"allowed_hosts": "gw.example:80"},
        {"allowed_hosts": "a, b/c"},
        {"cors_origins": "app.example.com"},
        {"cors_origins": f"{PAGE}/"},
        {"cors_origins": "*, a b"},
        {"cors_origins": "https://b\u00fccher.example"},
        {"cors_origins": "https://user@app.example"},
        {"cors_origins": "https://app.example:0443"},
        {"cors_origins": "https://[::1"},
        {"cors_origins": "https://[app.example]"},
        {"allowed_hosts": "b\u00fccher.example"},
    ],
)
def test_unusable_settings_stop_the_start(more: dict[str, str]) -> None:
    """An entry that is no host name, or no origin, is refused at start."""
    with pytest.raises(SettingsError, match=r"KEEPFIT_(ALLOWED_HOSTS|CORS_ORIGINS): '[^']+' is neither"):
        CrossSitePolicy(Settings(**more), keys=False)


# Requests that pages forge.


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": "http://localhost"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": EVIL, "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("media_type", ["text/plain", *FAST.values(), *REGULAR.values()])
async def test_a_page_of_another_site_changes_nothing(
    api: Api, path: str, headers: dict[str, str], media_type: str
) -> None:
    """A request to change something answers 403 if a page of another site sent it, whatever its body."""
    for call in ("partial_fit", "snapshot", "predict"):
        reply = await api.call("POST", f"{path}/{call}", data=BODY, headers={**headers, "Content-Type": media_type})
        assert reply.problem(403)["type"] == "urn:keepfit:problem:foreign-origin"
        assert "Access-Control-Allow-Origin" not in reply.headers
    (await api.call("DELETE", path, headers=headers)).problem(403)
    model = await api.model(path)
    assert (model["inbox"], model["rows_seen"], model["snapshot"]) == (0, 1, None)
    # The page cannot read this answer: nothing in it permits that.
    assert (await api.call("GET", path, headers=headers)).status == 200


async def test_pages_of_the_gateway_itself_may_call_it(api: Api, path: str) -> None:
    """A request whose origin is the gateway's is served, also if a proxy replaced the Host."""
    for headers in (
        {"Origin": api.url},
        {"Origin": api.url.upper()},
        {"Origin": EVIL, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ):
        for media_type in (FAST, REGULAR):
            reply = await api.call("POST", f"{path}/partial_fit", data=BODY, headers={**headers, **media_type})
            reply.of(202)


# CORS.


async def both(api: Api, where: str, document: Any, **headers: str) -> tuple[Reply, Reply]:
    """Send a body on the fast and on the regular path."""
    body = json.dumps(document).encode()
    fast = await api.call("POST", where, data=body, headers={**headers, **FAST})
    return fast, await api.call("POST", where, data=body, headers={**headers, **REGULAR})


async def test_cors_is_off_by_default(api: Api, path: str) -> None:
    """Without KEEPFIT_CORS_ORIGINS no answer has a field of CORS, not even that of a preflight."""
    preflight = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    replies = [await api.call("OPTIONS", f"{path}/predict", headers=preflight), await api.get(path)]
    for reply in (*replies, *(await both(api, f"{path}/predict", {"X": [[1.0, 2.0]]}))):
        assert not [name for name in reply.headers if name.lower().startswith("access-control")]
        assert "Origin" not in reply.headers.get("Vary", "")


async def test_a_permitted_page_reads_answers_and_errors(cors: Api, path: str) -> None:
    """Answers and errors on both paths name the permitted origin and the headers that its page may read."""
    replies = [
        *(await both(cors, f"{path}/predict", {"X": [[1.0, 2.0]]}, Origin=PAGE)),
        *(await both(cors, f"{path}/predict", {"X": [[1.0, 2.0]] * 500}, Origin=PAGE)),
        *(await both(cors, f"{path}/partial_fit", {"X": [[1.0, 2.0]], "y": [1.0]}, Origin=PAGE)),
        *(await both(cors, f"{path}/predict", {"X": [[1.0]]}, Origin=PAGE)),
        await cors.call("GET", "/nowhere", headers={"Origin": PAGE}),
        await cors.call("PUT", path, headers={"Origin": PAGE}),
    ]
    assert [reply.status for reply in replies] == [200, 200, 200, 200, 202, 202, 422, 422, 404, 405]
    for reply in replies:
        assert reply.headers["Access-Control-Allow-Origin"] == PAGE
        assert {"ETag", "Retry-After", "X-Request-ID"} <= set(
            reply.headers["Access-Control-Expose-Headers"].split(", ")
        )
        assert "Origin" in ", ".join(reply.headers.getall("Vary"))


@pytest.mark.parametrize(
    ("permitted", "sent"),
    [
        ("https://app.example:443", "https://app.example"),
        ("https://app.example", "https://app.example:443"),
        ("HTTP://App.Example:80", "http://app.example"),
        ("https://[::1]:443", "https://[::1]"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("http://app.example:8080", "http://app.example:8080"),
        ("null", "null"),
    ],
)
async def test_an_origin_is_compared_as_browsers_send_it(settings: Settings, permitted: str, sent: str) -> None:
    """Case and default ports do not matter: a page that KEEPFIT_CORS_ORIGINS names in another spelling is permitted."""
    async with serving(settings.model_copy(update={"cors_origins": permitted})) as api:
        reply = await api.call("GET", "/livez", headers={"Origin": sent})
        assert reply.headers["Access-Control-Allow-Origin"] == sent
        for other in ("https://app.example:80", "http://app.example:443", "https://app.example.:443"):
            refused = await api.call("GET", "/livez", headers={"Origin": other})
            assert "Access-Control-Allow-Origin" not in refused.headers


def test_pages_may_use_every_header_of_the_api() -> None:
    """CORS permits the header fields that operations take, and exposes those of their answers."""
    # The Fetch standard always exposes these.
    exposed = {"Cache-Control", "Content-Type", *EXPOSED_HEADERS.split(", ")}
    taken = {"Authorization", "Content-Type", "Content-Encoding"}
    for item in DOCUMENT["paths"].values():
        for operation in item.values():
            taken |= {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "header"}
            for answer in operation["responses"].values():
                # Cookies are shown to no script, whatever is exposed.
                assert answer["headers"].keys() - {"Set-Cookie"} <= exposed
    assert taken <= set(ALLOWED_HEADERS.split(", "))
    assert {"Idempotency-Key", "Prefer"} < taken


async def test_other_pages_do_not_read_answers(cors: Api, path: str) -> None:
    """Answers to other origins, and to programs, name no origin, and caches keep them apart."""
    for headers in ({}, {"Origin": EVIL}, {"Origin": f"{PAGE}.evil.example"}):
        reply = await cors.call("GET", path, headers=headers)
        assert reply.status == 200
        assert "Access-Control-Allow-Origin" not in reply.headers
        assert reply.headers["Vary"] == "Origin"
    (await cors.call("POST", f"{path}/partial_fit", data=BODY, headers={"Origin": EVIL})).problem(403)


async def test_every_origin_can_be_permitted(settings: Settings) -> None:
    """With * every page reads answers, and they do not vary by origin."""
    async with serving(settings.model_copy(update={"cors_origins": "*"})) as api:
        reply = await api.call("GET", "/livez", headers={"Origin": EVIL})
        assert reply.headers["Access-Control-Allow-Origin"] == "*"
        assert "Vary" not in reply.headers


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_a_preflight_needs_no_key(settings: Settings, route: Any) -> None:
    """A browser's preflight is answered without a key, on every route; the request itself needs its key."""
    served = Settings(**{**settings.model_dump(), "api_keys": KEY[1], "cors_origins": PAGE})
    where = address_of(route.path)
    wanted = {"Access-Control-Request-Method": route.method, "Access-Control-Request-Headers": "authorization"}
    async with serving(served) as api:
        for spelled in (where, f"{where}/"):
            reply = await api.call("OPTIONS", spelled, headers={"Origin": PAGE, **wanted})
            assert (reply.status, reply.body) == (204, b"")
            assert reply.headers["Access-Control-Allow-Origin"] == PAGE
            assert set(reply.headers["Access-Control-Allow-Methods"].split(", ")) == methods_of_paths()[route.path]
            assert {
                "Authorization",
                "Content-Type",
                "Idempotency-Key",
                "Prefer",
                "Inference-Header-Content-Length",
            } <= set(reply.headers["Access-Control-Allow-Headers"].split(", "))
            assert int(reply.headers["Access-Control-Max-Age"]) > 0
        if route.needs:
            # Another page gets no permission, and no information without a key.
            (await api.call("OPTIONS", where, headers={"Origin": EVIL, **wanted})).refusal(401, where)
            unauthorized = await api.call(route.method, where, headers={"Origin": PAGE})
            assert unauthorized.headers["Access-Control-Allow-Origin"] == PAGE
            unauthorized.refusal(401, where)
