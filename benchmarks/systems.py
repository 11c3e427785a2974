"""The compared systems: the command that starts each, and its calls for a prediction and for a row to learn.

Owns the peers' commands and settings. Each peer runs in its own environment (``.venvs/<name>``) with pinned
requirements. Invariants: one model, one row per request; bodies differ only in the wrapper that an API requires; each
peer is set up as its documentation recommends for one machine, and in the faster way where that leaves a choice.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks import stack
from benchmarks.load import Call
from benchmarks.processes import StartError, running
from keepfit.local.servers import accepts, answers, free_port, redis_command

ROOT = Path(__file__).parents[1]
VENVS = Path(__file__).with_name(".venvs")

ROWS_CALL = Call("/predict", stack.PREDICT)


@dataclass(frozen=True, slots=True)
class RunningSystem:
    """A system that is ready. `learn` is None if it cannot learn; `stack` is set for keepfit only."""

    url: str
    predict: Call
    learn: Call | None = None
    stack: "stack.Stack | None" = None
    model_hash: str = ""


@dataclass(frozen=True, slots=True)
class System:
    """One system: its name in files, its title in tables, its packages, its set-up, and how it is started."""

    name: str
    title: str
    packages: tuple[str, ...]
    setup: str
    start: Callable[[Path], AbstractContextManager[RunningSystem]]

    def versions(self) -> str:
        """Return the versions of its packages, as installed in its environment."""
        folders = [str(path) for path in (VENVS / self.name).glob("lib/python*/site-packages")]
        # keepfit runs in the environment of the harness.
        installed = metadata.distributions(path=folders) if folders else metadata.distributions()
        versions = {distribution.name.lower(): distribution.version for distribution in installed}
        return ", ".join(f"{name} {versions.get(name.lower(), '?')}" for name in self.packages)


def _python(name: str) -> str:
    """Return the interpreter of a peer's environment; raise StartError if it is not installed."""
    path = VENVS / name / "bin" / "python"
    if not path.exists():
        raise StartError(f"{name} is not installed; `make bench` installs it")
    return str(path)


@contextmanager
def _module(
    name: str,
    folder: Path,
    arguments: list[str],
    port: int,
    health: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run a module in a peer's environment until the block ends; yield the URL once `health` answers."""
    url = f"http://127.0.0.1:{port}"
    folder.mkdir(parents=True, exist_ok=True)
    command = [_python(name), "-m", *arguments]
    variables = {"PYTHONPATH": str(ROOT), "PORT": str(port), **(environment or {})}
    with running(
        command, folder / f"{name}.log", lambda: answers(url + health) if health else accepts(port), variables
    ):
        yield url


@contextmanager
def _keepfit(folder: Path) -> Iterator[RunningSystem]:
    with stack.started(folder) as up:
        model_hash = stack.make_model(up)
        yield RunningSystem(up.url, up.predict(model_hash), up.learn(model_hash), up, model_hash)


@contextmanager
def _echo(folder: Path) -> Iterator[RunningSystem]:
    with _module("echo", folder, ["benchmarks.peers.echo"], free_port()) as url:
        yield RunningSystem(url, ROWS_CALL)


@contextmanager
def _fastapi(folder: Path) -> Iterator[RunningSystem]:
    port = free_port()
    arguments = ["uvicorn", "benchmarks.peers.fastapi_app:app", "--port", str(port), "--loop", "uvloop"]
    arguments += ["--http", "httptools", "--no-access-log", "--log-level", "warning"]
    with _module("fastapi", folder, arguments, port) as url:
        yield RunningSystem(url, ROWS_CALL, Call("/partial_fit", stack.LEARN))


@contextmanager
def _mlserver(folder: Path) -> Iterator[RunningSystem]:
    port = free_port()
    home = folder / "model"
    home.mkdir(parents=True)
    settings = {
        "host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port(), "debug": False,
        "parallel_workers": 0, "metrics_dir": str(home), "environments_dir": str(home),
    }  # fmt: skip
    loaded = {
        "name": "model", "implementation": "benchmarks.peers.mlserver_runtime.Runtime",
        "max_batch_size": 64, "max_batch_time": 0.002,
    }  # fmt: skip
    (home / "settings.json").write_text(json.dumps(settings))
    (home / "model-settings.json").write_text(json.dumps(loaded))
    template = '{"inputs":[{"name":"X","shape":[1,4],"datatype":"FP64","data":[%.6f,%.6f,%.6f,%.6f]}]}'
    with _module("mlserver", folder, ["mlserver.cli.main", "start", str(home)], port, "/v2/health/ready") as url:
        yield RunningSystem(url, Call("/v2/models/model/infer", template))


@contextmanager
def _litserve(folder: Path) -> Iterator[RunningSystem]:
    with _module("litserve", folder, ["benchmarks.peers.litserve_app"], free_port(), "/health") as url:
        yield RunningSystem(url, ROWS_CALL)


@contextmanager
def _bentoml(folder: Path) -> Iterator[RunningSystem]:
    port = free_port()
    arguments = ["bentoml", "serve", "benchmarks.peers.bentoml_service:Predict", "--host", "127.0.0.1"]
    variables = {"BENTOML_HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    with _module("bentoml", folder, [*arguments, "--port", str(port)], port, "/readyz", variables) as url:
        yield RunningSystem(url, ROWS_CALL)


@contextmanager
def _river(folder: Path) -> Iterator[RunningSystem]:
    port, redis_port = free_port(), free_port()
    folder.mkdir(parents=True)
    arguments = ["gunicorn", "benchmarks.peers.river_app:app", "--bind", f"127.0.0.1:{port}", "--workers", "1"]
    arguments += ["--threads", "32", "--keep-alive", "60", "--log-level", "warning"]
    variables = {"REDIS_URL": f"redis://127.0.0.1:{redis_port}/0"}
    features = '{"features":{"a":%.6f,"b":%.6f,"c":%.6f,"d":%.6f}'
    with (
        running(redis_command(redis_port, folder / "redis"), folder / "redis.log", lambda: accepts(redis_port)),
        _module("river", folder, arguments, port, "/health", variables) as url,
    ):
        yield RunningSystem(url, Call("/predict", features + "}"), Call("/learn", features + ',"ground_truth":%.6f}'))


SYSTEMS = (
    System(
        "keepfit", "keepfit", ("keepfit", "aiohttp", "rq", "scikit-learn"),
        "`keepfit up` with its defaults: one gateway, two workers, Valkey with fsync always, MongoDB-wire server",
        _keepfit,
    ),
    System(
        "fastapi", "FastAPI, in process", ("fastapi", "uvicorn", "scikit-learn"),
        "uvicorn with uvloop and httptools; one process, because its model learns; a lock around it; not durable",
        _fastapi,
    ),
    System(
        "mlserver", "MLServer", ("mlserver", "scikit-learn"),
        "custom runtime, v2 infer; in process (`parallel_workers: 0`: its process pool does not start with the "
        "uvloop that it allows and pip installs); adaptive batching on, 64 rows or "
        "2 ms: 50 % more requests/s at 32 connections, for up to 2 ms more latency of a single request",
        _mlserver,
    ),
    System(
        "litserve", "LitServe", ("litserve", "scikit-learn"),
        "one API server, two worker processes; batching on, up to 64 requests that are already waiting",
        _litserve,
    ),
    System(
        "bentoml", "BentoML", ("bentoml", "scikit-learn"),
        "two worker processes; batching off, as by default",
        _bentoml,
    ),
    System(
        "river", "River + Flask + Redis", ("river", "flask", "gunicorn", "redis"),
        "stand-in for chantilly: state pickled in Redis (Valkey, fsync always) on each call; gunicorn, one process, "
        "32 threads, a lock around learning",
        _river,
    ),
    System(
        "echo", "bare aiohttp echo", ("aiohttp", "uvloop"),
        "the reference: reads the body, answers a constant, on uvloop in one process",
        _echo,
    ),
)  # fmt: skip
