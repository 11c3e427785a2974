"""Report the figures of a run: as JSON, as a table on the terminal, as a section of docs/operations/reliability.md.

Owns the list of figures and their names. Errors are reported as they were found.
"""

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.faults import schedule
from tests.faults.run import Outcome, WorkerFault

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / ".results"
DOCUMENT = ROOT / "docs/operations/reliability.md"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def percentile(values: Sequence[float], part: float) -> float | None:
    """Return the value below which the share `part` of all values lies; None without values."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)] if ordered else None


def _recovery_s(faults: Sequence[WorkerFault]) -> list[float]:
    return [fault.recovery_s for fault in faults if fault.recovery_s is not None]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _p50_p99(values: Sequence[float]) -> str:
    return f"{_seconds(percentile(values, 0.5))} / {_seconds(percentile(values, 0.99))} ({len(values)})"


def figures(outcome: Outcome) -> list[tuple[str, str]]:
    """Return the figures of a run as (name, value)."""
    settings, done, verdicts = outcome.settings, outcome.done, outcome.verdicts
    disturbed = [kill for kill in outcome.kills if kill.concurrent]
    # Kills without a concurrent fault that could delay the recovery.
    alone = [kill for kill in outcome.kills if not kill.concurrent]
    undisturbed = [pause for pause in outcome.pauses if pause.concurrent <= {schedule.PAUSE_WORKER}]
    short = [outage for outage in outcome.outages if outage.outage_s < 10]
    long = [outage for outage in outcome.outages if outage.outage_s >= 10]
    stack = f"{settings.workers} workers, {settings.gateways} gateways, {settings.models} models, "
    stack += f"TTL of lease and lock {settings.lease_ttl_s:g} s"
    return [
        ("run", f"{outcome.seconds:.0f} s, seed {settings.seed}"),
        ("stack", stack),
        ("rows sent = accepted = learned", " = ".join(
            f"{sum(counts):,}" for counts in (
                [v.sent for v in verdicts], [v.accepted for v in verdicts], [v.learned for v in verdicts]))),
        ("order hash of each model, as learned", ", ".join(v.order_hash[:12] for v in verdicts)),
        ("… as accepted", ", ".join(v.expected_order_hash[:12] for v in verdicts)),
        ("bundles equal to a plain loop, bit for bit", f"{sum(not v.errors for v in verdicts)} of {len(verdicts)}"),
        ("workers killed", f"{done[schedule.KILL_WORKER]}, {len(outcome.kills)} of them with claimed rows"),
        ("workers paused beyond lease and lock", f"{done[schedule.PAUSE_WORKER]}"),
        ("commits tried by paused workers, all refused", f"{outcome.refused}"),
        ("gateways killed", f"{done[schedule.KILL_GATEWAY]}"),
        ("Redis killed: store, queue", f"{done[schedule.KILL_STORE]}, {done[schedule.KILL_QUEUE]}"),
        ("connections cut, replies dropped, requests torn",
         f"{outcome.connections_cut}, {outcome.replies_dropped}, {outcome.requests_torn}"),
        ("Redis slowed, hung", f"{done[schedule.SLOW]}, {done[schedule.HANG]} times"),
        ("attempts of clients for those rows", f"{outcome.attempts:,}"),
        ("commits", f"{outcome.commits:,}"),
        ("a killed worker's claimed rows committed by another, p50 / p99 (kills)", _p50_p99(_recovery_s(alone))),
        ("… with another fault at the same time", _p50_p99(_recovery_s(disturbed))),
        ("a paused worker's claimed rows committed by another, p50 / p99 (pauses)", _p50_p99(_recovery_s(undisturbed))),
        ("store back: first answer, p50 / worst", _p50_worst([outage.answer_s for outage in short])),
        ("store back: first commit, p50 / worst", _p50_worst([outage.commit_s for outage in short])),
        *((f"store back after {outage.outage_s:.0f} s: first answer, first commit",
           f"{outage.answer_s:.2f} s, {outage.commit_s:.2f} s") for outage in long),
        ("all learned after the last row was sent", f"{outcome.drain_s:.1f} s"),
        ("errors found", f"{len(outcome.errors)}"),
    ]  # fmt: skip


def _p50_worst(values: Sequence[float]) -> str:
    return f"{_seconds(percentile(values, 0.5))} / {_seconds(max(values, default=None))} ({len(values)})"


def machine() -> str:
    """Describe the machine in a few words."""
    return f"{os.cpu_count()} CPUs, Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}"


def table(outcome: Outcome) -> Table:
    """Return the figures as a table for the terminal."""
    grid = Table("figure", "value", title="keepfit under faults")
    for name, value in figures(outcome):
        grid.add_row(name, value)
    return grid


def section(outcome: Outcome) -> str:
    """Return the figures as a section of the document, with its markers."""
    date = time.strftime("%Y-%m-%d", time.gmtime())
    lines = [
        BEGIN,
        f"`make faults` of {date} on {machine()}:",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in figures(outcome)),
        *(["", "Errors found:", "", *(f"- {error}" for error in outcome.errors[:20])] if outcome.errors else []),
        END,
    ]
    return "\n".join(lines)


def save(outcome: Outcome, results: Path = RESULTS) -> Path:
    """Write all results of a run to a JSON file; return its path."""
    results.mkdir(exist_ok=True)
    path = results / f"seed-{outcome.settings.seed}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.json"
    path.write_text(json.dumps({"figures": dict(figures(outcome)), **_to_json(outcome)}, indent=1))
    return path


def write(outcome: Outcome, document: Path = DOCUMENT) -> None:
    """Replace the figures in the document."""
    text = document.read_text()
    before, _, rest = text.partition(BEGIN)
    _, marker, after = rest.partition(END)
    assert marker, f"{document} has no markers for the figures"
    document.write_text(before + section(outcome) + after)


def _to_json(outcome: Outcome) -> dict[str, Any]:
    def listed(faults: Sequence[WorkerFault]) -> list[dict[str, Any]]:
        return [{**asdict(fault), "concurrent": sorted(fault.concurrent)} for fault in faults]

    return {
        "settings": asdict(outcome.settings),
        "done": dict(outcome.done),
        "kills": listed(outcome.kills),
        "pauses": listed(outcome.pauses),
        "outages": [asdict(outage) for outage in outcome.outages],
        "statuses": outcome.statuses,
        "verdicts": [verdict.as_dict() for verdict in outcome.verdicts],
        "errors": outcome.errors,
    }
