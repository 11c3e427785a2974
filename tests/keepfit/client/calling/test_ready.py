"""What a client makes of the answers of a gateway, and of what answers in its place."""

import json
from typing import Any

import pytest

from keepfit import Client
from keepfit.errors import KeepfitError, UnavailableError
from tests.keepfit.client.scripted_server import ok, scripted

PROBLEM = "urn:keepfit:problem:"


def ready(status: int, document: Any) -> dict[str, Any]:
    """Ask a server that gives this answer whether it is ready."""
    with scripted([ok(json.dumps(document), status=f"{status} x")]) as server, Client(server.url) as client:
        return client.ready()


def test_a_state_is_returned_whatever_the_status() -> None:
    """A gateway that is unavailable answers with 503 and its state."""
    for status, word in ((200, "ok"), (200, "degraded"), (503, "unavailable")):
        assert (ready(status, {"status": word}))["status"] == word


@pytest.mark.parametrize(
    ("status", "name"), [(421, "misdirected-host"), (429, "rate-limited"), (401, "unauthorized"), (503, "unavailable")]
)
def test_a_problem_is_no_state(status: int, name: str) -> None:
    """The status of a problem document is a number of HTTP: it is raised as the error that it reports."""
    document = {"type": f"{PROBLEM}{name}", "title": "No", "status": status, "detail": "This is why."}
    with pytest.raises(KeepfitError, match="This is why"):
        ready(status, document)


@pytest.mark.parametrize("document", [{"status": 429, "detail": "slow down"}, {"status": "UP"}, {}, [], None])
def test_another_server_is_no_gateway(document: Any) -> None:
    """JSON of another form does not come from a gateway."""
    with pytest.raises(UnavailableError, match="is not a gateway of keepfit"):
        ready(200, document)
