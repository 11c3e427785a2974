"""examples/stream: real consumers of a real stream, killed where an entry is accepted and not acknowledged."""

import importlib
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from keepfit import Client, identity
from tests.conftest import Stack
from tests.examples.started import EXAMPLES, Example, call, run, started
from tests.examples.unreliable import Fault, unreliable
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


def test_killed_consumers_learn_each_entry_once(stream: Stream, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with Client(stack.url) as client:
        model = client.model({"type": "delivery-minutes", "stream": stream.name})
        answers = []
        for entry_id, fields in stream.redis.xrange(stream.name):
            row, minutes = deliveries.row_of(fields)
            answers.append(model.partial_fit([row], [minutes], idempotency_key=f"{stream.name}/{entry_id}"))
    assert sorted(answer["sequence"] for answer in answers) == list(range(1, entries + 1))
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
    assert re.search(r"^\d+ learned, error [\d.]+ minutes \(always the mean: [\d.]+\)$", example.output(), re.MULTILINE)
    wait_until(lambda: stream.model()["inbox"] == 0, "learning")
    document = stream.model()
    assert document["rows_seen"] == 600
    window = document["metrics"]["window"]
    assert window["mean_absolute_error"] < window["baseline_mean_absolute_error"] / 2
    rejected = [fields for _, fields in stream.redis.xrange(f"{stream.name}:rejected")]
    assert [fields["id"] for fields in rejected] == ids
    assert all(fields["reason"] for fields in rejected)
    assert rejected[1]["km"] == "far"


def test_entries_wait_while_keepfit_is_unavailable(stream: Stream, stack: Stack) -> None:
    """Requests that are refused for now, or whose answer is lost, are sent again; each entry is learned once."""
    faults = list[Fault](["busy", None, "lost", "busy", "lost", None, "away"])
    run("stream", "python produce.py {20}", stream.environment)
    with unreliable(stack.url, faults) as keepfit, stream.consumer("patient", KEEPFIT_URL=keepfit) as example:
        wait_until(partial(stream.has_acknowledged, 20), "the acknowledgement of each entry")
        assert "keepfit: of the test" in example.output()
    assert faults == []
    assert stream.accepted() == 20
