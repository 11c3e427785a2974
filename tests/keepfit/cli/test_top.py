"""The command `keepfit top` on a running stack."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import termios
import uuid
from pathlib import Path
from typing import Any

import pytest

from keepfit.cli import top
from keepfit.client.clients import Client
from keepfit.client.overview import Reading, describe, error_of, read
from tests import fork_server
from tests.conftest import Stack
from tests.keepfit.cli.command import error_line, keepfit
from tests.keepfit.cli.terminal import on_terminal
from tests.keepfit.client.scripted_server import ok, scripted


def models(stack: Stack, cwd: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Create three models that have seen 0, 10 and 20 rows; return hashes by brand and the words that select them."""
    session, data = uuid.uuid4().hex, ("--data", str(stack.data))
    hashes = {}
    for rows, brand in ((10, "ten"), (20, "twenty"), (0, "none")):
        words = ("--metadata", "type=top", f"session={session}", f"brand={brand}", "--estimator", "SGDRegressor")
        hashes[brand] = keepfit("create", *words, *data, cwd=cwd).stdout.strip()
        if rows:
            sent = "x,y\n" + "".join(f"{row},{row}\n" for row in range(rows))
            words = ("learn", "-", "--target", "y", "--hash", hashes[brand], "--batch", "5")
            assert keepfit(*words, *data, cwd=cwd, sent=sent).returncode == 0
    return hashes, ("--where", f"session={session}", "--interval", "0.2", *data)


def test_a_state_is_printed_once(stack: Stack, tmp_path: Path) -> None:
    """--once prints dependencies, workers and the models in the order of --sort, as tables or JSON."""
    hashes, words = models(stack, tmp_path)
    done = keepfit("top", "--once", "--json", "--sort", "rows", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (state,) = map(json.loads, done.stdout.splitlines())
    assert [model["hash"] for model in state["models"]] == [hashes[brand] for brand in ("twenty", "ten", "none")]
    first = state["models"][0]
    assert (first["rows_seen"], first["version"], first["inbox"], first["metric"]) == (20, 4, 0, "mean_absolute_error")
    assert first["error_share"] > 0
    assert (state["dependencies"]["redis"], state["models_cut"], len(state["workers"])) == ("ok", False, 2)
    assert state["models_count"] >= 3
    assert state["traffic"]["window_s"] == 60
    assert first["rows_out_per_s"] == 0
    worst = keepfit("top", "--once", "--json", "--sort", "error", *words, cwd=tmp_path).stdout
    assert json.loads(worst)["models"][-1]["hash"] == hashes["none"]
    # Without a terminal it does not run for ever.
    parts = keepfit("top", "--limit", "2", "--sort", "hash", *words, cwd=tmp_path)
    tables = [[line.split("\t") for line in part.splitlines()] for part in parts.stdout.split("\n\n")]
    assert [table[0][0] for table in tables] == ["part", "worker", "model"]
    assert [row[0] for row in tables[2][1:]] == sorted(hashes.values())[:2]
    assert parts.stderr == "There are more models; --limit shows more of them.\n"
    shown = on_terminal("top", "--once", *words, cwd=tmp_path)
    assert max(map(len, shown.splitlines())) <= 80
    assert all(found[:10] in shown for found in hashes.values())
    assert "--interval: 'x' is not a valid duration" in error_line(keepfit("top", "--interval", "x", cwd=tmp_path))
    silent = keepfit("top", "--once", "--url", "http://127.0.0.1:1", cwd=tmp_path)
    assert "No gateway answers at http://127.0.0.1:1" in error_line(silent)


def test_the_screen_is_kept_until_ctrl_c(stack: Stack, tmp_path: Path) -> None:
    """On a terminal the state fills the screen, changes, and leaves the terminal as it was."""
    hashes, words = models(stack, tmp_path)
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    process = fork_server.start(("top", *words), tmp_path, environment, (terminal, terminal, terminal))
    os.close(terminal)
    printed = ""

    def read_until(pattern: str) -> None:
        nonlocal printed
        while not re.search(pattern, printed):
            printed += os.read(controller, 65536).decode(errors="replace")

    read_until(f"{hashes['none'][:10]}.* 0 +0 ")
    assert "\x1b[?1049h" in printed
    rows = "x,y\n" + "1,2\n" * 777
    learned = keepfit("learn", "-", "--target", "y", "--hash", hashes["none"], *words[4:], cwd=tmp_path, sent=rows)
    assert learned.returncode == 0, learned.stderr
    # Inbox and rows seen.
    read_until(f"{hashes['none'][:10]}.* 0 +777 ")
    process.send_signal(signal.SIGINT)
    read_until(re.escape("\x1b[?1049l"))
    assert process.wait(30) == 130
    os.close(controller)


def test_what_a_gateway_refuses_or_cannot_answer() -> None:
    """A key for a part of the models sees no workers; a gateway that cannot answer is an error of the reading."""
    forbidden = {"type": "urn:keepfit:problem:forbidden", "detail": "not for this key", "status": 403}
    degraded = {"status": "degraded", "mongo": "fails"}
    system = {"ready": degraded, "workers": [{"name": "w"}]}
    listed = {"models": [{"hash": "a"}], "next": "1:a"}

    def answer(document: dict[str, Any]) -> bytes:
        return ok(json.dumps(document), status=f"{document['status'] if 'detail' in document else 200} x")

    refused = ok('{"detail": "no"}', status="503 x")
    said = [*map(answer, (forbidden, degraded, listed, system, listed, system)), refused]
    with scripted(said) as server, Client(server.url) as client:
        found = read(client, [("type", "shoes")], "error", 7)
        assert (found.error, found.workers, found.models, found.is_cut) == ("", [], [{"hash": "a"}], True)
        assert found.ready["mongo"] == "fails"
        assert server.received[2].line.startswith("GET /v1/models?metadata%5Btype%5D=shoes&sort=error&limit=7 ")
        found = read(client)
        assert (found.workers, found.ready) == ([{"name": "w"}], degraded)
        found = read(client)
        assert (found.error, found.models, len(server.received)) == ("no", [], len(said))


def test_one_state_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """If the gateway fails at the second reading, --once ends with its error, as JSON too, and prints no state."""
    states = [ok(json.dumps(answer)) for answer in ({"ready": {"status": "ok"}}, {"models": [], "next": None})]
    said = [*states, states[0], ok('{"detail": "no"}', status="503 x")]
    with scripted(said) as server:
        words = ("top", "--once", "--json", "--interval", "0.2", "--url", server.url)
        assert error_line(keepfit(*words, cwd=tmp_path)) == "keepfit: no"


def test_models_in_short() -> None:
    """A model has its rates as the gateway knows them, and its error in relation to the baseline's."""

    def model(**more: Any) -> dict[str, Any]:
        return {"hash": "a", "metadata": {}, "version": 1, "rows_seen": 9, "inbox": 0, "metrics": {}, **more}

    bad = {"window": {"mean_absolute_error": 3.0, "baseline_mean_absolute_error": 2.0}}
    good = {"accuracy": 0.9, "baseline_accuracy": 0.6, "window": {"accuracy": None}}
    listed = [model(metrics=bad, rows_per_s=2.5, rows_out_per_s=None), model(metrics=good)]
    first, second = describe(Reading(2.0, models=listed))
    assert (first["rows_per_s"], first["rows_out_per_s"], first["error_share"]) == (2.5, None, 1.5)
    assert (second["rows_per_s"], second["metric"]) == (None, "accuracy")
    assert error_of(good)[2] == pytest.approx(0.25)
    assert error_of({"accuracy": 1.0, "baseline_accuracy": 1.0}) == ("accuracy", 1.0, None)
    assert top._model(second)[2:4] == ("", "")
