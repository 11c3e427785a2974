"""`keepfit history add` and `delete`: files of documents into the history, and out of it."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from keepfit import Client
from keepfit.cli import main
from keepfit.errors import InvalidError, MalformedError, SettingsError
from tests.conftest import Stack

NOON = 1_795_176_000.0
Run = Callable[..., Result]


@pytest.fixture
def run(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return the command on the shared stack."""
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KEEPFIT_URL", stack.url)
    return lambda *words, **more: CliRunner().invoke(main.app, ["history", *words], **more)


def found(stack: Stack, type_: str) -> list[dict[str, Any]]:
    """Return the documents of a type, oldest first."""
    with Client(stack.url) as client:
        return client.history(type=type_, limit=1_000)[::-1]


def test_files_of_each_format(run: Run, stack: Stack, tmp_path: Path) -> None:
    """Lines of JSON and CSV become the same documents; what `--csv` prints can be read again."""
    type_ = f"vote {uuid.uuid4().hex}"
    documents = [
        {"type": type_, "timestamp": NOON + n, "brand": ("nike", "a, b")[n % 2], "fit": {"size": n, "ok": n > 1}}
        for n in range(4)
    ]
    text = "\n".join(map(json.dumps, documents))
    lines = tmp_path / "votes.jsonl"
    lines.write_text(text)
    for _ in range(2):
        assert run("add", str(lines)).stdout == "4 documents stored\n"
    assert run("add", "-", "--json", input=text).stdout == '{"stored": 4}\n'
    assert found(stack, type_) == documents
    printed = run("--type", type_, "--csv").stdout
    table = tmp_path / "votes.csv"
    table.write_text(printed.replace(type_, f"{type_} 2"))
    assert run("add", str(table)).stdout == "4 documents stored\n"
    assert found(stack, f"{type_} 2") == [{**one, "type": f"{type_} 2"} for one in documents]
    table.write_text(f"device;timestamp;n\na;{NOON};1\nb;2026-11-20T12:00:01Z;\n")
    for _ in range(2):
        words = ("--type", f"{type_} 3", "--key", "device", "--delimiter", ";")
        assert run("add", str(table), *words).stdout == "2 documents stored\n"
    assert found(stack, f"{type_} 3") == [
        {"type": f"{type_} 3", "timestamp": NOON, "device": "a", "n": 1},
        {"type": f"{type_} 3", "timestamp": NOON + 1, "device": "b"},
    ]


def test_a_wrong_row_is_named(run: Run, tmp_path: Path) -> None:
    """The error names the line of the file, whichever request it was in."""
    type_, lines = uuid.uuid4().hex, tmp_path / "votes.jsonl"
    good = [json.dumps({"type": type_, "timestamp": NOON + n}) for n in range(1_100)]
    for wrong, error, reason in (
        ('{"type": "a", "$b": 1}', InvalidError, "line 1102: the name '\\$b'"),
        ("{", MalformedError, "line 1102: The line is not JSON"),
    ):
        lines.write_text("\n".join([*good, "", wrong, good[0]]))
        result = run("add", str(lines))
        assert isinstance(result.exception, error)
        with pytest.raises(error, match=reason):
            raise result.exception
    table = tmp_path / "votes.csv"
    table.write_text("type,a,a.b\nx,1,2\n")
    assert isinstance(run("add", str(table)).exception, MalformedError)


def test_deletion(run: Run, stack: Stack) -> None:
    """Without a terminal `--yes` is needed, and always a filter; what matches is deleted."""
    type_ = f"vote {uuid.uuid4().hex}"
    with Client(stack.url) as client:
        client.add_history({"type": type_, "timestamp": NOON + n, "n": n % 2} for n in range(6))
    for words in (("--type", type_), ("--yes",), ("--yes", "--where", "kind=snapshot")):
        assert isinstance(run("delete", *words).exception, SettingsError | MalformedError)
    words = ("--type", type_, "--where", "n=1", "--after", "2026-11-20T12:00:02Z", "--yes")
    assert run("delete", *words).stdout == "2 documents deleted\n"
    assert [one["timestamp"] - NOON for one in found(stack, type_)] == [0, 1, 2, 4]
    assert run("delete", "--type", type_, "--yes", "--json").stdout == '{"deleted": 4}\n'


def test_a_deletion_asks(run: Run, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the number of documents is shown before they are deleted."""
    from keepfit.cli import history_writing  # noqa: PLC0415 - its terminal is replaced

    type_ = f"vote {uuid.uuid4().hex}"
    with Client(stack.url) as client:
        client.add_history({"type": type_, "timestamp": NOON + n} for n in range(3))
    monkeypatch.setattr(history_writing, "on_terminal", lambda: True)
    refused = run("delete", "--type", type_, input="n\n")
    assert "Delete 3 documents?" in refused.stderr
    assert refused.exit_code == 1
    assert len(found(stack, type_)) == 3
    assert run("delete", "--type", type_, input="y\n").stdout.endswith("3 documents deleted\n")


def test_options_before_a_command_are_refused(run: Run) -> None:
    """`keepfit history --type shoes add` would ignore the option."""
    assert isinstance(run("--type", "shoes", "add", "-").exception, SettingsError)
