"""Figures of a run: as JSON, as a table on the terminal, and as a section of docs/operations/reliability.md.

Owns which figures there are and what they are called. Never judges: what is wrong is said as it was found.
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
from tests.faults.storm import Death, Outcome

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / ".results"
DOCUMENT = ROOT / "docs/operations/reliability.md"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def percentile(values: Sequence[float], part: float) -> float | None:
    """Value below which `part` of all are, None of none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)] if ordered else None


def _took(deaths: Sequence[Death]) -> list[float]:
    return [death.took_s for death in deaths if death.took_s is not None]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _p50_p99(values: Sequence[float]) -> str:
    return f"{_seconds(percentile(values, 0.5))} / {_seconds(percentile(values, 0.99))} ({len(values)})"


def figures(outcome: Outcome) -> list[tuple[str, str]]:
    """Figures of a run, as (name, value)."""
    settings, done, verdicts = outcome.settings, outcome.done, outcome.verdicts
    # A killed worker whose work nobody else was kept from taking up.
    alone = [death for death in outcome.deaths if not death.meanwhile]
    undisturbed = [sleep for sleep in outcome.sleeps if sleep.meanwhile <= {schedule.PAUSE_WORKER}]
    short = [away for away in outcome.away if away.away_s < 10]
    long = [away for away in outcome.away if away.away_s >= 10]
    stack = f"{settings.workers} workers, {settings.gateways} gateways, {settings.models} models, "
    stack += f"a lease or lock lives {settings.lease_ttl_s:g} s"
    return [
        ("run", f"{outcome.seconds:.0f} s, seed {settings.seed}"),
        ("stack", stack),
        ("rows sent = accepted = learned", " = ".join(
            f"{sum(counts):,}" for counts in (
                [v.sent for v in verdicts], [v.accepted for v in verdicts], [v.learned for v in verdicts]))),
        ("order hash of each model, as learned", ", ".join(v.order_hash[:12] for v in verdicts)),
        ("… as accepted", ", ".join(v.expected_order_hash[:12] for v in verdicts)),
        ("bundles equal to a plain loop, bit for bit", f"{sum(not v.faults for v in verdicts)} of {len(verdicts)}"),
        ("workers killed", f"{done[schedule.KILL_WORKER]}, {len(outcome.deaths)} of them with claimed rows"),
        ("workers paused beyond lease and lock", f"{done[schedule.PAUSE_WORKER]}"),
        ("commits tried by paused workers, all refused", f"{outcome.refused}"),
        ("gateways killed", f"{done[schedule.KILL_GATEWAY]}"),
        ("Redis killed: store, queue", f"{done[schedule.KILL_STORE]}, {done[schedule.KILL_QUEUE]}"),
        ("connections cut, replies dropped, requests torn",
         f"{outcome.connections_cut}, {outcome.replies_dropped}, {outcome.requests_torn}"),
        ("Redis slowed, hung", f"{done[schedule.SLOW]}, {done[schedule.HANG]} times"),
        ("attempts of clients for those rows", f"{outcome.attempts:,}"),
        ("commits", f"{outcome.commits:,}"),
        ("a killed worker's claimed rows committed by another, p50 / p99 (kills)", _p50_p99(_took(alone))),
        ("… with another fault at the same time", _p50_p99(_took([d for d in outcome.deaths if d.meanwhile]))),
        ("a paused worker's claimed rows committed by another, p50 / p99 (pauses)", _p50_p99(_took(undisturbed))),
        ("store back: first answer, p50 / worst", _p50_worst([away.answer_s for away in short])),
        ("store back: first commit, p50 / worst", _p50_worst([away.commit_s for away in short])),
        *((f"store back after {away.away_s:.0f} s: first answer, first commit",
           f"{away.answer_s:.2f} s, {away.commit_s:.2f} s") for away in long),
        ("all learned after the last row was sent", f"{outcome.drained_s:.1f} s"),
        ("errors found", f"{len(outcome.faults)}"),
    ]  # fmt: skip


def _p50_worst(values: Sequence[float]) -> str:
    return f"{_seconds(percentile(values, 0.5))} / {_seconds(max(values, default=None))} ({len(values)})"


def machine() -> str:
    """Where it ran, in a few words."""
    return f"{os.cpu_count()} CPUs, Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}"


def table(outcome: Outcome) -> Table:
    """Figures as a table for the terminal."""
    drawn = Table("figure", "value", title="keepfit under faults")
    for name, value in figures(outcome):
        drawn.add_row(name, value)
    return drawn


def section(outcome: Outcome) -> str:
    """Figures as a section of the document, between its markers."""
    date = time.strftime("%Y-%m-%d", time.gmtime())
    lines = [
        BEGIN,
        f"`make faults` of {date} on {machine()}:",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in figures(outcome)),
        *(["", "Errors found:", "", *(f"- {fault}" for fault in outcome.faults[:20])] if outcome.faults else []),
        END,
    ]
    return "\n".join(lines)


def keep(outcome: Outcome, results: Path = RESULTS) -> Path:
    """Write all that is known of a run into a JSON file; return the file."""
    results.mkdir(exist_ok=True)
    path = results / f"seed-{outcome.settings.seed}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.json"
    path.write_text(json.dumps({"figures": dict(figures(outcome)), **_plain(outcome)}, indent=1))
    return path


def write(outcome: Outcome, document: Path = DOCUMENT) -> None:
    """Write the figures into the document."""
    text = document.read_text()
    before, _, rest = text.partition(BEGIN)
    _, marker, after = rest.partition(END)
    assert marker, f"{document} has no markers for the figures"
    document.write_text(before + section(outcome) + after)


def _plain(outcome: Outcome) -> dict[str, Any]:
    def listed(deaths: Sequence[Death]) -> list[dict[str, Any]]:
        return [{**asdict(death), "meanwhile": sorted(death.meanwhile)} for death in deaths]

    return {
        "settings": asdict(outcome.settings),
        "done": dict(outcome.done),
        "deaths": listed(outcome.deaths),
        "sleeps": listed(outcome.sleeps),
        "away": [asdict(away) for away in outcome.away],
        "statuses": outcome.statuses,
        "verdicts": [verdict.as_dict() for verdict in outcome.verdicts],
        "faults": outcome.faults,
    }
