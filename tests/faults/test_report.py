"""The figures say what was found, and go where they belong."""

import json
from pathlib import Path

import pytest

from tests.faults.check import Verdict
from tests.faults.report import BEGIN, END, figures, keep, percentile, write
from tests.faults.storm import Away, Death, Outcome, Settings


@pytest.fixture
def outcome() -> Outcome:
    """Return what came of a small run with one row lost."""
    lost = Verdict(0, "SGDRegressor", 10, 10, 9, 0, "ab" * 20, "cd" * 20, ["rows seen: 9 where 10 is right"])
    made = Outcome(Settings(seed=3, seconds=1.0, rows=20), verdicts=[lost], away=[Away(30.0, 0.1, 0.25, 0.5)])
    made.deaths = [Death("m", 0.0, set(), 0.1), Death("m", 0.0, {"cut"}, 7.0)]
    return made


def test_percentiles() -> None:
    """The median of three is the one in the middle; of nothing there is none."""
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0] * 99 + [5.0], 0.99) == 5.0
    assert percentile([], 0.5) is None


def test_figures_keep_apart_what_was_disturbed(outcome: Outcome) -> None:
    """A kill with something else wrong meanwhile does not spoil the figure of those without."""
    found = dict(figures(outcome))
    assert found["rows sent = accepted = learned"] == "10 = 10 = 9"
    assert found["a killed worker's claimed rows committed by another, p50 / p99 (kills)"] == "0.10 s / 0.10 s (1)"
    assert found["… with another fault at the same time"] == "7.00 s / 7.00 s (1)"
    assert found["store back after 30 s: first answer, first commit"] == "0.25 s, 0.50 s"
    assert found["errors found"] == "1"


def test_figures_stand_between_their_markers(outcome: Outcome, tmp_path: Path) -> None:
    """Writing again replaces the figures and nothing around them; what is wrong is said."""
    document = tmp_path / "reliability.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write(outcome, document)
        text = document.read_text()
        assert text.startswith(f"before\n{BEGIN}\n")
        assert text.endswith(f"{END}\nafter\n")
        assert text.count("rows seen: 9 where 10 is right") == 1
        assert "old" not in text


def test_all_of_a_run_is_kept(outcome: Outcome, tmp_path: Path) -> None:
    """The file has the figures, the seed to play it again, and what was wrong."""
    kept = json.loads(keep(outcome, tmp_path / "results").read_text())
    assert kept["settings"]["seed"] == 3
    assert kept["faults"] == outcome.faults != []
    assert kept["deaths"][1]["meanwhile"] == ["cut"]
