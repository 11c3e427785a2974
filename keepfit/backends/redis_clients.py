"""Redis clients, made from the settings in one place.

Owns timeouts and retries. Invariant: workers never retry a command (a claim that is sent twice would lose the entries
of the first one; the lease is aborted instead). Gateways retry once after a broken connection, and not after a timeout
(each of their scripts may be repeated).
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff, NoBackoff
from redis.retry import Retry

from keepfit.backends import redis_cluster, redis_sentinel
from keepfit.backends.redis_scripts import Replicas
from keepfit.errors import SettingsError
from keepfit.settings import Settings

CONNECT_TIMEOUT_S = 5.0
# For processes that transfer whole bundles: as long as a slow disk may take to sync one.
ANSWER_TIMEOUT_S = 10.0
# For gateways: after this time the client gets an error and may retry. Not less, because a Redis that syncs a bundle of
# a hundred megabytes to a slow disk does not answer for seconds and is still available.
GATEWAY_TIMEOUT_S = 5.0
POOL_CONNECTIONS_MAX = 64


# Options of an address that name a file.
FILE_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
SCHEMES = ("redis", "rediss", "unix", *redis_sentinel.SCHEMES, *redis_cluster.SCHEMES)
# Schemes of addresses with several hosts, which their modules read.
SEVERAL = (*redis_sentinel.SCHEMES, *redis_cluster.SCHEMES)
STORE, QUEUE = "KEEPFIT_STORE_URL", "KEEPFIT_QUEUE_URL"


def check_url(url: str, setting: str) -> None:
    """Check the address of a Redis, the value of `setting`, without connecting.

    Raises
    ------
    SettingsError
        If it cannot be used. The message quotes nothing that may be a password.
    """
    with _readable(url, setting):
        _check_options(_pool_sync(url))


@contextmanager
def _readable(url: str, setting: str) -> Iterator[None]:
    """Raise an error that names the setting if an address is invalid; never quote it, as it may hold a password."""
    reason = _reason(url)
    if not reason:
        try:
            yield
        except redis_sentinel.AddressError as error:
            reason = str(error)
        except (ValueError, TypeError, redis.RedisError):
            reason = "an option of the address is unknown, or its value is not usable"
        else:
            return
    raise SettingsError(
        f"{setting}: {reason}; write redis://:password@host:6379/0, or "
        "rediss://:password@host:6379/0?ssl_ca_certs=/path with TLS, or "
        "redis+sentinel://:password@host:26379,host:26379/0?master=NAME with Sentinel, or "
        "redis+cluster://:password@host:6379,host:6379 for a Redis Cluster."
    )


def _reason(url: str) -> str:
    """Return why an address cannot be used; "" if its parts are well formed."""
    try:
        parts = urlsplit(url)
        port = None if parts.scheme in SEVERAL else parts.port
    except ValueError:
        return "the address or its port cannot be read"
    if parts.scheme not in SCHEMES or "://" not in url:
        return f"the address does not begin with {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
    if port == 0:
        return "the port must be from 1 to 65535"
    if parts.scheme != "unix" and not re.fullmatch(r"/?[0-9]{0,5}/?", parts.path):
        return "the path must be the number of a database"
    return ""


def _check_options(pool: Any) -> None:
    """Create a connection object without connecting, so that a misspelled option in the address is reported now."""
    pool.connection_class(**pool.connection_kwargs)


def _check_files(pool: Any, setting: str) -> None:
    """Raise SettingsError if a file that the address names cannot be read."""
    for name in FILE_OPTIONS:
        path = pool.connection_kwargs.get(name)
        if path and not os.access(path, os.R_OK):
            raise SettingsError(f"{setting}: {name}={path} is not a file that can be read.")


def is_cluster(url: str) -> bool:
    """Return whether an address is that of a Redis Cluster."""
    return urlsplit(url).scheme in redis_cluster.SCHEMES


def check_queue(settings: Settings) -> None:
    """Check that RQ, whose keys have many slots, has a Redis that is no cluster.

    Raises
    ------
    SettingsError
        If its Redis is a cluster.
    """
    if settings.queue_url is None and is_cluster(settings.store_url.get_secret_value()):
        raise SettingsError(
            f"{QUEUE} is missing: the Redis of {STORE} is a cluster, which holds no queue; name a single server or "
            "one with Sentinel."
        )
    if is_cluster(settings.queue_url_or_store):
        raise SettingsError(f"{QUEUE}: a Redis Cluster holds no queue; name a single server or one with Sentinel.")


def _sync(url: str, setting: str, answer_s: float = ANSWER_TIMEOUT_S) -> redis.Redis:
    if is_cluster(url):
        with _readable(url, setting):
            first, *_ = redis_cluster.parse(url)
        # A wrong option is reported now, not with the first command.
        _sync(redis_cluster.node_url(url, first), setting)
        client: Any = redis_cluster.Cluster(url, lambda node: _sync(redis_cluster.node_url(url, node), setting))
        return client  # type: ignore[no-any-return]
    with _readable(url, setting):
        pool = _pool_sync(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=min(CONNECT_TIMEOUT_S, answer_s),
            socket_timeout=answer_s,
            health_check_interval=0,
        )
        _check_options(pool)
    _check_files(pool, setting)
    return redis.Redis.from_pool(pool)


def _pool_sync(url: str, **options: Any) -> redis.ConnectionPool:
    if is_cluster(url):
        url = redis_cluster.node_url(url, redis_cluster.parse(url)[0])
    if urlsplit(url).scheme in redis_sentinel.SCHEMES:
        return redis_sentinel.pool_sync(url, **options)
    return redis.ConnectionPool.from_url(url, **options)


def _pool_async(url: str, **options: Any) -> redis.asyncio.ConnectionPool:
    if urlsplit(url).scheme in redis_sentinel.SCHEMES:
        return redis_sentinel.pool_async(url, **options)
    return redis.asyncio.BlockingConnectionPool.from_url(url, **options)


def _promising(client: Any, settings: Settings) -> Any:
    """Let a client of the store wait for replicas, as the settings say, before it returns what a caller is promised."""
    if settings.store_replicas_min:
        owner = client if is_cluster(settings.store_url.get_secret_value()) else client.connection_pool
        owner.replicas = Replicas(settings.store_replicas_min, settings.store_replicas_fsync)
    return client


def store_sync(settings: Settings) -> redis.Redis:
    """Return a client of the store, for workers."""
    client: redis.Redis = _promising(_sync(settings.store_url.get_secret_value(), STORE), settings)
    return client


def queue_sync(settings: Settings, *, answer_s: float = ANSWER_TIMEOUT_S) -> redis.Redis:
    """Return a client of the queue's Redis, for workers and for enqueueing RQ jobs."""
    check_queue(settings)
    return _sync(settings.queue_url_or_store, QUEUE if settings.queue_url else STORE, answer_s)


def _async(url: str, setting: str, *, prompt: bool) -> redis.asyncio.Redis:
    if is_cluster(url):
        with _readable(url, setting):
            first, *_ = redis_cluster.parse(url)
        _async(redis_cluster.node_url(url, first), setting, prompt=prompt)
        client: Any = redis_cluster.AsyncCluster(
            url, lambda node: _async(redis_cluster.node_url(url, node), setting, prompt=prompt)
        )
        return client  # type: ignore[no-any-return]
    with _readable(url, setting):
        pool = _pool_async(
            url,
            max_connections=POOL_CONNECTIONS_MAX,
            timeout=GATEWAY_TIMEOUT_S if prompt else CONNECT_TIMEOUT_S,
            # `keepfit.backends.redis_scripts` repeats the round trips of gateways; retries here would add their time.
            retry=AsyncRetry(NoBackoff(), 0) if prompt else AsyncRetry(ConstantBackoff(0.05), 1),
            socket_connect_timeout=GATEWAY_TIMEOUT_S if prompt else CONNECT_TIMEOUT_S,
            socket_timeout=GATEWAY_TIMEOUT_S if prompt else ANSWER_TIMEOUT_S,
        )
        _check_options(pool)
    _check_files(pool, setting)
    return redis.asyncio.Redis.from_pool(pool)


def store_async(settings: Settings, *, prompt: bool = False) -> redis.asyncio.Redis:
    """Return a client of the store: with short timeouts (`prompt`) for gateways, with longer ones for the others."""
    client = _async(settings.store_url.get_secret_value(), STORE, prompt=prompt)
    promising: redis.asyncio.Redis = _promising(client, settings)
    return promising


def queue_async(settings: Settings) -> redis.asyncio.Redis:
    """Return a client of the queue's Redis, for gateways."""
    check_queue(settings)
    return _async(settings.queue_url_or_store, QUEUE if settings.queue_url else STORE, prompt=True)
