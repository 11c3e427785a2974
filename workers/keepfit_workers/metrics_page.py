"""The page with the metrics of one `keepfit worker`, and the process that serves it.

Owns its port and its form. Never counts. The process is forked like a worker: no thread of it is in the supervisor, so
none is in the way of a fork, and a client that stalls it costs no worker anything. Invariants: the values are those of
all workers at the moment of the scrape, and of those before them; without a port there is no process.
"""

import signal
import socket
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from multiprocessing.process import BaseProcess
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, disable_created_metrics, make_wsgi_app
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from keepfit import child_processes
from keepfit.backends import addresses
from keepfit.child_processes import RESTART_PAUSE_S
from keepfit.observability.process_counts import ProcessCounts
from keepfit.settings import Settings
from keepfit_workers import metrics
from keepfit_workers.metrics import MODELS_HELD, Counter, Histogram

log = structlog.get_logger(__name__)

# How messages name the settings of the address.
SETTINGS = {"host": "KEEPFIT_WORKER_METRICS_HOST", "port": "KEEPFIT_WORKER_METRICS_PORT"}
# A client that sends or reads nothing for so long is cut off.
SILENT_S_MAX = 10.0


class WorkerPage(Collector):
    """One scrape: the sums of all parts; `workers` are those of the workers, of which some may not run."""

    def __init__(self, supervisor: ProcessCounts, workers: Sequence[ProcessCounts]) -> None:
        self._supervisor = supervisor
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families."""
        sums: dict[tuple[str, ...], list[float]] = {}
        running = [part for part in self._workers if part.runs]
        for part in (self._supervisor, *self._workers):
            for key, numbers in part.rows().items():
                if key[0] == MODELS_HELD and part not in running:
                    continue
                before = sums.get(key)
                sums[key] = list(numbers) if before is None else [a + b for a, b in zip(before, numbers, strict=True)]
        yield GaugeMetricFamily("keepfit_worker_processes", "Worker processes that run.", len(running))
        text = "Bundles in the memory of these processes."
        yield GaugeMetricFamily("keepfit_worker_models_held", text, sum(sums.pop((MODELS_HELD,), [0.0])))
        for metric in metrics.ALL:
            found = {key[1:]: numbers for key, numbers in sums.items() if key[0] == metric.name}
            if not metric.labels:
                found = found or {(): [0.0] * metric.width}
            yield _counters(metric, found) if isinstance(metric, Counter) else _histograms(metric, found)


def _counters(metric: Counter, found: dict[tuple[str, ...], list[float]]) -> Metric:
    family = CounterMetricFamily(metric.name, metric.text, labels=metric.labels)
    for labels, (count,) in found.items():
        family.add_metric(labels, count)
    return family


def _histograms(metric: Histogram, found: dict[tuple[str, ...], list[float]]) -> Metric:
    family = HistogramMetricFamily(metric.name, metric.text, labels=metric.labels)
    bounds = (*map(str, map(float, metric.bounds)), "+Inf")
    for labels, (*counts, total) in found.items():
        family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
    return family


class MetricsProcess:
    """The process that serves the page of one supervisor: started at first, replaced when it dies.

    Raises
    ------
    SettingsError
        If the address of the settings cannot be listened on.
    """

    def __init__(self, settings: Settings, workers: int) -> None:
        self.supervisor = ProcessCounts()
        self.workers = [ProcessCounts() for _ in range(workers)]
        self._process: BaseProcess | None = None
        self._start_not_before_s = 0.0
        self._listener: socket.socket | None = None
        if settings.worker_metrics_port:
            self._listener = _listen(settings.worker_metrics_host, settings.worker_metrics_port)

    @property
    def sentinels(self) -> list[int]:
        """What becomes ready when the process ends."""
        return [self._process.sentinel] if self._process else []

    def start_missing(self, supervisor: int) -> None:
        """Start the process, if there is a port and it does not run; no connection may be open."""
        if self._listener is None or self._process is not None or time.monotonic() < self._start_not_before_s:
            return
        self._process = child_processes.fork(
            "metrics", _serve, self._listener, WorkerPage(self.supervisor, self.workers), supervisor
        )

    def remove_dead(self) -> None:
        """Note whether the process has ended."""
        if self._process is None or self._process.exitcode is None:
            return
        if self._listener is not None:
            log.warning("metrics_process_died", pid=self._process.pid, exitcode=self._process.exitcode)
            self._start_not_before_s = time.monotonic() + RESTART_PAUSE_S
        self._process = None

    def stop(self) -> None:
        """End the process, and close the port."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._process is not None:
            self._process.terminate()
            self._process.join()
            self._process = None


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((host, port) if family == socket.AF_INET else address[:2], family=family)
    except (OSError, UnicodeError) as error:
        raise addresses.listen_error(host, port, error, SETTINGS) from None


class _Handler(WSGIRequestHandler):
    timeout = SILENT_S_MAX

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is inherited
        """Log nothing: a scrape each few seconds is no news."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket) -> None:
        address = listener.getsockname()
        super().__init__(address[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = address[:2]
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing about a client that has gone."""


def _serve(listener: socket.socket, page: WorkerPage, supervisor: int) -> None:
    """Serve the page until SIGTERM; the body of the process, whose supervisor has the process id `supervisor`."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Ctrl-C reaches the whole process group; the supervisor ends its processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    child_processes.end_with(supervisor)
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    registry.register(page)
    with _Server(listener) as server:
        server.set_app(make_wsgi_app(registry))
        server.serve_forever()
