"""Logs: failures are logged, and no key, password or value of a row with them."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from keepfit.errors import UnavailableError
from keepfit.local.servers import answers, free_port, redis_command
from keepfit.observability import logs
from keepfit.security.api_keys import new_key
from tests import servers
from tests.gateway.api_client import Api, eventually, exchange

PASSWORD, SIGNING_KEY = "hush-password", "5e1f" * 16
ALL = new_key("all", ["predict", "learn", "admin"], "1000/1000")
LABEL, NUMBER, UNKNOWN = "hush-label", 31337.25, "kf_hush-unknown"
SECRETS = (PASSWORD, SIGNING_KEY, ALL[0], ALL[1].split(":")[2], LABEL, "31337", "hush")
# What docs/operations/security.md says is enough.
REDIS_USER = ("keepfit", "on", f">{PASSWORD}", "~kf:*", "~rq:*", "&kf:*", "&rq:*", "+@all", "-@admin")
SHOES = {"estimator": "PassiveAggressiveRegressor", "features": {"make": "category", "year": "number"}}
COUNTS = {"estimator": "MultinomialNB", "classes": ["a", "b"]}


@dataclass(frozen=True, slots=True)
class Service:
    """A gateway and a worker as processes, and the stack that stops their Redis."""

    api: Api
    folder: Path
    variables: dict[str, str]
    stop_redis: ExitStack

    def logged(self) -> str:
        """Return all log output."""
        return "".join((self.folder / f"{name}.log").read_text(errors="replace") for name in ("gateway", "worker"))


@pytest.fixture
async def service(mongo_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    """Run a service with recognisable passwords and keys."""
    redis_port, port = free_port(), free_port()
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("KEEPFIT_")},
        "KEEPFIT_STORE_URL": f"redis://keepfit:{PASSWORD}@127.0.0.1:{redis_port}/0",
        "KEEPFIT_MONGO_URL": mongo_url,
        "KEEPFIT_SNAPSHOT_URL": (tmp_path / "snapshots").as_uri(),
        "KEEPFIT_SIGNING_KEYS": f"k:{SIGNING_KEY}",
        "KEEPFIT_API_KEYS": ALL[1],
        "KEEPFIT_PORT": str(port),
        "KEEPFIT_WORKERS": "1",
        "KEEPFIT_PREDICT_TIMEOUT_S": "20",
    }
    url, command = f"http://127.0.0.1:{port}", [sys.executable, "-m", "keepfit"]
    redis = [*redis_command(redis_port, tmp_path / "redis"), *("--user", "default", "off"), "--user", *REDIS_USER]
    with ExitStack() as processes, ExitStack() as redis_alone:
        redis_alone.enter_context(servers.running(redis, tmp_path / "redis.log", lambda: "Ready" in _text(tmp_path)))
        worker = servers.running([*command, "worker"], tmp_path / "worker.log", lambda: True, variables)
        processes.enter_context(worker)
        ready = servers.running(
            [*command, "gateway"], tmp_path / "gateway.log", lambda: answers(f"{url}/readyz"), variables
        )
        processes.enter_context(ready)
        async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {ALL[0]}"}) as http:
            yield Service(Api(http, (PASSWORD, SIGNING_KEY, ALL[0])), tmp_path, variables, redis_alone)


def _text(folder: Path) -> str:
    path = folder / "redis.log"
    return path.read_text() if path.exists() else ""


def failed_listing(variables: dict[str, str]) -> str:
    """Return the output of a `keepfit models` that fails."""
    command = [sys.executable, "-m", "keepfit", "models"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stdout + done.stderr


def fail(error: Exception) -> None:
    """Raise an error."""
    raise error


async def test_no_secret_and_no_row_is_logged(service: Service, metadata: dict[str, Any]) -> None:
    """Requests fail in every known way, and no log or terminal shows a key, a password or a value of a row."""
    api = service.api
    shoes = await api.make(metadata, SHOES)
    counts = await api.make({**metadata, "type": "counts"}, COUNTS)
    row = {"make": LABEL, "year": NUMBER}
    await api.learn(shoes, [row], [NUMBER])
    await api.predict(shoes, [row])
    # Refused by the gateway: content, form, key, repeats, HTTP.
    for document in ({"X": [{"make": LABEL, "year": LABEL}]}, {"X": [{"make": NUMBER, LABEL: 1}]}, {LABEL: NUMBER}):
        assert (await api.post(f"{shoes}/predict", document)).status in (400, 422)
    assert (await api.call("POST", f"{shoes}/predict", data=f'{{"{LABEL}": '.encode())).status == 400
    assert (await api.call("GET", shoes, headers={"Authorization": f"Bearer {UNKNOWN}"})).status == 401
    key = {"Idempotency-Key": "hush-once"}
    assert (await api.post(f"{shoes}/partial_fit", {"X": [row], "y": [1]}, key)).status == 202
    assert (await api.post(f"{shoes}/partial_fit", {"X": [row], "y": [2]}, key)).status == 422
    assert b"400 Bad Request" in await exchange(api.url, f"{UNKNOWN}\r\n\r\n".encode())
    # Refused by the estimator: a dead letter, whose reason the client receives.
    bad = {"X": [[-NUMBER, 1.0]], "y": ["a"]}
    assert (await api.post(f"{counts}/partial_fit", bad, {"Prefer": "wait=20", "X-Request-ID": "r-1"})).status == 422
    # Every dependency is unavailable.
    service.stop_redis.close()
    assert (await api.post(f"{shoes}/partial_fit", {"X": [row], "y": [NUMBER]})).status == 503
    assert (await api.post(f"{shoes}/predict", {"X": [{**row, "year": 1}]})).status == 503

    async def failures_logged() -> bool:
        return "request_put_aside" in service.logged() and "request_failed" in service.logged()

    await eventually(failures_logged, "the log lines")
    unreachable = {**service.variables, "KEEPFIT_MONGO_URL": f"mongodb://me:{PASSWORD}@127.0.0.1:{free_port()}/x"}
    output = service.logged() + failed_listing(unreachable)
    assert '"request_id": "r-1"' in output
    assert "permission" not in output.lower()
    assert [secret for secret in SECRETS if secret in output] == []


@pytest.fixture
def rendered() -> Iterator[list[MutableMapping[str, Any]]]:
    """Return the log lines of services as JSON documents; restore the configuration of the tests afterwards."""
    before = structlog.get_config()
    lines: list[MutableMapping[str, Any]] = []

    def keep(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        lines.append(dict(event))
        raise structlog.DropEvent

    logs.configure_json()
    *processors, _ = structlog.get_config()["processors"]
    structlog.configure(processors=[*processors, keep], cache_logger_on_first_use=False)
    yield lines
    logging.captureWarnings(capture=False)
    logging.root.handlers = [one for one in logging.root.handlers if not isinstance(one, logs.LibraryHandler)]
    structlog.configure(**before)


def test_a_traceback_hides_messages_of_unforeseen_errors(rendered: list[MutableMapping[str, Any]]) -> None:
    """The log has class and position of an unforeseen error; keepfit's and the system's errors keep their message."""
    log, password = structlog.get_logger(), PASSWORD
    for error in (ValueError(f"{LABEL} is no number"), KeyError(LABEL), OSError(5, "disk"), UnavailableError("away")):
        try:
            fail(error)
        except Exception:
            log.exception("crashed")
    shown = [(line["exception"][0]["exc_type"], line["exception"][0]["exc_value"]) for line in rendered]
    assert shown == [
        ("ValueError", "(not shown)"),
        ("KeyError", "(not shown)"),
        ("OSError", "[Errno 5] disk"),
        ("UnavailableError", "away"),
    ]
    assert all(line["exception"][0]["frames"][-1]["name"] == "fail" for line in rendered)
    assert password not in str(rendered)


@pytest.mark.parametrize(
    ("level", "methods"),
    [
        ("info", ["info", "warning", "error", "exception"]),
        ("warning", ["warning", "error", "exception"]),
        ("error", ["error", "exception"]),
    ],
)
@pytest.mark.usefixtures("rendered")
def test_events_below_the_level_are_dropped(level: str, methods: list[str]) -> None:
    """Events from the level on are logged, and at any level those for which supervisors wait."""
    lines = io.StringIO()
    logs.configure_json(level)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(lines), cache_logger_on_first_use=False)
    log = structlog.get_logger()
    for method in ("debug", "info", "warning", "error", "exception"):
        getattr(log, method)(method)
    for event in sorted(logs.READY_EVENTS):
        log.info(event)
    assert [json.loads(line)["event"] for line in lines.getvalue().splitlines()] == [
        *methods,
        *sorted(logs.READY_EVENTS),
    ]


FAILING_WORKER = """
import logging, sys, warnings
from types import SimpleNamespace
from rq.logutils import setup_loghandlers
from keepfit.observability.logs import configure_json
from keepfit_workers.worker import LeaseWorker

configure_json()
for name in ("rq.worker", "rq.job"):
    setup_loghandlers("WARNING", name=name)
try:
    raise ValueError("hush-label is no number")
except ValueError:
    LeaseWorker.handle_exception(None, SimpleNamespace(id="j1"), *sys.exc_info())
    rq = logging.getLogger("rq.worker")
    rq.exception("Worker %s: failed to persist failure of job %s", "hush-worker", "hush-job")
rq.info("not logged")
logging.getLogger("asyncio").error("Task exception was never retrieved\\nhush-label")
warnings.warn("hush-label", stacklevel=1)
"""


def test_libraries_log_json_without_rows_and_arguments() -> None:
    """RQ's records, those of other libraries, warnings and failed jobs are JSON lines that quote no row or argument."""
    command = [sys.executable, "-c", FAILING_WORKER]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "hush" not in done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["event"], line.get("logger"), line.get("text")) for line in lines] == [
        ("job_failed", None, None),
        ("library_logged", "rq.worker", "Worker %s: failed to persist failure of job %s"),
        ("library_logged", "asyncio", "Task exception was never retrieved"),
        ("library_logged", "py.warnings", "<string>:19: UserWarning"),
    ]
    assert [line["exception"][0]["exc_value"] for line in lines[:2]] == ["(not shown)"] * 2


def test_plain_logs_escape_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """A reason with an escape sequence or a line break is one line with escapes in the log of a command."""
    logs.configure_plain()
    structlog.get_logger().warning("snapshot_failed", reason="\x1b[2Jred\nline\u202e")
    assert capsys.readouterr().err.split("reason=")[1].strip() == r"\x1b[2Jred\nline\u202e"
