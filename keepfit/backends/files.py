"""Write files that readers see complete or not at all, and open files that are files.

Owns the steps from a temporary file to its final name, and what may be opened for reading. Invariants: whenever the
process is killed or the machine stops, a file holds its old content or its new one; opening a path never waits for
another process.
"""

import errno
import os
import stat
import tempfile
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, TypeVar

T = TypeVar("T", str, bytes)


def write_file(path: Path, text: str) -> None:
    """Write a file that only its owner can read, replacing an existing one.

    Raises
    ------
    OSError
        If it cannot be written; the file is as it was before.
    """
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as temporary:
        write_and_rename(temporary, text, path)
    sync_folder(path.parent)


def write_and_rename(temporary: "tempfile._TemporaryFileWrapper[T]", content: T, path: Path) -> None:
    """Write to an open temporary file, sync it, and give it the name `path`; delete it after an error."""
    try:
        temporary.write(content)
        temporary.flush()
        os.fsync(temporary.fileno())
        Path(temporary.name).rename(path)
    except BaseException:
        Path(temporary.name).unlink(missing_ok=True)
        raise


def open_regular(path: Path, root: Path | None = None) -> BufferedReader:
    """Open a regular file for reading, and nothing else: a FIFO or a device may block, or deliver bytes for ever.

    `root` is the folder that the operator named, in which keepfit names the files: no link below it is followed.
    Without it the operator named the file itself, which may be a link (Kubernetes mounts a Secret as links).

    Raises
    ------
    OSError
        If it cannot be opened, is not a regular file, or is reached through a link below `root`.
    """
    return os.fdopen(_open_file(path, root, os.O_RDONLY), "rb")


def open_to_append(path: Path, root: Path) -> BinaryIO:
    """Open a regular file at its end for writing, or create one that only its owner can read; raises as above."""
    return os.fdopen(_open_file(path, root, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def _open_file(path: Path, root: Path | None, flags: int) -> int:
    try:
        if root is None:
            descriptor = os.open(path, flags | os.O_NONBLOCK)
        else:
            descriptor = _open_below(root, path.relative_to(root).parts, flags)
    except OSError as error:
        # ENXIO is what opening a FIFO without a reader, or a socket, gives.
        reasons = {errno.ELOOP: "it is a symbolic link", errno.ENXIO: "it is not a regular file"}
        raise OSError(error.errno, reasons.get(error.errno or 0, error.strerror), str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor


def _open_below(root: Path, parts: tuple[str, ...], flags: int) -> int:
    """Open the path of these parts in `root`, from folder to folder without following links; return its descriptor."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for number, part in enumerate(parts, 1):
        folder = descriptor
        opened = flags if number == len(parts) else os.O_RDONLY | os.O_DIRECTORY
        try:
            descriptor = os.open(part, opened | os.O_NONBLOCK | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        finally:
            os.close(folder)
    return descriptor


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk: without it a new name may be lost when the machine stops."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
