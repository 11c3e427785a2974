"""Pull a large Parquet file through kills, and compare the model with that of the same rows sent over HTTP.

Run it alone: ``python -m tests.recovery.big_pull --megabytes 2048``. It prints the memory of all processes of keepfit
(the sum of their proportional shares, PSS), how often they were killed, and in what the two models differ.
"""

import argparse
import asyncio
import io
import os
import signal
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from keepfit.backends import redis_clients, redis_keys
from keepfit.model.bundle import Bundle
from keepfit.model.serialization import unseal
from keepfit.recipe import recipe
from keepfit.security.envelope import Keyring
from tests.conftest import Stack, start_stack, stop_stack
from tests.faults.check import differences

COLUMNS = 31
ROW_BYTES = 8 * COLUMNS
PART_ROWS = 50_000
RECIPE = {"estimator": "SGDRegressor", "params": {"random_state": 7, "eta0": 0.001}, "scaler": "StandardScaler"}
NAMES = [*(f"x{i}" for i in range(COLUMNS - 1)), "target"]
KILLS = (0.2, 0.5, 0.8)


@dataclass
class Proof:
    """What a run has shown. Memory is in bytes, by the name of the service, at the moment of the largest sum."""

    rows: int
    kills: int = 0
    memory: dict[str, int] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    pulled: dict[str, Any] = field(default_factory=dict)
    sent: dict[str, Any] = field(default_factory=dict)
    bundles: list[Bundle] = field(default_factory=list)
    predictions: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def differences(self) -> list[str]:
        """In what the two bundles, or their answers, differ, to the last bit; and whether each row is learned once."""
        pulled, sent = self.bundles
        found = differences(pulled, sent)
        found += [f"{name} differ" for name in ("rows_seen", "metrics") if self.pulled[name] != self.sent[name]]
        if self.predictions[0] != self.predictions[1]:
            found.append("predictions differ")
        if {pulled.rows_seen, sent.rows_seen, self.pulled["rows_seen"]} != {self.rows}:
            found.append(f"{pulled.rows_seen} and {sent.rows_seen} rows are learned, {self.rows} are right")
        return found


def write(path: Path, rows: int, group_rows: int = 1_000_000) -> None:
    """Write rows of random numbers, uncompressed, in row groups of a million rows."""
    rng = np.random.default_rng(5)
    schema = pa.schema([(name, pa.float64()) for name in NAMES])
    with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for begin in range(0, rows, group_rows):
            parts = []
            for start in range(begin, min(begin + group_rows, rows), PART_ROWS):
                values = rng.normal(size=(min(PART_ROWS, rows - start, begin + group_rows - start), COLUMNS))
                values[:, -1] = values[:, :-1].sum(axis=1)
                parts.append(pa.RecordBatch.from_arrays([pa.array(column) for column in values.T], schema=schema))
            writer.write_table(pa.Table.from_batches(parts), group_rows)


def memory_of(stack: Stack) -> dict[str, int]:
    """Return the proportional memory of each service of a stack, with all processes below it."""
    found: dict[str, int] = {}
    for name, pid in {**stack.pids(), "up": stack.process.pid}.items():
        pids = [pid] if name == "up" else [pid, *descendants(pid)]
        found[name] = sum(map(pss_of, pids))
    return found


def descendants(pid: int) -> list[int]:
    """Return the processes below a process."""
    try:
        children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(below for child in children for below in descendants(child))]


def pss_of(pid: int) -> int:
    """Return the proportional memory of a process."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def pull_process(stack: Stack) -> int | None:
    """Return the process that runs the job: the youngest child of the supervisor."""
    children = stack.workers()
    workers = int(stack.environment().get("KEEPFIT_WORKERS", 2))
    return max(children) if len(children) > workers else None


async def prove(stack: Stack, source: Path, rows: int, rows_per_call: int, kills: tuple[float, ...] = KILLS) -> Proof:
    """Pull a source that :func:`write` wrote, send the same rows over HTTP, and return what that has shown."""
    proof, began_s, left = Proof(rows), time.monotonic(), list(kills)
    async with aiohttp.ClientSession(stack.url) as http:
        models = [await create(http), await create(http)]
        body = {"url": source.as_uri(), "target": "target", "rows_per_call": rows_per_call}
        async with http.post(f"/v1/models/{models[0]}/pull", json=body) as answer:
            job = (await answer.json())["job"]
        while not proof.job or proof.job["ended"] is None:
            proof.job = await get(http, f"/v1/jobs/{job}")
            now = memory_of(stack)
            proof.memory = max(proof.memory, now, key=lambda memory: sum(memory.values()))
            if left and proof.job["rows"]["done"] >= left[0] * rows and (pid := pull_process(stack)):
                os.kill(pid, signal.SIGKILL)
                proof.kills += 1
                left.pop(0)
            await asyncio.sleep(0.02)
        proof.pulled = await learned(http, models[0])
        proof.seconds = time.monotonic() - began_s
        await send(http, models[1], source, rows_per_call)
        proof.sent = await learned(http, models[1])
        proof.bundles = [bundle_of(stack, model) for model in models]
        X = np.random.default_rng(7).normal(size=(50, COLUMNS - 1)).tolist()
        for model in models:
            async with http.post(f"/v1/models/{model}/predict", json={"X": X}) as answer:
                proof.predictions.append((await answer.json())["predictions"])
    return proof


def bundle_of(stack: Stack, model: str) -> Bundle:
    """Return the live bundle of a model."""
    settings = stack.settings()
    with redis_clients.store_sync(settings) as store:
        data = store.get(redis_keys.bundle(model))
    keyring = Keyring.from_text(settings.signing_keys.get_secret_value())
    return unseal(data, keyring, recipe.parse(RECIPE), model)[1]


async def create(http: aiohttp.ClientSession) -> str:
    """Create a model; return its hash."""
    metadata = {"type": "numbers", "session": uuid.uuid4().hex}
    async with http.post("/v1/models", json={"metadata": metadata, "recipe": RECIPE}) as answer:
        return str((await answer.json())["hash"])


async def get(http: aiohttp.ClientSession, path: str) -> dict[str, Any]:
    """Return an answer."""
    async with http.get(path) as answer:
        assert answer.status == 200, await answer.text()
        return dict(await answer.json())


async def learned(http: aiohttp.ClientSession, model: str) -> dict[str, Any]:
    """Return a model once its inbox is empty."""
    while (found := await get(http, f"/v1/models/{model}"))["inbox"]:  # noqa: ASYNC110 - the gateway says it
        await asyncio.sleep(0.05)
    return found


async def send(http: aiohttp.ClientSession, model: str, source: Path, rows_per_call: int) -> None:
    """Send the rows as arrays, in the same requests, each until it is accepted."""
    waiting = np.empty((0, COLUMNS))
    batches = parquet.ParquetFile(source).iter_batches(PART_ROWS)
    for batch in batches:
        waiting = np.concatenate([waiting, np.column_stack([column.to_numpy() for column in batch.columns])])
        while len(waiting) >= rows_per_call:
            await send_rows(http, model, waiting[:rows_per_call])
            waiting = waiting[rows_per_call:]
    if len(waiting):
        await send_rows(http, model, waiting)


async def send_rows(http: aiohttp.ClientSession, model: str, values: np.ndarray) -> None:
    """Send one request."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(values))
    headers = {"Content-Type": "application/x-npy"}
    while True:
        async with http.post(f"/v1/models/{model}/partial_fit", data=file.getvalue(), headers=headers) as answer:
            if answer.status == 202:
                return
            assert answer.status in (429, 503), await answer.text()
        await asyncio.sleep(0.1)


def main(words: list[str]) -> int:
    """Run the proof; return 0 if the models do not differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=2048)
    parser.add_argument("--rows-per-call", type=int, default=5000)
    options = parser.parse_args(words)
    rows = options.megabytes * 2**20 // ROW_BYTES
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "numbers.parquet"
        write(source, rows)
        print(f"{source.stat().st_size:,} bytes, {rows:,} rows")  # noqa: T201 - a program
        environment = {"KEEPFIT_PULL_PREFIXES": Path(folder).as_uri()}
        stack = start_stack(Path(folder) / "data", environment=environment)
        try:
            proof = asyncio.run(prove(stack, source, rows, options.rows_per_call))
        finally:
            stop_stack(stack)
    total = sum(proof.memory.values())
    print(f"{proof.job['state']}, {proof.kills} kills, pulled and learned in {proof.seconds:.0f} s")  # noqa: T201
    for name, size in sorted(proof.memory.items()):
        print(f"{name}: {size / 1e6:.0f} MB")  # noqa: T201
    print(f"in all: {total / 1e6:.0f} MB; differences: {proof.differences or 'none'}")  # noqa: T201
    return 1 if proof.differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
