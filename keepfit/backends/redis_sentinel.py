"""Connections to the primary of a Redis that Sentinel watches.

Owns the form of its address and its pools. Never decides which server is the primary: the sentinels do, and are asked
whenever a connection is opened. Invariant: a connection to a server that has become a replica ends at its next write.

The address is ``redis+sentinel://user:password@host:26379,host:26379/0?master=NAME``: the credentials and options are
those of the servers, the hosts are sentinels.
"""

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel

SCHEMES = ("redis+sentinel", "rediss+sentinel")
PORT = 26379
# Of one sentinel: the others are asked if it does not answer.
ANSWER_TIMEOUT_S = 1.0
# Options of the address that are no options of a connection to the server.
MASTER, OF_SENTINELS = "master", ("sentinel_username", "sentinel_password")


class AddressError(ValueError):
    """The address of a Redis with sentinels cannot be read; the message quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address: the sentinels, the name by which they know the primary, its address with any host, and options.

    `options` are those of connections to the sentinels.
    """

    sentinels: tuple[tuple[str, int], ...]
    master: str
    server: str
    options: dict[str, str]


def parse(url: str) -> Address:
    """Read an address.

    Raises
    ------
    AddressError, ValueError
        If it cannot be read.

    >>> parse("redis+sentinel://:hush@one,[::1]:26380/2?master=keepfit&sentinel_password=hush")
    Address(sentinels=(('one', 26379), ('::1', 26380)), master='keepfit', server='redis://:hush@sentinels/2', \
options={'password': 'hush'})
    """
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    master = options.pop(MASTER, "")
    if not master:
        raise AddressError(f"the option {MASTER}=NAME is missing: the name by which the sentinels know the server")
    of_sentinels = {name.removeprefix("sentinel_"): options.pop(name) for name in OF_SENTINELS if name in options}
    server = urlunsplit(
        (parts.scheme.partition("+")[0], f"{credentials}{at}sentinels", parts.path, urlencode(options), "")
    )
    return Address(tuple(host_of(each, PORT) for each in hosts.split(",")), master, server, of_sentinels)


def host_of(text: str, default_port: int) -> tuple[str, int]:
    """Read one of the hosts of an address: a sentinel, or a node of a cluster."""
    parts = urlsplit(f"//{text}")
    try:
        port = default_port if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not parts.hostname or port == 0:
        raise AddressError("a host is missing, or its port is not from 1 to 65535")
    return unquote(parts.hostname), port


def _kwargs(address: Address, options: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the arguments of connections to the server, and whether they have TLS."""
    kwargs = redis.connection.parse_url(address.server)  # type: ignore[no-untyped-call]
    del kwargs["host"]
    is_secure = kwargs.pop("connection_class", None) is not None
    return {**kwargs, **options}, is_secure


def _sentinel_kwargs(address: Address, kwargs: dict[str, Any], *, is_secure: bool) -> dict[str, Any]:
    """Return the arguments of connections to sentinels, which have the TLS of the server."""
    tls = {name: value for name, value in kwargs.items() if name.startswith("ssl_")}
    timeouts = {"socket_timeout": ANSWER_TIMEOUT_S, "socket_connect_timeout": ANSWER_TIMEOUT_S}
    return {**address.options, **timeouts, **tls, **({"ssl": True} if is_secure else {})}


def pool_sync(url: str, **options: Any) -> redis.ConnectionPool:
    """Return a pool of connections to the primary; `options` are those of a connection."""
    address = parse(url)
    kwargs, is_secure = _kwargs(address, options)
    manager = redis.sentinel.Sentinel(  # type: ignore[no-untyped-call]
        address.sentinels, sentinel_kwargs=_sentinel_kwargs(address, kwargs, is_secure=is_secure)
    )
    pool: redis.ConnectionPool = redis.sentinel.SentinelConnectionPool(  # type: ignore[no-untyped-call]
        address.master, manager, ssl=is_secure, **kwargs
    )
    return pool


class BlockingSentinelPool(redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """A pool whose users wait while all its connections are in use."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections, and with all of them those to the sentinels."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()


def pool_async(url: str, **options: Any) -> redis.asyncio.ConnectionPool:
    """Return a pool of asyncio connections to the primary; `options` are those of a pool and of a connection."""
    address = parse(url)
    kwargs, is_secure = _kwargs(address, options)
    manager = redis.asyncio.sentinel.Sentinel(  # type: ignore[no-untyped-call]
        address.sentinels, sentinel_kwargs=_sentinel_kwargs(address, kwargs, is_secure=is_secure)
    )
    return BlockingSentinelPool(address.master, manager, ssl=is_secure, **kwargs)  # type: ignore[no-untyped-call]
