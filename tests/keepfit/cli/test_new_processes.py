"""Commands as new processes print and return what they do as forks of a process that has their modules."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fork_server
from tests.factories import Workshop
from tests.keepfit.cli.command import Command


def both(command: Command, words: str, **variables: str) -> tuple[fork_server.Done, fork_server.Done]:
    """Run a command as a new process and as a fork."""
    environment = {**os.environ, **command.variables, **variables}
    new = subprocess.run(
        [sys.executable, "-m", "keepfit", *words.split()],
        cwd=command.cwd, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return new, fork_server.run(words.split(), command.cwd, environment)


async def test_every_kind_of_command_does_the_same_in_a_new_process(shop: Workshop, command: Command) -> None:
    """Results, errors and usage have the same text on the same stream, and the same exit code."""
    model_hash = await shop.learned(brand="東京")
    await shop.snapshotter.run_pass()
    (command.cwd / "a.csv").write_text("x\n1\n")
    known = [
        "--version", "--help", "key signing --id ü", "models --json", "history", "rollups", f"dead --hash {model_hash}",
        "models --limit x", "import none.zip", "predict a.csv --hash 00 --url http://127.0.0.1:1",
    ]  # fmt: skip
    for words in known:
        new, fork = await asyncio.to_thread(both, command, words)
        assert (fork.returncode, fork.stdout, fork.stderr) == (new.returncode, new.stdout, new.stderr), words
    # What it saves does not differ, but how long it takes does; nor the first lines of what `status` finds.
    new, fork = await asyncio.to_thread(both, command, "snapshot")
    assert new.returncode == fork.returncode == 0
    assert new.stdout.rpartition(" in ")[0] == fork.stdout.rpartition(" in ")[0]
    new, fork = await asyncio.to_thread(both, command, "status")
    assert (new.returncode, new.stdout.split()[:4]) == (fork.returncode, fork.stdout.split()[:4])


def test_a_fork_has_its_own_variables_and_end(tmp_path: Path) -> None:
    """Another fork does not see the variables of the one before; a signal ends it."""
    wrong = {**os.environ, "KEEPFIT_PORT": "many", "TZ": "Asia/Kathmandu"}
    assert "KEEPFIT_PORT: 'many'" in fork_server.run(["history"], tmp_path, wrong).stderr
    unset = fork_server.run(["history", "--hash", "x"], tmp_path, os.environ)
    assert "KEEPFIT_PORT" not in unset.stderr
    with open(os.devnull, "r+b") as nothing:
        reading, waiting = os.pipe()
        words = ["learn", "-", "--target", "y", "--hash", "0" * 64, "--url", "http://127.0.0.1:1"]
        fork = fork_server.start(words, tmp_path, os.environ, (reading, nothing.fileno(), nothing.fileno()))
        fork.send_signal(signal.SIGKILL)
        assert fork.wait(30) == -signal.SIGKILL
        os.close(reading)
        os.close(waiting)


def test_a_variable_that_python_reads_at_its_start_must_be_that_of_the_server(tmp_path: Path) -> None:
    """A fork cannot have another hash seed."""
    with pytest.raises(AssertionError, match="Python reads PYTHONHASHSEED at its start"):
        fork_server.run(["--version"], tmp_path, {**os.environ, "PYTHONHASHSEED": "77"})
