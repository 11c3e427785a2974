"""The `keepfit` command as real processes on real servers."""

import json
import os
import re
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest

from keepfit.local.servers import free_port
from keepfit.security.api_keys import Keys
from keepfit.security.envelope import Keyring
from tests.conftest import SIGNING_KEYS, Stack
from tests.factories import Workshop
from tests.keepfit.cli.command import Command, Done, error_line, keepfit

COMMANDS = {
    "up", "gateway", "worker", "snapshot", "restore", "export", "import", "models", "history", "dead", "demo", "key",
    "rollups", "status", "workers", "create", "learn", "predict", "score", "curve", "watch", "top",
    "pull", "jobs", "upload", "download",
}  # fmt: skip


def cells(printed: str) -> dict[str, list[str]]:
    """Return the rows of a table that was printed to a pipe by the hash in them, each a list of its cells."""
    rows = [line.split("\t") for line in printed.splitlines() if "\t" in line][1:]
    return {next(cell for cell in row if re.fullmatch("[0-9a-f]{64}", cell)): row for row in rows}


async def test_snapshot_and_history_print_the_same_documents(shop: Workshop, command: Command) -> None:
    """`snapshot --json` prints one saved document per line; `history` prints them newest first, filtered by options."""
    shoes, boots = await shop.learned(), await shop.learned(type="boots")
    saved = {document["hash"]: document for document in command.json("snapshot")}
    assert saved.keys() == {shoes, boots}
    listed = command.json("history")
    assert listed == sorted(saved.values(), key=lambda document: -document["timestamp"])
    assert command.json("history", "--hash", shoes, "--type", "shoes") == [saved[shoes]]
    assert cells(command("history", "--limit", "1")).keys() == {listed[0]["hash"]}


async def test_snapshot_prints_saved_and_failed_models(shop: Workshop, command: Command) -> None:
    """The table has every URI in full; a model that cannot be saved is named, and the exit code is 1."""
    good, forged = await shop.learned(), await shop.learned()
    shop.redis.set(f"kf:{{{forged}}}:b", b"forged")
    done = command.run("snapshot")
    (document,) = await shop.registry.documents()
    assert {name: row[1:] for name, row in cells(done.stdout).items()} == {
        good: ["shoes", good, "1", "3", str(document["size_bytes"]), "", "", document["uri"]]
    }
    assert re.search(r"^1 saved, 0 unchanged, 1 failed in \d+\.\d\d s$", done.stdout, re.MULTILINE)
    assert done.returncode == 1
    warning, last = done.stderr.splitlines()
    assert "snapshot_failed" in warning
    assert last == f"keepfit: 1 models were not saved; {forged}: These bytes are not a keepfit envelope."


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
    shown = json.dumps({"type": "shoes", **listed[lost]["metadata"]})
    assert cells(command("models", "--type", "shoes")) == {
        lost: [lost, shown, "PassiveAggressiveRegressor", "1", "3", "0", "", ""]
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
    assert found.where == ()


def test_key_new_binds_a_key_to_metadata(tmp_path: Path) -> None:
    """Each --where adds a condition; values may hold the separators of the stored line."""
    words = ("--where", "type=shoes", "--where", "brand=a, b: c=d", "--where", "brand=nike")
    token, line = keepfit("key", "new", "--name", "web", *words, cwd=tmp_path).stdout.splitlines()
    found = Keys.from_text(line).find(token)
    assert found is not None
    assert found.where == (("brand", ("a, b: c=d", "nike")), ("type", ("shoes",)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("new", "--name", "a b"), "--name 'a b' is not 1 to 64 letters, digits, '.', '_' and '-'."),
        (("new", "--name", "web", "--scopes", "root"), "--scopes: 'root' is not one of read, predict, learn, admin."),
        (("new", "--name", "web", "--scopes", "learn,"), "--scopes: '' is not one of read, predict, learn, admin."),
        (("new", "--name", "web", "--rate", "1/0"), "--rate '1/0' is not a number of requests per second, 50, or with"),
        (("new", "--name", "web", "--where", "shoes"), "--where: 'shoes' is not key=value, as type=shoes is."),
        (
            ("new", "--name", "web", "--where", "a.b=1"),
            "--where: 'a.b' is no key of metadata: it is empty, ",
        ),
        (("signing", "--id", "a:b"), "--id: 'a:b' is not an id of a key: use up to 64 letters, digits,"),
        (("upload", "--id", "a,b"), "--id: 'a,b' is not an id of a key: use up to 64 letters, digits,"),
    ],
)
def test_an_argument_of_key_that_is_wrong_is_named(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """The error of `keepfit key` names the argument, its value and the valid values."""
    assert message in error_line(keepfit("key", *words, cwd=tmp_path))


def test_key_signing_prints_keys_that_a_keyring_accepts(tmp_path: Path) -> None:
    """A key has the given id, or one of its own; two form a keyring. `keygen` is another name of the command."""
    first = keepfit("key", "signing", cwd=tmp_path)
    second = keepfit("keygen", "--id", "2027", cwd=tmp_path)
    assert (first.returncode, second.returncode) == (0, 0)
    keyring = Keyring.from_text(f"{second.stdout.strip()},{first.stdout.strip()}")
    given, made = (key_id for key_id, _ in keyring.keys)
    assert (given, made[0], len(made)) == ("2027", "k", 13)
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
    "history --limit 1": ({"KEEPFIT_PORT": "many"}, "KEEPFIT_PORT: 'many' is not a whole number from 0 to 65535."),
    "snapshot --every 0s": ({}, "--every: '0s' is not a valid duration: use 60s, 5m or 1h."),
    "restore --at xyzzy": (
        {},
        "--at: 'xyzzy' is not a valid time: use 2026-11-20T12:00Z (UTC), 2026-11-20 12:00 (local),",
    ),
    "restore --hash 00 --json": ({}, "There is no model whose hash begins with 00;"),
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


def test_version_is_that_of_the_package(tmp_path: Path) -> None:
    """--version prints the version of the installed package."""
    assert keepfit("--version", cwd=tmp_path).stdout == f"keepfit {version('keepfit')}\n"


def test_completion_completes_commands_and_options(tmp_path: Path) -> None:
    """The completion that --install-completion sets up offers the commands, and the options of a command."""
    for words, offered in (("keepfit mod", "models"), ("keepfit models --ha", "--hash")):
        variables = {"_KEEPFIT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run(
            ["keepfit"], executable=Path(sys.executable).with_name("keepfit"), env={**os.environ, **variables},
            cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert done.stdout.split() == [offered]


def test_help_lists_every_command(tmp_path: Path) -> None:
    """The help, which is also printed without arguments, lists each command with a description."""
    printed = keepfit("--help", cwd=tmp_path).stdout
    assert set(re.findall(r"^│ ([a-z]+) {2,}[A-Z]", printed, re.MULTILINE)) == COMMANDS
    assert re.findall(r"^╭─ (\w[\w ]+) ─", printed, re.MULTILINE) == [
        "Options", "Try it", "Use models", "Operate a deployment", "Run its services",
    ]  # fmt: skip
    assert max(map(len, printed.splitlines())) <= 80
    bare = keepfit(cwd=tmp_path)
    assert (bare.stdout + bare.stderr).strip() == printed.strip()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("snapshots", "No such command 'snapshots'"),
        ("up --port 99999", "Invalid value for '--port': Input should be less than or equal to 65535"),
        ("up --workers 0", "Invalid value for '--workers': '0' is neither a number from 1 to 256 nor auto"),
        ("models --limit x", "Invalid value for '--limit': Input should be a valid integer"),
        ("dead", "Missing option '--hash'"),
        ("export", "Missing argument 'file'"),
        ("key new --nme web", "No such option: --nme"),
    ],
)
def test_wrong_usage_is_one_line(words: str, line: str, tmp_path: Path) -> None:
    """A wrong command, option or value is one line that names it and the help, and exit code 2."""
    done = keepfit(*words.split(), cwd=tmp_path)
    (printed,) = done.stderr.splitlines()
    assert printed.startswith(f"keepfit: {line}")
    command = " ".join(word for word in words.split()[:2] if word.isalpha() and word != "snapshots")
    assert f"`{f'keepfit {command}'.strip()} --help` lists what is valid." in printed
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("words", ["gateway", "worker", "snapshot --every 60s", "snapshot", "models"])
def test_every_service_and_command_warns_of_an_unknown_variable(words: str, tmp_path: Path) -> None:
    """A variable KEEPFIT_… that is no setting is one warning with the most similar setting; it stops nothing."""
    variables = {"KEEPFIT_PROT": "1", "KEEPFIT_MONGO_URL": "wrong"}
    done = keepfit(*words.split(), cwd=tmp_path, variables=variables)
    warning, error = done.stderr.splitlines()
    if words in ("snapshot", "models"):
        assert warning == "keepfit: warning: KEEPFIT_PROT is not a setting and is ignored; did you mean KEEPFIT_PORT?"
    else:
        logged = json.loads(warning)
        assert (logged["event"], logged["level"]) == ("unknown_setting", "warning")
        assert (logged["name"], logged["similar"]) == ("KEEPFIT_PROT", "KEEPFIT_PORT")
    assert error.startswith("keepfit: ")
    assert "KEEPFIT_PROT" not in error


@pytest.mark.parametrize("words", ["gateway", "worker", "snapshot --every 60s"])
def test_a_service_checks_the_settings_of_all_services(words: str, tmp_path: Path) -> None:
    """A service with a wrong setting of any service ends at once with one line that names each of them."""
    variables = {"KEEPFIT_SNAPSHOT_URL": "gs://x", "KEEPFIT_API_KEYS": "web", "KEEPFIT_HISTORY_KEEP": "x"}
    line = error_line(keepfit(*words.split(), cwd=tmp_path, variables={**variables, "KEEPFIT_QUEUE_URL": "http://x"}))
    assert [name for name in (*variables, "KEEPFIT_QUEUE_URL") if name not in line] == []


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
