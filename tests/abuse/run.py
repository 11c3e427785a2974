"""Run attacks on a stack, several at a time, beside a well-behaved client of another model.

Owns the stack, the order of the attacks and what is measured: the client's calls, the gateway's memory, the growth of
both Redis servers, and the time until all is as before. Invariant: every process that it starts has ended at its end.
"""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, Thread
from types import MappingProxyType
from typing import Any

import redis
import requests

from keepfit.local.stack import end_with_parent
from tests.abuse.attacks import ATTACKS, SLOW_MODELS, USED_KEY, Target
from tests.abuse.client import Call
from tests.conftest import Stack, start_stack, stop_stack
from tests.factories import dump_local

# As in the bounds: not 2**20.
MB = 10**6
LOOK_S = 0.1
AT_A_TIME = 3
# What belongs to the attacks, and must be gone afterwards, is larger than these.
MEMORY_LEFT_BYTES_MAX, REDIS_LEFT_BYTES_MAX = 60 * MB, 20 * MB
BACK_S_MAX = 60.0
ROOT = Path(__file__).parents[2]

SLOW = """import time
class Slow:
    def partial_fit(self, X, y): pass
    def predict(self, X):
        time.sleep(1.0)
        return [0.0] * len(X)
"""
# A function of a PyDLL keeps the interpreter's lock while it runs, as much native code does.
GIL = """import ctypes
class Holder:
    def partial_fit(self, X, y): pass
    def predict(self, X):
        ctypes.PyDLL(None).usleep(1_500_000)
        return [0.0] * len(X)
"""
DEADLY = """import os
class Deadly:
    def __init__(self): self.learned = False
    def partial_fit(self, X, y): self.learned = True
    def predict(self, X): return [0.0] * len(X)
    def __setstate__(self, state):
        if state["learned"]: os._exit(1)
        self.__dict__ = state
"""


@dataclass(slots=True)
class Window:
    """Some seconds with the same attacks."""

    attacks: tuple[str, ...]
    began: float = 0.0
    ended: float = 0.0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    gateway_bytes: int = 0
    redis_growth_bytes: int = 0
    replaced: tuple[str, ...] = ()
    calls: list[Call] = field(default_factory=list)

    @property
    def latencies_s(self) -> list[float]:
        """Return how long each call of the well-behaved client took, in ascending order."""
        return sorted(call.seconds for call in self.calls)

    @property
    def errors(self) -> list[str]:
        """Return the errors of the well-behaved client."""
        return [call.error for call in self.calls if call.error]


@dataclass(slots=True)
class Outcome:
    """Results of a run."""

    seed: int
    windows: list[Window] = field(default_factory=list)
    idle: Window = field(default_factory=lambda: Window(()))
    back_s: float | None = None
    left: str = ""


def draw(seed: int, seconds: float, length_s: float) -> list[Window]:
    """Draw windows of `length_s` in which all attacks run equally often, of those on slow models one at a time."""
    drawn = random.Random(seed)
    windows: list[Window] = []
    waiting: list[str] = []
    while len(windows) * length_s < seconds:
        chosen: list[str] = []
        while len(chosen) < AT_A_TIME:
            fitting = [name for name in waiting if name not in chosen and not _excluded(name, chosen)]
            if not fitting:
                waiting += drawn.sample(list(ATTACKS), len(ATTACKS))
                continue
            chosen.append(fitting[0])
            waiting.remove(fitting[0])
        windows.append(Window(tuple(chosen)))
    return windows


def _excluded(name: str, chosen: Sequence[str]) -> bool:
    return name in SLOW_MODELS and any(other in SLOW_MODELS for other in chosen)


class Sampler:
    """Reads the memory of the gateway and of both Redis servers in a thread, and keeps the largest values."""

    def __init__(self, stack: Stack) -> None:
        environment = stack.environment()
        urls = {environment["KEEPFIT_STORE_URL"], environment.get("KEEPFIT_QUEUE_URL", "")} - {""}
        self._servers = [redis.Redis.from_url(url, socket_timeout=10) for url in urls]
        self._stack = stack
        self._pids = stack.pids()
        self._status = Path(f"/proc/{self._pids['gateway']}/status")
        self._stopped = Event()
        self._thread = Thread(target=self._look)
        self.gateway_bytes = self.redis_bytes = 0

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        for server in self._servers:
            server.close()

    def _look(self) -> None:
        while not self._stopped.wait(LOOK_S):
            self.gateway_bytes = max(self.gateway_bytes, self.gateway())
            with suppress(redis.RedisError):
                self.redis_bytes = max(self.redis_bytes, self.redis())

    def reset(self) -> None:
        """Forget the largest values."""
        self.gateway_bytes = self.redis_bytes = 0

    def replaced(self) -> tuple[str, ...]:
        """Return the servers and services that have ended or were replaced since the stack started."""
        pids = self._stack.pids()
        return tuple(name for name, pid in self._pids.items() if pids[name] != pid or not Path(f"/proc/{pid}").exists())

    def gateway(self) -> int:
        """Return the gateway's memory in bytes; 0 if it has ended."""
        if not self._status.exists():
            return 0
        lines = self._status.read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)

    def redis(self) -> int:
        """Return the memory that both Redis servers use for data, clients and buffers, in bytes."""
        return sum(int(server.info("memory")["used_memory"]) for server in self._servers)  # type: ignore[index]


@contextmanager
def programs(module: str, *arguments: Sequence[str]) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Run a module of this package, once with each of the `arguments`, until the block ends; return when all begin."""
    processes = []
    try:
        for each in arguments:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *each],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stdin=subprocess.PIPE,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - as in `keepfit up`
            )
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"begin\n")
            process.stdin.flush()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def finish(process: "subprocess.Popen[bytes]") -> bytes:
    """Let a program end, and return what it prints."""
    process.terminate()
    output, _ = process.communicate(timeout=60)
    return output


class AbuseRun:
    """One run on one stack."""

    def __init__(self, stack: Stack, outcome: Outcome, sampler: Sampler) -> None:
        self._stack = stack
        self._outcome = outcome
        self._sampler = sampler
        self._http = requests.Session()
        self._target = Target(stack.url, {})
        self._rest = ""

    def prepare(self) -> None:
        """Create the models, and let each learn a row."""
        keys = self._stack.environment()["KEEPFIT_UPLOAD_KEYS"]
        linear = {"estimator": "SGDRegressor", "scaler": "StandardScaler"}
        classes = {"estimator": "GaussianNB", "classes": [f"class {i}" for i in range(10_000)]}
        objects = {name: {"object": dump_local(source, keys)} for name, source in
                   (("slow", SLOW), ("gil", GIL), ("deadly", DEADLY))}  # fmt: skip
        recipes: dict[str, Any] = {
            "well-behaved": linear, "linear": linear, "learner": linear, "classes": classes, **objects,
        }  # fmt: skip
        for name, recipe in recipes.items():
            made = self._call("POST", "/v1/models", {"metadata": {"type": "abuse", "name": name}, "recipe": recipe})
            path = f"/v1/models/{made['hash']}"
            row = [1.0] if name in objects else [1.0, 2.0]
            y = "class 1" if name == "classes" else 1.0
            self._call("POST", f"{path}/partial_fit", {"X": [row], "y": [y]}, {"Idempotency-Key": USED_KEY})
            self._target.models[name] = path
        self._rest = self._target.models.pop("well-behaved")

    def _call(self, method: str, path: str, document: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """Send a request, which must succeed, and return its answer."""
        headers = {"Prefer": "wait=30", **(headers or {})}
        answer = self._http.request(method, f"{self._stack.url}{path}", json=document, headers=headers, timeout=60)
        assert answer.ok, answer.text
        return answer.json()

    def run(self, windows: list[Window], length_s: float, report: Callable[[Window], None]) -> None:
        """Run all windows beside the well-behaved client, then wait until everything is as before."""
        before = self._sampler.gateway(), self._sampler.redis()
        with programs("tests.abuse.client", [self._stack.url, self._rest]) as (client,):
            self._run_window(self._outcome.idle, length_s, before[1])
            for window in windows:
                self._outcome.windows.append(window)
                self._run_window(window, length_s, before[1])
                report(window)
            self._wait_until_back(*before)
            calls = [Call(**json.loads(line)) for line in finish(client).splitlines()]
        for window in (self._outcome.idle, *windows):
            window.calls = [call for call in calls if window.began <= call.due < window.ended]
        self._http.close()

    def _run_window(self, window: Window, length_s: float, redis_before: int) -> None:
        target = json.dumps(asdict(self._target))
        with programs("tests.abuse.attacks", *([name, target] for name in window.attacks)) as processes:
            self._sampler.reset()
            window.began = time.monotonic()
            time.sleep(length_s)
            for process in processes:
                process.terminate()
            window.counts = {
                name: json.loads(finish(process)) for name, process in zip(window.attacks, processes, strict=True)
            }
        window.ended = time.monotonic()
        window.replaced = self._sampler.replaced()
        window.gateway_bytes = self._sampler.gateway_bytes
        window.redis_growth_bytes = self._sampler.redis_bytes - redis_before

    def _wait_until_back(self, gateway_bytes: int, redis_bytes: int) -> None:
        ended = time.monotonic()
        while time.monotonic() < ended + BACK_S_MAX:
            self._outcome.left = self._left(gateway_bytes, redis_bytes)
            if not self._outcome.left:
                self._outcome.back_s = time.monotonic() - ended
                return
            time.sleep(LOOK_S)

    def _left(self, gateway_bytes: int, redis_bytes: int) -> str:
        """Return what is not as before; nothing if all is."""
        ready = self._http.get(f"{self._stack.url}/readyz", timeout=60)
        if not ready.ok:
            return f"/readyz: {ready.text}"
        if pending := self._call("GET", self._target.models["learner"])["inbox"]:
            return f"{pending} pending requests"
        if (more := self._sampler.gateway() - gateway_bytes) > MEMORY_LEFT_BYTES_MAX:
            return f"{more / MB:.0f} MB more in the gateway"
        if (more := self._sampler.redis() - redis_bytes) > REDIS_LEFT_BYTES_MAX:
            return f"{more / MB:.0f} MB more in Redis"
        return ""


def run_abuse(
    folder: Path,
    seed: int,
    seconds: float,
    length_s: float,
    report: Callable[[Window], None] = lambda _: None,
    limits: Mapping[str, str] = MappingProxyType({}),
) -> Outcome:
    """Start a stack with its defaults, but for `limits`; run attacks on it for `seconds`, in windows; stop it."""
    outcome = Outcome(seed)
    stack = start_stack(folder / "data", limits=limits)
    try:
        with Sampler(stack) as sampler:
            run = AbuseRun(stack, outcome, sampler)
            run.prepare()
            run.run(draw(seed, seconds, length_s), length_s, report)
    finally:
        stop_stack(stack)
    return outcome


def count_of(windows: Sequence[Window], attack: str) -> Counter[str]:
    """Return what an attack did and how it was answered, over all windows."""
    total: Counter[str] = Counter()
    for window in windows:
        total.update(window.counts.get(attack, {}))
    return total
