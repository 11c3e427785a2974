"""The `keepfit` command as real processes on real servers."""

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from keepfit.local.servers import free_port
from keepfit.security.api_keys import Keys
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings
from tests.conftest import SIGNING_KEYS, Stack
from tests.factories import Workshop, workshop

COMMANDS = {
    "up", "gateway", "worker", "snapshot", "restore", "export", "import", "models", "history", "dead", "demo", "key",
}  # fmt: skip

Done = subprocess.CompletedProcess[str]


def keepfit(*words: str, cwd: Path, variables: dict[str, str] | None = None) -> Done:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "keepfit", *words],
        cwd=cwd,
        env={**os.environ, **(variables or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def error_line(done: Done) -> str:
    """Return the one line that a failed command prints to standard error; assert that it prints nothing else."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("keepfit: ")
    return line


@dataclass(frozen=True, slots=True)
class Command:
    """The command with the settings of one deployment."""

    settings: Settings
    cwd: Path
    more: Mapping[str, str] = field(default_factory=dict)

    def run(self, *words: str) -> Done:
        """Run it with the deployment's settings as environment variables."""
        variables = {
            "KEEPFIT_STORE_URL": self.settings.store_url.get_secret_value(),
            "KEEPFIT_MONGO_URL": self.settings.mongo_url.get_secret_value(),
            "KEEPFIT_SNAPSHOT_URL": self.settings.snapshot_url,
            "KEEPFIT_SIGNING_KEYS": self.settings.signing_keys.get_secret_value(),
            **self.more,
        }
        return keepfit(*words, cwd=self.cwd, variables=variables)

    def __call__(self, *words: str) -> str:
        """Run it, assert that it succeeds without a word on standard error, and return its output."""
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def json(self, *words: str) -> list[dict[str, Any]]:
        """Run it with --json; return the documents, one per line."""
        return [json.loads(line) for line in self(*words, "--json").splitlines()]


def cells(printed: str) -> dict[str, list[str]]:
    """Return the rows of a printed table by the hash in them, each a list of its cells."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]
    return {next(cell for cell in row if re.fullmatch("[0-9a-f]{12}", cell)): row for row in rows}


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on the test's own servers."""
    async with workshop(settings) as opened:
        yield opened


@pytest.fixture
def command(settings: Settings, tmp_path: Path) -> Command:
    """Return the command on the test's own servers."""
    return Command(settings, tmp_path)


async def test_snapshot_and_history_print_the_same_documents(shop: Workshop, command: Command) -> None:
    """`snapshot --json` prints one saved document per line; `history` prints them newest first, filtered by options."""
    shoes, boots = await shop.learned(), await shop.learned(type="boots")
    saved = {document["hash"]: document for document in command.json("snapshot")}
    assert saved.keys() == {shoes, boots}
    listed = command.json("history")
    assert listed == sorted(saved.values(), key=lambda document: -document["timestamp"])
    assert command.json("history", "--hash", shoes, "--type", "shoes") == [saved[shoes]]
    assert cells(command("history", "--limit", "1")).keys() == {listed[0]["hash"][:12]}


async def test_snapshot_prints_saved_and_failed_models(shop: Workshop, command: Command) -> None:
    """The table has every URI in full; a model that cannot be saved is named, and the exit code is 1."""
    good, forged = await shop.learned(), await shop.learned()
    shop.redis.set(f"kf:{{{forged}}}:b", b"forged")
    done = command.run("snapshot")
    (document,) = await shop.registry.documents()
    assert {name: row[1:] for name, row in cells(done.stdout).items()} == {
        good[:12]: ["shoes", good[:12], "1", "3", str(document["size_bytes"]), document["uri"]]
    }
    assert re.search(r"^1 saved, 0 unchanged, 1 failed in \d+\.\d\d s$", done.stdout, re.MULTILINE)
    assert done.returncode == 1
    warning, last = done.stderr.splitlines()
    assert "snapshot_failed" in warning
    assert last == f"keepfit: 1 models were not saved; {forged[:12]}: These bytes are not a keepfit envelope."


async def test_snapshot_prints_what_it_deleted_or_why_it_could_not(shop: Workshop, command: Command) -> None:
    """Garbage collection is one line of counts; if it fails, the reason is printed and the exit code is 1."""
    model_hash = await shop.learned()
    shop.storage.put(f"{model_hash}/1/0-lost", b"x")
    no_grace = Command(command.settings, command.cwd, {"KEEPFIT_GARBAGE_GRACE_S": "0"})
    assert re.search(
        r"^deleted: 0 expired snapshots, 0 aborted snapshots, 1 blobs without a history document, "
        r"0 unfinished uploads$",
        no_grace("snapshot"),
        re.MULTILINE,
    )
    assert "deleted:" not in no_grace("snapshot")
    shop.storage.put("keepfit-history", b"another")
    done = command.run("snapshot")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("keepfit: cleanup failed: file:///")


async def test_models_lists_live_and_lost_models(shop: Workshop, command: Command) -> None:
    """`models` lists live models and lost ones, and prints brackets and colons in metadata as they are."""
    metadata = {"note": "[/x] [bold]:shoe:", "other": "[red]", "sizes": [True, False], "type": "shoes"}
    lost, boots = await shop.learned(**metadata), await shop.learned(type="boots")
    await shop.snapshotter.run_pass()
    shop.lose(lost)
    listed = {model["hash"]: model for model in command.json("models")}
    assert listed.keys() == {lost, boots}
    assert listed[lost]["snapshot"]["version"] == listed[lost]["version"] == 1
    shown = json.dumps(listed[lost]["metadata"])
    assert cells(command("models", "--type", "shoes")) == {
        lost[:12]: [lost[:12], shown, "PassiveAggressiveRegressor", "1", "3", "0"]
    }
    assert all(json.dumps({name: value})[1:-1] in shown for name, value in metadata.items())


def test_key_new_prints_an_api_key_and_the_line_to_store(tmp_path: Path) -> None:
    """Standard output has the API key and the line to store, nothing else; the line accepts the key."""
    done = keepfit("key", "new", "--name", "web", "--scopes", "predict, learn", "--rate", "50/60", cwd=tmp_path)
    token, line = done.stdout.splitlines()
    found = Keys.from_text(line).find(token)
    assert found is not None
    assert (found.name, found.rate_per_s, found.burst) == ("web", 50.0, 60)
    assert found.scopes >= {"predict", "learn"}
    assert "scopes of read, predict, learn, admin" in error_line(
        keepfit("key", "new", "--name", "web", "--scopes", "root", cwd=tmp_path)
    )


def test_key_signing_prints_keys_that_a_keyring_accepts(tmp_path: Path) -> None:
    """Each key is new and has the given id; two of them form a keyring. `keygen` is another name of the command."""
    first = keepfit("key", "signing", cwd=tmp_path)
    second = keepfit("keygen", "--id", "2027", cwd=tmp_path)
    assert (first.returncode, second.returncode) == (0, 0)
    keyring = Keyring.from_text(f"{second.stdout.strip()},{first.stdout.strip()}")
    assert [key_id for key_id, _ in keyring.keys] == ["2027", "k1"]
    assert len({key for _, key in keyring.keys}) == 2
    assert {len(key) for _, key in keyring.keys} == {32}


UNUSED_PORT = free_port()
FAILURES: dict[str, tuple[dict[str, str], str]] = {
    "snapshot": (
        {"KEEPFIT_SNAPSHOT_URL": "s3://[/x]"},
        "KEEPFIT_SNAPSHOT_URL: 's3://[/x]' is neither file:///path nor",
    ),
    "restore": (
        {"KEEPFIT_SIGNING_KEYS": ""},
        "KEEPFIT_SIGNING_KEYS is not set; `keepfit key signing` prints a key for it.",
    ),
    "history": ({"KEEPFIT_MONGO_URL": "mongodb://["}, "KEEPFIT_MONGO_URL cannot be used"),
    "history --limit 1": ({"KEEPFIT_PORT": "many"}, "KEEPFIT_PORT: Input should be a valid integer"),
    "snapshot --every 0s": ({}, "'0s' is not a valid duration: use 60s, 5m or 1h."),
    "restore --at xyzzy": (
        {},
        "'xyzzy' is not a valid time: use 2026-11-20 12:00, yesterday, 2 hours ago, or",
    ),
    "restore --hash 00 --json": ({}, "no model matches"),
    "restore --where brand": ({}, "--where 'brand' is not KEY=VALUE: use a key of metadata and its value, brand=nike."),
    "import none.zip": ({}, "There is no file none.zip."),
    "snapshot --json": (
        {"KEEPFIT_STORE_URL": f"redis://:hunter2@127.0.0.1:{UNUSED_PORT}/0"},
        f"Redis is unavailable: Error 111 connecting to 127.0.0.1:{UNUSED_PORT}",
    ),
    "history --json": (
        {"KEEPFIT_MONGO_URL": f"mongodb://u:hunter2@127.0.0.1:{UNUSED_PORT}/x"},
        f"MongoDB is unavailable or cannot write: 127.0.0.1:{UNUSED_PORT}: [Errno 111] Connection refused",
    ),
}


@pytest.fixture(scope="module")
def failed(mongo_server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """Run every failing command, four at a time, because each needs seconds to start."""
    cwd = tmp_path_factory.mktemp("failures")
    valid = {
        "KEEPFIT_STORE_URL": "redis://127.0.0.1:1/0",
        "KEEPFIT_MONGO_URL": f"{mongo_server}/t{uuid.uuid4().hex}",
        "KEEPFIT_SNAPSHOT_URL": (cwd / "snapshots").as_uri(),
        "KEEPFIT_SIGNING_KEYS": SIGNING_KEYS,
    }

    def run(words: str) -> Done:
        return keepfit(*words.split(), cwd=cwd, variables={**valid, **FAILURES[words][0]})

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(FAILURES, pool.map(run, FAILURES), strict=True))


@pytest.mark.parametrize("words", FAILURES)
def test_an_error_is_one_clear_line(failed: dict[str, Done], words: str) -> None:
    """An error is one line that names its cause, with exit code 1, no traceback and no password."""
    line = error_line(failed[words])
    assert line.startswith(f"keepfit: {FAILURES[words][1]}")
    assert "hunter2" not in line


def test_a_second_stack_on_a_folder_is_refused(stack: Stack, tmp_path: Path) -> None:
    """`up` on a folder in use names the stack that uses it, and does not disturb that stack."""
    pids = stack.pids()
    line = error_line(keepfit("up", "--data", str(stack.data), "--port", "0", cwd=tmp_path))
    assert f"is in use by another `keepfit up` (pid {stack.process.pid}, {stack.url})" in line
    assert stack.pids() == pids
    for pid in pids.values():
        os.kill(pid, 0)


def test_commands_read_the_settings_of_a_stack_from_its_folder(stack: Stack, tmp_path: Path) -> None:
    """With --data of a running stack, other commands use the settings of that stack."""
    done = keepfit("--data", str(stack.data), "snapshot", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(json.loads(line)["uri"].startswith(stack.data.as_uri()) for line in done.stdout.splitlines())


def test_help_lists_every_command(tmp_path: Path) -> None:
    """The help, which is also printed without arguments, lists each command with a description."""
    printed = keepfit("--help", cwd=tmp_path).stdout
    assert set(re.findall(r"^│ ([a-z]+) {2,}[A-Z]", printed, re.MULTILINE)) == COMMANDS
    bare = keepfit(cwd=tmp_path)
    assert (bare.stdout + bare.stderr).strip() == printed.strip()


def test_an_unknown_command_is_a_usage_error(tmp_path: Path) -> None:
    """An unknown command is exit code 2, as with every Unix command, without a traceback."""
    done = keepfit("snapshots", cwd=tmp_path)
    assert done.returncode == 2
    assert "No such command 'snapshots'" in done.stderr
    assert "Traceback" not in done.stderr


def test_services_do_not_import_pandas() -> None:
    """without_pandas keeps scikit-learn from importing pandas into services; a later import of pandas works."""
    code = (
        "import sys\n"
        "from keepfit.cli.services import without_pandas\n"
        "with without_pandas():\n"
        "    import keepfit_gateway.app, keepfit_workers.supervisor\n"
        "assert 'pandas' not in sys.modules\n"
        "import pandas\n"
        "with without_pandas():\n"
        "    assert sys.modules['pandas'] is pandas\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
