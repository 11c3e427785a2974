"""Report a run: as a table on the terminal, and as a section of docs/operations/abuse.md. Owns the bounds of a run."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from tests.abuse.attacks import ATTACKS
from tests.abuse.run import MB, Outcome, Window, count_of
from tests.faults.report import machine, percentile

DOCUMENT = Path(__file__).parents[2] / "docs/operations/abuse.md"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
HEAD = ("attack", "what it did and was answered", "p50", "p99", "worst", "errors", "gateway", "Redis")

# What a well-behaved client of another model, the gateway and both Redis servers may notice.
P99_S_MAX = 0.25
GATEWAY_BYTES_MAX = 300 * MB
REDIS_GROWTH_BYTES_MAX = 100 * MB
BACK_S_MAX = 5.0


def bounds_passed(outcome: Outcome) -> list[str]:
    """Return what was worse than the bounds allow."""
    windows = outcome.windows
    passed = [f"during {', '.join(window.attacks)}: {error}" for window in windows for error in window.errors]
    for window in windows:
        name = ", ".join(window.attacks)
        passed += [f"during {name}: {process} ended or was replaced" for process in window.replaced]
        if window.gateway_bytes > GATEWAY_BYTES_MAX:
            passed.append(f"during {name}: the gateway used {window.gateway_bytes / MB:.0f} MB")
        if window.redis_growth_bytes > REDIS_GROWTH_BYTES_MAX:
            passed.append(f"during {name}: Redis grew by {window.redis_growth_bytes / MB:.0f} MB")
    if outcome.back_s is None:
        passed.append(f"not as before: {outcome.left}")
    return passed


def times_passed(outcome: Outcome) -> list[str]:
    """Return the times that were longer than the bounds allow; they depend on the machine."""
    passed = []
    p99 = percentile(sorted(value for window in outcome.windows for value in window.latencies_s), 0.99)
    if p99 is None or p99 > P99_S_MAX:
        passed.append(f"p99 of {_ms(p99)}")
    if outcome.back_s is not None and outcome.back_s > BACK_S_MAX:
        passed.append(f"as before only after {outcome.back_s:.1f} s")
    return passed


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.0f} ms"


def _cells(windows: Sequence[Window]) -> list[str]:
    """Return the columns that are measured, over some windows."""
    latencies = sorted(value for window in windows for value in window.latencies_s)
    return [
        _ms(percentile(latencies, 0.5)),
        _ms(percentile(latencies, 0.99)),
        _ms(max(latencies, default=None)),
        str(sum(len(window.errors) for window in windows)),
        f"{max((window.gateway_bytes for window in windows), default=0) / MB:.0f} MB",
        f"{max((window.redis_growth_bytes for window in windows), default=0) / MB:+.0f} MB",
    ]


def figures(outcome: Outcome) -> list[list[str]]:
    """Return the rows of the table: no attack, each attack with those beside it, all."""
    rows = [["none", "", *_cells([outcome.idle])]]
    for name in ATTACKS:
        windows = [window for window in outcome.windows if name in window.attacks]
        counts = ", ".join(f"{what} {count:,}" for what, count in sorted(count_of(windows, name).items()))
        rows.append([name.replace("_", " "), counts, *_cells(windows)])
    rows.append(["all windows", "", *_cells(outcome.windows)])
    return rows


def table(outcome: Outcome) -> Table:
    """Return the figures as a table for the terminal."""
    grid = Table(*HEAD, title="keepfit and clients that misbehave")
    for row in figures(outcome):
        grid.add_row(*row)
    return grid


def section(outcome: Outcome, seconds: float) -> str:
    """Return the figures as a section of the document, with its markers."""
    date = time.strftime("%Y-%m-%d", time.gmtime())
    back = "not within a minute" if outcome.back_s is None else f"{outcome.back_s:.1f} s"
    lines = [
        BEGIN,
        f"`make abuse` of {date} on {machine()}, {seconds:.0f} s, seed {outcome.seed}:",
        "",
        f"| {' | '.join(HEAD)} |",
        "|---" * len(HEAD) + "|",
        *(f"| {' | '.join(row)} |" for row in figures(outcome)),
        "",
        f"After the last attack all was as before: {back}.",
        END,
    ]
    return "\n".join(lines)


def write(outcome: Outcome, seconds: float, document: Path = DOCUMENT) -> None:
    """Replace the figures in the document."""
    text = document.read_text()
    before, _, rest = text.partition(BEGIN)
    _, marker, after = rest.partition(END)
    assert marker, f"{document} has no markers for the figures"
    document.write_text(before + section(outcome, seconds) + after)
