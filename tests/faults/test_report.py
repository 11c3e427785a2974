"""The report contains the figures of a run and replaces them in the document."""

import json
from pathlib import Path

import pytest

from tests.faults.check import Verdict
from tests.faults.report import BEGIN, END, figures, percentile, save, write
from tests.faults.run import Outcome, RedisOutage, Settings, WorkerFault


@pytest.fixture
def outcome() -> Outcome:
    """Return the outcome of a small run that lost one row."""
    lost = Verdict(0, "SGDRegressor", 10, 10, 9, 0, "ab" * 20, "cd" * 20, ["rows seen: 9 where 10 is right"])
    made = Outcome(Settings(seed=3, seconds=1.0, rows=20), verdicts=[lost], outages=[RedisOutage(30.0, 0.1, 0.25, 0.5)])
    made.kills = [WorkerFault("m", 0.0, set(), 0.1), WorkerFault("m", 0.0, {"cut"}, 7.0)]
    return made


def test_percentiles() -> None:
    """The median of three values is the middle one; without values there is none."""
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0] * 99 + [5.0], 0.99) == 5.0
    assert percentile([], 0.5) is None


def test_kills_with_a_concurrent_fault_have_their_own_figure(outcome: Outcome) -> None:
    """Recovery times of kills with a concurrent fault are not part of the figure of the others."""
    found = dict(figures(outcome))
    assert found["rows sent = accepted = learned"] == "10 = 10 = 9"
    assert found["a killed worker's claimed rows committed by another, p50 / p99 (kills)"] == "0.10 s / 0.10 s (1)"
    assert found["… with another fault at the same time"] == "7.00 s / 7.00 s (1)"
    assert found["store back after 30 s: first answer, first commit"] == "0.25 s, 0.50 s"
    assert found["errors found"] == "1"


def test_figures_are_written_between_their_markers(outcome: Outcome, tmp_path: Path) -> None:
    """Writing replaces the figures and nothing around them, and includes the errors."""
    document = tmp_path / "reliability.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write(outcome, document)
        text = document.read_text()
        assert text.startswith(f"before\n{BEGIN}\n")
        assert text.endswith(f"{END}\nafter\n")
        assert text.count("rows seen: 9 where 10 is right") == 1
        assert "old" not in text


def test_all_results_of_a_run_are_saved(outcome: Outcome, tmp_path: Path) -> None:
    """The file has the figures, the seed for a repetition, and the errors."""
    saved = json.loads(save(outcome, tmp_path / "results").read_text())
    assert saved["settings"]["seed"] == 3
    assert saved["errors"] == outcome.errors != []
    assert saved["kills"][1]["concurrent"] == ["cut"]
