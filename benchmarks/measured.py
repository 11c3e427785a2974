"""Systems that have results, in the order of the tables.

Owns the titles of all systems for tables and plots. Never computes a figure (:mod:`benchmarks.results`).
"""

from benchmarks.results import Results
from benchmarks.systems import SYSTEMS

TITLES = {system.name: system.title for system in SYSTEMS}


def measured(results: Results, scenario: str) -> list[str]:
    """Return the systems that a scenario was tried with, in the order of the tables."""
    return [name for name in TITLES if name in results.series.get(scenario, {})]
