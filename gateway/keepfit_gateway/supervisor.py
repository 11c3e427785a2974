"""The supervisor of a gateway with several processes: starts them, replaces dead ones, and stops them.

Owns the processes of one `keepfit gateway` and their shares of its limits. Never handles a request and opens no
connection. Invariants: a process that dies costs the others nothing; what it has counted stays in the metrics; none
outlives the supervisor; one that cannot start at the start of the gateway ends it, with its error.
"""

import gc
import multiprocessing as mp
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import structlog

from keepfit import child_processes
from keepfit.child_processes import RESTART_PAUSE_S, StopRequest
from keepfit.errors import KeepfitError, UnavailableError
from keepfit.observability.process_counts import Parts, ProcessCounts
from keepfit.settings import Settings
from keepfit_gateway import app
from keepfit_gateway.shared_port import SharedPort, shared_port

log = structlog.get_logger(__name__)

# What a process sends to the supervisor when it listens; anything else is why it cannot start.
LISTENS = b"listens"
# Limits of a gateway of which each process has an equal share.
DIVIDED = (
    "bodies_bytes_max",
    "connections_max",
    "event_streams_max",
    "predict_cache_bytes_max",
    "scorer_cache_bytes_max",
)


def share_of(settings: Settings) -> Settings:
    """Return the settings of one process of the gateway that `settings` describe.

    >>> share_of(Settings(gateway_processes=3, connections_max=1000)).connections_max
    333
    """
    count = settings.gateway_processes
    shares = {name: getattr(settings, name) // count for name in DIVIDED}
    at_least_one = {name: max(shares[name], 1) for name in ("connections_max", "event_streams_max")}
    return settings.model_copy(update={**shares, **at_least_one})


@dataclass(slots=True)
class Child:
    """A process of the gateway; `news` has what it sends."""

    process: BaseProcess
    news: Connection
    listens: bool = False
    reason: str = ""

    def read_news(self) -> None:
        """Note what the process has sent, if it has."""
        # A process that ends without a word closes its end.
        with suppress(EOFError):
            while not self.listens and self.news.poll():
                sent = self.news.recv_bytes()
                self.listens = sent == LISTENS
                self.reason = "" if self.listens else sent.decode()


class Supervisor:
    """`settings.gateway_processes` processes, kept alive until SIGTERM or SIGINT; each has a number."""

    def __init__(self, settings: Settings, ready: Callable[[str], None]) -> None:
        self._settings = settings
        self._share = share_of(settings)
        self._ready = ready
        self._parts = [ProcessCounts() for _ in range(settings.gateway_processes)]
        self._children: dict[int, Child] = {}
        self._start_not_before_s = 0.0
        self._stop = StopRequest()

    def run(self) -> None:
        """Supervise until SIGTERM or SIGINT; then let each process finish its requests.

        Raises
        ------
        SettingsError
            If the gateway cannot listen.
        UnavailableError
            If a process ends before all of them listen, with its reason.
        """
        self._stop.listen()
        # Objects that all processes share are frozen: none scans them for garbage or copies their memory pages.
        gc.collect()
        gc.freeze()
        with shared_port(self._settings.host, self._settings.port) as port:
            try:
                self._start(port)
                while not self._stop.made:
                    self._start_missing(port)
                    self._wait()
                    self._remove_dead()
            finally:
                self._stop_all()
        log.info("gateway_stopped")

    def _start(self, port: SharedPort) -> None:
        """Start all processes and wait until they listen."""
        self._start_missing(port)
        while not self._stop.made and not all(child.listens for child in self._children.values()):
            self._wait()
            for child in self._children.values():
                if child.process.exitcode is not None and not self._stop.made:
                    raise UnavailableError(child.reason or _end(child))
        if not self._stop.made:
            log.info("gateway_listening", url=port.url)
            self._ready(port.url)

    def _start_missing(self, port: SharedPort) -> None:
        if time.monotonic() < self._start_not_before_s:
            return
        for number in range(len(self._parts)):
            if number in self._children or self._stop.made:
                continue
            news, own_end = mp.Pipe(duplex=False)
            process = child_processes.fork(
                f"gateway-{number}", _run, self._share, port, Parts.of(self._parts, number), own_end, os.getpid()
            )
            own_end.close()
            self._children[number] = Child(process, news)
            log.info("gateway_process_started", process=number, pid=process.pid)

    def _wait(self) -> None:
        """Wait until a process dies or sends something, a stop is requested, or a start is due."""
        missing = len(self._children) < len(self._parts) and not self._stop.made
        due_s = max(self._start_not_before_s - time.monotonic(), 0.0) if missing else None
        starting = [child.news for child in self._children.values() if not (child.listens or child.reason)]
        self._stop.wait([*starting, *(child.process.sentinel for child in self._children.values())], due_s)
        for child in self._children.values():
            child.read_news()

    def _remove_dead(self) -> None:
        for number, child in list(self._children.items()):
            exitcode = child.process.exitcode
            if exitcode is None:
                continue
            child.read_news()
            child.news.close()
            self._parts[number].runs = False
            del self._children[number]
            if self._stop.made and not exitcode:
                log.info("gateway_process_stopped", process=number, pid=child.process.pid)
                continue
            log.warning(
                "gateway_process_died", process=number, pid=child.process.pid, exitcode=exitcode, reason=child.reason
            )
            if not child.listens:
                self._start_not_before_s = time.monotonic() + RESTART_PAUSE_S

    def _stop_all(self) -> None:
        self._stop.made = True
        for child in self._children.values():
            child.process.terminate()
        while self._children:
            self._wait()
            self._remove_dead()


def _end(child: Child) -> str:
    """Return how a process ended that sent no reason."""
    return f"A process of the gateway ended at its start with exit code {child.process.exitcode}; its log says more."


def _run(settings: Settings, port: SharedPort, parts: Parts, news: Connection, supervisor: int) -> None:
    """Serve until SIGTERM; the body of a process, whose supervisor has the process id `supervisor`."""
    child_processes.end_with(supervisor)
    # Ctrl-C reaches the whole process group; the supervisor stops its processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        app.run(settings, lambda url: news.send_bytes(LISTENS), app.Place(port, parts))
    except KeepfitError as error:
        news.send_bytes(str(error).encode())
        sys.exit(1)


def run(settings: Settings, ready: Callable[[str], None] = lambda url: None) -> None:
    """Run the gateway with as many processes as the settings say: with one, in this process."""
    if settings.gateway_processes == 1:
        app.run(settings, ready)
    else:
        Supervisor(settings, ready).run()
