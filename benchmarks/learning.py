"""`python -m benchmarks.learning`: how fast one worker learns, against scikit-learn's own calls in a loop.

Owns the measurement and the table in docs/concepts/learning.md.
Both sides run in this process, in turns, several times; ratios
are of the same round, their median is told. *One worker* is the whole way from a model's inbox to its commits in a real
Redis that syncs every write: take, decode, evaluate, scale, learn, look for NaN, sign, commit. *Computing* is the same
without Redis. The loop is ``scaler.partial_fit``, ``scaler.transform``, ``estimator.partial_fit``, and no evaluation.
"""

import contextlib
import gc
import os
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from pydantic import SecretStr
from rich.console import Console
from rich.progress import track
from threadpoolctl import threadpool_limits

from benchmarks.report import table, times
from keepfit import identity
from keepfit.backends import redis_keys
from keepfit.local import servers
from keepfit.model import estimators
from keepfit.model.bundle import Bundle
from keepfit.model.serialization import seal, unseal
from keepfit.recipe.recipe import Recipe, from_text, parse
from keepfit.rows.rows import Rows, concatenate
from keepfit.rows.shaping import shape
from keepfit.security.envelope import BUNDLE, Header, runtime
from keepfit.settings import load
from keepfit.store import commit
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn

ROWS, WIDTH, ROUNDS = 2_000, 4, 7
# Requests that are learned between two looks for NaN, or merged, as many as a worker takes in one go.
AT_ONCE = commit.ENTRIES_MAX
# Merged is so much faster that a few commits would be all there is to see: as many requests wait as may.
WAITING = 10_000
PAGE = Path(__file__).parents[1] / "docs/concepts/learning.md"
BEGIN, END = "<!-- measured -->", "<!-- end -->"

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD, l2": ("SGDRegressor", {}),
    "PassiveAggressive": ("PassiveAggressiveRegressor", {"C": 0.5}),
    "SGD classifier, log loss": ("SGDClassifier", {"loss": "log_loss"}),
    "Perceptron": ("Perceptron", {}),
    "GaussianNB": ("GaussianNB", {}),
}


class Round(NamedTuple):
    """Rows a second of one round."""

    loop: float
    exact: float
    merged: float
    exact_worker: float
    merged_worker: float


def rows_of(name: str) -> tuple[Any, list[Any]]:
    """A stream of numbers that have to do with each other, the same every time."""
    random = np.random.default_rng(0)
    X = random.normal(size=(ROWS, WIDTH)) * [1.0, 10.0, 0.1, 3.0]
    y = X @ [1.0, 0.01, 5.0, 2.0] + random.normal(size=ROWS)
    return X, y.tolist() if "Regressor" in name else ["no" if value < 0 else "yes" for value in y]


def recipe_of(name: str, params: dict[str, Any], updates: str) -> Recipe:
    """The recipe that is measured."""
    classes = None if "Regressor" in name else ["no", "yes"]
    return parse(
        {"estimator": name, "params": params, "scaler": "StandardScaler", "classes": classes, "updates": updates}
    )


def loop(name: str, params: dict[str, Any], X: Any, y: Any) -> float:
    """Seconds of the plain loop."""
    scaler, estimator = estimators.build_scaler("StandardScaler"), estimators.build(name, params)
    target = np.array(y)
    more = {} if "Regressor" in name else {"classes": np.unique(target)}
    started = time.perf_counter()
    for i in range(len(X)):
        row = X[i : i + 1]
        scaler.partial_fit(row)
        estimator.partial_fit(scaler.transform(row), target[i : i + 1], **more)
    return time.perf_counter() - started


def computing(recipe: Recipe, encoded: list[bytes]) -> float:
    """Seconds to learn requests of a row each, as one worker computes them."""
    bundle = Bundle.new(recipe)
    started = time.perf_counter()
    for start in range(0, len(encoded), AT_ONCE):
        rows = [Rows.decode(data) for data in encoded[start : start + AT_ONCE]]
        if recipe.updates == "merged":
            rows = [concatenate(rows)]
        for each in rows:
            bundle.learn(each)
        bundle.check()
    return time.perf_counter() - started


def working(process: WorkerContext, recipe: Recipe, encoded: list[bytes]) -> float:
    """Seconds in which one worker learns and commits what waits in an inbox."""
    model_hash = identity.hash_of({"type": "learning", "run": uuid.uuid4().hex})
    _install(process, model_hash, recipe, encoded)
    started = time.perf_counter()
    while learn(process, model_hash, uuid.uuid4().hex):
        pass
    seconds = time.perf_counter() - started
    (learned,) = process.store.hmget(redis_keys.state(model_hash), "rows_seen")
    if int(learned or 0) != len(encoded):
        raise RuntimeError(f"{learned!r} rows were learned of {len(encoded)}")
    return seconds


def _install(process: WorkerContext, model_hash: str, recipe: Recipe, encoded: list[bytes]) -> None:
    """Put a model and its full inbox into Redis, by the scripts that gateways use."""
    import asyncio  # noqa: PLC0415 - here only: what is measured is sync

    from keepfit.backends import redis_clients  # noqa: PLC0415
    from keepfit.backends.redis_scripts import ScriptConnection  # noqa: PLC0415
    from keepfit.store import inbox  # noqa: PLC0415
    from keepfit.store.models import Install, Store  # noqa: PLC0415

    async def put() -> None:
        client = redis_clients.store_async(process.settings)
        line = ScriptConnection(client)
        await Store(client).install(Install(model_hash, "{}", recipe.text(), 1))
        asked = [inbox.small_request(model_hash, 1, Rows.decode(data)) for data in encoded]
        await inbox.put(line, process.settings, [request for request in asked if request is not None])
        await line.close()
        await client.aclose()

    asyncio.run(put())


def measured(process: WorkerContext, name: str, params: dict[str, Any]) -> Round:
    """One round of everything."""
    X, y = rows_of(name)
    exact, merged = recipe_of(name, params, "exact"), recipe_of(name, params, "merged")
    encoded = [shape(exact, [row], [label], learning=True).encode() for row, label in zip(X.tolist(), y, strict=True)]
    waiting = (encoded * (WAITING // ROWS))[:WAITING]
    return Round(
        ROWS / loop(name, params, X, y),
        ROWS / computing(exact, encoded),
        WAITING / computing(merged, waiting),
        ROWS / working(process, exact, encoded),
        WAITING / working(process, merged, waiting),
    )


def bundle_us(process: WorkerContext) -> tuple[float, int]:
    """Microseconds to seal a small bundle and to read it again, and its size."""
    name, params = CASES["PassiveAggressive"]
    recipe = recipe_of(name, params, "exact")
    X, y = rows_of(name)
    bundle = Bundle.new(recipe)
    for row, value in zip(X[:1500].tolist(), y, strict=False):
        bundle.partial_fit(shape(recipe, [row], [value], learning=True))
    header = Header(BUNDLE, "ab" * 32, 1, 2, 3, bundle.rows_seen, "", runtime())
    stored = from_text(recipe.text())
    best = []
    for _ in range(30):
        started = time.perf_counter()
        for _ in range(50):
            unseal(seal(bundle, process.keyring, header), process.keyring, stored, header.hash)
        best.append((time.perf_counter() - started) / 50 * 1e6)
    return statistics.median(best), len(seal(bundle, process.keyring, header))


@contextlib.contextmanager
def worker() -> Iterator[WorkerContext]:
    """A worker's process context with a Redis of its own."""
    with tempfile.TemporaryDirectory(prefix="keepfit-learning-") as folder:
        port = servers.free_port()
        server = subprocess.Popen(servers.redis_command(port, Path(folder)), stdout=subprocess.DEVNULL)
        try:
            while not servers.accepts(port):
                time.sleep(0.02)
            url, ring = SecretStr(f"redis://127.0.0.1:{port}/0"), SecretStr("k1:" + os.urandom(32).hex())
            settings = load().model_copy(update={"store_url": url, "queue_url": None, "signing_keys": ring})
            process = WorkerContext(settings, "learning")
            yield process
            process.close()
        finally:
            server.terminate()
            server.wait()


def report(rounds: dict[str, list[Round]], bundle: tuple[float, int]) -> str:
    """The table, in Markdown."""
    head = ["StandardScaler +", "loop, rows/s", "exact", "merged", "exact, one worker", "merged, one worker"]
    lines = []
    for title, each in rounds.items():
        base = statistics.median(one.loop for one in each)
        lines.append([title, f"{base:,.0f}", *(_cell(each, i) for i in range(1, 5))])
    us, size = bundle
    return f"{table(head, lines)}\n\nA bundle of {size:,} bytes is sealed and read again in {us:.0f} us."


def _cell(rounds: list[Round], position: int) -> str:
    """Median of a rate, and the median of its ratio to the loop of the same round."""
    rate = statistics.median(one[position] for one in rounds)
    return f"{rate:,.0f} ({times(statistics.median(one[position] / one.loop for one in rounds))})"


def main(
    write: Annotated[bool, typer.Option("--write", help="Put the table into docs/concepts/learning.md.")] = False,
    rounds: Annotated[int, typer.Option(help="Rounds, of which the median is told.")] = ROUNDS,
) -> None:
    """Measure how fast one worker learns single rows, against scikit-learn's own calls in a loop."""
    told: dict[str, list[Round]] = {title: [] for title in CASES}
    err = Console(stderr=True)
    # One thread for one worker, as keepfit's workers have it.
    with threadpool_limits(1), worker() as process:
        # As a worker's supervisor does: what was imported is not looked through for garbage again and again.
        gc.collect()
        gc.freeze()
        steps = [(title, *case) for _ in range(rounds) for title, case in CASES.items()]
        for title, name, params in track(steps, "learning", console=err):
            told[title].append(measured(process, name, params))
        text = report(told, bundle_us(process))
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
    if write:
        page = PAGE.read_text()
        before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
        PAGE.write_text(f"{before}\n\n{text}\n\n{after}")


if __name__ == "__main__":
    typer.run(main)
