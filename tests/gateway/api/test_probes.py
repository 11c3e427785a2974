"""The probes: whether the process responds, and whether the service can learn and predict."""

import socket

from pydantic import SecretStr

from keepfit.settings import Settings
from keepfit_gateway.app import build_app
from tests.gateway.api_client import REGRESSOR, Api, serving


async def test_a_running_service_is_live_and_ready(api: Api) -> None:
    """Both probes answer 200, and readiness lists each dependency."""
    assert (await api.get("/livez")).of(200) == {"status": "ok"}
    ready = (await api.get("/readyz")).of(200)
    assert ready == {"status": "ok", "redis": "ok", "queue": "ok", "mongo": "ok", "snapshots": "ok", "workers": 2}


async def test_without_workers_a_gateway_is_live_and_not_ready(workerless: Api) -> None:
    """Without a live worker readiness answers 503 and reports 0 workers."""
    assert (await workerless.get("/livez")).status == 200
    ready = (await workerless.get("/readyz")).of(503)
    dependencies = dict.fromkeys(("redis", "queue", "mongo", "snapshots"), "ok")
    assert ready == {"status": "unavailable", **dependencies, "workers": 0}


async def test_no_answer_contains_a_password(settings: Settings) -> None:
    """While Redis is unavailable, neither the probes nor a problem contain the password of its URL."""
    secret = "hunter2-of-redis"
    with socket.socket() as silent:
        # Bound, so that no other process gets the port, and not listening.
        silent.bind(("127.0.0.1", 0))
        url = SecretStr(f"redis://keepfit:{secret}@127.0.0.1:{silent.getsockname()[1]}/0")
        async with serving(settings.model_copy(update={"store_url": url}), secrets=(secret,)) as api:
            assert (await api.get("/livez")).status == 200
            ready = (await api.get("/readyz")).of(503)
            assert ready["redis"] != "ok"
            assert ready["mongo"] == "ok"
            (await api.post("/v1/models", {"metadata": {"type": "shoes"}, "recipe": REGRESSOR})).problem(503)


def test_a_gateway_needs_no_signing_key() -> None:
    """A gateway reads no bundle, so it starts without signing keys."""
    assert build_app(Settings()).router.routes()
