"""Files: what may be opened for reading."""

import os
import socket
from pathlib import Path

import pytest

from keepfit.backends.files import open_regular


def make_fifo(path: Path) -> None:
    """Make a FIFO that has no writer."""
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    """Make a socket that nothing accepts on."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def make_terminal_link(path: Path) -> None:
    """Make a link to a device."""
    path.symlink_to("/dev/zero")


OTHERS = {"folder": Path.mkdir, "fifo": make_fifo, "socket": make_socket, "device": make_terminal_link}


@pytest.mark.parametrize("named_by_operator", [True, False])
@pytest.mark.parametrize("kind", OTHERS)
def test_only_regular_files_are_opened(tmp_path: Path, kind: str, *, named_by_operator: bool) -> None:
    """A folder, a FIFO without a writer, a socket and a device are refused at once; the error names the path."""
    path = tmp_path / "f"
    OTHERS[kind](path)
    with pytest.raises(OSError, match=str(path)):
        open_regular(path, None if named_by_operator else tmp_path)


def test_a_file_that_the_operator_names_may_be_a_link(tmp_path: Path) -> None:
    """Kubernetes mounts a Secret as links; in a folder in which keepfit names files, links are refused."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "keys").write_bytes(b"secret")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "keys").symlink_to("..data/keys")
    with open_regular(tmp_path / "keys") as file:
        assert file.read() == b"secret"
    for path in (tmp_path / "keys", tmp_path / "..data" / "keys"):
        with pytest.raises(OSError, match=r"symbolic link|Not a directory"):
            open_regular(path, tmp_path)


def test_a_folder_that_the_operator_names_may_be_a_link(tmp_path: Path) -> None:
    """Links are followed up to the folder, and files in folders below it are read."""
    (tmp_path / "real" / "a" / "b").mkdir(parents=True)
    (tmp_path / "real" / "a" / "b" / "c").write_bytes(b"x")
    (tmp_path / "root").symlink_to("real")
    with open_regular(tmp_path / "root" / "a" / "b" / "c", tmp_path / "root") as file:
        assert file.read() == b"x"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "root" / "a" / "none" / "c", tmp_path / "root")


def test_refused_files_leave_no_descriptors(tmp_path: Path) -> None:
    """Each refusal closes what it opened."""
    make_fifo(tmp_path / "f")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "f", tmp_path / "none" / "f", tmp_path):
        for root in (None, tmp_path):
            with pytest.raises(OSError, match=r"regular|No such"):
                open_regular(path, root)
    assert len(os.listdir("/proc/self/fd")) == before
