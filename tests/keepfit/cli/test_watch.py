"""The command `keepfit watch`, and the stream of events that it reads."""

import asyncio
import json
import os
import signal
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.cells import cell_len

from keepfit import identity
from keepfit.client import event_listener
from keepfit.client.event_listener import MessageReader, listen
from keepfit.client.gateway import Gateway
from keepfit.errors import MalformedError, UnavailableError
from tests import fork_server
from tests.conftest import Stack
from tests.keepfit.cli.command import error_line, keepfit
from tests.keepfit.cli.terminal import on_terminal

EVENTS = [b'id: 1-0\r\ndata: {"kind":"commit"}\r\n\r\n', b'id: 2-0\r\ndata: {"kind":"drift"}\r\n\r\n']


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


async def test_the_stream_continues_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that ends, or a gateway that cannot answer, is asked again after the last event; an error is raised."""
    monkeypatch.setattr(event_listener, "PAUSE_S", 0.0)
    asked: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("Last-Event-ID"))
        if len(asked) in (2, 3):
            return web.Response(status=503)
        if len(asked) == 5:
            problem = {"type": "urn:keepfit:problem:malformed", "detail": "wrong", "status": 400}
            return web.json_response(problem, status=400)
        response = web.StreamResponse()
        await response.prepare(request)
        # In two pieces, in the middle of a line.
        piece = EVENTS[0 if len(asked) == 1 else 1]
        await response.write(b"retry: 1000\r\nid: 0-1\r\n\r\n" + piece[:20])
        await asyncio.sleep(0)
        await response.write(piece[20:] + b": ping\r\n\r\n")
        return response

    app = web.Application()
    app.router.add_get("/v1/events", answer)
    found: list[dict[str, Any]] = []
    notes: list[str] = []

    async def collect(gateway: Gateway) -> None:
        async with aclosing(listen(gateway, interrupted=notes.append)) as events:
            async for event in events:
                found[:] = [*found, event]

    async with TestServer(app) as server, Gateway(str(server.make_url("/"))) as gateway:
        with pytest.raises(MalformedError, match="wrong"):
            await collect(gateway)
    assert found == [{"id": "1-0", "kind": "commit"}, {"id": "2-0", "kind": "drift"}]
    assert asked == [None, "1-0", "1-0", "1-0", "2-0"]
    assert notes == ["the gateway ended the stream", "", "the gateway ended the stream"]
    async with Gateway("http://127.0.0.1:1") as nothing:
        with pytest.raises(UnavailableError, match="No gateway answers"):
            await collect(nothing)


def test_messages_are_whole_however_they_arrive() -> None:
    """Bytes one at a time give the messages of all at once."""
    data = b"retry: 1\r\nid: 0-1\r\n\r\n: ping\r\n\r\n" + b"".join(EVENTS)
    reader = MessageReader()
    single = [message for byte in data for message in reader.feed(bytes([byte]))]
    assert single == list(MessageReader().feed(data))
    assert [message.id for message in single] == ["0-1", "1-0", "2-0"]
