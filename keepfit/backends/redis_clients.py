"""Clients of Redis, made from the settings in one place.

Owns time limits and retries. Invariant: workers never retry a command by themselves (a claim sent twice would lose what
the first one claimed; the lease is given up instead), gateways retry once where a connection broke, and not where no
answer came (each of their scripts may be repeated).
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
# Whoever moves whole bundles waits for as long as a slow disk may take to sync one.
ANSWER_TIMEOUT_S = 10.0
# Behind a gateway somebody waits: a Redis that hangs is told of, and the client comes again. Not sooner, because one
# that syncs a bundle of a hundred megabytes on a slow disk is silent for seconds and not away.
PROMPT_S = 5.0
POOL_CONNECTIONS_MAX = 64


@contextmanager
def _readable() -> Iterator[None]:
    """Name the settings where an address cannot be read; never repeat it, because it may hold a password."""
    try:
        yield
    except (ValueError, TypeError, redis.RedisError):
        raise SettingsError(
            "KEEPFIT_STORE_URL or KEEPFIT_QUEUE_URL cannot be read: write redis://host:port/0, or "
            "rediss://host:port/0?ssl_ca_certs=/path with TLS."
        ) from None


def _check_options(pool: Any) -> None:
    """Make a connection, and open none: an option that is misspelled in the address is found out now, not at work."""
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
    """Client of the store, for workers."""
    return _sync(settings.store_url.get_secret_value())


def queue_sync(settings: Settings) -> redis.Redis:
    """Client of the queue, for workers and for enqueueing RQ jobs."""
    return _sync(settings.queue_url_or_store)


@_readable()
def _async(url: str, *, prompt: bool) -> redis.asyncio.Redis:
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=POOL_CONNECTIONS_MAX,
        timeout=PROMPT_S if prompt else CONNECT_TIMEOUT_S,
        # A trip of a gateway is made again by `keepfit.backends.redis_scripts`; retries here would add their time to
        # it.
        retry=AsyncRetry(NoBackoff(), 0) if prompt else AsyncRetry(ConstantBackoff(0.05), 1),
        socket_connect_timeout=PROMPT_S if prompt else CONNECT_TIMEOUT_S,
        socket_timeout=PROMPT_S if prompt else ANSWER_TIMEOUT_S,
    )
    _check_options(pool)
    return redis.asyncio.Redis.from_pool(pool)


def store_async(settings: Settings, *, prompt: bool = False) -> redis.asyncio.Redis:
    """Client of the store: for the gateway a `prompt` one, for the snapshotter and restores one that waits longer."""
    return _async(settings.store_url.get_secret_value(), prompt=prompt)


def queue_async(settings: Settings) -> redis.asyncio.Redis:
    """Client of the queue, for the gateway."""
    return _async(settings.queue_url_or_store, prompt=True)
