"""Redis clients, made from the settings in one place.

Owns timeouts and retries. Invariant: workers never retry a command (a claim that is sent twice would lose the entries
of the first one; the lease is aborted instead). Gateways retry once after a broken connection, and not after a timeout
(each of their scripts may be repeated).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff, NoBackoff
from redis.retry import Retry

from keepfit.errors import SettingsError
from keepfit.settings import Settings

CONNECT_TIMEOUT_S = 5.0
# For processes that transfer whole bundles: as long as a slow disk may take to sync one.
ANSWER_TIMEOUT_S = 10.0
# For gateways: after this time the client gets an error and may retry. Not less, because a Redis that syncs a bundle of
# a hundred megabytes to a slow disk does not answer for seconds and is still available.
GATEWAY_TIMEOUT_S = 5.0
POOL_CONNECTIONS_MAX = 64


@contextmanager
def _readable() -> Iterator[None]:
    """Raise an error that names the settings if an address is invalid; never quote it, as it may hold a password."""
    try:
        yield
    except (ValueError, TypeError, redis.RedisError):
        raise SettingsError(
            "KEEPFIT_STORE_URL or KEEPFIT_QUEUE_URL cannot be read: write redis://host:port/0, or "
            "rediss://host:port/0?ssl_ca_certs=/path with TLS."
        ) from None


def _check_options(pool: Any) -> None:
    """Create a connection object without connecting, so that a misspelled option in the address is reported now."""
    pool.connection_class(**pool.connection_kwargs)


@_readable()
def _sync(url: str) -> redis.Redis:
    client = redis.Redis.from_url(
        url,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=ANSWER_TIMEOUT_S,
        health_check_interval=0,
    )
    _check_options(client.connection_pool)
    return client


def store_sync(settings: Settings) -> redis.Redis:
    """Return a client of the store, for workers."""
    return _sync(settings.store_url.get_secret_value())


def queue_sync(settings: Settings) -> redis.Redis:
    """Return a client of the queue's Redis, for workers and for enqueueing RQ jobs."""
    return _sync(settings.queue_url_or_store)


@_readable()
def _async(url: str, *, prompt: bool) -> redis.asyncio.Redis:
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=POOL_CONNECTIONS_MAX,
        timeout=GATEWAY_TIMEOUT_S if prompt else CONNECT_TIMEOUT_S,
        # `keepfit.backends.redis_scripts` repeats the round trips of gateways; retries here would add their time.
        retry=AsyncRetry(NoBackoff(), 0) if prompt else AsyncRetry(ConstantBackoff(0.05), 1),
        socket_connect_timeout=GATEWAY_TIMEOUT_S if prompt else CONNECT_TIMEOUT_S,
        socket_timeout=GATEWAY_TIMEOUT_S if prompt else ANSWER_TIMEOUT_S,
    )
    _check_options(pool)
    return redis.asyncio.Redis.from_pool(pool)


def store_async(settings: Settings, *, prompt: bool = False) -> redis.asyncio.Redis:
    """Return a client of the store: with short timeouts (`prompt`) for gateways, with longer ones for the others."""
    return _async(settings.store_url.get_secret_value(), prompt=prompt)


def queue_async(settings: Settings) -> redis.asyncio.Redis:
    """Return a client of the queue's Redis, for gateways."""
    return _async(settings.queue_url_or_store, prompt=True)
