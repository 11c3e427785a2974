"""TLS to Redis, MongoDB and S3: requested by the address, and refused if the certificate is not trusted."""

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
def trusted_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return the certificate authority that clients trust."""
    return Authority.make(tmp_path_factory.mktemp("ca") / "trusted.pem")


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return a certificate authority that no client trusts."""
    return Authority.make(tmp_path_factory.mktemp("ca") / "other.pem")


@contextmanager
def redis_behind(url: str, certificate: Path, trusted: Path) -> Iterator[str]:
    """Run a TLS proxy before a Redis; yield its URL."""
    with tls.in_front_of(url, certificate) as port:
        yield f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={trusted}"


@contextmanager
def mongo_behind(url: str, certificate: Path, trusted: Path) -> Iterator[str]:
    """Run a TLS proxy before a MongoDB; yield a URL for a direct connection, as the server reports its own address."""
    with tls.in_front_of(url, certificate) as port:
        yield f"mongodb://127.0.0.1:{port}/{url.rpartition('/')[2]}?directConnection=true&tls=true&tlsCAFile={trusted}"


@pytest.fixture
async def behind_tls(settings: Settings, trusted_authority: Authority) -> AsyncIterator[Settings]:
    """Return settings whose Redis and MongoDB are reached through TLS."""
    redis_url, mongo_url = settings.store_url.get_secret_value(), settings.mongo_url.get_secret_value()
    with (
        redis_behind(redis_url, trusted_authority.certificate(), trusted_authority.path) as store,
        mongo_behind(mongo_url, trusted_authority.certificate(), trusted_authority.path) as mongo,
    ):
        yield Settings(**{**settings.model_dump(), "store_url": store, "mongo_url": mongo})


async def test_gateway_and_workers_connect_with_tls(
    behind_tls: Settings, metadata: dict[str, Any], tmp_path: Path
) -> None:
    """A row is learned and predicted over TLS: scripts, replies, the commit feed, RQ and workers."""
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

            await eventually(ready, "a worker to register")
            assert (await api.get("/readyz")).json()["mongo"] == "ok"
            path = await api.make(metadata, REGRESSOR)
            # The answer is 200 only if the gateway receives the commit through its subscription.
            assert (await api.learn(path, [[1.0]], [2.0]))["version"] == 1
            assert len((await api.predict(path, [[1.0]]))["predictions"]) == 1


@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_redis_with_a_wrong_certificate_is_refused(
    redis_url: str, trusted_authority: Authority, other_authority: Authority, wrong: str
) -> None:
    """With a certificate of another authority or for another host, every kind of client raises UnavailableError."""
    certificate = (
        other_authority.certificate() if wrong == "authority" else trusted_authority.certificate("redis.example.com")
    )
    with redis_behind(redis_url, certificate, trusted_authority.path) as url:
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


async def test_a_redis_without_tls_is_refused_if_the_address_requests_tls(
    redis_url: str, trusted_authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose address requests TLS never falls back to an unencrypted connection."""
    # The server takes the TLS handshake for a command and waits for the rest of it.
    monkeypatch.setattr(redis_clients, "ANSWER_TIMEOUT_S", 0.3)
    monkeypatch.setattr(redis_clients, "CONNECT_TIMEOUT_S", 0.3)
    address = redis_url.replace("redis://", "rediss://") + f"?ssl_ca_certs={trusted_authority.path}"
    settings = Settings(store_url=address)
    with redis_clients.store_sync(settings) as client, pytest.raises(UnavailableError):
        await asyncio.to_thread(redis_scripts.run, client, ("PING",))


async def test_mongodb_with_a_wrong_certificate_is_refused(
    mongo_url: str, trusted_authority: Authority, other_authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a certificate of an authority that the address does not name, the registry raises UnavailableError."""
    monkeypatch.setattr(mongo, "CALL_TIMEOUT_MS", 1000)
    with mongo_behind(mongo_url, other_authority.certificate(), trusted_authority.path) as url:
        async with Registry(url) as opened:
            with pytest.raises(UnavailableError, match="certificate verify failed"):
                await opened.ping()


async def test_a_missing_authority_file_is_reported(tmp_path: Path, redis_url: str, mongo_url: str) -> None:
    """An address that names a missing file raises one clear error before anything connects."""
    settings = Settings(store_url=f"{redis_url.replace('redis', 'rediss', 1)}?ssl_ca_certs={tmp_path}/none.pem")
    for connect in (redis_clients.store_sync, redis_clients.store_async):
        with pytest.raises(SettingsError, match=r"KEEPFIT_STORE_URL: ssl_ca_certs=.*none.pem is not a file"):
            connect(settings)
    with pytest.raises(SettingsError, match="KEEPFIT_MONGO_URL"):
        Registry(f"{mongo_url}?tls=true&tlsCAFile={tmp_path}/none.pem")


def test_s3_over_tls(
    s3_url: str,
    s3_endpoint: str,
    trusted_authority: Authority,
    other_authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An https endpoint is accepted with the authority in AWS_CA_BUNDLE, and refused with any other."""
    with tls.in_front_of(s3_endpoint, trusted_authority.certificate()) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(trusted_authority.path))
        s3fs.S3FileSystem.clear_instance_cache()
        storage = open_storage(s3_url)
        storage.put("a/b", b"over TLS")
        assert storage.get("a/b") == b"over TLS"
        monkeypatch.setenv("AWS_CA_BUNDLE", str(other_authority.path))
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(UnavailableError, match="SSL validation failed"):
            open_storage(s3_url).get("a/b")
    s3fs.S3FileSystem.clear_instance_cache()
