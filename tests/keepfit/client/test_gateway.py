"""What a client makes of the answers of a gateway, and of what answers in its place."""

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from keepfit.client.gateway import Gateway
from keepfit.errors import KeepfitError, UnavailableError

PROBLEM = "urn:keepfit:problem:"


async def ready(status: int, document: Any) -> dict[str, Any]:
    """Ask a server that gives this answer whether it is ready."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(document, status=status)

    app = web.Application()
    app.router.add_get("/readyz", answer)
    async with TestServer(app) as server, Gateway(str(server.make_url("/"))) as gateway:
        return await gateway.ready()


async def test_a_state_is_returned_whatever_the_status() -> None:
    """A gateway that is unavailable answers with 503 and its state."""
    for status, word in ((200, "ok"), (200, "degraded"), (503, "unavailable")):
        assert (await ready(status, {"status": word}))["status"] == word


@pytest.mark.parametrize(
    ("status", "name"), [(421, "misdirected-host"), (429, "rate-limited"), (401, "unauthorized"), (503, "unavailable")]
)
async def test_a_problem_is_no_state(status: int, name: str) -> None:
    """The status of a problem document is a number of HTTP: it is raised as the error that it reports."""
    document = {"type": f"{PROBLEM}{name}", "title": "No", "status": status, "detail": "This is why."}
    with pytest.raises(KeepfitError, match="This is why"):
        await ready(status, document)


@pytest.mark.parametrize("document", [{"status": 429, "detail": "slow down"}, {"status": "UP"}, {}, [], None])
async def test_another_server_is_no_gateway(document: Any) -> None:
    """JSON of another form does not come from a gateway."""
    with pytest.raises(UnavailableError, match="is not a gateway of keepfit"):
        await ready(200, document)
