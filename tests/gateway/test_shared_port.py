"""The port of several processes: shared by them, and by no other gateway."""

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from keepfit.backends.addresses import check_listening
from keepfit.errors import SettingsError
from keepfit.local.servers import free_port
from keepfit_gateway.shared_port import SharedPort, shared_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several processes need Linux")


@contextmanager
def listening(port: SharedPort) -> Iterator[list[socket.socket]]:
    """Listen as one process does."""
    with ExitStack() as opened:
        listeners = [opened.enter_context(listener) for listener in port.listeners()]
        for listener in listeners:
            listener.listen(64)
        yield listeners


def accepted(listener: socket.socket) -> int:
    """Accept the connections that wait, and return their number."""
    listener.setblocking(False)
    count = 0
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return count
        connection.close()
        count += 1


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_processes_share_a_free_port(host: str, url: str) -> None:
    """All processes listen on the port that the first socket got; new connections go to those that live."""
    with shared_port(host, 0) as port, listening(port) as second:
        assert port.url == f"{url}{port.port}"
        with listening(port) as first, ExitStack() as opened:
            for _ in range(64):
                opened.enter_context(socket.create_connection((host, port.port)))
            counts = [accepted(first[0]), accepted(second[0])]
        assert sum(counts) == 64
        assert min(counts) > 0
        with ExitStack() as opened:
            for _ in range(16):
                opened.enter_context(socket.create_connection((host, port.port)))
            assert accepted(second[0]) == 16


def test_all_addresses_of_a_name_have_one_port() -> None:
    """A name with several addresses is served on the same port of each."""
    with shared_port("localhost", 0) as port, listening(port) as listeners:
        assert {listener.getsockname()[1] for listener in listeners} == {port.port}


@pytest.mark.parametrize("processes", [0, 1])
async def test_no_other_gateway_gets_the_port(processes: int) -> None:
    """Neither a gateway with one process nor one with several gets a port that is held, even while no process lives."""
    with shared_port("127.0.0.1", 0) as port, ExitStack() as opened:
        for _ in range(processes):
            opened.enter_context(listening(port))
        with pytest.raises(SettingsError, match="the port is in use"):
            SharedPort("127.0.0.1", port.port)
        with pytest.raises(SettingsError, match="the port is in use"):
            check_listening("127.0.0.1", port.port)
        with pytest.raises(OSError, match="address already in use"):
            await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", port.port)
    check_listening("127.0.0.1", port.port)


def test_a_port_of_another_program_is_not_shared() -> None:
    """A port on which a program listens is refused, also if the program would share it."""
    for reuse_port in (0, 1):
        with closing(socket.socket()) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
            other.bind(("127.0.0.1", 0))
            other.listen()
            with pytest.raises(SettingsError, match="the port is in use"):
                SharedPort("127.0.0.1", other.getsockname()[1])


def test_one_of_two_gateways_that_start_together_gets_the_port() -> None:
    """However two starts interleave, never both hold the port."""
    number, together = free_port(), threading.Barrier(2)
    for _ in range(200):
        held: list[SharedPort] = []

        def start(held: list[SharedPort] = held) -> None:
            together.wait()
            try:
                held.append(SharedPort("127.0.0.1", number))
            except SettingsError:
                return

        threads = [threading.Thread(target=start) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(held) <= 1
        for port in held:
            port.close()


def test_connections_that_are_still_closing_do_not_matter() -> None:
    """A port is taken again at once after its connections were closed by the gateway."""
    with shared_port("127.0.0.1", 0) as port, listening(port) as (listener,):
        client = socket.create_connection(("127.0.0.1", port.port))
        server, _ = listener.accept()
        # The side that closes first keeps the address for a while.
        server.close()
        client.close()
    with shared_port("127.0.0.1", port.port) as again, listening(again):
        assert again.port == port.port


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_unusable_host_is_refused(host: str) -> None:
    """A host that is no address of this machine is refused as by a gateway with one process."""
    with pytest.raises(SettingsError, match="KEEPFIT_HOST"):
        SharedPort(host, 0)
