"""Run a gateway as a process on the servers of the stack, and read its memory and its log."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keepfit.local.servers import answers, free_port
from tests import servers
from tests.conftest import Stack
from tests.gateway.api_client import CRASHES


@dataclass(frozen=True, slots=True)
class GatewayProcess:
    """The process of a gateway."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def memory(self) -> int:
        """Return the use of memory in bytes."""
        return self._bytes("VmRSS")

    def reset_peak(self) -> int:
        """Reset the peak of memory, and return the current use in bytes."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.memory()

    def peak(self) -> int:
        """Return the peak of memory since then, in bytes."""
        return self._bytes("VmHWM")

    def _bytes(self, field: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))

    def children(self) -> list[int]:
        """Return the process ids of the children: with several processes, those of the gateway."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def events(self, name: str) -> list[Any]:
        """Return the log's lines about an event."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if f'"{name}"' in line]


@contextmanager
def gateway_process(
    stack: Stack, folder: Path, files_max: tuple[int, int] | None = None, words: Sequence[str] = (), **variables: str
) -> Iterator[GatewayProcess]:
    """Run `keepfit gateway WORDS` with further settings until the block ends; assert that its log has no crash.

    `files_max` are the soft and the hard limit of its open files.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    here = {"KEEPFIT_PORT": str(port), "KEEPFIT_HOST": "127.0.0.1"}
    environment = {**os.environ, **stack.environment(), **here, **variables}
    log, command = folder / "gateway.log", [sys.executable, "-m", "keepfit", "gateway", *words]
    if files_max is not None:
        soft, hard = files_max
        command = ["sh", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "sh", *command]
    with servers.running(command, log, lambda: answers(f"{url}/livez"), environment) as process:
        yield GatewayProcess(url, process, log)
    assert not CRASHES.search(log.read_text())
