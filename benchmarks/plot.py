"""docs/operations/performance.svg: throughput and 99th percentile of latency of every system, side by side."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measured import TITLES, measured
from benchmarks.results import Results

SOLID, MARKED = "#8a97a6", "#d1495b"
BAR = 0.38


def draw(results: Results, path: Path) -> None:
    """Draw all series that have numbers; the same results give the same file."""
    mpl.rcParams["svg.hashsalt"] = "keepfit"
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, results, "rate", "requests/s (more is better)", digits=0)
    _bars(right, results, "p99_ms", "p99, ms, logarithmic (less is better)", digits=1)
    right.set_xscale("log")
    right.set_yticklabels([])
    figure.suptitle("predict, a new row in each request; solid 32, pale 128 connections")
    figure.savefig(path, metadata={"Date": None})


def _bars(axes: Axes, results: Results, name: str, title: str, digits: int) -> None:
    systems = [system for system in measured(results, "predict_32") if results.of("predict_32", system).usable]
    for connections, offset in ((32, BAR / 2), (128, -BAR / 2)):
        usable = [
            (position, results.of(f"predict_{connections}", system), system)
            for position, system in enumerate(reversed(systems))
            if results.of(f"predict_{connections}", system).usable
        ]
        bars = axes.barh(
            [position + offset for position, _, _ in usable],
            [getattr(series, name) for _, series, _ in usable],
            BAR,
            color=[MARKED if system == "keepfit" else SOLID for _, _, system in usable],
            alpha=1.0 if connections == 32 else 0.45,
        )
        axes.bar_label(bars, [f"{getattr(series, name):,.{digits}f}" for _, series, _ in usable], padding=3, fontsize=8)
    axes.set_yticks(range(len(systems)), [TITLES[system] for system in reversed(systems)])
    axes.set_title(title, fontsize=10)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
