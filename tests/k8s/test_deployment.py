"""The processes of the manifests, with exactly their values: probes, jobs, metrics, and more workers for more work.

One deployment serves all tests of this file, in their order.
"""

import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from tests.conftest import SIGNING_KEYS
from tests.factories import dump_local
from tests.k8s.autoscaler import Autoscaler
from tests.k8s.builds import DEV, FULL, Build, one, secret_values
from tests.k8s.processes import Places, Pod, running
from tests.k8s.prometheus import Prometheus, scraping
from tests.k8s.test_servers import QUEUE, STORE, started
from tests.servers import wait_until

UPLOAD_KEYS = SIGNING_KEYS.replace("test:", "upload:")
KEY = "dev-only"
# A call takes time and no processor: the tests run beside others.
SLOW = """class Slow:
    def partial_fit(self, X, y):
        import time
        time.sleep(0.1)
    def predict(self, X): return [0.0] * len(X)
"""


@dataclass(slots=True)
class Cluster:
    """The gateway, the workers and the servers of the dev overlay."""

    places: Places
    gateway: Pod
    workers: list[Pod] = field(default_factory=list)
    store_port: int = 0

    def call(self, method: str, path: str, body: Any = None, timeout_s: float = 60.0) -> Any:
        """Call the gateway with the key of the overlay; return the JSON of its answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.gateway.port}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", "Prefer": "wait=30"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return json.load(answer)

    def make(self, recipe: dict[str, Any], **metadata: Any) -> str:
        """Create a model; return its path."""
        made = self.call("POST", "/v1/models", {"metadata": {"type": "k8s", **metadata}, "recipe": recipe})
        return f"/v1/models/{made['hash']}"

    def rows_seen(self, model: str) -> int:
        """Return how many rows a model has learned."""
        return int(self.call("GET", model)["rows_seen"])

    def scale(self, replicas: int) -> None:
        """Start workers until there are so many, or end the newest ones; all at a time."""
        new = []
        while len(self.workers) < replicas:
            pod = Pod.of(DEV, "workers", self.places, time.monotonic_ns(), KEEPFIT_UPLOAD_KEYS=UPLOAD_KEYS)
            pod.start()
            self.workers.append(pod)
            new.append(pod)
        for pod in new:
            pod.wait_until_started()
        ended, self.workers = self.workers[replicas:], self.workers[:replicas]
        for pod in ended:
            os.kill(pod.pid, signal.SIGTERM)
        assert [pod.process and pod.process.wait(60) for pod in ended] == [0] * len(ended)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, mongo_server: str) -> Iterator[Cluster]:
    """Run the dev overlay with one worker."""
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        ports = {}
        for server in (STORE, QUEUE):
            own = folder / server.name
            own.mkdir()
            _, ports[server.name] = stack.enter_context(started(server, own))
        keys = folder / "api-keys"
        keys.write_text(secret_values(DEV, "keepfit-api-keys")["api-keys"])
        # The MongoDB of the tests has no users; all else of the URL is a matter of the place.
        mongo = secret_values(DEV)["KEEPFIT_MONGO_URL"]
        texts = {
            "@redis:6379": f"@127.0.0.1:{ports['redis']}",
            "@queue:6379": f"@127.0.0.1:{ports['queue']}",
            mongo: f"{mongo_server}{urlsplit(mongo).path}-{os.getpid()}",
            "/var/lib/keepfit/snapshots": str(folder / "snapshots"),
            "/etc/keepfit/api-keys": str(keys),
        }
        places = Places(folder, texts)
        gateway = stack.enter_context(running(Pod.of(DEV, "gateway", places, KEEPFIT_UPLOAD_KEYS=UPLOAD_KEYS)))
        found = Cluster(places, gateway, store_port=ports["redis"])
        stack.callback(found.scale, 0)
        found.scale(1)
        yield found


def test_every_probe_succeeds(cluster: Cluster) -> None:
    """The probes of gateway and worker succeed while both run, at the paths, ports and files of the manifests."""
    wait_until(lambda: cluster.gateway.probe("readinessProbe"), "readiness")
    assert cluster.gateway.probe("livenessProbe")
    assert cluster.workers[0].probe("livenessProbe")


def test_the_probe_of_a_worker_fails_when_its_supervisor_hangs(cluster: Cluster) -> None:
    """The file of a stopped supervisor gets old, and the probe fails; it succeeds when the supervisor goes on."""
    (pod,) = cluster.workers
    file = Path(pod.variables["KEEPFIT_ALIVE_FILE"])
    os.kill(pod.pid, signal.SIGSTOP)
    try:
        # In place of a minute.
        old_s = time.time() - 61
        os.utime(file, (old_s, old_s))
        assert not pod.probe("livenessProbe")
        assert not pod.probe("startupProbe")
    finally:
        os.kill(pod.pid, signal.SIGCONT)
    wait_until(lambda: pod.probe("livenessProbe"), "a touch of the supervisor")


def test_a_missing_file_is_a_failure(cluster: Cluster) -> None:
    """The probe of a worker that has not started yet fails, so its time to start is the startup probe's."""
    pod = Pod.of(DEV, "workers", cluster.places, time.monotonic_ns())
    assert not pod.probe("startupProbe")


def test_the_jobs_save_and_restore(cluster: Cluster) -> None:
    """The CronJobs do with their commands what they are for: a model is saved, lost, and put back."""
    model = cluster.make({"estimator": "SGDRegressor"}, job="restore")
    for number in range(3):
        cluster.call("POST", f"{model}/partial_fit", {"X": [[float(number)]], "y": [float(number)]})
    expected = cluster.call("POST", f"{model}/predict?timeout=60", {"X": [[1.5]]})["predictions"]
    assert "1 saved" in Pod.of(DEV, "snapshotter", cluster.places).run()
    with redis.Redis(port=cluster.store_port, password=KEY) as store:
        store.flushall()
    assert "restored" in Pod.of(DEV, "restore", cluster.places).run()
    with redis.Redis(port=cluster.store_port, password=KEY) as store:
        assert list(store.scan_iter(f"*{model.rpartition('/')[2]}*"))
    assert cluster.call("POST", f"{model}/predict?timeout=60", {"X": [[1.5]]})["predictions"] == expected


def test_the_snapshotter_as_a_deployment(cluster: Cluster) -> None:
    """The command of the component touches the file that its probes look at, and ends after its pass."""
    build = Build("loop", "overlays/dev", ("snapshotter-deployment",))
    with running(Pod.of(build, "snapshotter", cluster.places, 1)) as pod:
        assert pod.probe("livenessProbe")
        file = Path(pod.variables["KEEPFIT_ALIVE_FILE"])
        old_s = time.time() - 901
        os.utime(file, (old_s, old_s))
        assert not pod.probe("livenessProbe")
        wait_until(lambda: "snapshotter_started" in pod.log.read_text(), "its passes")
        assert pod.end() == 0


@pytest.fixture(scope="module")
def prometheus(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes the gateway as the ServiceMonitor says, but more often."""
    (endpoint,) = one(FULL, "ServiceMonitor", "keepfit")["spec"]["endpoints"]
    folder = tmp_path_factory.mktemp("prometheus") / "prometheus"
    with scraping(folder, cluster.gateway.port, "keepfit", endpoint["path"], KEY) as found:
        wait_until(lambda: found.value("max(keepfit_workers)") is not None, "the first scrape")
        yield found


def test_the_query_of_the_autoscaler_is_the_waiting_work(cluster: Cluster, prometheus: Prometheus) -> None:
    """With a stopped worker the query returns how many models wait to learn and to predict; afterwards none."""
    query = scaled()["triggers"][0]["metadata"]["query"]
    models = [cluster.make({"estimator": "SGDRegressor"}, query=number) for number in range(5)]
    for model in models:
        cluster.call("POST", f"{model}/partial_fit", {"X": [[1.0]], "y": [1.0]})
    wait_until(lambda: prometheus.value(query) == 0, "idle workers")
    (pod,) = cluster.workers
    pids = [pod.pid, *map(int, Path(f"/proc/{pod.pid}/task/{pod.pid}/children").read_text().split())]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(5) as threads:
        try:
            learned = [
                threads.submit(cluster.call, "POST", f"{model}/partial_fit", {"X": [[2.0]], "y": [2.0]})
                for model in models[:3]
            ]
            asked = [
                threads.submit(cluster.call, "POST", f"{model}/predict?timeout=60", {"X": [[3.0]]})
                for model in models[:2]
            ]
            wait_until(lambda: prometheus.value(query) == 5, "three models to learn and two to predict")
        finally:
            for pid in reversed(pids):
                os.kill(pid, signal.SIGCONT)
        assert all(done.result() for done in learned)
        assert all(len(done.result()["predictions"]) == 1 for done in asked)
    assert [cluster.rows_seen(model) for model in models] == [2, 2, 2, 1, 1]
    wait_until(lambda: prometheus.value(query) == 0, "nothing waits")


def scaled(**counts: int) -> dict[str, Any]:
    """Return the spec of the ScaledObject, with other counts of replicas."""
    spec: dict[str, Any] = one(FULL, "ScaledObject", "workers")["spec"]
    return {**spec, **counts}


class Load:
    """Clients, one for each model, that send the next row as soon as the last one is learned."""

    def __init__(self, cluster: Cluster, threads: ThreadPoolExecutor) -> None:
        self._cluster = cluster
        self._threads = threads
        self._ended = threading.Event()
        self._clients: list[Future[int]] = []

    def begin(self, models: list[str]) -> None:
        """Let one more client begin for each of these models."""
        self._clients += [self._threads.submit(self._send, model) for model in models]

    def _send(self, model: str) -> int:
        rows = 0
        while not self._ended.is_set():
            self._cluster.call("POST", f"{model}/partial_fit", {"X": [[float(rows)]], "y": [1.0]})
            rows += 1
        return rows

    def end(self) -> list[int]:
        """Let the clients end; return how many rows each has sent."""
        self._ended.set()
        return [client.result() for client in self._clients]


def test_one_worker_becomes_four_under_a_load_that_grows(cluster: Cluster, prometheus: Prometheus) -> None:
    """By the query and rules of the ScaledObject: four workers under load, one afterwards, each row learned once."""
    autoscaler = Autoscaler(scaled(minReplicaCount=1, maxReplicaCount=4), len(cluster.workers))
    query = autoscaler.trigger["query"]
    recipe = {"object": dump_local(SLOW, UPLOAD_KEYS)}
    models = [cluster.make(recipe, load=number) for number in range(24)]
    seen = [len(cluster.workers)]

    def control(until: Callable[[], bool], pause_s: float = 0.5) -> None:
        """Step with the value of the query until a condition holds; by default each step has a new value."""
        deadline_s = time.monotonic() + 60
        while not until():
            assert time.monotonic() < deadline_s, seen
            value = prometheus.value(query)
            # Without a value the number stays, as `ignoreNullValues` says.
            if value is not None:
                cluster.scale(autoscaler.step(value))
            seen.append(len(cluster.workers))
            time.sleep(pause_s)

    with ThreadPoolExecutor(len(models)) as threads:
        load = Load(cluster, threads)
        try:
            # Two slow models are no reason for a second worker.
            load.begin(models[:2])
            control(lambda: len(seen) > 6)
            assert set(seen) == {1}
            load.begin(models[2:])
            control(lambda: len(cluster.workers) == 4)
        finally:
            sent = load.end()
    wait_until(lambda: prometheus.value(query) == 0, "nothing waits")
    control(lambda: len(cluster.workers) == 1, pause_s=0)
    # One at a time, as the policy of `scaleDown` says.
    assert [count for count, before in zip(seen[1:], seen, strict=False) if count < before] == [3, 2, 1]
    # An answer may come before its row is learned, if that takes longer than a client waits.
    wait_until(lambda: sum(map(cluster.rows_seen, models)) >= sum(sent), "the last rows")
    assert [cluster.rows_seen(model) for model in models] == sent
