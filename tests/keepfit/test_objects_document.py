"""docs/guides/your-own-objects.md: its examples are scripts that work as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

from keepfit.security.envelope import UPLOAD_KEYS
from tests.conftest import Stack

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/guides/your-own-objects.md"


def test_the_examples_print_what_is_said(stack: Stack, tmp_path: Path) -> None:
    """The scripts, run as a user would with a class of its own, learn, predict and replace the code on the stack."""
    text = DOCUMENT.read_text()
    scripts = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), UPLOAD_KEYS: stack.environment()[UPLOAD_KEYS]}
    for script, said in zip(scripts, re.findall(r"It prints `(.*?)`", text), strict=True):
        path = tmp_path / "example.py"
        path.write_text(script.replace("http://127.0.0.1:8000", stack.url))
        done = subprocess.run(
            [sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=60, env=environment
        )
        assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr
