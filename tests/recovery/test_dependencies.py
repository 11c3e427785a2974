"""Outages of MongoDB and storage, and a full disk: learning and predicting continue, and the rest catches up."""

import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from keepfit.local.servers import accepts, answers, free_port, redis_command
from keepfit.settings import Settings
from keepfit.snapshots import save
from keepfit.snapshots.save import UNAVAILABLE_COUNT
from keepfit_snapshotter.run import run_once
from tests import servers
from tests.conftest import SHOES_RECIPE
from tests.factories import Workshop, workshop
from tests.gateway.api_client import REGRESSOR, Api, eventually, serving
from tests.recovery.deployment import Deployment, deployed

LABELLED = {"X": [[1.0, 2.0]], "y": [1.0]}
ROWS = {"X": [[1.0, 2.0]]}
FILE_BYTES_MAX = 200_000


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Run one deployment for all tests of this module; each test leaves it running."""
    with deployed(tmp_path_factory.mktemp("parts")) as running:
        yield running


@pytest.fixture
async def api(deployment: Deployment) -> AsyncIterator[Api]:
    """Return the API of one gateway."""
    async with aiohttp.ClientSession(deployment.urls[0]) as http:
        yield Api(http)


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of this test only."""
    async with workshop(settings) as open_shop:
        yield open_shop


async def snapshot_version(api: Api, path: str) -> int:
    """Return the version of a model's last snapshot, -1 for none."""
    noted = (await api.model(path))["snapshot"]
    return -1 if noted is None else int(noted["version"])


@pytest.mark.parametrize("how", ["stopped", "hung"])
async def test_without_mongodb_only_creating_models_fails(
    deployment: Deployment, api: Api, metadata: dict[str, Any], how: str
) -> None:
    """While MongoDB is unavailable rows are learned and predicted, the state is degraded; later snapshots catch up."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, **LABELLED)
    missing = deployment.mongo.stopped() if how == "stopped" else deployment.mongo.hung()
    with missing:
        learned = await api.learn(path, **LABELLED)
        predicted = await api.predict(path, **ROWS)
        assert learned["version"] == predicted["version"]
        made = await api.post("/v1/models", {"metadata": {**metadata, "new": how}, "recipe": REGRESSOR})
        made.problem(503)
        assert int(made.headers["Retry-After"]) >= 1
        ready = (await api.get("/readyz")).of(200)
        assert (ready["status"], ready["redis"], ready["queue"]) == ("degraded", "ok", "ok")
        assert ready["mongo"] != "ok"
        assert 'keepfit_dependency_up{dependency="mongo"} 0.0' in (await api.get("/metrics")).body.decode()

        async def is_reported() -> bool:
            return (await api.get("/readyz")).of(200)["snapshots"] != "ok"

        await eventually(is_reported, "the report of the snapshotter")

    async def whole() -> bool:
        saved = await snapshot_version(api, path)
        return bool(saved == learned["version"] and (await api.get("/readyz")).of(200)["status"] == "ok")

    await eventually(whole, "catching up")
    await api.make({**metadata, "new": how}, REGRESSOR)
    tracebacks = [line for service in deployment.services for line in service.lines() if "Traceback" in line]
    assert not tracebacks


def children() -> set[int]:
    """Return the process ids of this process' children."""
    return {int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()}


def command_of(pid: int) -> list[str]:
    """Return the command that a process was started with."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]


async def test_an_unavailable_storage_is_reported_once_and_caught_up(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With S3 stopped a pass tries a few models, reports S3 as unavailable and loses none; the next saves all."""
    import s3fs  # noqa: PLC0415 - only the tests of S3 need it

    before = children()
    with servers.s3(tmp_path / "s3") as endpoint:
        (pid,) = children() - before
        command = command_of(pid)
        for name, value in {**servers.S3_ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        there = settings.model_copy(update={"snapshot_url": "s3://bucket/snapshots"})
        async with workshop(there) as shop:
            hashes = [await shop.learned() for _ in range(3 * UNAVAILABLE_COUNT)]
            os.kill(pid, signal.SIGKILL)
            port = int(endpoint.rpartition(":")[2])
            servers.wait_until(lambda: not accepts(port), "the end of S3")
            without = await run_once(there)
            assert without.saved == []
            assert "s3://bucket/snapshots cannot be written" in without.unavailable
            assert len(without.failed) + without.left == len(hashes)
            assert without.left
            state = await shop.store.snapshot_state()
            assert (state.changed, state.failed, state.reason) == (len(hashes), len(hashes), without.unavailable[:500])
            healthy = f"{endpoint}/healthz"
            with servers.running(command, tmp_path / "s3.log", lambda: answers(healthy), stop=signal.SIGKILL):
                report = await run_once(there)
            assert sorted(document["hash"] for document in report.saved) == sorted(hashes)
            state = await shop.store.snapshot_state()
            assert (state.changed, state.failed, state.reason) == (0, 0, "")


async def test_a_full_snapshot_folder_damages_no_snapshot(shop: Workshop, tmp_path: Path) -> None:
    """A model whose blob does not fit fails with a clear reason, smaller ones are saved, no partial file stays."""
    small = await shop.learned()
    large = await shop.learned(
        {**SHOES_RECIPE, "estimator": "MLPRegressor", "params": {"hidden_layer_sizes": [100, 100]}}
    )
    # A full disk and a limit of the file size have the same effect: the write ends in the middle.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    assert len(shop.data(small)) < 20_000 < len(shop.data(large))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        report = await shop.snapshotter.run_pass()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [document["hash"] for document in report.saved] == [small]
    assert "cannot be written" in report.failed[large]
    files = [path for path in (tmp_path / "snapshots").rglob("*") if path.is_file()]
    assert [path.name for path in files] == [save.path_of(report.saved[0]).rpartition("/")[2]]
    again = await shop.snapshotter.run_pass()
    assert [document["hash"] for document in again.saved] == [large]


def limited(command: list[str]) -> list[str]:
    """Return a command that runs `command` with a maximum file size of FILE_BYTES_MAX, as on a full disk."""
    program = (
        "import os, resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({FILE_BYTES_MAX}, {FILE_BYTES_MAX}))\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    return [sys.executable, "-c", program, *command]


async def test_rows_that_a_full_disk_did_not_store_get_no_202(
    settings: Settings, tmp_path: Path, metadata: dict[str, Any]
) -> None:
    """When the disk of the append-only file fills up, every row that was answered 202 is there after a restart."""
    port, folder = free_port(), tmp_path / "full"
    command, log = redis_command(port, folder), tmp_path / "full.log"
    full = settings.model_copy(update={"store_url": SecretStr(f"redis://127.0.0.1:{port}/0")})
    promised = 0
    async with serving(full) as api:
        with servers.running(limited(command), log, lambda: accepts(port)) as server:
            path = await api.make(metadata, REGRESSOR)
            for _ in range(2000):
                reply = await api.post(f"{path}/partial_fit", {"X": [[1.0] * 20] * 5, "y": [1.0] * 5})
                if reply.status != 202:
                    break
                promised = reply.json()["sequence"]
            reply.problem(503)
            assert int(reply.headers["Retry-After"]) >= 1
            assert promised > 10
            # With `appendfsync always` a server that cannot write its append-only file exits.
            assert server.wait(30) != 0
        with servers.running(command, log, lambda: accepts(port)):

            async def back() -> bool:
                return (await api.get(path)).status == 200

            await eventually(back, "the return")
            assert (await api.model(path))["inbox"] >= promised
            assert (await api.post(f"{path}/partial_fit", {"X": [[1.0] * 20], "y": [1.0]})).status == 202
