"""What was measured: samples by scenario and system, their medians and spread, kept as JSON.

Owns the arithmetic. Invariant: a median is of clean runs only, and a series in which any run had errors is no number:
it is told as what went wrong.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.load import Sample


@dataclass(slots=True)
class Series:
    """Samples of one system in one scenario, a sample for each round; or the reason why there is none."""

    samples: list[Sample] = field(default_factory=list)
    failure: str = ""

    @property
    def usable(self) -> bool:
        """Whether there is a number to show."""
        return bool(self.samples) and not self.failure and not any(sample.failed for sample in self.samples)

    @property
    def rate(self) -> float:
        """Median of requests/s."""
        return median(sample.rate for sample in self.samples)

    @property
    def p50_ms(self) -> float:
        """Median of the rounds' medians of latency."""
        return median(sample.p50_ms for sample in self.samples)

    @property
    def p99_ms(self) -> float:
        """Median of the rounds' 99th percentiles of latency."""
        return median(sample.p99_ms for sample in self.samples)

    @property
    def spread(self) -> float:
        """Distance between the fastest and the slowest round, as a share of the median."""
        rates = [sample.rate for sample in self.samples]
        return (max(rates) - min(rates)) / self.rate if self.rate else 0.0

    def trouble(self) -> str:
        """Say why there is no number."""
        if self.failure:
            return self.failure
        totals: dict[str, int] = {}
        for sample in self.samples:
            for kind, count in sample.errors.items():
                totals[kind] = totals.get(kind, 0) + count
        return ", ".join(f"{count:,} x {kind}" for kind, count in totals.items()) or "not measured"


@dataclass(slots=True)
class Results:
    """All series; other figures (megabytes, rows of a table) by name; how and where they were made."""

    conditions: dict[str, Any] = field(default_factory=dict)
    series: dict[str, dict[str, Series]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    def add(self, scenario: str, system: str, sample: Sample) -> None:
        """Keep one round's sample."""
        self.of(scenario, system).samples.append(sample)

    def fail(self, scenario: str, system: str, reason: str) -> None:
        """Keep the reason why there is no sample."""
        self.of(scenario, system).failure = reason

    def of(self, scenario: str, system: str) -> Series:
        """Series of a system in a scenario; an empty one where nothing was measured."""
        return self.series.setdefault(scenario, {}).setdefault(system, Series())

    def best(self, scenario: str, systems: Iterable[str]) -> str | None:
        """Name the fastest of `systems`, None where none has a number."""
        usable = [name for name in systems if self.of(scenario, name).usable]
        return max(usable, key=lambda name: self.of(scenario, name).rate, default=None)

    def ratio(self, scenario: str, one: str, other: str) -> float | None:
        """How many times the throughput of `other` `one` has; None without two numbers."""
        left, right = self.of(scenario, one), self.of(scenario, other)
        return left.rate / right.rate if left.usable and right.usable and right.rate else None

    def replace(self, part: "Results") -> None:
        """Take over what `part` measured, in place of what was there; `again` in the conditions tells that it was."""
        for scenario, systems in part.series.items():
            self.series.setdefault(scenario, {}).update(systems)
        self.figures.update(part.figures)
        again = {*self.conditions.get("again", []), *(f"{one} ({part.conditions['date']})" for one in part.series)}
        self.conditions["again"] = sorted(again)

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        series = {
            scenario: {
                name: {"samples": [sample.document() for sample in one.samples], "failure": one.failure}
                for name, one in systems.items()
            }
            for scenario, systems in self.series.items()
        }
        document = {"conditions": self.conditions, "series": series, "figures": self.figures}
        path.write_text(json.dumps(document, indent=1))

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read what :meth:`save` wrote."""
        document = json.loads(path.read_text())
        series = {
            scenario: {
                name: Series([Sample(**sample) for sample in one["samples"]], one["failure"])
                for name, one in systems.items()
            }
            for scenario, systems in document["series"].items()
        }
        return cls(document["conditions"], series, document["figures"])
