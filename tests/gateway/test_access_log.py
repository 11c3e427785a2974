"""The access log: one event for each request, whichever way it is answered, and none unless it is asked for."""

from typing import Any

import structlog

from keepfit.security.api_keys import SCOPES, new_key
from keepfit.settings import Settings
from tests.conftest import Stack
from tests.gateway.api_client import REGRESSOR, serving

ROW = {"X": [[1.0, 2.0]]}
SECRET = "hush-label"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def requests_in(logged: Any) -> list[dict[str, Any]]:
    """Return the events of the access log."""
    return [entry for entry in logged if entry["event"] == "request_answered"]


async def test_each_request_is_logged_once(stack: Stack, metadata: dict[str, Any]) -> None:
    """Answers of workers, scorers and the cache, refusals and unknown paths have an event; it quotes no value."""
    token, stored = new_key("all", SCOPES)
    settings = Settings(**{**stack.settings().model_dump(), "api_keys": stored, "access_log": True})
    async with serving(settings) as api:
        key = {"Authorization": f"Bearer {token}"}
        made = (await api.post("/v1/models", {"metadata": metadata, "recipe": REGRESSOR}, key)).of(201)
        path = f"/v1/models/{made['hash']}"
        rows = {**ROW, "y": [1.0]}
        (await api.post(f"{path}/partial_fit", rows, {**key, "Prefer": "wait=60"})).of(200)
        forged = {**key, "traceparent": f"{TRACEPARENT}-{SECRET}"}
        with structlog.testing.capture_logs() as logged:
            answers = [
                await api.post(f"{path}/predict", ROW, {**key, "X-Request-ID": f"r{i}", "traceparent": TRACEPARENT})
                for i in range(3)
            ]
            assert (await api.post(f"{path}/predict?token={SECRET}", {"X": [[SECRET, 1.0]]}, forged)).status == 422
            assert (await api.post(f"{path}/predict", ROW, {"Authorization": f"Bearer {SECRET}"})).status == 401
            assert (await api.call("GET", "/" + "x" * 2000, headers=key)).status == 404
    assert SECRET not in str(logged)
    *predicted, wrong, refused, unknown = requests_in(logged)
    fields = "request_id", "method", "path", "status", "bytes", "api_key"
    assert [tuple(one[field] for field in fields) for one in predicted] == [
        (f"r{i}", "POST", f"{path}/predict", 200, len(answer.body), "all") for i, answer in enumerate(answers)
    ]
    assert all(0 < one["seconds"] < 60 and one["client"] == "127.0.0.1" for one in predicted)
    assert [one["trace_id"] for one in requests_in(logged)] == [TRACE] * 3 + [None] * 3
    assert (wrong["path"], wrong["status"], wrong["api_key"]) == (f"{path}/predict", 422, "all")
    assert (refused["status"], refused["api_key"]) == (401, None)
    assert (unknown["status"], len(unknown["path"])) == (404, 256)


async def test_nothing_is_logged_by_default(stack: Stack) -> None:
    """Without the setting no request is logged."""
    with structlog.testing.capture_logs() as logged:
        async with serving(stack.settings()) as api:
            (await api.call("GET", "/livez")).of(200)
    assert requests_in(logged) == []
