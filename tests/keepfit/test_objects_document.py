"""docs/guides/your-own-objects.md: its example is a script that works as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

from keepfit.security.envelope import UPLOAD_KEYS
from tests.conftest import Stack

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/guides/your-own-objects.md"


def test_the_example_prints_what_is_said(stack: Stack, tmp_path: Path) -> None:
    """The script, run as a user would with a class of its own, learns and predicts on the stack."""
    text = DOCUMENT.read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (said,) = re.findall(r"It prints `(.*?)`", text)
    path = tmp_path / "example.py"
    path.write_text(script.replace("http://127.0.0.1:8000", stack.url))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), UPLOAD_KEYS: stack.environment()[UPLOAD_KEYS]}
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr
