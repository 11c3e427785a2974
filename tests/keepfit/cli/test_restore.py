"""The commands `keepfit restore`, `export` and `import`, on real servers."""

import asyncio
import json
import os
import pty
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from keepfit.cli import main
from keepfit.settings import Settings
from keepfit.times import format_time
from tests import fork_server
from tests.conftest import SIGNING_KEYS
from tests.factories import Workshop

Keepfit = Callable[..., Awaitable[Result]]


@pytest.fixture
def variables(settings: Settings) -> dict[str, str]:
    """Return the settings of the test's servers as environment variables."""
    return {
        "KEEPFIT_STORE_URL": settings.store_url.get_secret_value(),
        "KEEPFIT_MONGO_URL": settings.mongo_url.get_secret_value(),
        "KEEPFIT_SNAPSHOT_URL": settings.snapshot_url,
        "KEEPFIT_SIGNING_KEYS": settings.signing_keys.get_secret_value(),
    }


@pytest.fixture
def keepfit(variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keepfit:
    """Return the command on the test's own servers; it runs in a thread, because it starts an event loop."""
    monkeypatch.chdir(tmp_path)

    async def run(*words: str, **changed: str) -> Result:
        environment = {**variables, **changed}
        return await asyncio.to_thread(CliRunner(env=environment).invoke, main.app, list(words))

    return run


def documents(done: Result, returncode: int = 0) -> list[dict[str, Any]]:
    """Return the documents that a command printed, one per line; assert its exit code."""
    assert done.exit_code == returncode, (done.exception, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


async def versions(shop: Workshop, count: int, **metadata: Any) -> str:
    """Make a model with `count` versions and a snapshot of each."""
    model_hash = await shop.learned(**metadata)
    await shop.snapshotter.run_pass()
    for _ in range(1, count):
        await shop.learn(model_hash)
        await shop.snapshotter.run_pass()
    return model_hash


async def test_restore_restores_lost_models(shop: Workshop, keepfit: Keepfit) -> None:
    """--dry-run prints what would be done for the selected models; --hash restores that model only."""
    shoes, boots = await versions(shop, 1, brand="nike"), await versions(shop, 1, brand="puma", type="boots")
    predictions = await shop.predict(shoes)
    shop.redis.flushall()
    for words in (("--type", "boots"), ("--where", "brand=puma"), ("--where", "brand=puma", "--where", "type=boots")):
        (planned,) = documents(await keepfit("restore", "--dry-run", "--json", *words))
        assert (planned["hash"], planned["version"], planned["outcome"]) == (boots, 1, "would be restored")
    assert shop.redis.dbsize() == 0
    done = await keepfit("restore", "--hash", shoes)
    assert (done.exit_code, done.stderr) == (0, "")
    (row,) = [line for line in done.stdout.splitlines() if shoes in line]
    assert row.split("\t")[2:] == ["", "1", "0", "0", "restored"]
    assert await shop.predict(shoes) == predictions
    assert await shop.store.describe(boots) is None


async def test_restore_to_a_time_or_version(shop: Workshop, keepfit: Keepfit) -> None:
    """--at takes seconds or ISO 8601; --at and --version fail for a model without such a snapshot."""
    model_hash = await versions(shop, 2)
    newest, oldest = await shop.registry.documents()
    assert (newest["version"], oldest["version"]) == (2, 1)
    shop.redis.flushall()
    for words in (("--at", "2020-01-01 12:00"), ("--version", "9")):
        early = await keepfit("restore", "--json", *words)
        assert early.stderr == "keepfit: some models could not be restored\n"
        (outcome,) = documents(early, 1)
        assert outcome["outcome"].startswith("no snapshot")
    assert shop.redis.dbsize() == 0
    (outcome,) = documents(await keepfit("restore", "--json", "--at", str(oldest["timestamp"])))
    assert (outcome["version"], outcome["outcome"]) == (1, "restored")
    assert (await shop.model(model_hash)).version == 1


def in_zone(variables: dict[str, str], folder: Path, zone: str, *words: str) -> str:
    """Run the command in a process whose local time is that of `zone`; return its output and then its notes."""
    environment = {**os.environ, **variables, "TZ": zone}
    done = fork_server.run(words, folder, environment)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


async def test_a_printed_time_restores_that_snapshot(shop: Workshop, variables: dict[str, str], tmp_path: Path) -> None:
    """A time that `keepfit history` prints in one time zone is the time of the same snapshot for --at in any other."""
    await versions(shop, 3)
    shop.redis.flushall()
    listed = await asyncio.to_thread(in_zone, variables, tmp_path, "America/New_York", "history", "--limit", "3")
    shown = re.findall(r"^(20[0-9T:.-]+Z)\t", listed, re.MULTILINE)
    assert len(shown) == 3
    zones = ("Asia/Kathmandu", "Europe/Berlin", "UTC")
    for version, printed, zone in zip((3, 2, 1), shown, zones, strict=True):
        words = ("restore", "--at", printed, "--dry-run")
        done = await asyncio.to_thread(in_zone, variables, tmp_path, zone, *words, "--json")
        assert json.loads(done)["version"] == version
        assert format_time(json.loads(done)["timestamp"]) == printed
    assert f"State of {shown[2]}" in (await asyncio.to_thread(in_zone, variables, tmp_path, "UTC", *words))


async def test_a_time_in_the_future_is_refused(shop: Workshop, keepfit: Keepfit) -> None:
    """--at with a time in the future is an error, and nothing is restored; now is accepted."""
    await versions(shop, 1)
    shop.redis.flushall()
    refused = await keepfit("restore", "--at", "tomorrow")
    assert (refused.exit_code, shop.redis.dbsize()) == (1, 0)
    assert "'tomorrow' is in the future: it means 20" in str(refused.exception)
    (outcome,) = documents(await keepfit("restore", "--at", "now", "--json"))
    assert outcome["outcome"] == "restored"


async def test_without_a_terminal_live_models_go_back_only_with_force(shop: Workshop, keepfit: Keepfit) -> None:
    """Without a terminal a live model stays, and one line names --force; with --force it goes back."""
    model_hash = await versions(shop, 3)
    refused = await keepfit("restore", "--version", "1")
    assert (refused.exit_code, refused.stdout, str(refused.exception)) == (
        1,
        "",
        "1 live models would be rewound and forget 6 rows; confirm with --force. Nothing was changed.",
    )
    assert (await shop.model(model_hash)).version == 3
    (outcome,) = documents(await keepfit("restore", "--version", "1", "--force", "--json"))
    assert (outcome["live_version"], outcome["version"], outcome["rows_forgotten"]) == (3, 1, 6)
    assert (await shop.model(model_hash)).version == 1


def at_a_terminal(variables: dict[str, str], folder: Path, answer: str) -> tuple[int, str, str]:
    """Run the command on a terminal and answer its question; return exit code, question and output."""
    controller, terminal = pty.openpty()
    output, end = os.pipe()
    words = ("restore", "--version", "1")
    process = fork_server.start(words, folder, {**os.environ, **variables}, (terminal, end, terminal))
    os.close(terminal)
    os.close(end)
    question = b""
    while b"Continue?" not in question:
        question += os.read(controller, 4096)
    os.write(controller, answer.encode())
    with open(output, "rb") as pipe:
        out = pipe.read()
    code = process.wait(60)
    os.close(controller)
    return code, question.decode(), out.decode()


async def test_restore_asks_on_a_terminal(shop: Workshop, variables: dict[str, str], tmp_path: Path) -> None:
    """On a terminal it lists the live models that would go back and asks; no changes nothing, yes restores them."""
    model_hash = await versions(shop, 2)
    answers = []
    for answer, version in (("n\n", 2), ("y\n", 1)):
        code, question, out = await asyncio.to_thread(at_a_terminal, variables, tmp_path, answer)
        assert "1 live models go back and forget 3 rows" in " ".join(question.split())
        assert model_hash[:12] in out
        assert (await shop.model(model_hash)).version == version
        answers.append(code)
    assert answers == [1, 0]


async def test_export_and_import_move_models(shop: Workshop, keepfit: Keepfit, tmp_path: Path) -> None:
    """A file exported here is imported there, with the keys in a variable or a file; models that exist there stay."""
    model_hash = await versions(shop, 2)
    (moved,) = documents(await keepfit("export", "models.zip", "--json"))
    assert (moved["hash"], moved["version"], moved["snapshots"], moved["outcome"]) == (model_hash, 2, 2, "exported")
    again = await keepfit("export", "models.zip")
    assert str(again.exception) == "models.zip exists already; name another file, or remove it."
    (tmp_path / "keys").write_text(SIGNING_KEYS)
    new = {
        "KEEPFIT_STORE_URL": f"{shop.settings.store_url.get_secret_value()[:-1]}1",
        "KEEPFIT_MONGO_URL": f"{shop.settings.mongo_url.get_secret_value()}new",
        "KEEPFIT_SNAPSHOT_URL": (tmp_path / "new").as_uri(),
        "KEEPFIT_SIGNING_KEYS": "new:" + "7a" * 32,
    }
    unknown = await keepfit("import", "models.zip", **new)
    assert "name a file with the signing keys of the deployment that wrote it with --keys" in str(unknown.exception)
    (planned,) = documents(await keepfit("import", "models.zip", "--dry-run", "--keys", "keys", "--json", **new))
    assert planned["outcome"] == "would be imported"
    (moved,) = documents(await keepfit("import", "models.zip", "--json", **new, KEEPFIT_IMPORT_KEYS=SIGNING_KEYS))
    assert moved["outcome"] == "imported"
    (restored,) = documents(await keepfit("restore", "--json", **new))
    assert (restored["hash"], restored["outcome"]) == (model_hash, "kept: it is live")
    (repeated,) = documents(await keepfit("import", "models.zip", "--keys", "keys", "--json", **new))
    assert repeated["outcome"] == "kept: it was imported before"
