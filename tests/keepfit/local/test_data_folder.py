"""The folder of `keepfit up`: who can read it, what is opened in it, and the record of the stack that runs."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from keepfit.errors import SettingsError
from keepfit.local import data_folder
from keepfit.local.data_folder import local_key, locked, prepare, running_stack, settings_file
from keepfit.local.stack import Stack as LocalStack
from keepfit.settings import load
from tests.conftest import Stack
from tests.keepfit.cli.command import error_line, keepfit

OPENED = ("env", "lock", "signing-keys", "logs/gateway.log", "up.json")


def mode_of(path: Path) -> int:
    """Return the permissions of a path."""
    return stat.S_IMODE(path.lstat().st_mode)


def others_can(root: Path) -> list[Path]:
    """Return what other users may read or write below a folder."""
    paths = [root, *(Path(folder, name) for folder, *found in os.walk(root) for names in found for name in names)]
    return [path for path in paths if not path.is_symlink() and mode_of(path) & 0o077]


def test_a_new_folder_is_private(tmp_path: Path) -> None:
    """The folder, the folders in it and every file that keepfit makes are readable by the owner only."""
    with locked(tmp_path / "data"):
        local_key(tmp_path / "data" / "signing-keys")
    assert (mode_of(tmp_path / "data"), mode_of(tmp_path / "data" / "redis")) == (0o700, 0o700)
    assert others_can(tmp_path / "data") == []


def test_a_folder_of_an_earlier_version_becomes_private(tmp_path: Path) -> None:
    """Folders with 0755 and files with 0644, those of the servers too, lose the rights of others, and nothing else."""
    for name in ("redis/appendonlydir", "mongo", "logs", "snapshots"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for name in ("env", "signing-keys", "up.log", "redis/appendonlydir/a.aof", "mongo/wt", "logs/gateway.log"):
        (tmp_path / "data" / name).write_text(name)
        (tmp_path / "data" / name).chmod(0o644)
    (tmp_path / "data" / "snapshots").chmod(0o755)
    (tmp_path / "data").chmod(0o755)
    prepare(tmp_path / "data")
    assert others_can(tmp_path / "data") == [tmp_path / "data" / "up.log"]
    assert (tmp_path / "data" / "mongo" / "wt").read_text() == "mongo/wt"


def test_a_folder_that_is_not_keepfits_alone_keeps_its_mode(tmp_path: Path) -> None:
    """`--data` may name a folder that others use: it keeps its mode, what keepfit makes in it is private."""
    (tmp_path / "site").mkdir(mode=0o755)
    (tmp_path / "index.html").write_text("")
    (tmp_path / "index.html").chmod(0o644)
    (tmp_path / "logs").symlink_to("site")
    (tmp_path / "site" / "access.log").write_text("")
    (tmp_path / "site" / "access.log").chmod(0o644)
    tmp_path.chmod(0o755)
    prepare(tmp_path)
    kept = [tmp_path, tmp_path / "site", tmp_path / "index.html", tmp_path / "site" / "access.log"]
    assert sorted(others_can(tmp_path)) == sorted(kept)


@pytest.mark.parametrize("kind", ["fifo", "link"])
@pytest.mark.parametrize("name", OPENED)
def test_only_regular_files_are_opened(tmp_path: Path, name: str, kind: str) -> None:
    """A FIFO does not block a start, and a link is not followed: the error names the path. A record is not read."""
    data = tmp_path / "data"
    prepare(data)
    foreign = tmp_path / "foreign"
    foreign.write_text(json.dumps({"url": "http://x", "pid": os.getpid(), "parts": {}}))
    if kind == "fifo":
        os.mkfifo(data / name)
    else:
        (data / name).symlink_to(foreign)
    if name == "up.json":
        assert running_stack(data) is None
        return

    def use() -> None:
        settings_file(data)
        with locked(data) as lock:
            local_key(data / "signing-keys")
            stack = LocalStack(data, load().model_copy(update={"port": 0}), print)
            (gateway,) = (one for one in stack._processes if one.name == "gateway")
            gateway.command = ["/bin/true"]
            stack._start(gateway, lock)

    with pytest.raises(SettingsError) as raised:
        use()
    assert str(data / name) in str(raised.value)
    assert ("it is not a regular file" if kind == "fifo" else "it is a symbolic link") in str(raised.value)
    assert foreign.read_text().startswith("{")


def test_commands_do_not_wait_for_a_fifo(tmp_path: Path) -> None:
    """`keepfit models` on a folder whose `env` is a FIFO is one line."""
    os.mkfifo(tmp_path / "env")
    assert "it is not a regular file" in error_line(keepfit("--data", str(tmp_path), "models", cwd=tmp_path))


def test_what_servers_write_is_private(stack: Stack) -> None:
    """Append-only files, MongoDB's files and logs of a running stack are readable by the owner only.

    Commands write snapshots with the user's umask; the folder keeps others out.
    """
    for name in data_folder.FOLDERS:
        assert mode_of(stack.data / name) == 0o700
        assert name == "snapshots" or others_can(stack.data / name) == []
    assert any((stack.data / "redis").rglob("*.aof"))
    assert [mode_of(stack.data / name) for name in ("env", "lock", "up.json")] == [0o600] * 3
    assert mode_of(stack.data) == 0o700


@pytest.mark.parametrize(
    "record",
    [
        b"", b"[]", b"null", b'"x"', b"\xff", b'{"pid": 1}', b'{"url": "x", "pid": 0, "parts": {}}',
        b'{"url": "x", "pid": -1, "parts": {}}', b'{"url": "x", "pid": 99999999999, "parts": {}}',
        b'{"url": "x", "pid": "1", "parts": {}}', b'{"url": 7, "pid": 1, "parts": {}}',
    ],
)  # fmt: skip
def test_a_record_that_is_none_is_no_stack(tmp_path: Path, record: bytes) -> None:
    """A damaged record, or one whose process is gone, is no running stack; one of a living process is."""
    (tmp_path / "up.json").write_bytes(record)
    assert running_stack(tmp_path) is None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    data_folder.write_record(tmp_path, "http://127.0.0.1:1", {"gateway": 7})
    found = running_stack(tmp_path)
    assert found is not None
    assert (found.pid, found.parts) == (os.getpid(), {"gateway": 7})
    (tmp_path / "up.json").write_text(json.dumps({"url": "x", "pid": ended.pid, "parts": {}}))
    assert running_stack(tmp_path) is None
