"""Words on the command line: options with several words, and titles of progress bars."""

import io
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from keepfit.cli import create, main, output, rows
from keepfit.cli.words import SeveralWords


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--classes", "1", "-1"], {"classes": [1, -1]}),
        (["--classes", "-1", "1", "--updates", "merged"], {"classes": [-1, 1], "updates": "merged"}),
        (["--classes", "-x", "-y"], {"classes": ["-x", "-y"]}),
        (["--classes", "01067", "7"], {"classes": ["01067", 7]}),
        (["--features", "-a:number", "-b:category", "--scaler", "S"], {"features": {"-a": "number", "-b": "category"}}),
        (["--params", "alpha=-1", "-b=2"], {"params": {"alpha": -1, "-b": 2}}),
    ],
)
def test_words_may_begin_with_a_dash(
    monkeypatch: pytest.MonkeyPatch, words: list[str], expected: dict[str, Any]
) -> None:
    """A word that begins with a dash and is no option belongs to the option before it."""
    found: dict[str, Any] = {}

    class Client:
        def request(self, method: str, path: str, body: Any, *, is_repeatable: bool) -> tuple[int, dict[str, Any]]:
            assert (method, path, is_repeatable) == ("POST", "/v1/models", True)
            found.update(body["recipe"])
            return 201, {"hash": "0" * 64}

    monkeypatch.setattr(create, "with_client", lambda url, work: work(Client()))
    done = CliRunner().invoke(main.app, ["create", "--metadata", "type=shoes", *words])
    assert done.exit_code == 0, done.output
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "output_path"),
    [
        (["-opreds_v=2.csv", "in.csv"], "preds_v=2.csv"),
        (["-o", "preds_v=2.csv", "in.csv"], "preds_v=2.csv"),
        (["--output=preds_v=2.csv", "in.csv"], "preds_v=2.csv"),
        (["-size=2", "in.csv"], "-"),
    ],
)
def test_an_option_with_its_value_ends_the_words_before_it(
    monkeypatch: pytest.MonkeyPatch, words: list[str], output_path: str
) -> None:
    """A word that begins with an option is that option, whatever its value holds; other words go on."""
    found: dict[str, Any] = {}

    class Command(SeveralWords):
        def invoke(self, ctx: Any) -> None:
            found.update(ctx.params)

    app = typer.Typer()
    app.command(cls=Command)(rows.predict)
    done = CliRunner().invoke(app, ["--metadata", "type=a", *words])
    assert done.exit_code == 0, done.output
    expected = ["type=a", *(word for word in words if word == "-size=2")]
    assert (found["metadata"], found["output"], found["file"]) == (expected, output_path, "in.csv")


@pytest.mark.parametrize("name", ["a{b}.csv", "{", "[red]x[/red]", "[/x]", "{task.total}", "100%\x1b[2J"])
def test_any_file_name_is_a_title(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A progress bar shows a name with braces, brackets or control characters as it is, or escaped."""
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(output, "console", lambda *, stderr: console)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with output.progress_bar(f"learning {name}", "bytes") as show:
        show(1, 10)
    assert f"learning {name}".replace("\x1b", "\\x1b") in shown.getvalue()
