"""Run `keepfit` as forks of a process that has imported its modules already.

Owns that process, one for each process of pytest, and its protocol. A fork is what ``python -m keepfit`` is: a process
with its own working directory, environment, standard streams and exit code, in which ``keepfit/__main__.py`` runs. Only
what Python does before that module is missing: tests of it, and of what commands import, start Python themselves.
Invariant: a variable that Python reads at its start has the same value for the server and for each fork.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Done = subprocess.CompletedProcess[str]

ROOT = Path(__file__).parents[1]
# What commands import while they run.
MODULES = (
    "keepfit.cli.deployment", "keepfit.cli.main", "keepfit.cli.trained_sources", "keepfit.cli.yaml_values",
    "keepfit.client.clients", "keepfit.client.calling.event_stream", "keepfit.client.files.learn_file",
    "keepfit.client.files.predict_file", "keepfit.client.files.score_file", "keepfit.client.overview",
    "keepfit.client.calling.sync_performer", "keepfit.history.upkeep.rollups", "keepfit.jobs.run_queue",
    "keepfit.observability.logs",
    "keepfit.restore.bulk", "keepfit.rowlog.row_log", "keepfit.settings_check", "keepfit.store.dead_letters",
    "keepfit.store.listing", "keepfit.transfer.exports", "keepfit.transfer.imports", "keepfit.unknown_settings",
    "dateparser", "fsspec", "keepfit_snapshotter.run", "motor.motor_asyncio", "plotille", "rich.console",
    "rich.live", "rich.progress", "rich.table",
)  # fmt: skip
REQUEST_BYTES_MAX = 2**17


class Fork:
    """A running command; its methods are those of :class:`subprocess.Popen`."""

    def __init__(self, pid: int, answer: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._answer = answer

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the command runs."""
        if self.returncode is None and select.select([self._answer], [], [], 0)[0]:
            self._read()
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Return the exit code when the command has ended, which it must within `timeout` seconds."""
        if self.returncode is None:
            if not select.select([self._answer], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("keepfit", timeout)
            self._read()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, sent: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, sent)

    def _read(self) -> None:
        self.returncode = int(self._answer.recv(64))
        self._answer.close()


def start(words: Sequence[str], cwd: Path, environment: Mapping[str, str], files: tuple[int, int, int]) -> Fork:
    """Start `keepfit` with these arguments, this whole environment and these open files as its standard streams."""
    for name in {*environment, *os.environ}:
        if name.startswith("PYTHON") or name in ("LANG", "LC_ALL", "LC_CTYPE"):
            assert environment.get(name) == _of_server(name), f"Python reads {name} at its start"
    request = json.dumps({"words": list(words), "cwd": str(cwd), "environment": dict(environment)}).encode()
    assert len(request) < REQUEST_BYTES_MAX
    answer, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with end:
        socket.send_fds(_server(), [request], [*files, end.fileno()])
    return Fork(int(answer.recv(64)), answer)


def run(
    words: Sequence[str], cwd: Path, environment: Mapping[str, str], sent: str | None = None, timeout: float = 60
) -> Done:
    """Run `keepfit` to its end with pipes; `sent` is its standard input, by default that of this process."""
    pipes = [os.pipe() for _ in range(3)]
    (stdin, writer), (out, stdout), (err, stderr) = pipes
    if sent is not None:
        # Fits into the pipe.
        os.write(writer, sent.encode())
    os.close(writer)
    fork = start(words, cwd, environment, (0 if sent is None else stdin, stdout, stderr))
    for end in (stdin, stdout, stderr):
        os.close(end)
    try:
        printed = _read_all((out, err), time.monotonic() + timeout)
        fork.wait(timeout)
    except subprocess.TimeoutExpired:
        fork.send_signal(signal.SIGKILL)
        raise
    finally:
        os.close(out)
        os.close(err)
    texts = [io.TextIOWrapper(io.BytesIO(data)).read() for data in printed]
    return Done(["keepfit", *words], fork.wait(timeout), *texts)


def _read_all(files: tuple[int, ...], deadline_s: float) -> list[bytes]:
    """Read pipes to their ends."""
    read = {file: bytearray() for file in files}
    ended: set[int] = set()
    while len(ended) < len(read):
        ready, _, _ = select.select(read.keys() - ended, [], [], max(0.0, deadline_s - time.monotonic()))
        if not ready:
            raise subprocess.TimeoutExpired("keepfit", 0)
        for file in ready:
            piece = os.read(file, 65536)
            read[file] += piece
            if not piece:
                ended.add(file)
    return [bytes(read[file]) for file in files]


_lock = threading.Lock()


def _of_server(name: str) -> str | None:
    return _started()[1].get(name)


def _server() -> socket.socket:
    return _started()[0]


def _started() -> tuple[socket.socket, Mapping[str, str]]:
    with _lock:
        return _start()


@functools.cache
def _start() -> tuple[socket.socket, Mapping[str, str]]:
    """Start the server; return its socket and its environment. It ends when this process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Threads of the linear algebra would not be in the forks.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
            pass_fds=[theirs.fileno()], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    pid = os.getpid()

    def stop() -> None:
        # Not in a fork of this process.
        if os.getpid() == pid:
            ours.close()
            process.wait()

    atexit.register(stop)
    return ours, environment


@dataclass(frozen=True, slots=True)
class _Request:
    words: list[str]
    cwd: str
    environment: dict[str, str]
    files: list[int]


def _serve(control: socket.socket) -> _Request:
    """Fork for each request, and answer it with the process id and then the exit code; return in each fork."""
    running: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is control:
                    data, files, _, _ = socket.recv_fds(control, REQUEST_BYTES_MAX, 4)
                    if not data:
                        sys.exit()
                    answer = socket.socket(fileno=files.pop())
                    pid = os.fork()
                    if pid == 0:
                        control.close()
                        answer.close()
                        for process, (_, other) in running.items():
                            os.close(process)
                            other.close()
                        return _Request(**json.loads(data), files=files)
                    for file in files:
                        os.close(file)
                    process = os.pidfd_open(pid)
                    running[process] = pid, answer
                    selector.register(process, selectors.EVENT_READ)
                    _send(answer, pid)
                else:
                    selector.unregister(key.fileobj)
                    pid, answer = running.pop(key.fd)
                    os.close(key.fd)
                    _, status = os.waitpid(pid, 0)
                    _send(answer, os.waitstatus_to_exitcode(status))
                    answer.close()


def _send(answer: socket.socket, number: int) -> None:
    # The test may have ended without waiting for the command.
    with contextlib.suppress(BrokenPipeError):
        answer.send(str(number).encode())


def _become(request: _Request) -> None:
    """Give this process what a new one gets from the system and from Python's start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(request.files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request.environment)
    time.tzset()
    os.chdir(request.cwd)
    sys.path[0] = request.cwd
    sys.argv = ["keepfit", *request.words]
    sys.orig_argv = [sys.executable, "-m", "keepfit", *request.words]
    sys.stdin, sys.stdout, sys.stderr = (
        _text(number, mode, **how) for number, mode, how in (
            (0, "rb", {}), (1, "wb", {}), (2, "wb", {"errors": "backslashreplace", "line_buffering": True}),
        )
    )  # fmt: skip


def _text(number: int, mode: str, **how: Any) -> io.TextIOWrapper:
    binary = os.fdopen(number, mode, closefd=False)
    return io.TextIOWrapper(binary, **{"line_buffering": binary.isatty(), **how})


class _End:
    """The last exit handler of a fork: it spares a regular exit what Python does after exit handlers.

    That is to delete thousands of modules, which would copy the memory that the fork shares with the server.
    """

    def __init__(self) -> None:
        self.code: Any = ""
        atexit.register(self)

    def __call__(self) -> None:
        if self.code is None or isinstance(self.code, int):
            gc.collect()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.code or 0)


def _main() -> None:
    # Exit handlers are called in reverse order.
    end = _End()
    # Ctrl-C ends the tests, and thereby the server.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from keepfit.cli.services import without_pandas  # noqa: PLC0415 - part of what is imported beforehand

    with without_pandas():
        for module in MODULES:
            importlib.import_module(module)
    # No fork scans them for garbage or copies their memory pages.
    gc.collect()
    gc.freeze()
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
    try:
        runpy.run_module("keepfit", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        end.code = ended.code
        raise


if __name__ == "__main__":
    _main()
