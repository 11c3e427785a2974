"""The command `keepfit watch`."""

import json
import os
import signal
from pathlib import Path

import pytest
from rich.cells import cell_len

from keepfit import identity
from tests import fork_server
from tests.conftest import Stack
from tests.keepfit.cli.command import error_line, keepfit
from tests.keepfit.cli.terminal import on_terminal


def model(stack: Stack, cwd: Path, **more: str) -> tuple[str, tuple[str, ...]]:
    """Create a model that has learned two rows; return its hash and the words that select it."""
    metadata = {"type": "watched", "session": identity.hash_of({"type": str(cwd)}), **more}
    data = ("--data", str(stack.data))
    made = keepfit(
        "create", "--metadata", json.dumps(metadata), "--estimator", "SGDRegressor", *data, cwd=cwd
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    model_hash = made.stdout.strip()
    learned = keepfit("learn", "-", "--target", "y", "--hash", model_hash, *data, cwd=cwd, sent="x,y\n1,2\n2,3\n")
    assert learned.returncode == 0, learned.stderr
    return model_hash, ("--where", f"session={metadata['session']}", *data)


def test_events_of_the_past_are_printed(stack: Stack, tmp_path: Path) -> None:
    """--after continues behind an event; filters select; JSON has all fields, a table the important ones."""
    model_hash, words = model(stack, tmp_path)
    watch = ("watch", *words, "--after", "0-0", "--limit", "2")
    done = keepfit(*watch, "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    created, commit = map(json.loads, done.stdout.splitlines())
    assert (created["kind"], commit["kind"], commit["version"], commit["rows_seen"]) == (
        "model_created",
        "commit",
        1,
        2,
    )
    assert {created["hash"], commit["hash"]} == {model_hash}
    lines = [line.split("\t") for line in keepfit(*watch, cwd=tmp_path).stdout.splitlines()]
    assert lines[0] == ["time (UTC)", "event", "model or worker", "details", "metadata"]
    assert lines[2][1:4] == ["commit", model_hash, "version 1, 2 rows"]
    one = ("watch", "--hash", model_hash[:12], "--kind", "drift,commit", *words, "--limit", "1", "--json")
    (after_first,) = keepfit(*one, "--after", created["id"], cwd=tmp_path).stdout.splitlines()
    assert json.loads(after_first) == commit
    assert "There is no kind 'comit' of events" in error_line(keepfit("watch", "--kind", "comit", *words, cwd=tmp_path))
    assert "must be the id of an event" in error_line(keepfit("watch", "--after", "x", *words, cwd=tmp_path))


def test_a_terminal_gets_lines_that_fit(stack: Stack, tmp_path: Path) -> None:
    """On 80 columns each event is one line, and no control character of metadata reaches the terminal."""
    model_hash, words = model(stack, tmp_path, brand="\x1b[31m東京" * 30)
    shown = on_terminal("watch", *words, "--after", "0-0", "--limit", "2", cwd=tmp_path)
    title, created, commit = shown.splitlines()
    assert title.startswith("time (UTC) event         model or worker details ")
    assert commit[11:].startswith(f"commit        {model_hash[:10]}      version 1, 2 rows")
    assert max(map(cell_len, (title, created, commit))) <= 80
    assert [c for c in shown if not c.isprintable() and c != "\n"] == []


@pytest.mark.parametrize("end", ["Ctrl-C", "head"])
def test_the_end_is_quiet(stack: Stack, tmp_path: Path, end: str) -> None:
    """An event is printed into a pipe when it happens; Ctrl-C or the end of the reader ends it without a word."""
    model_hash, words = model(stack, tmp_path)
    out, stdout = os.pipe()
    err, stderr = os.pipe()
    watch = ("watch", *words, "--json", "--kind", "commit", "--after", "0-0")
    process = fork_server.start(watch, tmp_path, dict(os.environ), (0, stdout, stderr))
    os.close(stdout)
    os.close(stderr)
    more = ("learn", "-", "--target", "y", "--hash", model_hash, *words[2:])
    with os.fdopen(out) as lines, os.fdopen(err) as notes:
        assert json.loads(lines.readline())["version"] == 1
        if end == "head":
            lines.close()
        assert keepfit(*more, cwd=tmp_path, sent="x,y\n5,6\n").returncode == 0
        if end == "Ctrl-C":
            assert json.loads(lines.readline())["version"] == 2
            process.send_signal(signal.SIGINT)
            assert lines.read() == ""
        assert (process.wait(30), notes.read()) == (130 if end == "Ctrl-C" else 0, "")
