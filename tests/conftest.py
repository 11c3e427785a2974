"""Fixtures that most tests use: real servers, databases, a running stack, settings."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import aiohttp
import hypothesis
import pymongo
import pytest
import structlog
from pymongo.database import Database

from keepfit.history import Document, Registry
from keepfit.local.demo import kill_all
from keepfit.local.stack import end_with_parent
from keepfit.settings import Settings
from tests import servers
from tests.wheels import build_wheel

if TYPE_CHECKING:
    from tests.browser.page import Page

SIGNING_KEYS = "test:" + "5e" * 32

SHOES_RECIPE = {
    "estimator": "PassiveAggressiveRegressor",
    "params": {"C": 0.5},
    "features": {"make": "category", "year": "number"},
    "scaler": "StandardScaler",
    "encoding": "ordinal",
}


# These files take more than a minute each. They come first: else one process works on one of them at the end, alone.
LONG_FILES = (
    "scripts/test_mutants.py",
    "keepfit/local/test_stack.py",
    "workers/test_hash_seed.py",
    "recovery/test_dependencies.py",
    "recovery/test_workers.py",
    "gateway/api/test_schemathesis.py",
)

# What decides about a change gives the same result twice; new examples are looked for on purpose.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.register_profile("random", derandomize=False, print_blob=True)


def pytest_configure(config: pytest.Config) -> None:
    """Try the same examples in each run; let what tests start end at Ctrl-C, which is ignored in the background."""
    if config.getoption("--hypothesis-profile") is None:
        hypothesis.settings.load_profile("same")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files, in their order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG_FILES)}
    assert all(map(Path.exists, places)), "LONG_FILES names a file that does not exist"
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def _unset_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the KEEPFIT_* variables of the environment in which the tests run."""
    for name in list(os.environ):
        if name.startswith("KEEPFIT_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _restore_log_configuration() -> Iterator[None]:
    """Restore the log configuration: a command in this process logs to a standard error that is closed afterwards."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def servers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder for the servers of this test run."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def mongo_server(servers_folder: Path) -> Iterator[str]:
    """Run one MongoDB server for all tests; yield its URL without a database."""
    with servers.mongo(servers_folder / "mongo") as url:
        yield url


@pytest.fixture
def mongo_url(mongo_server: str) -> str:
    """Return the URL of an empty database."""
    return f"{mongo_server}/t{uuid.uuid4().hex}"


@pytest.fixture
async def registry(mongo_url: str) -> AsyncIterator[Registry]:
    """Open the empty database as a registry with its indexes."""
    async with Registry(mongo_url) as opened:
        await opened.ensure_indexes()
        yield opened


@pytest.fixture
def database(mongo_url: str) -> Iterator[Database[Document]]:
    """Open the test's database with the driver, to inspect what keepfit stores."""
    with pymongo.MongoClient[Document](mongo_url) as client:
        yield client.get_default_database()


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """Run an empty Valkey for the test; yield its URL."""
    # Nothing reads its data afterwards, and a regular stop waits for the server's timer, a tenth of a second.
    with servers.valkey(tmp_path / "redis", stop=signal.SIGKILL) as url:
        yield url


@pytest.fixture(scope="session")
def s3_endpoint(servers_folder: Path) -> Iterator[str]:
    """Run one S3 server for all tests; yield its endpoint."""
    with servers.s3(servers_folder / "s3") as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def s3_bucket(s3_endpoint: str) -> str:
    """Create one bucket for all tests, because each bucket costs the server several volumes; return its name."""
    import s3fs  # noqa: PLC0415 - only the tests of S3 need it

    name = f"b{uuid.uuid4().hex}"
    s3fs.S3FileSystem(
        key=servers.S3_ENVIRONMENT["AWS_ACCESS_KEY_ID"],
        secret=servers.S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=s3_endpoint,
    ).mkdir(name)
    return name


@pytest.fixture
def s3_url(s3_bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the URL of an empty prefix in the bucket; the AWS variables point to the test server during the test."""
    import s3fs  # noqa: PLC0415 - only the tests of S3 need it

    for name, value in {**servers.S3_ENVIRONMENT, "AWS_ENDPOINT_URL": s3_endpoint}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield f"s3://{s3_bucket}/{uuid.uuid4().hex}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def settings(redis_url: str, mongo_url: str, tmp_path: Path) -> Settings:
    """Return the settings of the test's own deployment, with snapshots in a local folder."""
    return Settings(
        store_url=redis_url,
        mongo_url=mongo_url,
        snapshot_url=(tmp_path / "snapshots").as_uri(),
        signing_keys=SIGNING_KEYS,
    )


@dataclass(frozen=True, slots=True)
class Stack:
    """A running `keepfit up`."""

    url: str
    data: Path
    process: "subprocess.Popen[bytes]"

    def pids(self) -> dict[str, int]:
        """Return the process ids of servers and services by name."""
        record: dict[str, Any] = json.loads((self.data / "up.json").read_text())
        return dict(record["parts"])

    def workers(self) -> list[int]:
        """Return the process ids of the worker processes."""
        supervisor = self.pids()["workers"]
        return [int(pid) for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()]

    def environment(self) -> dict[str, str]:
        """Return the settings of the stack as environment variables."""
        lines = (self.data / "env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def settings(self) -> Settings:
        """Return the settings of the stack."""
        return Settings(**{name.removeprefix("KEEPFIT_").lower(): value for name, value in self.environment().items()})

    def log(self, name: str) -> str:
        """Return the log of a server or service."""
        return (self.data / "logs" / f"{name}.log").read_text(errors="replace")


# A busy machine may delay an answer or a ping. Tests of these limits set their own.
PATIENT = MappingProxyType({"KEEPFIT_PREDICT_TIMEOUT_S": "60", "KEEPFIT_PREDICT_STALENESS_S": "30"})


def start_stack(
    data: Path,
    workers: int = 2,
    environment: Mapping[str, str] = MappingProxyType({}),
    cwd: Path | None = None,
    limits: Mapping[str, str] = PATIENT,
    words: Sequence[str] = (),
) -> Stack:
    """Start `keepfit up WORDS` in the folder `cwd` and wait until it is up; `environment` comes before `limits`."""
    data.mkdir(parents=True, exist_ok=True)
    log = data / "up.log"
    (data / "up.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "keepfit", "up", "--data", str(data), "--port", "0", "--workers", str(workers)]
    command += words
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env={**os.environ, **limits, **environment},
            preexec_fn=end_with_parent,  # noqa: PLW1509 - as in `keepfit up`
        )
    servers.wait_until(lambda: b"is up" in log.read_bytes() or process.poll() is not None, f"keepfit up (see {log})")
    assert process.poll() is None, log.read_text(errors="replace")
    return Stack(json.loads((data / "up.json").read_text())["url"], data, process)


def stop_stack(stack: Stack) -> int:
    """Stop a stack with SIGINT, as Ctrl-C does; return its exit code."""
    stack.process.send_signal(signal.SIGINT)
    return stack.process.wait(60)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run one `keepfit up` with two workers for all tests that do not disturb it; use your own metadata.

    Jobs may be made for the source of the examples, and wait.
    """
    environment = {"KEEPFIT_PULL_PREFIXES": "s3://data/daily", "KEEPFIT_PULLS": "0"}
    running = start_stack(tmp_path_factory.mktemp("stack") / "data", environment=environment)
    yield running
    assert stop_stack(running) == 0


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Return a function that starts a stack, each time on the same folder; kill those that run at the end.

    Its keyword arguments are settings in capitals, without their prefix.
    """
    started: list[Stack] = []

    def start(**settings: str) -> Stack:
        environment = {f"KEEPFIT_{name}": value for name, value in settings.items()}
        started.append(start_stack(tmp_path / "data", environment=environment))
        return started[-1]

    yield start
    for stack in started:
        if stack.process.poll() is None:
            kill_all(stack.data)
            stack.process.wait(30)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel that users install, once for all processes of this test run."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with (shared / "wheel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return next((shared / "wheel/built").glob("*.whl"), None) or build_wheel(shared / "wheel")


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[aiohttp.ClientSession]:
    """Open an HTTP session on the stack's gateway."""
    async with aiohttp.ClientSession(stack.url) as session:
        yield session


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run one headless browser for all tests of pages; yield the address that `page` connects to."""
    from tests.browser import chromium  # noqa: PLC0415 - only the tests of pages need it

    with chromium.browser(tmp_path_factory.mktemp("browser")) as url:
        yield url


@pytest.fixture
async def page(browser: str) -> "AsyncIterator[Page]":
    """Open an empty page in the browser, with cookies, cache and storage of its own."""
    from tests.browser.page import Page  # noqa: PLC0415 - only the tests of pages need it

    async with Page.opened(browser) as opened:
        yield opened


@pytest.fixture
def metadata() -> dict[str, Any]:
    """Return metadata of a model that no other test uses."""
    return {"type": "shoes", "type_info": "basic", "session": uuid.uuid4().hex}
