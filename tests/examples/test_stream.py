"""examples/stream: real consumers of a real stream, killed where an entry is accepted and not acknowledged."""

import importlib
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import redis

from keepfit import identity
from tests.conftest import Stack
from tests.examples.started import EXAMPLES, Example, call, run, started
from tests.servers import wait_until

GROUP = "keepfit"
PAUSE_MS = 60_000


class Stream:
    """A stream of the test's own, the model that learns it, and the settings of the example."""

    def __init__(self, redis_url: str, keepfit_url: str, folder: Path) -> None:
        self.name = f"deliveries-{uuid.uuid4().hex}"
        self.redis = redis.Redis.from_url(redis_url, decode_responses=True)
        self.environment = {"REDIS_URL": redis_url, "KEEPFIT_URL": keepfit_url, "STREAM": self.name}
        self.url = f"{keepfit_url}/v1/models/{identity.hash_of({'type': 'delivery-minutes', 'stream': self.name})}"
        self._folder = folder

    @contextmanager
    def consumer(self, name: str, **environment: str) -> Iterator[Example]:
        """Run a consumer; yield it when it has joined the group."""
        settings = {**self.environment, "CLAIM_AFTER_MS": "100", "CONSUMER": name, **environment}
        with started("stream", "python consumer.py", self._folder / f"{name}.log", settings) as example:
            example.printed(f"consumer {name} of {self.name}")
            yield example

    def acknowledged(self) -> int:
        """Return the number of entries that the group has acknowledged."""
        (group,) = self.redis.xinfo_groups(self.name)
        return int(group["entries-read"]) - int(group["pending"])

    def has_acknowledged(self, entries: int) -> bool:
        """Return whether the group has acknowledged so many entries."""
        return self.acknowledged() >= entries

    def pending(self, consumer: str) -> int:
        """Return the number of entries that a consumer has and has not acknowledged."""
        found = {entry["name"]: entry["pending"] for entry in self.redis.xinfo_consumers(self.name, GROUP)}
        return int(found.get(consumer, 0))

    def model(self) -> dict[str, Any]:
        """Return keepfit's document of the model."""
        document: dict[str, Any] = call(self.url)
        return document

    def accepted(self) -> int:
        """Return the number of entries that keepfit has accepted, each as often as it was."""
        document = self.model()
        return int(document["rows_seen"]) + int(document["inbox"])

    def kill_before_acknowledgement(self, name: str, example: Example) -> None:
        """Kill a consumer that waits for the answer to the XACK of an entry, which Redis never executes."""
        while True:
            enough = self.acknowledged() + 20
            wait_until(partial(self.has_acknowledged, enough), "progress of the consumer")
            self.redis.client_pause(PAUSE_MS, all=False)
            # Between two batches it would wait for entries instead.
            if self.pending(name):
                break
            self.redis.client_unpause()
        acknowledged = self.acknowledged()
        wait_until(lambda: self.accepted() == acknowledged + 1, "the 202 of an entry that is not acknowledged")
        example.kill()
        wait_until(lambda: len(self.redis.client_list()) == 1, "the end of the consumer's connection")
        self.redis.client_unpause()
        assert (self.acknowledged(), self.accepted()) == (acknowledged, acknowledged + 1)


@pytest.fixture
def stream(stack: Stack, redis_url: str, tmp_path: Path) -> Iterator[Stream]:
    """Return a stream that no other test uses."""
    opened = Stream(redis_url, stack.url, tmp_path)
    yield opened
    opened.redis.close()


def test_killed_consumers_learn_each_entry_once(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers are killed between the 202 and the XACK of an entry: others send it again, and it is learned once."""
    entries = 300
    assert (
        run("stream", "python produce.py {300}", stream.environment) == f"{entries} deliveries added to {stream.name}\n"
    )
    for name in ("first", "second"):
        with stream.consumer(name) as example:
            stream.kill_before_acknowledgement(name, example)
    with stream.consumer("third"):
        wait_until(partial(stream.has_acknowledged, entries), "the acknowledgement of each entry")
    wait_until(lambda: stream.model()["inbox"] == 0, "learning")
    assert stream.model()["rows_seen"] == entries

    # Each entry has one sequence of its own: none was learned in place of another.
    monkeypatch.syspath_prepend(EXAMPLES / "stream")
    deliveries = importlib.import_module("deliveries")
    sequences = [
        call(f"{stream.url}/partial_fit", deliveries.body_of(fields), {"Idempotency-Key": f"{stream.name}/{entry_id}"})
        for entry_id, fields in stream.redis.xrange(stream.name)
    ]
    assert sorted(answer["sequence"] for answer in sequences) == list(range(1, entries + 1))
    assert stream.accepted() == entries


def test_the_error_falls_and_bad_entries_are_rejected(stream: Stream) -> None:
    """The consumer prints an error that is far below the baseline's; wrong entries move to another stream."""
    good = {"kitchen": "napoli", "km": "2.5", "hour": "19", "minutes": "31"}
    bad = [{"kitchen": "napoli"}, {**good, "km": "far"}, {**good, "minutes": "nan"}]
    ids = [stream.redis.xadd(stream.name, dict(fields)) for fields in bad]
    run("stream", "python produce.py {600}", stream.environment)
    with stream.consumer("only") as example:
        example.printed("always the mean")
        wait_until(partial(stream.has_acknowledged, 603), "the acknowledgement of each entry")
    (shown,) = re.findall(r"(\d+) learned, error ([\d.]+) minutes \(always the mean: ([\d.]+)\)", example.output())
    error, baseline = float(shown[1]), float(shown[2])
    assert error < baseline / 2
    wait_until(lambda: stream.model()["inbox"] == 0, "learning")
    assert stream.model()["rows_seen"] == 600
    rejected = [fields for _, fields in stream.redis.xrange(f"{stream.name}:rejected")]
    assert [fields["id"] for fields in rejected] == ids
    assert all(fields["reason"] for fields in rejected)
    assert rejected[1]["km"] == "far"


class Unreliable(BaseHTTPRequestHandler):
    """A proxy that answers learning calls with the next fault: a status, a lost answer, or none."""

    keepfit_url: str
    faults: list[str]

    def do_POST(self) -> None:
        """Forward a call, or fail it."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fault = self.faults.pop(0) if self.path.endswith("/partial_fit") and self.faults else ""
        if fault.isdigit():
            self.answer(int(fault), {"detail": "of the test"})
            return
        key = self.headers.get("Idempotency-Key")
        answer = call(self.keepfit_url + self.path, json.loads(body), {"Idempotency-Key": key} if key else {})
        if fault == "lost":
            self.close_connection = True
        else:
            self.answer(202, answer)

    def answer(self, status: int, document: Any) -> None:
        """Send an answer that asks for a repeat without delay."""
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


def test_entries_wait_while_keepfit_is_unavailable(stream: Stream, stack: Stack) -> None:
    """Requests that are refused for now, or whose answer is lost, are sent again; each entry is learned once."""
    faults = {"keepfit_url": stack.url, "faults": ["503", "429", "", "lost", "503", "lost"]}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Faults", (Unreliable,), faults))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        run("stream", "python produce.py {20}", stream.environment)
        with stream.consumer("patient", KEEPFIT_URL=f"http://127.0.0.1:{server.server_port}") as example:
            wait_until(partial(stream.has_acknowledged, 20), "the acknowledgement of each entry")
    finally:
        server.shutdown()
        server.server_close()
    assert faults["faults"] == []
    assert example.output().count("sent again") == 5
    assert stream.accepted() == 20
