"""The command `keepfit status`: the state of the whole deployment on one screen, and as an exit code for scripts.

Owns its texts and exit codes; :mod:`keepfit.cli.deployment` reads the state. Invariant: it changes nothing, and prints
what it could read, whatever does not answer.
"""

import asyncio
import time
from typing import Any

import typer

from keepfit.cli import hashes, options
from keepfit.cli.gateway_calls import AsJson, Url
from keepfit.cli.options import load_settings
from keepfit.cli.output import Column, print_json, print_table
from keepfit.times import format_time

COLUMNS = (Column("part"), Column("state", "wrap"))
EXIT_CODES = {"ok": 0, "degraded": 1, "unavailable": 3}


def status(url: Url = None, as_json: AsJson = False) -> None:
    """Show whether everything runs: gateway, servers, workers, models, pending rows and snapshots."""
    from keepfit.cli.deployment import read  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.observability import logs  # noqa: PLC0415

    logs.configure_plain()
    settings = load_settings()
    state = asyncio.run(read(settings, url or options.gateway_url(settings), options.data_folder()))
    if as_json:
        print_json([state])
    else:
        print_table(COLUMNS, _lines(state), "nothing")
    raise typer.Exit(EXIT_CODES[state["status"]])


def _lines(state: dict[str, Any]) -> list[tuple[str, str]]:
    up, gateway = state["up"], state["gateway"]
    ready = gateway["ready"] or {}
    lines = [
        ("status", state["status"]),
        ("keepfit up", f"runs with pid {up['pid']} at {up['url']}" if up else "does not run on this folder"),
        ("gateway", f"{ready['status']} at {gateway['url']}{_processes(gateway)}" if ready else gateway["state"]),
        ("gateways", _gateways(state["gateways"]) if state["queue"] == "ok" else "unknown"),
        *((part, state[part]) for part in ("store", "queue", "history", "storage")),
    ]
    if "row_log" in ready:
        lines.append(("row log", ready["row_log"]))
    workers = state["workers"]
    shown = hashes.shown(found for worker in workers for held in worker["holds"] for found in held["models"])
    busy = ", all in long calls" if "detail" in ready else ""
    lines.append(("workers", f"{len(workers)} alive{busy}"))
    lines += [(f"  {worker['name']}", _work(worker, shown)) for worker in workers]
    lines.append(("models", _models(state["models"])))
    lines.append(("waiting", _waiting(state["waiting"])))
    lines.append(("snapshots", _snapshots(state["snapshots"])))
    return lines


def _gateways(records: list[dict[str, Any]]) -> str:
    """Return how many processes of gateways are alive, on how many machines, and what they do."""
    if not records:
        return "none alive"
    processes = "1 process" if len(records) == 1 else f"{len(records)} processes"
    hosts = len({record["host"] for record in records})
    where = f" on {hosts} machines" if hosts > 1 else ""
    rate = sum(record["requests_per_s"] for record in records)
    return f"{processes} alive{where}, {rate:.1f} requests/s"


def _processes(gateway: dict[str, Any]) -> str:
    """Return how many processes a gateway has; "" for one, or if it is not known."""
    return f", {gateway['processes']} processes" if (gateway["processes"] or 1) > 1 else ""


def _work(worker: dict[str, Any], shown: Any) -> str:
    words = []
    for held in worker["holds"]:
        if held["queue"] == "learn":
            words.append(f"learns {', '.join(shown[found] for found in held['models'])}" if held["models"] else "")
        elif held["requests"]:
            words.append(f"answers {_count(held['requests'], 'request')}")
    return "; ".join(filter(None, words)) or "idle"


def _models(models: dict[str, Any]) -> str:
    if models["registered"] is None and models["live"] is None:
        return "unknown"
    found = [f"{models[name]} {words}" for name, words in (("registered", "registered"), ("live", "in Redis"))
             if models[name] is not None]  # fmt: skip
    return ", ".join(found)


def _count(number: int, noun: str) -> str:
    """Return a number of things.

    >>> _count(1, "model"), _count(0, "row")
    ('1 model', '0 rows')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _waiting(waiting: dict[str, Any] | None) -> str:
    if waiting is None:
        return "unknown"
    if not waiting["requests"]:
        return "no rows wait to be learned"
    least = "at least " if waiting["rows_counted_in"] < waiting["requests"] else ""
    age = "" if waiting["oldest_s"] is None else f", unclaimed for {waiting['oldest_s']:.1f} s"
    counts = [_count(waiting[f"{noun}s"], noun) for noun in ("row", "request", "model")]
    return f"{least}{counts[0]} in {counts[1]} of {counts[2]}{age}"


def _snapshots(snapshots: dict[str, Any]) -> str:
    last = snapshots["last"]
    words = ["none yet"]
    if last is not None:
        words = [f"last {format_time(last['timestamp'])}, {max(0.0, time.time() - last['timestamp']):.0f} s ago"]
    if "changed" in snapshots:
        words.append(f"{_count(snapshots['changed'], 'model')} changed since")
    if snapshots.get("failed"):
        words.append(f"{snapshots['failed']} failed: {snapshots['reason']}")
    return ", ".join(words)
