"""Results: samples by scenario and system, their medians and spread, stored as JSON.

Owns the arithmetic. Invariant: a median covers runs without errors only; a series in which any run had errors has no
number and is reported as its errors.
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
    """Samples of one system in one scenario, one per round; or the reason why there is none."""

    samples: list[Sample] = field(default_factory=list)
    failure: str = ""

    @property
    def usable(self) -> bool:
        """Whether the series has a number: samples, and none of them with errors."""
        return bool(self.samples) and not self.failure and not any(sample.failed for sample in self.samples)

    @property
    def rate(self) -> float:
        """Median of the rounds' requests/s."""
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

    def describe_failure(self) -> str:
        """Return why there is no number."""
        if self.failure:
            return self.failure
        totals: dict[str, int] = {}
        for sample in self.samples:
            for kind, count in sample.errors.items():
                totals[kind] = totals.get(kind, 0) + count
        return ", ".join(f"{count:,} x {kind}" for kind, count in totals.items()) or "not measured"


@dataclass(slots=True)
class Results:
    """All series; other figures (megabytes, rows of a table) by name; the conditions of the measurement."""

    conditions: dict[str, Any] = field(default_factory=dict)
    series: dict[str, dict[str, Series]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    def add(self, scenario: str, system: str, sample: Sample) -> None:
        """Store one round's sample."""
        self.of(scenario, system).samples.append(sample)

    def fail(self, scenario: str, system: str, reason: str) -> None:
        """Store the reason why there is no sample."""
        self.of(scenario, system).failure = reason

    def of(self, scenario: str, system: str) -> Series:
        """Return the series of a system in a scenario; an empty one if nothing was measured."""
        return self.series.setdefault(scenario, {}).setdefault(system, Series())

    def best(self, scenario: str, systems: Iterable[str]) -> str | None:
        """Return the fastest of `systems`; None if none has a number."""
        usable = [name for name in systems if self.of(scenario, name).usable]
        return max(usable, key=lambda name: self.of(scenario, name).rate, default=None)

    def ratio(self, scenario: str, one: str, other: str) -> float | None:
        """Return the throughput of `one` divided by that of `other`; None without two numbers."""
        left, right = self.of(scenario, one), self.of(scenario, other)
        return left.rate / right.rate if left.usable and right.usable and right.rate else None

    def replace(self, newer: "Results") -> None:
        """Replace the series and figures that `newer` measured; `again` in the conditions lists the scenarios."""
        for scenario, systems in newer.series.items():
            self.series.setdefault(scenario, {}).update(systems)
        self.figures.update(newer.figures)
        date = newer.conditions["date"]
        again = {*self.conditions.get("again", []), *(f"{scenario} ({date})" for scenario in newer.series)}
        self.conditions["again"] = sorted(again)

    def save(self, path: Path) -> None:
        """Write all results to a JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        documents = {
            scenario: {
                name: {"samples": [sample.document() for sample in series.samples], "failure": series.failure}
                for name, series in systems.items()
            }
            for scenario, systems in self.series.items()
        }
        document = {"conditions": self.conditions, "series": documents, "figures": self.figures}
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
