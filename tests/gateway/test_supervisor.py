"""A gateway with several processes: real ones, killed, stopped, and started where they cannot start."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from keepfit.backends import redis_keys
from keepfit.jobs.run_queue import PREDICT
from keepfit.settings import Settings
from keepfit_gateway.supervisor import DIVIDED, share_of
from tests import servers
from tests.conftest import Stack
from tests.gateway.gateway_process import GatewayProcess, gateway_process
from tests.gateway.test_metrics import samples

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several processes need Linux")

CONNECTIONS = 24
COUNTED = ("keepfit_requests_total", "GET", "/livez", "200")


@contextmanager
def two_processes(stack: Stack, folder: Path, **variables: str) -> Iterator[GatewayProcess]:
    """Run a gateway with two processes, and wait until both listen."""
    with gateway_process(stack, folder, words=("--processes", "2"), **variables) as gateway:
        servers.wait_until(lambda: bool(gateway.events("gateway_listening")), "the start of both processes")
        assert len(gateway.children()) == 2
        yield gateway


class Client(HTTPConnection):
    """A connection to a gateway, and the process that has accepted it."""

    def __init__(self, gateway: GatewayProcess) -> None:
        host, _, port = urlsplit(gateway.url).netloc.rpartition(":")
        super().__init__(host, int(port), timeout=servers.START_S_MAX)
        self.get("/livez")
        self.pid = self._process_of(gateway)

    def get(self, path: str) -> str:
        """Return the body of a 200."""
        self.request("GET", path)
        response = self.getresponse()
        assert response.status == 200
        return response.read().decode()

    def scrape(self) -> dict[tuple[str, ...], float]:
        """Return the metrics that this process shows."""
        return samples(self.get("/metrics"))

    def _process_of(self, gateway: GatewayProcess) -> int:
        own, other = (f"{end[1]:04X}" for end in (self.sock.getpeername(), self.sock.getsockname()))
        table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        (inode,) = (row[9] for row in table if row[1].endswith(f":{own}") and row[2].endswith(f":{other}"))
        (pid,) = (pid for pid in gateway.children() if f"socket:[{inode}]" in files(pid))
        return pid


def files(pid: int) -> set[str]:
    """Return what the open files of a process are."""
    found: set[str] = set()
    with suppress(FileNotFoundError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.add(str(link.readlink()))
    return found


@contextmanager
def clients(gateway: GatewayProcess) -> Iterator[list[Client]]:
    """Open connections of which each process has accepted some; the kernel chooses by their ports."""
    with ExitStack() as at_end:
        opened: list[Client] = []
        deadline = time.monotonic() + servers.START_S_MAX
        while len(opened) < CONNECTIONS or {client.pid for client in opened} != set(gateway.children()):
            assert time.monotonic() < deadline
            opened.append(at_end.enter_context(closing(Client(gateway))))
        yield opened


def is_alive(pid: int) -> bool:
    """Return whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.timeout(240)
def test_a_killed_process_is_replaced_and_what_it_counted_stays(stack: Stack, tmp_path: Path) -> None:
    """Both processes answer; one is killed, the connections of the other lose nothing, and every scrape counts all."""
    with two_processes(stack, tmp_path) as gateway, clients(gateway) as first:
        before = first[0].scrape()
        asked = before[COUNTED]
        assert asked >= len(first)
        for client in 5 * first:
            client.get("/livez")
        asked += 5 * len(first)
        by_pid = {client.pid: client for client in first}
        assert [client.scrape()[COUNTED] for client in by_pid.values()] == [asked, asked]

        killed, other = by_pid
        os.kill(killed, signal.SIGKILL)
        left = [client for client in first if client.pid == other]
        while killed in gateway.children() or len(gateway.children()) < 2:
            for client in left:
                client.get("/livez")
            asked += len(left)
        (died,) = gateway.events("gateway_process_died")
        assert (died["pid"], died["exitcode"]) == (killed, -signal.SIGKILL)
        assert left[0].scrape()[COUNTED] == asked
        with clients(gateway) as second:
            assert {client.pid for client in second} == set(gateway.children()) != set(by_pid)
            asked = second[0].scrape()[COUNTED]
            for client in (*left, *second):
                client.get("/livez")
            asked += len(left) + len(second)
            pages = [client.scrape() for client in {client.pid: client for client in second}.values()]
        assert [page[COUNTED] for page in pages] == [asked, asked]
        counters = [name for name in before if name[0].endswith(("_total", "_count", "_sum", "_bucket"))]
        assert len(counters) > 20
        assert not [name for page in pages for name in counters if page[name] < before[name]]


@pytest.mark.timeout(120)
def test_the_page_is_that_of_one_process(stack: Stack, tmp_path: Path) -> None:
    """Two processes show the metrics that one shows; gauges of both are added up."""
    with gateway_process(stack, tmp_path) as alone:
        assert alone.children() == []
        host, _, port = urlsplit(alone.url).netloc.rpartition(":")
        with closing(HTTPConnection(host, int(port))) as connection:
            connection.request("GET", "/metrics")
            expected = samples(connection.getresponse().read().decode())
    (tmp_path / "two").mkdir()
    with two_processes(stack, tmp_path / "two") as gateway, clients(gateway) as opened:
        by_pid = {client.pid: client for client in opened}
        routes = {"keepfit_requests_total", "keepfit_request_seconds_bucket"}

        def names(found: dict[tuple[str, ...], float]) -> set[tuple[str, ...]]:
            # Requests differ, and a pass of the snapshotter may end between two scrapes.
            return {name for name in found if not name[0].startswith(("keepfit_request", "keepfit_snapshot_pass"))}

        for client in by_pid.values():
            servers.wait_until(
                lambda client=client: client.scrape()[("keepfit_connections",)] == len(opened),  # type: ignore[misc]
                "the connections of both processes",
            )
            page = client.scrape()
            assert names(page) == names(expected)
            assert routes <= {name[0] for name in page}
            assert page[("keepfit_dependency_up", "store")] == 1
            resident = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in by_pid]
            assert page[("process_resident_memory_bytes",)] > 1.5 * min(resident) * resource.getpagesize()


@pytest.mark.timeout(120)
def test_sigterm_finishes_accepted_requests(stack: Stack, redis_url: str, tmp_path: Path) -> None:
    """On SIGTERM both processes answer the requests that they have, and the command ends with exit code 0."""
    variables = {"KEEPFIT_STORE_URL": redis_url, "KEEPFIT_QUEUE_URL": redis_url}
    queue = redis.Redis.from_url(redis_url)
    with two_processes(stack, tmp_path, **variables) as gateway, clients(gateway) as opened, queue:
        by_pid = {client.pid: client for client in opened}
        recipe = {"estimator": "SGDRegressor"}
        model = {"metadata": {"type": "shoes", "session": uuid.uuid4().hex}, "recipe": recipe}
        opened[0].request("POST", "/v1/models", json.dumps(model), {"Content-Type": "application/json"})
        path = opened[0].getresponse()
        name = json.loads(path.read())["hash"]
        for client in by_pid.values():
            body = json.dumps({"X": [[1.0]]})
            # No worker answers it: it ends after some seconds.
            client.request("POST", f"/v1/models/{name}/predict", body, {"Content-Type": "application/json"})
        asked, count = redis_keys.worker_requests(PREDICT.name), str(len(by_pid)).encode()
        servers.wait_until(lambda: queue.hget(asked, f"{name}:next") == count, "both requests to wait for a worker")
        gateway.process.send_signal(signal.SIGTERM)
        statuses = []
        for client in by_pid.values():
            with client.getresponse() as response:
                statuses.append(response.status)
                assert "No worker is alive" in json.loads(response.read())["detail"]
        assert statuses == [503, 503]
        assert gateway.process.wait(servers.START_S_MAX) == 0
        assert not accepts(gateway.url)
    assert not [pid for pid in by_pid if is_alive(pid)]
    assert len(gateway.events("gateway_process_stopped")) == 2
    assert not gateway.events("gateway_process_died")


@pytest.mark.timeout(120)
def test_ctrl_c_stops_all_processes_once(stack: Stack, tmp_path: Path) -> None:
    """SIGINT, which a terminal sends to each process, does not end those that the supervisor stops."""
    with two_processes(stack, tmp_path) as gateway, clients(gateway) as opened:
        for pid in gateway.children():
            os.kill(pid, signal.SIGINT)
        for client in opened:
            client.get("/livez")
        gateway.process.send_signal(signal.SIGINT)
        assert gateway.process.wait(servers.START_S_MAX) == 0
    assert [event["exitcode"] for event in gateway.events("gateway_process_died")] == []
    assert len(gateway.events("gateway_process_stopped")) == 2


def accepts(url: str) -> bool:
    """Return whether a gateway accepts connections."""
    host, _, port = urlsplit(url).netloc.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Return exit code and last line of standard error."""
    _, printed = process.communicate(timeout=servers.START_S_MAX)
    return process.returncode, printed.strip().splitlines()[-1]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("first", "second"), [("2", "2"), ("2", "1"), ("1", "2")])
def test_a_port_in_use_is_an_error(stack: Stack, tmp_path: Path, first: str, second: str) -> None:
    """No second gateway of the same user shares the port, however many processes each has."""
    with gateway_process(stack, tmp_path, words=("--processes", first)) as gateway:
        port = gateway.url.rpartition(":")[2]
        environment = {**os.environ, **stack.environment(), "KEEPFIT_PORT": port}
        command = [sys.executable, "-m", "keepfit", "gateway", "--processes", second]
        code, line = end(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path))
        assert code == 1
        assert line.startswith(f"keepfit: Cannot listen on 127.0.0.1:{port}: the port is in use")
        assert servers.answers(f"{gateway.url}/livez")


@pytest.mark.timeout(120)
def test_unusable_api_keys_are_an_error(stack: Stack, tmp_path: Path) -> None:
    """What a process finds wrong at its start is the one line that the command ends with."""
    environment = {**os.environ, **stack.environment(), "KEEPFIT_PORT": "0", "KEEPFIT_API_KEYS_FILE": "/none"}
    command = [sys.executable, "-m", "keepfit", "gateway", "--processes", "2"]
    code, line = end(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path))
    assert (code, line) == (1, "keepfit: KEEPFIT_API_KEYS_FILE: '/none' cannot be read: No such file or directory.")


def test_the_settings_say_which_limits_are_divided() -> None:
    """A limit that the processes share is described as divided, and each process has its part of it."""
    described = {name for name, field in Settings.model_fields.items() if "ivided among" in str(field.description)}
    assert described == set(DIVIDED)
    settings = Settings(gateway_processes=4)
    share = share_of(settings)
    assert {name for name in Settings.model_fields if getattr(share, name) != getattr(settings, name)} == set(DIVIDED)
    assert [getattr(share, name) * 4 for name in DIVIDED] == [getattr(settings, name) for name in DIVIDED]


@pytest.mark.timeout(120)
def test_no_process_outlives_the_supervisor(stack: Stack, tmp_path: Path) -> None:
    """The processes end with a supervisor that is killed, and the port is free again."""
    with two_processes(stack, tmp_path) as gateway:
        pids = gateway.children()
        os.kill(gateway.pid, signal.SIGKILL)
        servers.wait_until(lambda: not [pid for pid in pids if is_alive(pid)], "the end of the processes")
        servers.wait_until(lambda: not accepts(gateway.url), "the end of their sockets")


# A gateway of two processes, which do not start while a file exists.
UNSTARTABLE = """
import sys
from pathlib import Path
from keepfit.errors import KeepfitError, SettingsError
from keepfit.observability import logs
from keepfit.settings import load
from keepfit_gateway import app, supervisor
serve = app.run
def run(*arguments):
    if Path(sys.argv[1]).exists():
        raise SettingsError("the file exists")
    serve(*arguments)
app.run = run
logs.configure_json()
try:
    supervisor.run(load(), print)
except KeepfitError as error:
    sys.exit(str(error))
"""


@contextmanager
def unstartable(stack: Stack, folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Path, Path]]:
    """Run a gateway that does not start while a file exists; yield its process, that file, and its log."""
    log, flag = folder / "log", folder / "flag"
    environment = {
        **os.environ, **stack.environment(), "KEEPFIT_PORT": "0", "KEEPFIT_GATEWAY_PROCESSES": "2",
    }  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", UNSTARTABLE, str(flag)], stdout=output, stderr=output, env=environment
        )
    try:
        yield process, flag, log
    finally:
        process.terminate()
        assert process.wait(servers.START_S_MAX) in (0, 1)


@pytest.mark.timeout(120)
def test_a_gateway_whose_processes_cannot_start_ends_with_their_error(stack: Stack, tmp_path: Path) -> None:
    """The error of a process that cannot start is that of the command."""
    (tmp_path / "flag").touch()
    with unstartable(stack, tmp_path) as (process, _, log):
        assert process.wait(servers.START_S_MAX) == 1
        assert log.read_text().splitlines()[-1] == "the file exists"


@pytest.mark.timeout(120)
def test_a_replacement_that_cannot_start_is_started_again(stack: Stack, tmp_path: Path) -> None:
    """While a replacement fails to start the other process answers all connections; later the replacement starts."""
    with unstartable(stack, tmp_path) as (process, flag, log):

        def events(name: str) -> list[dict[str, object]]:
            return [json.loads(line) for line in log.read_text().splitlines() if f'"{name}"' in line]

        servers.wait_until(lambda: bool(events("gateway_listening")), "the start of both processes")
        url = str(events("gateway_listening")[0]["url"])
        gateway = GatewayProcess(url, process, log)
        flag.touch()
        os.kill(gateway.children()[0], signal.SIGKILL)
        servers.wait_until(lambda: len(events("gateway_process_died")) >= 3, "two failed starts")
        assert [event["reason"] for event in events("gateway_process_died")][:3] == ["", *2 * ["the file exists"]]
        for _ in range(CONNECTIONS):
            assert servers.answers(f"{url}/livez")
        flag.unlink()
        servers.wait_until(lambda: len(gateway.children()) == 2, "the start of the replacement")
        with clients(gateway) as opened:
            assert len({client.pid for client in opened}) == 2
