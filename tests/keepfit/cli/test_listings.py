"""Listings on a terminal and in a pipe, hashes by their first digits, and text of users in what is printed."""

import asyncio
import functools
import json
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from keepfit import identity
from keepfit.backends import redis_keys
from keepfit.cli import main
from keepfit.errors import MalformedError
from keepfit.history.metadata_labels import to_labels
from tests.conftest import SHOES_RECIPE
from tests.factories import Workshop
from tests.keepfit.cli.command import Command, error_line, keepfit
from tests.keepfit.cli.terminal import on_terminal, rows_of
from tests.keepfit.store.test_dead_letters import make_dead_letters

EVIL = "\x1b[31mred\nline\u202egnp"
ESCAPED = r"\u001b[31mred\nline\u202egnp"


def assert_fits(printed: str, columns: int = 80) -> None:
    """Assert that no line is wider than the terminal, and that no character reaches it that a terminal obeys."""
    assert [line for line in printed.splitlines() if cell_len(line.rstrip()) > columns] == []
    assert [c for c in printed if not c.isprintable() and c != "\n"] == []


async def test_listings_fit_a_terminal_and_show_hashes_that_commands_accept(shop: Workshop, command: Command) -> None:
    """On 80 columns each listing stays within the lines, and each hash on it selects its model."""
    long = await shop.learned(type="boots " * 30, brand="nike " * 30)
    other = await shop.learned(brand="東京" * 40)
    await shop.learn(other)
    await shop.snapshotter.run_pass()
    shop.redis.flushall()
    listed = {}
    for words in (("models",), ("history",), ("restore",), ("export", "all.zip"), ("import", "all.zip")):
        listed[words[0]] = await asyncio.to_thread(
            on_terminal, *words, cwd=command.cwd, variables=command.variables, columns=80
        )
        assert_fits(listed[words[0]])
        assert set(re.findall(r"^.*?\b([0-9a-f]{8}) ", listed[words[0]], re.MULTILINE)) == {long[:8], other[:8]}, words
    assert re.search(rf"^{other[:8]} +{{.*… +2 +6 +0 +MAE +\d", listed["models"], re.MULTILINE)
    assert re.search(rf"{other[:8]} +2 +MAE +\d", listed["history"])
    wide = await asyncio.to_thread(on_terminal, "models", cwd=command.cwd, variables=command.variables, columns=120)
    assert "PassiveAggressiveRegressor" in wide


async def test_every_command_accepts_the_first_digits_of_a_hash(shop: Workshop, command: Command) -> None:
    """Digits in any case that begin one hash only select its model, in every command that takes a hash."""
    long, other = await shop.learned(), await shop.learned()
    await shop.snapshotter.run_pass()
    assert [model["hash"] for model in command.json("models", "--hash", long[:8])] == [long]
    assert [outcome["hash"] for outcome in command.json("restore", "--hash", long[:8].upper())] == [long]
    assert {document["hash"] for document in command.json("history", "--hash", other[:4])} == {other}
    assert [row["hash"] for row in command.json("export", "one.zip", "--hash", long[:5])] == [long]
    assert command.json("dead", "--hash", long[:8]) == []


async def test_a_pipe_gets_lines_of_whole_cells_with_tabs_between(shop: Workshop, command: Command) -> None:
    """In a pipe a table has a line of titles, then one line per row, with whole hashes, metadata and metric."""
    model_hash = await shop.learned(brand="x" * 200)
    await shop.learn(model_hash)
    printed = command("models")
    assert printed.splitlines()[0].split("\t")[:3] == ["hash", "metadata", "estimator"]
    ((shown, metadata, estimator, *counts, metric, value),) = rows_of(printed)
    assert (shown, estimator, counts, metric) == (
        model_hash, "PassiveAggressiveRegressor", ["2", "6", "0"], "mean_absolute_error",
    )  # fmt: skip
    (model,) = command.json("models")
    assert json.loads(metadata) == model["metadata"]
    assert float(value) == model["metrics"]["mean_absolute_error"]


async def test_thousands_of_models_are_listed_page_by_page(shop: Workshop, command: Command) -> None:
    """`models` shows the first hundred and how to get the next ones; --limit and --after give all, each once."""
    recipe = json.dumps(SHOES_RECIPE)
    documents = [{"type": "bulk", "number": number} for number in range(1200)]
    hashes = sorted(map(identity.hash_of, documents))
    await shop.registry.collection("models").insert_many(
        {"_id": identity.hash_of(one), "metadata": json.dumps(one), "labels": to_labels(one),
         "recipe": recipe, "deleted": False, "generation": 1, "born": 1}
        for one in documents
    )  # fmt: skip
    first = command.run("models")
    assert [row[0] for row in rows_of(first.stdout)] == hashes[:100]
    assert first.stderr == f"There are more models than these 100; the next ones: --after {hashes[99]}\n"
    assert [model["hash"] for model in command.json("models", "--limit", "2000")] == hashes
    rest = command.json("models", "--after", hashes[99][:10], "--limit", "2000")
    assert [model["hash"] for model in rest] == hashes[100:]
    selected = command.json("models", "--where", "number=7", "--type", "bulk")
    assert [model["metadata"]["number"] for model in selected] == [7]
    ambiguous = error_line(command.run("models", "--hash", hashes[0][0]))
    assert "begins the hashes of several models" in ambiguous
    assert hashes[0] in ambiguous


async def test_a_terminal_shows_how_many_models_have_warnings(shop: Workshop, command: Command) -> None:
    """A terminal shows the number of models with warnings, and the warnings of a single model; JSON has them all."""
    model_hash = await shop.learned()
    (model,) = command.json("models")
    (warning,) = model["warnings"]
    assert "encoding: PassiveAggressiveRegressor reads the codes of 'make' as amounts" in warning
    seen = functools.partial(on_terminal, cwd=command.cwd, variables=command.variables, notes=True)
    assert "Models with warnings: 1. --hash and --json show them." in await asyncio.to_thread(seen, "models")
    assert f"warning: {warning}" in await asyncio.to_thread(seen, "models", "--hash", model_hash)


async def test_an_empty_listing_says_so_on_a_terminal(shop: Workshop, command: Command) -> None:
    """Without models a terminal shows one sentence; a pipe gets the titles only, and JSON nothing."""
    del shop
    shown = await asyncio.to_thread(on_terminal, "models", cwd=command.cwd, variables=command.variables)
    assert shown == "no models\n"
    assert rows_of(command("models")) == []
    assert command.json("models") == command.json("history") == []


async def test_more_digits_are_shown_where_eight_do_not_distinguish(shop: Workshop, command: Command) -> None:
    """Two models whose hashes agree in nine digits are shown with ten digits, also if only one of them is listed."""
    model_hash = await shop.learned(brand="nike")
    twin = model_hash[:9] + ("0" if model_hash[9] != "0" else "1") + model_hash[10:]
    await shop.registry.collection("models").insert_one(
        {"_id": twin, "metadata": '{"type": "boots"}', "labels": [{"k": "type", "v": "boots"}],
         "recipe": json.dumps(SHOES_RECIPE), "deleted": False, "generation": 1, "born": 1}
    )  # fmt: skip
    words = ("models", "--where", "brand=nike")
    shown = await asyncio.to_thread(on_terminal, *words, cwd=command.cwd, variables=command.variables)
    assert re.findall(r"^[0-9a-f]+", shown, re.MULTILINE) == [model_hash[:10]]
    assert twin in error_line(command.run("models", "--hash", model_hash[:9]))


@pytest.mark.parametrize("wrong", ["", "xyz", "0" * 65, "12 34", "\x1b[2J"], ids=ascii)
def test_what_cannot_begin_a_hash_is_an_error(tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """--hash names the form of a hash when it gets something else, before any server is asked."""
    monkeypatch.chdir(tmp_path)
    for words in (("models",), ("history",), ("dead",), ("restore",), ("export", "x.zip")):
        done = CliRunner().invoke(main.app, [*words, "--hash", wrong])
        assert isinstance(done.exception, MalformedError)
        assert "is not the beginning of a hash: a hash has 64 digits, 0 to 9 and a to f" in str(done.exception)


async def test_control_characters_of_users_are_shown_as_escapes(shop: Workshop, command: Command) -> None:
    """ESC, line breaks and bidirectional controls in a type, label or reason are printed as escapes, everywhere."""
    model_hash = await shop.learned(type=EVIL, brand=EVIL)
    # With two groups a plot has a legend.
    await shop.learned(brand="nike")
    await shop.snapshotter.run_pass()
    await shop.accept(model_hash)
    make_dead_letters(shop, model_hash, 1)
    shop.redis.xadd(redis_keys.dead(model_hash), {**shop.redis.xrange(redis_keys.dead(model_hash))[0][1],
                    b"reason": EVIL.encode()}, id="9-9")  # fmt: skip
    listings: list[tuple[str, ...]] = [
        ("models",), ("history",), ("restore", "--dry-run"), ("dead", "--hash", model_hash), ("history", "--csv"),
        ("history", "--every", "1h", "--stat", "count", "--group", "type"),
        ("history", "--every", "1h", "--stat", "count", "--group", "brand", "--plot"),
        ("history", "--every", "1h", "--stat", "count", "--group", "brand", "--csv"),
    ]  # fmt: skip
    for words in listings:
        shown = await asyncio.to_thread(on_terminal, *words, cwd=command.cwd, variables=command.variables, columns=160)
        assert_fits(shown, 1000 if "--csv" in words else 160)
        assert r"[31mred\nline\u202egnp" in shown, words
    assert any(ESCAPED in row[1] for row in rows_of(command("models")))
    assert EVIL in command("history", "--csv")
    assert "There is no file \\x1b[31mred\\nline\\u202egnp" in error_line(command.run("import", EVIL))


def test_a_shared_option_stands_before_and_after_the_command(stack_free_folder: Path, tmp_path: Path) -> None:
    """--data selects the settings of a folder before and after the name of a command; the last one counts."""
    for words in (
        ("--data", str(stack_free_folder), "history"),
        ("history", "--data", str(stack_free_folder)),
        ("--data", str(tmp_path), "history", "--data", str(stack_free_folder)),
    ):
        assert "KEEPFIT_PORT" in error_line(keepfit(*words, cwd=tmp_path))


@pytest.fixture
def stack_free_folder(tmp_path: Path) -> Path:
    """Return a data folder whose settings have an invalid port."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "env").write_text("KEEPFIT_PORT=many\n")
    return folder
