"""The file whose age shows that a process hangs."""

import os
from pathlib import Path

import pytest

from keepfit.errors import SettingsError
from keepfit.observability.alive_file import AliveFile


def test_a_touch_makes_the_file_new(tmp_path: Path) -> None:
    """The file exists at once; each touch sets the time of its modification."""
    path = tmp_path / "alive"
    file = AliveFile(str(path))
    os.utime(path, (0, 0))
    file.touch()
    assert path.stat().st_mtime > 0


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default writes no file."""
    monkeypatch.chdir(tmp_path)
    AliveFile("").touch()
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    """The error names the variable and the path."""
    with pytest.raises(SettingsError, match=r"KEEPFIT_ALIVE_FILE: .*nowhere/alive cannot be written"):
        AliveFile(str(tmp_path / "nowhere/alive"))


def test_a_file_that_can_no_longer_be_written_stops_nothing(tmp_path: Path) -> None:
    """Only its age grows: the folder is gone, and the process continues."""
    folder = tmp_path / "folder"
    folder.mkdir()
    file = AliveFile(str(folder / "alive"))
    (folder / "alive").unlink()
    folder.rmdir()
    file.touch()
    assert not folder.exists()
