"""examples/telegraf: the forecaster with bodies in Telegraf's JSON format, as its manual documents them."""

import gzip
import json
import tomllib
import urllib.error
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from keepfit import identity
from keepfit.local.servers import free_port
from tests.conftest import Stack
from tests.examples.started import EXAMPLES, call, run, started
from tests.examples.unreliable import Fault, unreliable
from tests.servers import wait_until

START_S = 1_700_000_040
LAGS = 6

# Batch format, from the manual of Telegraf's serializer `json`.
OF_THE_MANUAL = {
    "metrics": [
        {
            "fields": {"field_1": 30, "field_2": 4, "field_N": 59, "n_images": 660},
            "name": "docker",
            "tags": {"host": "raynor"},
            "timestamp": 1458229140,
        },
        {
            "fields": {"field_1": 30, "field_2": 4, "field_N": 59, "n_images": 660},
            "name": "docker",
            "tags": {"host": "raynor"},
            "timestamp": 1458229140,
        },
    ]
}


@contextmanager
def forecaster(keepfit_url: str, folder: Path) -> Iterator[str]:
    """Run the forecaster; yield its address."""
    port = free_port()
    environment = {"KEEPFIT_URL": keepfit_url, "PORT": str(port), "PYTHONUNBUFFERED": "1"}
    with started("telegraf", "python forecaster.py", folder / "forecaster.log", environment) as example:
        example.printed("Running on")
        yield f"http://127.0.0.1:{port}"


def batch(host: str, first: int, count: int) -> dict[str, Any]:
    """Return `count` minutes of a host from the minute `first` on, a second or so after each full minute."""
    return {
        "metrics": [
            {
                "fields": {"usage_active": 20.0 + 30 * (minute % 5 == 0)},
                "name": "cpu",
                "tags": {"cpu": "cpu-total", "host": host},
                "timestamp": START_S + 60 * minute + minute % 2,
            }
            for minute in range(first, first + count)
        ]
    }


# What would never be accepted, however often Telegraf sends it again.
WRONG: tuple[dict[str, Any], ...] = (
    {"fields": {"usage_active": float("nan")}},
    {"fields": {"usage_active": float("inf")}},
    {"timestamp": float("inf")},
    {"tags": {"host": "no\0name"}},
)


def wrong(host: str, part: dict[str, Any]) -> dict[str, Any]:
    """Return a batch of one metric with a wrong part."""
    return {"metrics": [{**batch(host, 0, 1)["metrics"][0], **part}]}


def send(url: str, body: Any) -> int:
    """Post a body as Telegraf does; return the status."""
    packed = gzip.compress(body if isinstance(body, bytes) else json.dumps(body).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip", "User-Agent": "Telegraf/1.30.0"}
    request = urllib.request.Request(f"{url}/telegraf", packed, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code)


def model(stack: Stack, host: str) -> dict[str, Any]:
    """Return keepfit's document of a host's model, without waiting requests."""
    digest = identity.hash_of({"type": "forecast", "metric": "cpu.usage_active", "host": host})
    document: dict[str, Any] = call(f"{stack.url}/v1/models/{digest}")
    return document


def accepted(stack: Stack, host: str) -> int:
    """Return the number of rows that keepfit has accepted for a host."""
    document = model(stack, host)
    return int(document["rows_seen"]) + int(document["inbox"])


def has_learned(stack: Stack, host: str, rows: int) -> bool:
    """Return whether keepfit has learned so many rows of a host."""
    return int(model(stack, host)["rows_seen"]) == rows


def test_forecasts_are_far_better_than_no_change(stack: Stack, tmp_path: Path) -> None:
    """After five hours the error of forecasts is less than half of that of "no change"; a repeat changes nothing."""
    minutes = 300
    with forecaster(stack.url, tmp_path) as url:
        environment = {"FORECASTER_URL": url}
        assert run("telegraf", "python replay.py {300}", environment) == f"{2 * minutes} metrics sent\n"
        for host in ("web-1", "web-2"):
            wait_until(partial(has_learned, stack, host, minutes - LAGS), "learning")
            answer = call(f"{url}/forecast?host={host}")
            assert answer["at"] == START_S + 60 * minutes
            assert answer["error"] < answer["error_of_no_change"] / 2
            # The job runs in this minute: the load is higher by 30 than in the last one.
            assert answer["value"] - answer["last"] > 15
        run("telegraf", "python replay.py {300}", environment)
    assert [accepted(stack, host) for host in ("web-1", "web-2")] == [minutes - LAGS] * 2


def test_a_batch_that_is_sent_again_is_learned_once(stack: Stack, tmp_path: Path) -> None:
    """If keepfit is away, Telegraf gets 503 and sends the batch again, also with more; each value is learned once."""
    host, faults = f"db-{uuid.uuid4().hex}", list[Fault]([None, "busy", None, "lost", None, "away", None, "away"])
    with unreliable(stack.url, faults) as keepfit, forecaster(keepfit, tmp_path) as url:
        assert send(url, batch(host, 0, 12)) == 503
        assert 0 < accepted(stack, host) < 12 - LAGS
        assert send(url, batch(host, 0, 12)) == 503
        assert send(url, batch(host, 0, 15)) == 204
        assert faults == []
    assert accepted(stack, host) == 15 - LAGS


def test_other_metrics_and_gaps(stack: Stack, tmp_path: Path) -> None:
    """Metrics of other names are accepted and ignored; without six values in a row there is no forecast."""
    host = f"db-{uuid.uuid4().hex}"
    with forecaster(stack.url, tmp_path) as url:
        assert send(url, OF_THE_MANUAL) == 204
        bad = [b"no JSON", [], {"metrics": [{"name": "cpu"}]}, *(wrong(host, part) for part in WRONG)]
        assert [send(url, body) for body in bad] == [400] * len(bad)
        assert send(url, batch(host, 0, LAGS)) == 204
        assert accepted(stack, host) == 0
        # Minute 6 is missing.
        assert send(url, batch(host, LAGS + 1, LAGS + 1)) == 204
        assert accepted(stack, host) == 1
        wait_until(partial(has_learned, stack, host, 1), "learning")
        assert call(f"{url}/forecast?host={host}")["at"] == START_S + 60 * (2 * LAGS + 2)
        for unknown in ("raynor", "nowhere"):
            with pytest.raises(urllib.error.HTTPError, match="404") as refused:
                call(f"{url}/forecast?host={unknown}")
            refused.value.close()


def test_the_configuration_sends_what_the_forecaster_reads() -> None:
    """telegraf.conf posts the metric in batches of JSON to the address of the README."""
    configuration = tomllib.loads((EXAMPLES / "telegraf/telegraf.conf").read_text())
    (output,) = configuration["outputs"]["http"]
    assert output["url"] == "http://127.0.0.1:8090/telegraf"
    assert (output["data_format"], output["json_timestamp_units"]) == ("json", "1s")
    # Telegraf waits longer than the forecaster does for keepfit.
    assert output["timeout"] == "30s"
    assert output["content_encoding"] == "gzip"
    assert output.get("use_batch_format", True)
    (cpu,) = configuration["inputs"]["cpu"]
    assert cpu == {"percpu": False, "totalcpu": True, "report_active": True}
    assert configuration["agent"]["interval"] == "60s"
