"""A file whose age shows that a process without a port hangs: a probe compares its time of modification with the clock.

Owns the file of :attr:`keepfit.settings.Settings.alive_file`. Never deletes it: an old file is what a probe looks for.
Invariant: a file that can no longer be written does not stop the process, only its age grows.
"""

from contextlib import suppress
from pathlib import Path

from keepfit.errors import SettingsError


class AliveFile:
    """The file at `path`, created at once; without a path nothing is written.

    Raises
    ------
    SettingsError
        If the file cannot be created.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        try:
            if self._path is not None:
                self._path.touch()
        except OSError as error:
            raise SettingsError(f"KEEPFIT_ALIVE_FILE: {path} cannot be written: {error.strerror}") from None

    def touch(self) -> None:
        """Note that the process runs; it does so each time that it has done its work."""
        if self._path is not None:
            with suppress(OSError):
                self._path.touch()
