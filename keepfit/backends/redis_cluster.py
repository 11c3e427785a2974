"""Clients of a Redis Cluster: connections to each of its nodes, and which node has which slot.

Owns the form of the address, and reading the nodes' slots with redis-py's own client. Which command goes where is
:mod:`keepfit.backends.redis_slots`'. Invariant: after a connection broke, or a slot has moved, the slots are read again
before the next command.

The address is ``redis+cluster://user:password@host:6379,host:6379``: some of the nodes; they name the others.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.cluster
from redis.crc import key_slot
from redis.exceptions import ConnectionError, RedisClusterException, TimeoutError  # noqa: A004

from keepfit.backends.redis_sentinel import AddressError, host_of
from keepfit.backends.redis_slots import Command, Node, Plan, Refresh, Replicas, Sent, Slots

SCHEMES = ("redis+cluster", "rediss+cluster")
PORT = 6379
# Of one node that is asked for the slots: the others are asked if it does not answer.
ANSWER_TIMEOUT_S = 1.0


def parse(url: str) -> tuple[Node, ...]:
    """Return the nodes of an address.

    Raises
    ------
    AddressError, ValueError
        If it cannot be read.

    >>> parse("redis+cluster://:hush@one,[::1]:6380/0")
    (('one', 6379), ('::1', 6380))
    """
    parts = urlsplit(url)
    if parts.path.strip("/") not in {"", "0"} or "db" in parse_qs(parts.query):
        raise AddressError("a cluster has the database 0 alone")
    return tuple(host_of(each, PORT) for each in parts.netloc.rpartition("@")[2].split(","))


def node_url(url: str, node: Node) -> str:
    """Return the address of a node of the cluster with an address.

    >>> node_url("rediss+cluster://:hush@one,two/0?ssl_cert_reqs=none", ("::1", 6380))
    'rediss://:hush@[::1]:6380?ssl_cert_reqs=none'
    """
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    host = f"[{node[0]}]" if ":" in node[0] else node[0]
    return urlunsplit((parts.scheme.partition("+")[0], f"{credentials}{at}{host}:{node[1]}", "", parts.query, ""))


class Cluster:
    """A client for workers: what takes a client of one server for `redis_scripts.run` takes this one."""

    def __init__(self, url: str, make_client: Callable[[Node], redis.Redis]) -> None:
        self._seeds = parse(url)
        self._options = _reading(node_url(url, self._seeds[0]))
        self._make_client = make_client
        self._clients: dict[Node, redis.Redis] = {}
        self.slots = Slots()
        self.replicas: Replicas | None = None

    def run(self, plan: Plan, send: Callable[[redis.Redis, Sequence[Command]], list[Any]]) -> list[Any]:
        """Do what a plan says; return its result."""
        answers = None
        try:
            while True:
                step = plan.send(answers)
                answers = None
                if isinstance(step, Refresh):
                    time.sleep(step.pause_s)
                    self._read_slots()
                else:
                    answers = [send(self._client(node), commands) for node, commands in step]
        except StopIteration as end:
            result: list[Any] = end.value
            return result
        except (ConnectionError, TimeoutError):
            self.slots.is_stale = True
            raise

    def _client(self, node: Node) -> redis.Redis:
        if node not in self._clients:
            self._clients[node] = self._make_client(node)
        return self._clients[node]

    def _read_slots(self) -> None:
        nodes = [redis.cluster.ClusterNode(*node) for node in {*self._clients, *self._seeds}]  # type: ignore[no-untyped-call]
        try:
            found: Any = redis.cluster.RedisCluster(startup_nodes=nodes, **self._options)
        except (RedisClusterException, IndexError) as error:
            # Of no slot at all redis-py reports an IndexError.
            raise ConnectionError(str(error)) from error
        try:
            _note(self.slots, found.nodes_manager.slots_cache)
        finally:
            found.close()

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            client.close()
        self.slots.is_stale = True

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncCluster:
    """A client for gateways: what takes a client of one server for `redis_scripts.run_async` takes this one."""

    def __init__(self, url: str, make_client: Callable[[Node], redis.asyncio.Redis]) -> None:
        self._seeds = parse(url)
        self._options = _reading(node_url(url, self._seeds[0]))
        self._make_client = make_client
        self._clients: dict[Node, redis.asyncio.Redis] = {}
        self._reading: asyncio.Task[None] | None = None
        self.slots = Slots()
        self.replicas: Replicas | None = None

    async def run(
        self, plan: Plan, send: Callable[[redis.asyncio.Redis, Sequence[Command]], Awaitable[list[Any]]]
    ) -> list[Any]:
        """Do what a plan says; return its result."""
        answers = None
        try:
            while True:
                step = plan.send(answers)
                answers = None
                if isinstance(step, Refresh):
                    await asyncio.sleep(step.pause_s)
                    await self._read_slots_once()
                else:
                    answers = await self._send(step, send)
        except StopIteration as end:
            result: list[Any] = end.value
            return result
        except (ConnectionError, TimeoutError):
            self.slots.is_stale = True
            raise

    async def _send(
        self,
        step: Sequence[Sent],
        send: Callable[[redis.asyncio.Redis, Sequence[Command]], Awaitable[list[Any]]],
    ) -> list[list[Any]]:
        if len(step) == 1:
            ((node, commands),) = step
            return [await send(self.node(node), commands)]
        found = await asyncio.gather(
            *(send(self.node(node), commands) for node, commands in step), return_exceptions=True
        )
        for answers in found:
            if isinstance(answers, BaseException):
                raise answers
        return found  # type: ignore[return-value]

    def node(self, node: Node) -> redis.asyncio.Redis:
        """Return the client of a node."""
        if node not in self._clients:
            self._clients[node] = self._make_client(node)
        return self._clients[node]

    async def primaries(self) -> list[Node]:
        """Return the nodes that have slots."""
        if self.slots.is_stale:
            await self._read_slots_once()
        return self.slots.primaries()

    async def _read_slots_once(self) -> None:
        """Read the slots; all that ask meanwhile wait for the same answer."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_slots())
        await asyncio.shield(self._reading)

    async def _read_slots(self) -> None:
        nodes = [redis.asyncio.cluster.ClusterNode(*node) for node in {*self._clients, *self._seeds}]
        found: Any = redis.asyncio.cluster.RedisCluster(startup_nodes=nodes, **self._options)
        try:
            await found.initialize()
            _note(self.slots, found.nodes_manager.slots_cache)
        except (RedisClusterException, IndexError) as error:
            raise ConnectionError(str(error)) from error
        finally:
            await found.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()
        self.slots.is_stale = True


def _reading(url: str) -> dict[str, Any]:
    """Return the options of the client that reads the slots, from the address of a node."""
    options = redis.connection.parse_url(url)  # type: ignore[no-untyped-call]
    is_secure = options.pop("connection_class", None) is not None
    del options["host"], options["port"]
    timeouts = {"socket_timeout": ANSWER_TIMEOUT_S, "socket_connect_timeout": ANSWER_TIMEOUT_S}
    return {**options, **timeouts, **({"ssl": True} if is_secure else {}), "require_full_coverage": False}


def _note(slots: Slots, found: dict[int, list[Any]]) -> None:
    slots.nodes = {slot: (nodes[0].host, nodes[0].port) for slot, nodes in found.items() if nodes}
    slots.is_stale = False


@dataclass(frozen=True, slots=True)
class Source:
    """A server that publishes, and its models: those of its slots in a cluster, or all."""

    client: redis.asyncio.Redis
    cluster: AsyncCluster | None = None
    node: Node = ("", 0)
    primaries: tuple[Node, ...] = ()

    def has(self, model_hash: bytes) -> bool:
        """Return whether a model is one of its own."""
        return self.cluster is None or self.cluster.slots.nodes.get(key_slot(model_hash)) == self.node

    def is_current(self) -> bool:
        """Return whether the cluster has no other nodes with slots, as far as is known."""
        return self.cluster is None or tuple(self.cluster.slots.primaries()) == self.primaries


async def sources(client: redis.asyncio.Redis | AsyncCluster) -> list[Source]:
    """Return the servers that publish what happens to models."""
    if not isinstance(client, AsyncCluster):
        return [Source(client)]
    primaries = tuple(await client.primaries())
    if not primaries:
        raise ConnectionError("no node of the cluster has slots")
    return [Source(client.node(node), client, node, primaries) for node in primaries]
