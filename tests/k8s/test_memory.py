"""The memory limits of the manifests, compared with their settings and with the factors that the runbook measured."""

import re

import pytest

from keepfit.settings import Settings
from keepfit_workers.memory import SHARE
from tests.k8s.builds import DEV, ROOT, SERVED, Build, container, one

# Of a gateway or a worker that has done nothing yet.
PROCESS_BYTES = 120 * 2**20
# What the runbook's arithmetic counts for rows: more than any measured estimator takes.
ROWS_FACTOR = 6

each_build = pytest.mark.parametrize("build", [SERVED, DEV], ids=str)


def factors(column: str) -> list[float]:
    """Return the memory of a call, in multiples of its rows or its body, from the table with this first column."""
    page = (ROOT / "docs/operations/runbook.md").read_text()
    (table,) = re.findall(rf"^\| {column} \| memory \|\n\|---\|---\|\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [float(line.strip("| ").rpartition("|")[2]) for line in table.splitlines()]


def bundle_factors() -> dict[str, float]:
    """Return the most memory of each step, in multiples of the bundle, from the table that starts with `model`."""
    page = (ROOT / "docs/operations/runbook.md").read_text()
    (head, lines), *others = re.findall(r"^\| model (\|.*)\n\|[-:|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert others == []
    rows = [[float(cell) for cell in line.strip("| ").split("|")[1:]] for line in lines.splitlines()]
    columns = [max(column) for column in zip(*rows, strict=True)]
    return dict(zip([name.strip() for name in head.strip("|").split("|")], columns, strict=True))


def memory_limit(build: Build, kind: str, name: str) -> int:
    """Return the memory limit of the container of a workload in bytes."""
    limit = container(build, kind, name)["resources"]["limits"]["memory"]
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", limit).groups()  # type: ignore[union-attr]
    return int(number) << {"Mi": 20, "Gi": 30}[unit]


def numbers(build: Build) -> dict[str, int]:
    """Return the settings of the ConfigMap that are numbers."""
    return {key: int(value) for key, value in one(build, "ConfigMap", "keepfit")["data"].items() if value.isdigit()}


def worker_bytes_max(build: Build) -> float:
    """Return the memory that one worker process may use."""
    values = numbers(build)
    share = SHARE * memory_limit(build, "Deployment", "workers") / values["KEEPFIT_WORKERS"]
    return min(values.get("KEEPFIT_WORKER_MEMORY_BYTES_MAX", share), share)


@each_build
def test_the_largest_body_fits_into_the_memory_of_a_worker(build: Build) -> None:
    """Three quarters of a worker's share hold the process, its bundles, and the most that rows of the limit take."""
    values = numbers(build)
    assert 5 <= max(factors("estimator")) <= ROWS_FACTOR
    needed = PROCESS_BYTES + values["KEEPFIT_BUNDLE_CACHE_BYTES_MAX"]
    needed += ROWS_FACTOR * values["KEEPFIT_BODY_BYTES_MAX"]
    assert needed <= worker_bytes_max(build)


@each_build
def test_the_largest_bundle_fits_into_the_memory_of_a_worker(build: Build) -> None:
    """A worker can load it, learn a small row, seal it and commit it, and restore it, beside its cached bundles."""
    values, found = numbers(build), bundle_factors()
    assert found["learn"] >= 6
    needed: float = PROCESS_BYTES + values["KEEPFIT_BUNDLE_CACHE_BYTES_MAX"]
    needed += max(found["learn"], found["restore"]) * values["KEEPFIT_BUNDLE_BYTES_MAX"]
    assert needed <= worker_bytes_max(build)


@each_build
def test_the_largest_bundle_fits_into_the_memory_of_a_snapshotter(build: Build) -> None:
    """A snapshotter can save it, and smaller ones of the limit in bytes together."""
    values = numbers(build)
    at_a_time = max(
        values["KEEPFIT_BUNDLE_BYTES_MAX"],
        values.get("KEEPFIT_SNAPSHOT_BYTES_MAX", Settings.model_fields["snapshot_bytes_max"].default),
    )
    assert PROCESS_BYTES + bundle_factors()["save"] * at_a_time <= memory_limit(build, "CronJob", "snapshotter")


@each_build
def test_the_largest_bundle_fits_into_the_maxmemory_of_redis(build: Build) -> None:
    """Redis has room for its commit, for a full inbox with retained requests, and for all rows that wait for labels."""
    values, server = numbers(build), container(build, "StatefulSet", "redis")
    assert "maxmemory $((MEMORY_LIMIT / 2))" in "".join(server["command"])
    needed = bundle_factors()["Redis"] * values["KEEPFIT_BUNDLE_BYTES_MAX"]
    needed += values["KEEPFIT_INBOX_BYTES_MAX"] + values["KEEPFIT_REPLAY_BYTES_MAX"]
    needed += values["KEEPFIT_OPEN_ROWS_TOTAL_BYTES_MAX"]
    assert needed <= memory_limit(build, "StatefulSet", "redis") // 2


@each_build
def test_the_bodies_fit_into_the_memory_of_a_gateway(build: Build) -> None:
    """A gateway holds its process, its cache, and the most that all bodies take which it reads at a time."""
    values = numbers(build)
    bodies = max(values["KEEPFIT_BODIES_BYTES_MAX"], values["KEEPFIT_BODY_BYTES_MAX"])
    caches = values["KEEPFIT_PREDICT_CACHE_BYTES_MAX"] + values["KEEPFIT_SCORER_CACHE_BYTES_MAX"]
    needed = PROCESS_BYTES + caches + max(factors("body")) * bodies
    assert needed <= memory_limit(build, "Deployment", "gateway")
