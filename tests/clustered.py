"""A Redis Cluster for tests: real Valkey servers, three primaries with a replica each."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis
from pydantic import SecretStr
from redis.crc import key_slot

from keepfit.backends import redis_keys
from keepfit.local.servers import accepts, free_port, redis_command
from keepfit.settings import Settings
from tests import servers
from tests.conftest import Stack, start_stack, stop_stack

PASSWORD = "of-servers"
SLOTS, SHARDS, NODE_TIMEOUT_MS = 16_384, 3, 500


class Clustered:
    """Running nodes by port."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.ports = [free_port() for _ in range(2 * SHARDS)]
        self._buses = {port: free_port() for port in self.ports}
        self.clients = {
            port: redis.Redis(port=port, password=PASSWORD, decode_responses=True, socket_timeout=5)
            for port in self.ports
        }
        for port in self.ports:
            self.start(port)
        self._join()

    @property
    def url(self) -> str:
        """The address for keepfit: it names three of the nodes."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports[:SHARDS])
        return f"redis+cluster://:{PASSWORD}@{hosts}"

    def start(self, port: int) -> None:
        """Start a node, with what it had stored."""
        command = [*redis_command(port, self._folder / str(port)), "--repl-diskless-sync-delay", "0"]
        command += ["--requirepass", PASSWORD, "--primaryauth", PASSWORD, "--cluster-enabled", "yes"]
        command += ["--cluster-port", str(self._buses[port]), "--cluster-node-timeout", str(NODE_TIMEOUT_MS)]
        command += ["--cluster-replica-validity-factor", "0", "--cluster-allow-replica-migration", "no"]
        log = self._folder / f"{port}.log"
        self._processes[port] = self._stack.enter_context(servers.running(command, log, lambda: accepts(port)))

    def _join(self) -> None:
        first, *others = self.ports
        for epoch, port in enumerate(self.ports, 1):
            self.run(port, "CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for shard, port in enumerate(self.ports[:SHARDS]):
            begin, end = shard * SLOTS // SHARDS, (shard + 1) * SLOTS // SHARDS - 1
            self.run(port, "CLUSTER", "ADDSLOTSRANGE", begin, end)
        for port in others:
            self.run(first, "CLUSTER", "MEET", "127.0.0.1", port, self._buses[port])
        servers.wait_until(lambda: all(len(self._known(port)) == len(self.ports) for port in self.ports), "the nodes")
        for port, primary in zip(self.ports[SHARDS:], self.ports[:SHARDS], strict=True):
            self.run(port, "CLUSTER", "REPLICATE", self.node_id(primary))
        servers.wait_until(self.is_complete, "the cluster")

    def run(self, port: int, *command: Any) -> Any:
        """Run a command on a node."""
        return self.clients[port].execute_command(*command)

    def node_id(self, port: int) -> str:
        """Return the name of a node."""
        return str(self.run(port, "CLUSTER", "MYID"))

    def _known(self, port: int) -> list[list[str]]:
        """Return what a node knows of all nodes that have joined."""
        lines = [line.split() for line in self.run(port, "CLUSTER", "NODES").splitlines()]
        return [line for line in lines if "handshake" not in line[2]]

    def is_complete(self) -> bool:
        """Whether all nodes run and are known to run, and each replica has what its primary has."""
        try:
            return all(map(self._is_complete, self.ports))
        except redis.RedisError:
            return False

    def _is_complete(self, port: int) -> bool:
        found: Any = self.clients[port].info("replication")
        if found["role"] == "master":
            is_linked = found["connected_slaves"] == 1 and found["slave0"]["state"] == "online"
        else:
            is_linked = found["master_link_status"] == "up"
        knows_all = not any("fail" in line[2] for line in self._known(port))
        return is_linked and knows_all and "cluster_state:ok" in self.run(port, "CLUSTER", "INFO")

    def _owner(self, asked: int, slot: int) -> int:
        for begin, end, primary, *_ in self.run(asked, "CLUSTER", "SLOTS"):
            if begin <= slot <= end:
                return int(primary[1])
        return 0

    def owner(self, model_hash: str) -> int:
        """Return the port of the primary that has a model, as a running node knows it."""
        slot = key_slot(model_hash.encode())
        running = next(port for port, process in self._processes.items() if process.poll() is None)
        return self._owner(running, slot)

    def move(self, model_hash: str) -> int:
        """Move the slot of a model to another primary, key by key, and return its port."""
        slot, source = key_slot(model_hash.encode()), self.owner(model_hash)
        target = next(
            port for port in self.ports if port != source and self.clients[port].info("replication")["role"] == "master"
        )
        self.run(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
        self.run(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(target))
        while names := self.run(source, "CLUSTER", "GETKEYSINSLOT", slot, 10):
            self.run(source, "MIGRATE", "127.0.0.1", target, "", 0, 5000, "AUTH", PASSWORD, "KEYS", *names)
        for port in (target, source):
            self.run(port, "CLUSTER", "SETSLOT", slot, "NODE", self.node_id(target))
        assert key_slot(redis_keys.state(model_hash).encode()) == slot
        return target

    def kill(self, port: int, slot_of: str) -> None:
        """Kill the primary of a model, and wait until its replica has its place."""
        self._processes[port].kill()
        self._processes[port].wait()
        servers.wait_until(lambda: self.owner(slot_of) != port, "the failover")


@contextmanager
def clustered(folder: Path) -> Iterator[Clustered]:
    """Run the nodes until the block ends."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        running = Clustered(folder, stack)
        yield running
        for client in running.clients.values():
            client.close()


@contextmanager
def stack_on(cluster: Clustered, folder: Path, replicas_min: int) -> Iterator[Stack]:
    """Run a stack whose store is on a cluster, with a queue of its own."""
    port = free_port()
    environment = {
        "KEEPFIT_STORE_URL": cluster.url,
        "KEEPFIT_STORE_REPLICAS_MIN": str(replicas_min),
        "KEEPFIT_QUEUE_URL": f"redis://127.0.0.1:{port}/0",
    }
    command = redis_command(port, folder / "queue", durable=False)
    with servers.running(command, folder / "queue.log", lambda: accepts(port)):
        running = start_stack(folder / "data", environment=environment)
        yield running
        assert stop_stack(running) == 0


def settings_of(stack: Stack, cluster: Clustered) -> Settings:
    """Return the settings of such a stack."""
    return stack.settings().model_copy(update={"store_url": SecretStr(cluster.url)})
