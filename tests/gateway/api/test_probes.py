"""The probes: whether the process answers, and whether the service can do its work."""

import socket

from pydantic import SecretStr

from keepfit.settings import Settings
from keepfit_gateway.app import build_app
from tests.gateway.api_client import REGRESSOR, Api, serving


async def test_a_running_service_is_live_and_ready(api: Api) -> None:
    """Both probes answer 200, and readiness names each part."""
    assert (await api.get("/livez")).of(200) == {"status": "ok"}
    ready = (await api.get("/readyz")).of(200)
    assert ready == {"status": "ok", "redis": "ok", "queue": "ok", "mongo": "ok", "snapshots": "ok", "workers": 2}


async def test_without_workers_a_gateway_is_live_and_not_ready(lonely: Api) -> None:
    """Where no worker is alive, readiness answers 503 and says so."""
    assert (await lonely.get("/livez")).status == 200
    ready = (await lonely.get("/readyz")).of(503)
    parts = dict.fromkeys(("redis", "queue", "mongo", "snapshots"), "ok")
    assert ready == {"status": "unavailable", **parts, "workers": 0}


async def test_no_answer_tells_a_password(settings: Settings) -> None:
    """With Redis away, neither the probes nor a problem show the password in its URL."""
    secret = "hunter2-of-redis"
    with socket.socket() as silent:
        # Bound, so that nobody else gets the port, and not listening.
        silent.bind(("127.0.0.1", 0))
        url = SecretStr(f"redis://keepfit:{secret}@127.0.0.1:{silent.getsockname()[1]}/0")
        async with serving(settings.model_copy(update={"store_url": url}), secrets=(secret,)) as api:
            assert (await api.get("/livez")).status == 200
            ready = (await api.get("/readyz")).of(503)
            assert ready["redis"] != "ok"
            assert ready["mongo"] == "ok"
            (await api.post("/v1/models", {"metadata": {"type": "shoes"}, "recipe": REGRESSOR})).problem(503)


def test_a_gateway_needs_no_signing_key() -> None:
    """A gateway opens no bundle, so it is built without the keys that open them."""
    assert build_app(Settings()).router.routes()
