"""A file for the result of a command.

Owns when a result appears: a regular file is replaced when all of it is written, and not after an error; anything else
(a device, a FIFO, standard output) is written to, never replaced.
"""

import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from keepfit.backends.files import sync_folder, write_and_rename

STANDARD_STREAM = "-"


class OutputFile:
    """The file at `path`, "-" for standard output. :meth:`open` it, then :meth:`finish` or :meth:`discard` it.

    All three raise OSError.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._temporary: Any = None
        self._raw: BinaryIO | None = None

    def open(self) -> BinaryIO | None:
        """Return the file to write to, None for standard output."""
        found = None
        with suppress(FileNotFoundError):
            found = None if self._path == STANDARD_STREAM else Path(self._path).stat()
        if self._path == STANDARD_STREAM or (found is not None and _is_standard_output(found)):
            return None
        if found is not None and not stat.S_ISREG(found.st_mode):
            self._raw = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_APPEND), "wb")
            return self._raw
        # A link stays a link: the file that it leads to is replaced.
        self._target = Path(os.path.realpath(self._path))
        folder = self._target.parent
        self._temporary = tempfile.NamedTemporaryFile(dir=folder, prefix=".keepfit-", delete=False)  # noqa: SIM115
        os.fchmod(self._temporary.fileno(), _usual_mode() if found is None else stat.S_IMODE(found.st_mode))
        self._raw = cast("BinaryIO", self._temporary.file)
        return self._raw

    def finish(self) -> None:
        """Make what is written the content of the file."""
        if self._temporary is not None:
            write_and_rename(self._temporary, b"", self._target)
            sync_folder(self._target.parent)
        if self._raw is not None:
            self._raw.close()

    def discard(self) -> None:
        """Leave a regular file as it was."""
        if self._raw is not None:
            with suppress(OSError):
                self._raw.close()
        if self._temporary is not None:
            Path(self._temporary.name).unlink(missing_ok=True)


def _is_standard_output(found: os.stat_result) -> bool:
    """Return whether a file is this process' standard output, as /dev/stdout is: it must not be replaced."""
    try:
        return os.path.samestat(found, os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):
        return False


def _usual_mode() -> int:
    """Return the mode that the user's umask gives to a new file."""
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask
