"""Build what users install: the wheel, and the source distribution."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def build_wheel(folder: Path) -> Path:
    """Build the wheel in `folder` from the files that git tracks, so that nothing left in the work tree is in it."""
    (made,) = build(folder, "--wheel")
    return made


def build(folder: Path, *options: str) -> list[Path]:
    """Build in `folder` what the options of `uv build` name, without a network; return the files."""
    source, built = folder / "source", folder / "built"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")):
        found = ROOT / name.decode()
        if found.is_file():
            target = source / name.decode()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(found.read_bytes())
    command: list[str | Path] = [
        BIN / "uv",
        "build",
        "--quiet",
        "--offline",
        "--no-build-isolation",
        "--python",
        sys.executable,
    ]
    subprocess.run([*command, *options, "--out-dir", built, source], check=True, timeout=100)
    return sorted(path for path in built.iterdir() if path.suffix in (".whl", ".gz"))
