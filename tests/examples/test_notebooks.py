"""The notebooks run from top to bottom, and hold no outputs of an earlier run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Stack

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples/notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, stack: Stack) -> None:
    """Its cells run in order in one interpreter, with the address of the stack in place of that of `keepfit up`."""
    document = json.loads(notebook.read_text())
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    text = "\n".join("".join(cell["source"]) for cell in cells)
    assert "http://127.0.0.1:8000" in text
    program = text.replace("http://127.0.0.1:8000", stack.url)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr
