"""The folder of `keepfit up`: its files, who can read them, and which stack runs on it.

Owns the names in the folder, their modes, its lock, its keys and the record of the running stack, ``up.json``. Never
starts a process. Invariants: only the owner can read what is in the folder; keepfit opens regular files in it and
follows no link; one stack at a time holds the lock.
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec

from keepfit.backends.files import open_regular, open_to_append, write_file
from keepfit.errors import SettingsError
from keepfit.security.envelope import Keyring, new_signing_key

# Below these, files get their mode at each start: blobs of snapshots may be many, and were private in every version.
SERVER_FOLDERS = ("logs", "redis", "queue", "mongo")
FOLDERS = (*SERVER_FOLDERS, "snapshots")
ENV, LOCK, RECORD, KEYS = "env", "lock", "up.json", ("signing-keys", "upload-keys")
OTHERS = stat.S_IRWXG | stat.S_IRWXO
# What to do about an error of the folder, by its number.
FREE_SPACE = "free some space, or name a folder on another disk"
ADVICE = {errno.ENOSPC: FREE_SPACE, errno.EDQUOT: FREE_SPACE, errno.ELOOP: "remove it", errno.EINVAL: "remove it"}
LOCK_S_MAX, POLL_S = 15.0, 0.2


class RunningStack(msgspec.Struct, frozen=True):
    """The record of a stack: URL of its gateway, pid of its `keepfit up`, and pids of its processes by name."""

    url: str
    pid: Annotated[int, msgspec.Meta(gt=0, lt=2**31)]
    parts: dict[str, int]

    def __str__(self) -> str:
        return f"another `keepfit up` (pid {self.pid}, {self.url})"


def prepare(data: Path) -> None:
    """Create the folder and the folders in it, and take the rights of other users away from what exists.

    A folder that also holds folders of others, such as a home, keeps its mode; those of keepfit in it are private.

    Raises
    ------
    SettingsError
        If the folder cannot be used.
    """
    with usable(data):
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in FOLDERS:
            (data / name).mkdir(mode=0o700, exist_ok=True)
        names = {entry.name for entry in os.scandir(data) if entry.is_dir(follow_symlinks=False)}
        paths = [data / name for name in (*FOLDERS, ENV, LOCK, RECORD, *KEYS)]
        if names <= set(FOLDERS):
            paths.append(data.resolve())
        for server in set(SERVER_FOLDERS) & names:
            for folder, folders, files in os.walk(data / server):
                paths += [Path(folder, name) for name in (*folders, *files)]
        for path in paths:
            # A server may delete one of its files meanwhile.
            with suppress(FileNotFoundError):
                _make_private(path)


def _make_private(path: Path) -> None:
    found = path.lstat()
    if found.st_mode & OTHERS and found.st_uid == os.geteuid() and not stat.S_ISLNK(found.st_mode):
        path.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS)


def settings_file(data: Path) -> Path:
    """Return the file with the settings of the folder, which need not exist.

    Raises
    ------
    SettingsError
        If it is not a regular file, which would block its reader, or is a link.
    """
    path = data / ENV
    try:
        with suppress(FileNotFoundError, NotADirectoryError), open_regular(path, data):
            pass
    except OSError as error:
        raise SettingsError(f"The settings in {path} cannot be read: {error.strerror}.") from None
    return path


def write_record(data: Path, url: str, parts: Mapping[str, int]) -> None:
    """Write the record of the stack of this process. Raise OSError if that fails."""
    write_file(data / RECORD, msgspec.json.encode(RunningStack(url, os.getpid(), dict(parts))).decode())


def remove_record(data: Path) -> None:
    """Delete the record of the stack."""
    (data / RECORD).unlink(missing_ok=True)


def running_stack(data: Path) -> RunningStack | None:
    """Return the record of the stack that runs on the folder; None if its `keepfit up` is gone."""
    try:
        with open_regular(data / RECORD, data) as file:
            record = msgspec.json.decode(file.read(), type=RunningStack)
        with suppress(PermissionError):  # it runs, as another user
            os.kill(record.pid, 0)
    except (OSError, msgspec.DecodeError):
        return None
    return record


def local_key(path: Path) -> str:
    """Return the key in a file of the data folder; make one at the first use.

    Its id is made from the key, so that the keys of two folders have different ids. Without its signing key, the data
    of a folder cannot be read again.

    Raises
    ------
    SettingsError
        If the file holds no key.
    """
    with usable(path.parent):
        if not os.path.lexists(path):
            write_file(path, new_signing_key())
        with open_regular(path, path.parent) as file:
            text = file.read().decode(errors="replace").strip()
    try:
        Keyring.from_text(text)
    except SettingsError:
        raise SettingsError(
            f"{path} does not hold a key, id:hex. Put the folder's key back into it; without it the data in the folder "
            "cannot be read. Delete the file only if there is no data."
        ) from None
    return text


@contextmanager
def usable(data: Path) -> Iterator[None]:
    """Raise SettingsError if the data folder cannot be used."""
    try:
        yield
    except OSError as error:
        reason = "it is not a folder" if data.is_file() else error.strerror or str(error)
        place = f" ({error.filename})" if error.filename and Path(error.filename) != data else ""
        advice = ADVICE.get(error.errno or 0, "name a folder that can be written")
        raise SettingsError(f"--data: {data} cannot be used: {reason}{place}; {advice}.") from None


@contextmanager
def locked(data: Path) -> Iterator[IO[Any]]:
    """Prepare the folder, and lock it for one stack.

    Raises
    ------
    SettingsError
        If the folder cannot be used, or another stack, or a process of one that is still stopping, holds the lock.
    """
    prepare(data)
    with usable(data):
        lock = open_to_append(data / LOCK, data)
    with lock:
        deadline = time.monotonic() + LOCK_S_MAX
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    raise SettingsError(f"--data: {data} cannot be locked: {error.strerror}.") from None
                running = running_stack(data)
                if running or time.monotonic() > deadline:
                    raise SettingsError(f"{data} is in use by {running or 'a process that does not stop'}.") from None
                time.sleep(POLL_S)
        yield lock
