"""Start the Python examples as their READMEs say, each in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from keepfit.local.servers import LOCAL
from tests.servers import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"


class Example:
    """A running process of an example, and what it has printed."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self._log = log

    def output(self) -> str:
        """Return what the process has printed."""
        return self._log.read_text(errors="replace")

    def printed(self, text: str) -> None:
        """Wait until the process has printed a text; it must not end before."""
        wait_until(lambda: text in self.output() or self.process.poll() is not None, f"{text!r} (see {self._log})")
        assert text in self.output(), self.output()

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self.process.kill()
        self.process.wait(30)


def command(name: str, line: str) -> list[str]:
    """Return a command of an example's README, with this Python's program in place of its first word.

    `{600}` in it is another number than the README's.
    """
    readme = (EXAMPLES / name / "README.md").read_text()
    shown = re.escape(f"$ {line}") + "( &)?\n"
    assert re.search(re.sub(r"\\\{\d+\\\}", r"\\d+", shown), readme), f"examples/{name}/README.md has no {line!r}"
    program, *words = re.sub(r"[{}]", "", line).split()
    return [str(Path(sys.executable).with_name(program)), *words]


def _place(name: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return where a command of an example runs: in its folder, with these settings, without a terminal."""
    return {"cwd": EXAMPLES / name, "env": {**os.environ, **environment}, "stdin": subprocess.DEVNULL}


@contextmanager
def started(name: str, line: str, log: Path, environment: Mapping[str, str]) -> Iterator[Example]:
    """Run a command of an example's README in its folder until the block ends."""
    with log.open("ab") as output:
        process = subprocess.Popen(command(name, line), stdout=output, stderr=output, **_place(name, environment))
    try:
        yield Example(process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(30)


def run(name: str, line: str, environment: Mapping[str, str]) -> str:
    """Run a command of an example's README, which must succeed; return what it prints."""
    done = subprocess.run(
        command(name, line), capture_output=True, text=True, timeout=60, check=False, **_place(name, environment)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(url: str, document: Any = None, headers: Mapping[str, str] = MappingProxyType({})) -> Any:
    """GET an address, or POST a document to it; return the JSON of the answer, which must be a success."""
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    with LOCAL.open(request, timeout=60) as response:
        return json.load(response)
