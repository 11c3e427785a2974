"""Build the wheel that users install."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def build_wheel(folder: Path) -> Path:
    """Build the wheel in `folder` from the files that git tracks, so that nothing left in the work tree is in it."""
    source, built = folder / "source", folder / "built"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")):
        found = ROOT / name.decode()
        if found.is_file():
            target = source / name.decode()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(found.read_bytes())
    command = [BIN / "uv", "build", "--quiet", "--wheel", "--out-dir", built, source]
    subprocess.run(command, check=True, timeout=100)
    (made,) = built.glob("*.whl")
    return made
