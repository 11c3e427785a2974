"""Metrics of workers: what is counted, that no kill loses a count, and that no client stalls their page."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from keepfit.local.servers import free_port
from keepfit.model import recipe_check
from keepfit.observability.process_counts import ProcessCounts
from keepfit_workers import metrics
from keepfit_workers.metrics import WorkerMetrics, estimator_of
from keepfit_workers.metrics_page import WorkerPage
from tests import servers
from tests.conftest import Stack

Samples = dict[tuple[str, ...], float]


def samples(page: WorkerPage) -> Samples:
    """Return the values of a page by names and labels."""
    return {(one.name, *one.labels.values()): one.value for family in page.collect() for one in family.samples}


def scraped(port: int) -> Samples | None:
    """Return the values of the page on a port; None if nothing answers there."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read().decode()
    except OSError:
        return None
    finally:
        connection.close()
    assert (answer.status, answer.headers.get_content_type()) == (200, "text/plain")
    families = text_string_to_metric_families(text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def test_counts_of_workers_are_added_up_and_outlive_them() -> None:
    """Counters and buckets of all workers count, those of dead ones too, on which a successor goes on."""
    supervisor, parts = ProcessCounts(), [ProcessCounts(), ProcessCounts()]
    one, two = map(WorkerMetrics, parts)
    for part in parts:
        part.runs = True
    one.note_commit("SGDRegressor", 30, 2000, 0.002, is_dead=False)
    two.note_commit("SGDRegressor", 1, 200_000, 2000.0, is_dead=True)
    one.note_models_held(2)
    two.note_models_held(3)
    WorkerMetrics(supervisor).add(metrics.DEATHS, "died")
    page = WorkerPage(supervisor, parts)
    found = samples(page)
    assert found["keepfit_worker_rows_learned_total", "SGDRegressor"] == 31
    assert found["keepfit_worker_commits_total", "SGDRegressor", "learned"] == 1
    assert found["keepfit_worker_commits_total", "SGDRegressor", "put_aside"] == 1
    buckets = [found["keepfit_worker_commit_seconds_bucket", "SGDRegressor", le] for le in ("0.001", "0.0025", "+Inf")]
    assert buckets == [0, 1, 2]
    assert found["keepfit_worker_commit_seconds_count", "SGDRegressor"] == 2
    assert found["keepfit_worker_commit_seconds_sum", "SGDRegressor"] == pytest.approx(2000.002)
    assert found["keepfit_worker_commit_rows_bucket", "SGDRegressor", "30.0"] == 2
    assert found["keepfit_worker_bundle_bytes_bucket", "SGDRegressor", "3000.0"] == 1
    assert (found["keepfit_worker_processes",], found["keepfit_worker_models_held",]) == (2, 5)
    assert found["keepfit_worker_deaths_total", "died"] == 1
    parts[1].runs = False
    found = samples(page)
    assert (found["keepfit_worker_processes",], found["keepfit_worker_models_held",]) == (1, 2)
    assert found["keepfit_worker_rows_learned_total", "SGDRegressor"] == 31
    WorkerMetrics(parts[1]).note_commit("SGDRegressor", 4, 10, 0.1, is_dead=False)
    assert samples(page)["keepfit_worker_rows_learned_total", "SGDRegressor"] == 35


def test_a_label_is_a_name_of_the_catalogue() -> None:
    """A pipeline counts under its last step; nothing that a client named is a label."""
    for recipe, label in (
        ({"estimator": "SGDRegressor"}, "SGDRegressor"),
        ({"steps": [{"StandardScaler": {}}, {"GaussianNB": {}}]}, "GaussianNB"),
    ):
        assert estimator_of(recipe_check.check(recipe)) == label


async def test_the_page_of_real_workers(up: Callable[..., Stack], metadata: dict[str, Any]) -> None:
    """Rows, commits, leases and questions are counted where they happen, through kills of every process."""
    port = free_port()
    stack = up(WORKER_METRICS_PORT=str(port), SCORER_BYTES_MAX="0")
    recipe = {"estimator": "SGDRegressor"}
    wait = {"Prefer": "wait=60"}
    async with aiohttp.ClientSession(stack.url) as session:
        async with session.post("/v1/models", json={"metadata": metadata, "recipe": recipe}) as made:
            path = f"/v1/models/{(await made.json())['hash']}"
        rows = {"X": [[1, 2], [3, 4], [5, 6]], "y": [1, 2, 3]}
        async with session.post(f"{path}/partial_fit", json=rows, headers=wait) as learned:
            assert learned.status == 200, await learned.text()
        async with session.post(f"{path}/predict", json={"X": [[1, 2]]}) as predicted:
            assert predicted.status == 200
        found = scraped(port)
        assert found is not None
        assert found["keepfit_worker_processes",] == 2
        assert found["keepfit_worker_rows_learned_total", "SGDRegressor"] == 3
        assert found["keepfit_worker_commits_total", "SGDRegressor", "learned"] == 1
        assert found["keepfit_worker_commit_rows_sum", "SGDRegressor"] == 3
        assert found["keepfit_worker_questions_total", "SGDRegressor"] == 1
        assert found["keepfit_worker_out_of_memory_total",] == 0
        for name in ("learn_seconds", "commit_seconds", "bundle_bytes", "answer_seconds"):
            assert found[f"keepfit_worker_{name}_count", "SGDRegressor"] == 1
            assert found[f"keepfit_worker_{name}_sum", "SGDRegressor"] > 0

        # A client that sends half of a request holds up no other.
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"GET /metr")
            assert scraped(port) is not None
        # The workers and the process of the page.
        for pid in stack.workers():
            os.kill(pid, signal.SIGKILL)
        servers.wait_until(lambda: (scraped(port) or {}).get(("keepfit_worker_deaths_total", "died")) == 2, "the page")
        async with session.post(f"{path}/partial_fit", json=rows, headers=wait) as learned:
            assert learned.status == 200, await learned.text()
    found = scraped(port)
    assert found is not None
    assert found["keepfit_worker_rows_learned_total", "SGDRegressor"] == 6
    assert found["keepfit_worker_processes",] == 2


def test_a_port_that_is_in_use_is_an_error(redis_url: str) -> None:
    """`keepfit worker` says which setting is wrong, and starts nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        variables = {"KEEPFIT_STORE_URL": redis_url, "KEEPFIT_WORKER_METRICS_PORT": port}
        variables["KEEPFIT_SIGNING_KEYS"] = f"k:{'ab' * 32}"
        command = [sys.executable, "-m", "keepfit", "worker"]
        ended = subprocess.run(
            command, check=False, env=os.environ | variables, capture_output=True, text=True, timeout=60
        )
    assert ended.returncode != 0
    assert "KEEPFIT_WORKER_METRICS_PORT" in ended.stderr
    assert "in use" in ended.stderr
