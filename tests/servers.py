"""Run real servers for tests: each on a free port, in its own folder, stopped by its process id."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from keepfit.local.servers import accepts, answers, free_port, mongo_command, redis_command
from keepfit.local.stack import end_with_parent

START_S_MAX = 60.0

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "keepfit-test",
    "AWS_SECRET_ACCESS_KEY": "keepfit-test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_S_MAX) -> None:
    """Poll `condition` until it is true; fail with the text `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.02)


@contextmanager
def running(
    command: list[str],
    log: Path,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` until the block ends; append its output to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            # The server ends with the test process, also if that is killed.
            preexec_fn=end_with_parent,  # noqa: PLW1509 - as in `keepfit up`
        )
    try:
        wait_until(
            lambda: ready() or process.poll() is not None,
            f"readiness of {command[0]} (see {log})",
        )
        assert process.poll() is None, f"{command[0]} exited at its start: {log.read_text(errors='replace')[-2000:]}"
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(stop)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def valkey(folder: Path, port: int | None = None, stop: signal.Signals = signal.SIGTERM) -> Iterator[str]:
    """Run a Valkey server that syncs every write; yield its URL."""
    port = port or free_port()
    with running(redis_command(port, folder), folder.with_suffix(".log"), lambda: accepts(port), stop=stop):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def mongo(folder: Path) -> Iterator[str]:
    """Run a MongoDB server that syncs no write to disk; yield its URL without a database."""
    port = free_port()
    with running(mongo_command(port, folder, durable=False), folder.with_suffix(".log"), lambda: accepts(port)):
        yield f"mongodb://127.0.0.1:{port}"


@contextmanager
def s3(folder: Path) -> Iterator[str]:
    """Run an S3 server (seaweedfs) that accepts the keys of S3_ENVIRONMENT; yield its endpoint."""
    folder.mkdir(parents=True)
    names = ("master", "volume", "filer", "s3")
    ports = {f"-{name}.{kind}": free_port() for name in names for kind in ("port", "port.grpc")}
    identities = {
        "identities": [
            {
                "name": "keepfit",
                "credentials": [
                    {
                        "accessKey": S3_ENVIRONMENT["AWS_ACCESS_KEY_ID"],
                        "secretKey": S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
                    }
                ],
                "actions": ["Admin", "Read", "Write", "List"],
            }
        ]
    }
    config = folder / "s3.json"
    config.write_text(json.dumps(identities))
    command = [
        str(Path(sys.executable).with_name("weed")), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-s3", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=500",
        "-master.volumeSizeLimitMB=64",
        *(f"{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    endpoint = f"http://127.0.0.1:{ports['-s3.port']}"
    # Killed at the end: a regular stop takes half a minute to write data that no test reads.
    with running(command, folder.with_suffix(".log"), lambda: answers(f"{endpoint}/healthz"), stop=signal.SIGKILL):
        yield endpoint
