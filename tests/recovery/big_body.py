"""Send one body of CSV and one of Parquet, as large as a body may be, and print the memory that they take.

Run it alone: ``python -m tests.recovery.big_body --megabytes 500``. For each it starts a stack with one worker, which
has learned a few rows of that kind before, and prints the size of the body and that of its rows as float64. Then it
prints the memory of the gateway and that of the worker (the sum of the proportional shares of its processes, PSS)
before the body and at its highest, by samples of every 20 ms.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from tests.conftest import PATIENT, Stack, start_stack, stop_stack
from tests.recovery.big_pull import ROW_BYTES, create, learned, memory_of, write

TYPES = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet"}
PART_BYTES = 1 << 20
SMALL_ROWS = 1000
LIMITS = {**PATIENT, "KEEPFIT_BODY_TIMEOUT_S": "600"}


def write_csv(path: Path, source: Path, bytes_max: int) -> int:
    """Write rows of a Parquet file as CSV, up to a number of bytes; return how many."""
    rows = 0
    file = parquet.ParquetFile(source)
    with path.open("wb") as output, arrow_csv.CSVWriter(output, file.schema_arrow) as writer:
        for batch in file.iter_batches(10_000):
            if output.tell() * (1 + batch.num_rows / max(rows, 1)) > bytes_max:
                break
            writer.write(batch)
            rows += batch.num_rows
    return rows


async def parts(path: Path) -> AsyncIterator[bytes]:
    """Yield a file in parts."""
    with path.open("rb") as file:
        while part := await asyncio.to_thread(file.read, PART_BYTES):
            yield part


async def send(http: aiohttp.ClientSession, model: str, path: Path, rows_seen: int) -> None:
    """Send a file in one request, and wait until the model has learned it: so many rows in all."""
    size = (await asyncio.to_thread(path.stat)).st_size
    headers = {"Content-Type": TYPES[path.suffix[1:]], "Content-Length": str(size)}
    url = f"/v1/models/{model}/partial_fit?target=target"
    async with http.post(url, data=parts(path), headers=headers) as answer:
        assert answer.status == 202, await answer.text()
    assert (await learned(http, model))["rows_seen"] == rows_seen


async def measure(stack: Stack, small: Path, large: Path, rows: int) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Send a small file and one of `rows` rows; return the memory of each service before the second and its highest."""
    async with aiohttp.ClientSession(stack.url, timeout=aiohttp.ClientTimeout(None)) as http:
        model = await create(http)
        await send(http, model, small, SMALL_ROWS)
        before = memory_of(stack)
        most, sending = before, asyncio.create_task(send(http, model, large, SMALL_ROWS + rows))
        while not sending.done():
            now = memory_of(stack)
            most = {name: max(most.get(name, 0), size) for name, size in now.items()}
            await asyncio.sleep(0.02)
        await sending
    return before, most


def main(words: list[str]) -> int:
    """Measure both, and return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    size = parser.parse_args(words).megabytes * 10**6
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {kind: (folder / f"small.{kind}", folder / f"large.{kind}") for kind in ("parquet", "csv")}
        rows = dict.fromkeys(files, int(size * 0.99) // ROW_BYTES)
        write(files["parquet"][0], SMALL_ROWS)
        write(files["parquet"][1], rows["parquet"])
        assert write_csv(files["csv"][0], files["parquet"][0], size) == SMALL_ROWS
        rows["csv"] = write_csv(files["csv"][1], files["parquet"][1], size)
        for kind, (small, large) in files.items():
            stack = start_stack(folder / f"data of {kind}", workers=1, limits=LIMITS)
            try:
                before, most = asyncio.run(measure(stack, small, large, rows[kind]))
            finally:
                stop_stack(stack)
            print(f"{kind}: {large.stat().st_size / 1e6:.0f} MB, as float64 {rows[kind] * ROW_BYTES / 1e6:.0f} MB")  # noqa: T201
            for service in sorted(most):
                print(f"  {service}: {before.get(service, 0) / 1e6:.0f} MB, then {most[service] / 1e6:.0f} MB")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
