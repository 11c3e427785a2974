"""The command `keepfit curve` on a running stack: a plot, JSON and CSV of a model's learning curve."""

import csv
import json
import re
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from keepfit.cli import plot
from keepfit.errors import SettingsError
from tests.conftest import Stack
from tests.keepfit.cli.command import Done, error_line, keepfit
from tests.keepfit.cli.terminal import on_terminal

ROWS = [(i % 7, (i % 7) * 0.5 + 1) for i in range(60)]


@pytest.fixture
def model(stack: Stack, tmp_path: Path) -> tuple[str, ...]:
    """Create a model and let it learn; return the words that name it."""
    name = ("--metadata", "type=shoes", f"session={uuid.uuid4().hex}")
    succeed(stack, tmp_path, "create", *name, "--estimator", "SGDRegressor", "--features", "x:number")
    file = tmp_path / "rows.csv"
    file.write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in ROWS))
    succeed(stack, tmp_path, "learn", str(file), "--target", "y", "--batch", "20", *name)
    return name


def run(stack: Stack, cwd: Path, *words: str) -> Done:
    """Run a command on the stack's folder."""
    return keepfit(*words, "--data", str(stack.data), cwd=cwd)


def succeed(stack: Stack, cwd: Path, *words: str) -> str:
    """Run a command that succeeds; return its output."""
    done = run(stack, cwd, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_curve_is_drawn_and_printed(stack: Stack, tmp_path: Path, model: tuple[str, ...]) -> None:
    """It is drawn with its baseline, over rows and over time, and printed as JSON and CSV with all its points."""

    def curve(*words: str) -> str:
        return succeed(stack, tmp_path, "curve", *model, *words)

    answer: dict[str, Any] = json.loads(curve("--json"))
    assert (answer["rows_seen"], [point["rows_seen"] for point in answer["points"]]) == (60, list(range(21, 61)))
    assert json.loads(curve("--json", "--since-rows", "58"))["points"] == answer["points"][-2:]
    rows = list(csv.DictReader(curve("--csv").splitlines()))
    assert [float(row["window.mean_absolute_error"]) for row in rows] == [
        point["window"]["mean_absolute_error"] for point in answer["points"]
    ]
    drawn = curve()
    assert drawn.startswith('mean_absolute_error of {"type": "shoes", "session": ')
    assert all(name in drawn for name in ("all rows", "last rows", "baseline of the last rows", "(rows)"))
    over_time = curve("--time", "--metric", "r2")
    assert over_time.startswith("r2 of ")
    assert "baseline" not in over_time
    assert re.search(r"[0-9]{2}:[0-9]{2}:[0-9]{2}", over_time)


def test_the_plot_fits_a_terminal(stack: Stack, tmp_path: Path, model: tuple[str, ...]) -> None:
    """On a terminal no line is longer than the terminal is wide."""
    shown = on_terminal("curve", *model, "--data", str(stack.data), cwd=tmp_path, columns=80)
    assert "all rows" in shown
    assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= 80 for line in shown.splitlines()[1:])


def test_what_cannot_be_drawn_is_said(stack: Stack, tmp_path: Path, model: tuple[str, ...]) -> None:
    """A model without points, a metric that there is not, and two forms at a time are said in one line."""
    other = ("--metadata", "type=shoes", f"session={uuid.uuid4().hex}")
    succeed(stack, tmp_path, "create", *other, "--estimator", "SGDRegressor")
    assert succeed(stack, tmp_path, "curve", *other) == "no points: no row has been evaluated\n"
    assert "its metrics are mean_absolute_error," in error_line(
        run(stack, tmp_path, "curve", *model, "--metric", "accuracy")
    )
    assert "one of --json and --csv" in error_line(run(stack, tmp_path, "curve", *model, "--json", "--csv"))


def test_without_plotille_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plot is in an extra, which the error names."""
    monkeypatch.setitem(sys.modules, "plotille", None)
    with pytest.raises(SettingsError, match=r"The plot needs plotille: .*history"):
        plot.draw({"a": [(0.0, 1.0)]}, "rows", plot.count_tick, needed_by="The plot")
