"""TLS to Redis, MongoDB and S3: asked for by address, and refused where the certificate is not one to trust."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import s3fs

from keepfit.backends import redis_clients, redis_scripts
from keepfit.backends.blobs import open_storage
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import SettingsError, UnavailableError
from keepfit.history import Registry, mongo
from keepfit.settings import Settings
from tests import servers, tls
from tests.gateway.api_client import REGRESSOR, eventually, serving
from tests.tls import Authority


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return the certificate authority that clients trust."""
    return Authority.make(tmp_path_factory.mktemp("ca") / "ours.pem")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return a certificate authority that no client trusts."""
    return Authority.make(tmp_path_factory.mktemp("ca") / "other.pem")


@contextmanager
def redis_behind(url: str, certificate: Path, trusted: Path) -> Iterator[str]:
    """URL of a Redis behind TLS."""
    with tls.in_front_of(url, certificate) as port:
        yield f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={trusted}"


@contextmanager
def mongo_behind(url: str, certificate: Path, trusted: Path) -> Iterator[str]:
    """URL of a MongoDB behind TLS; directly, because the address that the server gives of itself is another one."""
    with tls.in_front_of(url, certificate) as port:
        yield f"mongodb://127.0.0.1:{port}/{url.rpartition('/')[2]}?directConnection=true&tls=true&tlsCAFile={trusted}"


@pytest.fixture
async def behind_tls(settings: Settings, ours: Authority) -> AsyncIterator[Settings]:
    """Settings whose Redis and MongoDB are reached by TLS only."""
    redis_url, mongo_url = settings.store_url.get_secret_value(), settings.mongo_url.get_secret_value()
    with (
        redis_behind(redis_url, ours.certificate(), ours.path) as store,
        mongo_behind(mongo_url, ours.certificate(), ours.path) as mongo,
    ):
        yield Settings(**{**settings.model_dump(), "store_url": store, "mongo_url": mongo})


async def test_gateway_and_workers_speak_tls(behind_tls: Settings, metadata: dict[str, Any], tmp_path: Path) -> None:
    """A row is learned and predicted over TLS alone: the gateway's trips, answers and commits heard, RQ and workers."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("KEEPFIT_")}
    variables = {
        "KEEPFIT_STORE_URL": behind_tls.store_url.get_secret_value(),
        "KEEPFIT_MONGO_URL": behind_tls.mongo_url.get_secret_value(),
        "KEEPFIT_SIGNING_KEYS": behind_tls.signing_keys.get_secret_value(),
        "KEEPFIT_SNAPSHOT_URL": behind_tls.snapshot_url,
        "KEEPFIT_WORKERS": "1",
    }
    command = [sys.executable, "-m", "keepfit", "worker"]
    with servers.running(command, tmp_path / "worker.log", lambda: True, {**own, **variables}):
        async with serving(behind_tls) as api:

            async def ready() -> bool:
                return (await api.get("/readyz")).status == 200

            await eventually(ready, "a worker's coming")
            assert (await api.get("/readyz")).json()["mongo"] == "ok"
            path = await api.make(metadata, REGRESSOR)
            # Answered with 200 only if the commit is heard, which takes the subscription.
            assert (await api.learn(path, [[1.0]], [2.0]))["version"] == 1
            assert len((await api.predict(path, [[1.0]]))["predictions"]) == 1


@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_redis_with_a_wrong_certificate_is_refused(
    redis_url: str, ours: Authority, other: Authority, wrong: str
) -> None:
    """A certificate of another authority, or for another name, counts as no Redis, for every kind of client."""
    certificate = other.certificate() if wrong == "authority" else ours.certificate("redis.example.com")
    with redis_behind(redis_url, certificate, ours.path) as url:
        settings = Settings(store_url=url)
        for connect in (redis_clients.store_sync, redis_clients.queue_sync):
            with connect(settings) as client, pytest.raises(UnavailableError, match="certificate verify failed"):
                await asyncio.to_thread(redis_scripts.run, client, ("PING",))
        for connect_async in (redis_clients.store_async, redis_clients.queue_async):
            opened = connect_async(settings)
            with pytest.raises(UnavailableError, match="certificate verify failed"):
                await redis_scripts.run_async(opened, ("PING",))
            with pytest.raises(UnavailableError, match="certificate verify failed"):
                await ScriptConnection(opened).run(("PING",))
            await opened.aclose()


async def test_plain_redis_is_not_taken_for_one_with_tls(
    redis_url: str, ours: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where TLS is asked for, a server without it is refused instead of being spoken to in the open."""
    # The server waits for the rest of what it takes for a command.
    monkeypatch.setattr(redis_clients, "ANSWER_TIMEOUT_S", 0.3)
    monkeypatch.setattr(redis_clients, "CONNECT_TIMEOUT_S", 0.3)
    address = redis_url.replace("redis://", "rediss://") + f"?ssl_ca_certs={ours.path}"
    settings = Settings(store_url=address)
    with redis_clients.store_sync(settings) as client, pytest.raises(UnavailableError):
        await asyncio.to_thread(redis_scripts.run, client, ("PING",))


async def test_mongodb_with_a_wrong_certificate_is_refused(
    mongo_url: str, ours: Authority, other: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate of an authority that is not the address's counts as no MongoDB."""
    monkeypatch.setattr(mongo, "SERVER_SELECTION_MS", 300)
    with mongo_behind(mongo_url, other.certificate(), ours.path) as url:
        async with Registry(url) as opened:
            with pytest.raises(UnavailableError, match="certificate verify failed"):
                await opened.ping()


async def test_a_missing_authority_file_is_reported(tmp_path: Path, redis_url: str, mongo_url: str) -> None:
    """An address that names a missing file gives one clear error instead of a crash."""
    settings = Settings(store_url=f"{redis_url.replace('redis', 'rediss', 1)}?ssl_ca_certs={tmp_path}/none.pem")
    with redis_clients.store_sync(settings) as client, pytest.raises(UnavailableError):
        await asyncio.to_thread(redis_scripts.run, client, ("PING",))
    with pytest.raises(SettingsError, match="KEEPFIT_MONGO_URL"):
        Registry(f"{mongo_url}?tls=true&tlsCAFile={tmp_path}/none.pem")


def test_s3_over_tls(
    s3_url: str, s3_endpoint: str, ours: Authority, other: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An https endpoint is used with the authority that AWS_CA_BUNDLE names, and refused with any other."""
    with tls.in_front_of(s3_endpoint, ours.certificate()) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(ours.path))
        s3fs.S3FileSystem.clear_instance_cache()
        storage = open_storage(s3_url)
        storage.put("a/b", b"over TLS")
        assert storage.get("a/b") == b"over TLS"
        monkeypatch.setenv("AWS_CA_BUNDLE", str(other.path))
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(UnavailableError, match="SSL validation failed"):
            open_storage(s3_url).get("a/b")
    s3fs.S3FileSystem.clear_instance_cache()
