"""Folders that tests need and that take long to make: made once for all test runs of an environment."""

import fcntl
import hashlib
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path


def made_once(name: str, files: Mapping[str, Path], make: Callable[[Path], None]) -> Path:
    """Return a folder below `name` in the environment: copies of `files`, and what `make` has made of them.

    `files` has the path of each copy in the folder. Another content of any of them is another folder. Of several test
    processes one makes it and the others wait; what a killed one has left is made again.
    """
    digest = hashlib.sha256()
    for target, path in files.items():
        content = path.read_bytes()
        digest.update(f"{target}\0{len(content)}\0".encode() + content)
    folder = Path(sys.prefix) / name / digest.hexdigest()[:16]
    folder.parent.mkdir(exist_ok=True)
    made = folder / "made"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            for target, path in files.items():
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / target)
            make(folder)
            made.touch()
    return folder
