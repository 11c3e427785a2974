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
    assert (state["dependencies"]["redis"], state["models_count"], len(state["workers"])) == ("ok", 3, 2)
    worst = keepfit("top", "--once", "--json", "--sort", "error", *words, cwd=tmp_path).stdout
    assert json.loads(worst)["models"][-1]["hash"] == hashes["none"]
    # Without a terminal it does not run for ever.
    parts = keepfit("top", "--limit", "2", "--sort", "hash", *words, cwd=tmp_path)
    tables = [[line.split("\t") for line in part.splitlines()] for part in parts.stdout.split("\n\n")]
    assert [table[0][0] for table in tables] == ["part", "worker", "model"]
    assert [row[0] for row in tables[2][1:]] == sorted(hashes.values())[:2]
    assert parts.stderr == "There are 3 models; --limit shows more of them.\n"
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
    answers: dict[str, Any] = {
        "/readyz": {"status": "degraded", "mongo": "fails"},
        "/v1/workers": {"type": "urn:keepfit:problem:forbidden", "detail": "not for this key", "status": 403},
        "/v1/models": {"models": [{"hash": "a"}], "next": None},
    }

    def answer(path: str) -> bytes:
        document = answers[path]
        return ok(json.dumps(document), status=f"{document['status'] if 'detail' in document else 200} x")

    refused = ok('{"detail": "no"}', status="503 x")
    paths = ("/readyz", "/v1/workers", "/v1/models")
    said = [*map(answer, paths), *map(answer, paths[:2]), refused]
    with scripted(said) as server, Client(server.url) as client:
        found = read(client, [("type", "shoes")])
        assert (found.error, found.workers, found.models) == ("", [], [{"hash": "a"}])
        assert found.ready["mongo"] == "fails"
        found = read(client)
        assert (found.error, found.models, len(server.received)) == ("no", [], len(said))


def test_one_state_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """If the gateway fails at the second reading, --once ends with its error, as JSON too, and prints no state."""
    states = [ok(json.dumps(answer)) for answer in ({"status": "ok"}, {"workers": []}, {"models": [], "next": None})]
    said = [*states, *states[:2], ok('{"detail": "no"}', status="503 x")]
    with scripted(said) as server:
        words = ("top", "--once", "--json", "--interval", "0.2", "--url", server.url)
        assert error_line(keepfit(*words, cwd=tmp_path)) == "keepfit: no"


def test_rates_and_order() -> None:
    """Rates are rows since the reading before; a model that is new or was restored has none; no value comes last."""

    def model(name: str, rows: int, **more: Any) -> dict[str, Any]:
        return {"hash": name, "metadata": {}, "version": 1, "rows_seen": rows, "inbox": 0, "metrics": {}, **more}

    before = Reading(0.0, 10.0, models=[model("a", 100), model("b", 50), model("c", 7)])
    bad = {"window": {"mean_absolute_error": 3.0, "baseline_mean_absolute_error": 2.0}}
    good = {"accuracy": 0.9, "baseline_accuracy": 0.6, "window": {"accuracy": None}}
    after = Reading(
        2.0,
        12.0,
        models=[model("a", 110), model("b", 40), model("c", 7, inbox=3, metrics=bad), model("d", 9, metrics=good)],
    )
    described = describe(after, before)
    assert {each["hash"]: each["rows_per_s"] for each in described} == {"a": 5.0, "b": 0.0, "c": 0.0, "d": 0.0}
    orders: dict[top.Sort, str] = {"rate": "acbd", "inbox": "cabd", "error": "cdab", "rows": "abdc", "hash": "abcd"}
    for sort, expected in orders.items():
        assert "".join(each["hash"] for each in sorted(described, key=top.KEYS[sort])) == expected, sort
    assert error_of(good)[2] == pytest.approx(0.25)
    assert error_of({"accuracy": 1.0, "baseline_accuracy": 1.0}) == ("accuracy", 1.0, None)
