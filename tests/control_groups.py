"""Files of control groups for tests, as the kernel shows them to a process."""

from collections.abc import Mapping
from pathlib import Path


def written(folder: Path, groups: str, files: Mapping[str, int | str]) -> tuple[Path, Path]:
    """Write files below a root, and the groups of the process; return the root and the file with the groups."""
    own = folder / "own"
    own.write_text(f"{groups}\n")
    for name, content in files.items():
        file = folder / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return folder / "groups", own
