"""The probes: whether the process responds, and whether the service can learn and predict."""

import socket

import pytest
import structlog
from pydantic import SecretStr

from keepfit.backends import redis_clients, redis_keys
from keepfit.settings import Settings
from keepfit_gateway.app import build_app
from tests.gateway.api_client import REGRESSOR, Api, eventually, serving
from tests.gateway.test_metrics import scraped


async def test_a_running_service_is_live_and_ready(api: Api) -> None:
    """Both probes answer 200, and readiness lists each dependency."""
    assert (await api.get("/livez")).of(200) == {"status": "ok"}
    ready = {"status": "ok", "redis": "ok", "queue": "ok", "mongo": "ok", "snapshots": "ok", "workers": 2}

    async def is_ready() -> bool:
        return bool((await api.get("/readyz")).json() == ready)

    # A busy machine may delay one look.
    await eventually(is_ready, "the readiness of all dependencies")


async def test_without_workers_a_gateway_is_live_and_not_ready(workerless: Api) -> None:
    """Without a live worker readiness answers 503 and reports 0 workers."""
    assert (await workerless.get("/livez")).status == 200
    ready = (await workerless.get("/readyz")).of(503)
    dependencies = dict.fromkeys(("redis", "queue", "mongo", "snapshots"), "ok")
    assert ready == {"status": "unavailable", **dependencies, "workers": 0}


@pytest.mark.parametrize(
    ("calls_s", "status"), [(["3", "4"], "degraded"), (["3", "2"], "ok"), (["3", "0"], "ok"), (["3", None], "ok")]
)
async def test_workers_in_long_calls_are_busy(settings: Settings, calls_s: list[str | None], status: str) -> None:
    """If every worker is in a call longer than the time of a prediction, readiness is degraded and says so.

    Expired records do not count, and metrics have the workers by state.
    """
    async with serving(settings.model_copy(update={"predict_timeout_s": 2.5})) as api:
        with redis_clients.queue_sync(settings) as client:
            client.sadd(redis_keys.RQ_WORKERS, redis_keys.rq_worker("expired"))
            for name, call_s in zip(("one", "two"), calls_s, strict=True):
                client.sadd(redis_keys.RQ_WORKERS, redis_keys.rq_worker(name))
                client.hset(
                    redis_keys.rq_worker(name), mapping={"state": "busy", **({"call_s": call_s} if call_s else {})}
                )
        ready = (await api.get("/readyz")).of(200)
        assert (ready["status"], ready["workers"]) == (status, 2)
        words = "All workers (2) are in calls that have taken more than 2.5 s."
        assert ready.get("detail") == (words if status == "degraded" else None)
        found = await scraped(api)
    busy = 2 if status == "degraded" else 1
    assert (found["keepfit_workers", "ready"], found["keepfit_workers", "busy"]) == (2 - busy, busy)
    assert found["keepfit_dependency_up", "workers"] == 1


async def test_an_outage_is_logged_once(settings: Settings) -> None:
    """While Redis and MongoDB are unavailable, each has one line in the log, however often the gateway is probed."""
    with socket.socket() as silent, structlog.testing.capture_logs() as logged:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        urls = {
            "store_url": SecretStr(f"redis://127.0.0.1:{port}"),
            "mongo_url": SecretStr(f"mongodb://127.0.0.1:{port}"),
        }
        async with serving(settings.model_copy(update={**urls, "queue_url": None})) as api:

            def found() -> list[str]:
                return [line["dependency"] for line in logged if line["event"] == "dependency_unavailable"]

            async def are_logged() -> bool:
                (await api.get("/readyz")).of(503)
                return {"store", "queue", "mongo"} <= {*found()}

            await eventually(are_logged, "a line for each dependency")
            (await api.get("/readyz")).of(503)
            assert sorted(found()) == ["mongo", "queue", "store"]


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
