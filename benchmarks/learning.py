"""`python -m benchmarks.learning`: how fast one worker learns, compared with scikit-learn's own calls in a loop.

Owns the measurement and the table in docs/concepts/learning.md. Both sides run in this process, alternating, several
times; a ratio is of one round, and the table shows the median. *One worker* covers the whole path from a model's inbox
to its commits in a real Redis that syncs every write: claim, decode, evaluate, scale, learn, check for NaN, sign,
commit. *Computing* is the same without Redis. The loop is ``scaler.partial_fit``, ``scaler.transform``,
``estimator.partial_fit``, without evaluation.
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
# Requests between two checks for NaN, or in one merged call: as many as a worker claims at a time.
REQUESTS_PER_BATCH = commit.ENTRIES_MAX
# Merged learning is so fast that it needs this many pending requests for more than a few commits.
PENDING = 10_000
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
    """Rows per second of one round."""

    loop: float
    exact: float
    merged: float
    exact_worker: float
    merged_worker: float


def rows_of(name: str) -> tuple[Any, list[Any]]:
    """Return correlated numbers and their targets, the same on every call."""
    random = np.random.default_rng(0)
    X = random.normal(size=(ROWS, WIDTH)) * [1.0, 10.0, 0.1, 3.0]
    y = X @ [1.0, 0.01, 5.0, 2.0] + random.normal(size=ROWS)
    return X, y.tolist() if "Regressor" in name else ["no" if value < 0 else "yes" for value in y]


def recipe_of(name: str, params: dict[str, Any], updates: str) -> Recipe:
    """Return the measured recipe."""
    classes = None if "Regressor" in name else ["no", "yes"]
    return parse(
        {"estimator": name, "params": params, "scaler": "StandardScaler", "classes": classes, "updates": updates}
    )


def loop_s(name: str, params: dict[str, Any], X: Any, y: Any) -> float:
    """Return the seconds of the plain loop."""
    scaler, estimator = estimators.build_scaler("StandardScaler"), estimators.build(name, params)
    target = np.array(y)
    classes = {} if "Regressor" in name else {"classes": np.unique(target)}
    started = time.perf_counter()
    for i in range(len(X)):
        row = X[i : i + 1]
        scaler.partial_fit(row)
        estimator.partial_fit(scaler.transform(row), target[i : i + 1], **classes)
    return time.perf_counter() - started


def computing_s(recipe: Recipe, encoded: list[bytes]) -> float:
    """Return the seconds to learn requests of one row each, without Redis."""
    bundle = Bundle.new(recipe)
    started = time.perf_counter()
    for start in range(0, len(encoded), REQUESTS_PER_BATCH):
        rows = [Rows.decode(data) for data in encoded[start : start + REQUESTS_PER_BATCH]]
        if recipe.updates == "merged":
            rows = [concatenate(rows)]
        for each in rows:
            bundle.partial_fit_unchecked(each)
        bundle.check_finite()
    return time.perf_counter() - started


def worker_s(context: WorkerContext, recipe: Recipe, encoded: list[bytes]) -> float:
    """Return the seconds in which one worker learns and commits all requests of an inbox."""
    model_hash = identity.hash_of({"type": "learning", "run": uuid.uuid4().hex})
    _install(context, model_hash, recipe, encoded)
    started = time.perf_counter()
    while learn(context, model_hash, uuid.uuid4().hex):
        pass
    seconds = time.perf_counter() - started
    (learned,) = context.store.hmget(redis_keys.state(model_hash), "rows_seen")
    if int(learned or 0) != len(encoded):
        raise RuntimeError(f"{learned!r} of {len(encoded)} rows were learned")
    return seconds


def _install(context: WorkerContext, model_hash: str, recipe: Recipe, encoded: list[bytes]) -> None:
    """Install a model and fill its inbox with the scripts that gateways use."""
    import asyncio  # noqa: PLC0415 - only here: the measured code is synchronous

    from keepfit.backends import redis_clients  # noqa: PLC0415
    from keepfit.backends.redis_scripts import ScriptConnection  # noqa: PLC0415
    from keepfit.store import inbox  # noqa: PLC0415
    from keepfit.store.models import Install, Store  # noqa: PLC0415

    async def install() -> None:
        client = redis_clients.store_async(context.settings)
        connection = ScriptConnection(client)
        await Store(client).install(Install(model_hash, "{}", recipe.text(), 1))
        requests = [inbox.make_small_request(model_hash, 1, Rows.decode(data)) for data in encoded]
        await inbox.accept(connection, context.settings, [request for request in requests if request is not None])
        await connection.close()
        await client.aclose()

    asyncio.run(install())


def measure_round(context: WorkerContext, name: str, params: dict[str, Any]) -> Round:
    """Measure one round of one case."""
    X, y = rows_of(name)
    exact, merged = recipe_of(name, params, "exact"), recipe_of(name, params, "merged")
    encoded = [shape(exact, [row], [label], learning=True).encode() for row, label in zip(X.tolist(), y, strict=True)]
    pending = (encoded * (PENDING // ROWS))[:PENDING]
    return Round(
        ROWS / loop_s(name, params, X, y),
        ROWS / computing_s(exact, encoded),
        PENDING / computing_s(merged, pending),
        ROWS / worker_s(context, exact, encoded),
        PENDING / worker_s(context, merged, pending),
    )


def bundle_us(context: WorkerContext) -> tuple[float, int]:
    """Return the microseconds to seal and unseal a small bundle, and its size in bytes."""
    name, params = CASES["PassiveAggressive"]
    recipe = recipe_of(name, params, "exact")
    X, y = rows_of(name)
    bundle = Bundle.new(recipe)
    for row, value in zip(X[:1500].tolist(), y, strict=False):
        bundle.partial_fit(shape(recipe, [row], [value], learning=True))
    header = Header(BUNDLE, "ab" * 32, 1, 2, 3, bundle.rows_seen, "", runtime())
    stored = from_text(recipe.text())
    samples = []
    for _ in range(30):
        started = time.perf_counter()
        for _ in range(50):
            unseal(seal(bundle, context.keyring, header), context.keyring, stored, header.hash)
        samples.append((time.perf_counter() - started) / 50 * 1e6)
    return statistics.median(samples), len(seal(bundle, context.keyring, header))


@contextlib.contextmanager
def worker() -> Iterator[WorkerContext]:
    """Run a Redis and yield the context of a worker that uses it."""
    with tempfile.TemporaryDirectory(prefix="keepfit-learning-") as folder:
        port = servers.free_port()
        server = subprocess.Popen(servers.redis_command(port, Path(folder)), stdout=subprocess.DEVNULL)
        try:
            while not servers.accepts(port):
                time.sleep(0.02)
            url, ring = SecretStr(f"redis://127.0.0.1:{port}/0"), SecretStr("k1:" + os.urandom(32).hex())
            settings = load().model_copy(update={"store_url": url, "queue_url": None, "signing_keys": ring})
            context = WorkerContext(settings, "learning")
            yield context
            context.close()
        finally:
            server.terminate()
            server.wait()


def report(rounds: dict[str, list[Round]], bundle: tuple[float, int]) -> str:
    """Return the table as Markdown."""
    head = ["StandardScaler +", "loop, rows/s", "exact", "merged", "exact, one worker", "merged, one worker"]
    lines = []
    for title, of_case in rounds.items():
        base = statistics.median(single.loop for single in of_case)
        lines.append([title, f"{base:,.0f}", *(_cell(of_case, i) for i in range(1, 5))])
    us, size = bundle
    return f"{table(head, lines)}\n\nSealing and unsealing a bundle of {size:,} bytes takes {us:.0f} µs."


def _cell(rounds: list[Round], position: int) -> str:
    """Return the median of a rate, and the median of its ratio to the loop of the same round."""
    rate = statistics.median(single[position] for single in rounds)
    ratio = statistics.median(single[position] / single.loop for single in rounds)
    return f"{rate:,.0f} ({times(ratio)})"


def main(
    write: Annotated[bool, typer.Option("--write", help="Write the table to docs/concepts/learning.md.")] = False,
    rounds: Annotated[int, typer.Option(help="Number of rounds; the table shows their median.")] = ROUNDS,
) -> None:
    """Measure how fast one worker learns single rows, compared with scikit-learn's own calls in a loop."""
    results: dict[str, list[Round]] = {title: [] for title in CASES}
    err = Console(stderr=True)
    # One thread per worker, as keepfit configures it.
    with threadpool_limits(1), worker() as context:
        # As a worker's supervisor does, so that garbage collections skip imported modules.
        gc.collect()
        gc.freeze()
        steps = [(title, *case) for _ in range(rounds) for title, case in CASES.items()]
        for title, name, params in track(steps, "learning", console=err):
            results[title].append(measure_round(context, name, params))
        text = report(results, bundle_us(context))
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
    if write:
        page = PAGE.read_text()
        before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
        PAGE.write_text(f"{before}\n\n{text}\n\n{after}")


if __name__ == "__main__":
    typer.run(main)
