"""`python -m benchmarks.while_learning`: predictions of a model that learns at the same time.

Owns the measurement and the figures in docs/operations/while-learning.md: a load of predictions beside learning calls
at a fixed rate, pairs of a learning call and a prediction, and a lone client beside a question that takes seconds.
Measures from outside, over HTTP. Invariants: each round goes through all stacks and rates, so that other load on the
machine affects all alike; a ratio is of two figures of one round, and the table has its median; a run with an error,
or whose rows were not learned soon after they were sent, ends the command.
"""

import http.client
import itertools
import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import typer
from rich.console import Console

from benchmarks import stack
from benchmarks.bench import WARM_UP_S, temporary_folder
from benchmarks.load import Call, Load, LoadError, Sample, parse, require_wrk, run
from benchmarks.processes import running
from benchmarks.report import table, times
from benchmarks.stack import Stack
from keepfit.local.servers import accepts, free_port

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/operations/while-learning.md"
BEGIN, END = "<!-- measured -->", "<!-- end -->"

CONNECTIONS = 32
ROUNDS, SECONDS = 3, 3.0
# All rows must be learned this soon after the last call, as a share of the time in which they were sent.
BEHIND_MAX = 0.1
# Learning calls per second with one row each, and with ten, so that 2,000 rows arrive.
RATES = (0, 5, 20, 100, 200)
BATCH_RATE, BATCH_ROWS = 200, 10
LEARNING_CONNECTIONS = 8
NO_SNAPSHOTS = {"KEEPFIT_SNAPSHOT_EVERY_S": "86400"}
# Every prediction takes the way over a worker, as for models that have no scorer.
NO_SCORERS = {**NO_SNAPSHOTS, "KEEPFIT_SCORER_BYTES_MAX": "0"}

PAIRS = 200
# A row of this model takes seconds, in one call that cannot be divided: the number of its iterations is a parameter.
SLOW_RECIPE = {
    "estimator": "LatentDirichletAllocation",
    "params": {"n_components": 8, "max_doc_update_iter": 10, "mean_change_tol": 0.0, "random_state": 0},
}
SLOW_S = 8.0
FIRST_ITERATIONS = 100_000
QUIET_S = 4.0


class Case(NamedTuple):
    """A stack: its title, number of workers, and whether gateways compute predictions themselves."""

    title: str
    workers: int
    scorers: bool

    @property
    def environment(self) -> dict[str, str]:
        """The settings that differ from the defaults."""
        return NO_SNAPSHOTS if self.scorers else NO_SCORERS


CASES = (
    Case("one worker computes", 1, scorers=False),
    Case("two workers compute", 2, scorers=False),
    Case("the gateway computes, two workers", 2, scorers=True),
)
ECHO = "bare aiohttp echo"


class Beside(NamedTuple):
    """Learning calls beside a load: their number per second, and the rows of each."""

    rate: int
    rows: int = 1

    @property
    def title(self) -> str:
        """The column of the table."""
        if not self.rate:
            return "no learning"
        return f"{self.rate} calls/s" if self.rows == 1 else f"{self.rate} calls/s of {self.rows} rows"

    def call(self, call: Call) -> Call:
        """Return a learning call with the rows of this one."""
        row, target = "[%.6f,%.6f,%.6f,%.6f]", "%.6f"
        X, y = (",".join([one] * self.rows) for one in (row, target))
        return Call(call.path, f'{{"X":[{X}],"y":[{y}]}}')


BESIDES = (*map(Beside, RATES), Beside(BATCH_RATE, BATCH_ROWS))

Samples = dict[tuple[str, str], list[Sample]]


class Lone(NamedTuple):
    """Milliseconds of a lone client: medians alone, beside a busy loop, and beside a slow question; the worst there."""

    quiet: float
    busy: float
    median: float
    worst: float


class Client:
    """One connection that sends one request after the other."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=SLOW_S * 10)

    def post(self, path: str, body: str, method: str = "POST", **fields: str) -> float:
        """Send a request; return the milliseconds until its answer was read."""
        started = time.perf_counter()
        self._connection.request(method, path, body, {"Content-Type": "application/json", **fields})
        response = self._connection.getresponse()
        answer = response.read()
        if response.status not in (200, 201, 202):
            raise LoadError(f"{path} answered {response.status}: {answer[:200]!r}")
        return (time.perf_counter() - started) * 1000


def beside(up: Stack, model_hash: str, learning: Beside, seconds: float, seed: int) -> Sample:
    """Send fresh rows to predict on all connections, and `learning` calls at the same time; return the predictions'."""
    with ExitStack() as during:
        if learning.rate:
            during.enter_context(_learning(up, model_hash, learning, seconds + WARM_UP_S, seed))
        sample = run(up.url, up.predict(model_hash), Load(CONNECTIONS, seconds), seed)
    if sample.failed:
        raise LoadError(f"{learning.title}: {sample.errors}")
    return sample


@contextmanager
def _learning(up: Stack, model_hash: str, learning: Beside, seconds: float, seed: int) -> Iterator[None]:
    """Send learning calls during the block; then check that all were learned, and none waited for long."""
    before = up.describe(model_hash)["rows_seen"]
    call = learning.call(up.learn(model_hash))
    command = [sys.executable, "-m", "benchmarks.pacer", up.url + call.path, call.template]
    command += ["--rate", str(learning.rate), "--connections", str(LEARNING_CONNECTIONS)]
    command += ["--seconds", str(seconds), "--seed", str(seed)]
    pacer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(WARM_UP_S / 2)
        yield
        output, errors = pacer.communicate(timeout=60)
    finally:
        pacer.kill()
        pacer.wait()
    sent = parse(output, errors)
    if sent.failed:
        raise LoadError(f"learning calls: {sent.errors}")
    learned = up.wait_until_learned(model_hash, seconds * BEHIND_MAX)["rows_seen"] - before
    expected = round(sent.rate * seconds) * learning.rows
    if learned != expected:
        raise LoadError(f"{learned} of {expected} rows were learned")


def measure_besides(rounds: int, seconds: float, console: Console) -> Samples:
    """Measure all cases beside all kinds of learning, and the echo; return samples by case and kind."""
    samples: Samples = defaultdict(list)
    for number in range(rounds):
        with temporary_folder() as folder, _echo(folder) as url:
            run(url, Call("/predict", stack.PREDICT), Load(CONNECTIONS, WARM_UP_S), 0)
            found = run(url, Call("/predict", stack.PREDICT), Load(CONNECTIONS, seconds), number)
            samples[ECHO, BESIDES[0].title].append(found)
            console.print(f"round {number + 1}, echo: {found.rate:,.0f}/s, p99 {found.p99_ms:.1f} ms")
        for case in CASES:
            with temporary_folder() as folder, stack.started(folder, case.workers, case.environment) as up:
                model_hash = stack.make_model(up)
                beside(up, model_hash, BESIDES[-1], WARM_UP_S, 0)
                for learning in BESIDES:
                    found = beside(up, model_hash, learning, seconds, number + 1)
                    samples[case.title, learning.title].append(found)
                    console.print(
                        f"round {number + 1}, {case.title}, {learning.title}: {found.rate:,.0f}/s, "
                        f"p99 {found.p99_ms:.1f} ms"
                    )
    return samples


@contextmanager
def _echo(folder: Path) -> Iterator[str]:
    folder.mkdir(parents=True)
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.peers.echo"]
    with running(command, folder / "echo.log", lambda: accepts(port), {"PORT": str(port)}):
        yield f"http://127.0.0.1:{port}"


def measure_pairs(rounds: int, console: Console) -> dict[str, tuple[float, float]]:
    """Learn and wait, then predict, in turn; return the medians in milliseconds by case."""
    found = {}
    for case in CASES:
        with temporary_folder() as folder, stack.started(folder, case.workers, case.environment) as up:
            model_hash = stack.make_model(up)
            client, learned, predicted = Client(up.url), list[float](), list[float]()
            for number in range(rounds * PAIRS):
                numbers = [number % 7, 1.0, number % 5, 0.5, number % 3]
                learned.append(client.post(*_request(up.learn(model_hash), numbers), Prefer="wait=30"))
                predicted.append(client.post(*_request(up.predict(model_hash), numbers)))
            found[case.title] = median(learned), median(predicted)
            console.print(f"pairs, {case.title}: {found[case.title][0]:.2f} ms, {found[case.title][1]:.2f} ms")
    return found


def _request(call: Call, numbers: Sequence[float]) -> tuple[str, str]:
    return call.path, call.body(*numbers)


def measure_lone(rounds: int, console: Console) -> dict[int, Lone]:
    """Measure a lone client alone, beside a busy loop of another program, and beside a question of seconds.

    The busy loop is the least that a question which computes can cost: it takes a core, and is no part of keepfit.
    """
    found: dict[int, Lone] = {}
    for workers in (2, 4):
        with temporary_folder() as folder, stack.started(folder, workers, NO_SCORERS) as up:
            model_hash = stack.make_model(up)
            path = _make_slow(up)
            lone, each = Client(up.url), list[Lone]()
            _ask(lone, up, model_hash, threading.Event(), WARM_UP_S)
            for number in range(rounds):
                quiet = _ask(lone, up, model_hash, threading.Event(), QUIET_S)
                with _busy_loop():
                    busy = _ask(lone, up, model_hash, threading.Event(), QUIET_S)
                # A new row each time: the answer to an old one is kept.
                during = _ask_during(lone, up, model_hash, (path, json.dumps({"X": [[1, 2, 3, 5 + number]]})))
                each.append(Lone(median(quiet), median(busy), median(during), max(during)))
                console.print(f"lone client, {workers} workers: {each[-1]}")
            quiet_ms, busy_ms, during_ms, worst_ms = zip(*each, strict=True)
            found[workers] = Lone(median(quiet_ms), median(busy_ms), median(during_ms), max(worst_ms))
    return found


@contextmanager
def _busy_loop() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _ask(client: Client, up: Stack, model_hash: str, ended: threading.Event, seconds: float) -> list[float]:
    """Ask one question after the other until `ended`, or for some seconds; return milliseconds."""
    latencies: list[float] = []
    deadline = time.monotonic() + seconds
    for number in itertools.count():
        if ended.is_set() or time.monotonic() > deadline:
            return latencies
        latencies.append(client.post(*_request(up.predict(model_hash), (number * 1e-3, time.monotonic() % 1, 2, 3))))
    raise AssertionError


def _ask_during(client: Client, up: Stack, model_hash: str, question: tuple[str, str]) -> list[float]:
    """Ask one question after the other while a slow one is answered; return milliseconds."""
    ended = threading.Event()

    def ask_slowly() -> None:
        try:
            Client(up.url).post(*question)
        finally:
            ended.set()

    thread = threading.Thread(target=ask_slowly)
    thread.start()
    try:
        return _ask(client, up, model_hash, ended, SLOW_S * 10)
    finally:
        thread.join()


def _make_slow(up: Stack) -> str:
    """Make a model, each of whose predictions takes about :data:`SLOW_S` seconds; return the path of questions."""
    client = Client(up.url)
    model = {"metadata": {"type": "bench", "slow": True}, "recipe": SLOW_RECIPE}
    client.post("/v1/models", json.dumps(model))
    (found,) = (one for one in _models(up) if one["metadata"].get("slow"))
    path = f"/v1/models/{found['hash']}"
    client.post(f"{path}/partial_fit", json.dumps({"X": [[1, 2, 3, 4]] * 16}), Prefer="wait=60")
    question = f"{path}/predict?timeout=120"
    iterations = FIRST_ITERATIONS
    for _ in range(3):
        change = json.dumps({"params": {"max_doc_update_iter": iterations}})
        client.post(path, change, method="PATCH", Prefer="wait=60")
        taken_s = client.post(question, json.dumps({"X": [[1, 2, 3, 4]]}), **{"Cache-Control": "no-cache"}) / 1000
        iterations = round(iterations * SLOW_S / taken_s)
    change = json.dumps({"params": {"max_doc_update_iter": iterations}})
    client.post(path, change, method="PATCH", Prefer="wait=60")
    return question


def _models(up: Stack) -> list[dict[str, Any]]:
    connection = http.client.HTTPConnection(urlsplit(up.url).netloc, timeout=60)
    connection.request("GET", "/v1/models?limit=1000")
    listed: list[dict[str, Any]] = json.loads(connection.getresponse().read())["models"]
    return listed


def report(samples: Samples, pairs: dict[str, tuple[float, float]], lone: dict[int, Lone]) -> str:
    """Return the three tables, in Markdown."""
    quiet, titles = BESIDES[0].title, [learning.title for learning in BESIDES]
    head = ["requests/s (p99 ms)", *titles]
    rows = [[ECHO, _cell(samples[ECHO, quiet]), *["-"] * (len(titles) - 1)]]
    ratios = []
    for case in CASES:
        rows.append([case.title, *(_cell(samples[case.title, title]) for title in titles)])
        first = samples[case.title, quiet]
        each = [times(_ratio(samples[case.title, title], first)) for title in titles[1:]]
        ratios.append([case.title, times(_ratio(first, samples[ECHO, quiet])), *each])
    waits = [[title, *(f"{figure:.2f}" for figure in figures)] for title, figures in pairs.items()]
    clients = [
        [
            str(workers),
            *(f"{ms:.2f}" for ms in one[:3]),
            *(f"{ms / one.quiet:.2f}x" for ms in one[1:3]),
            f"{one.worst:.0f}",
        ]
        for workers, one in lone.items()
    ]
    return "\n\n".join(
        [
            table(head, rows),
            "Requests/s divided by those of the echo, and by those of the same stack without learning:",
            table(["", "no learning / echo", *titles[1:]], ratios),
            "A client that learns one row and waits until it is learned, then predicts one, in turn:",
            table(["median, ms", "learn and wait", "predict"], waits),
            f"A lone client: alone, beside another program's busy loop, and beside a question that takes {SLOW_S:g} s:",
            table(["workers", "alone, ms", "loop, ms", "question, ms", "loop", "question", "worst, ms"], clients),
        ]
    )


def _cell(samples: Sequence[Sample]) -> str:
    return f"{median(one.rate for one in samples):,.0f} ({median(one.p99_ms for one in samples):.1f})"


def _ratio(some: Sequence[Sample], others: Sequence[Sample]) -> float:
    return median(one.rate / other.rate for one, other in zip(some, others, strict=True))


def main(
    quick: Annotated[bool, typer.Option("--quick", help="One round; print the tables and write nothing.")] = False,
) -> None:
    """Measure, and write the figures into docs/operations/while-learning.md."""
    require_wrk()
    console, rounds = Console(stderr=True), 1 if quick else ROUNDS
    seconds = SECONDS / 2 if quick else SECONDS
    samples = measure_besides(rounds, seconds, console)
    text = report(samples, measure_pairs(1, console), measure_lone(1 if quick else 3, console))
    if quick:
        Console().print(text, markup=False, highlight=False, soft_wrap=True)
        return
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    typer.run(main)
