"""The docstrings of the examples: what they show is what the code gives."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.started import EXAMPLES

SHOWING = sorted(path for path in EXAMPLES.glob("*/*.py") if ">>> " in path.read_text())


@pytest.mark.parametrize("path", SHOWING, ids=lambda path: path.name)
def test_docstrings_show_what_the_code_gives(path: Path) -> None:
    """The examples in a module's docstrings pass."""
    done = subprocess.run(
        [sys.executable, "-m", "doctest", path.name], cwd=path.parent, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_there_are_some() -> None:
    """Three modules show what their functions give."""
    assert {path.name for path in SHOWING} >= {"deliveries.py", "series.py", "forecaster.py"}
