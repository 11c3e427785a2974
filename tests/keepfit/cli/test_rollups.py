"""The command `keepfit rollups` lists and rebuilds the roll-ups of the history."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner, Result

from keepfit.cli import main
from keepfit.errors import NotFoundError, SettingsError
from keepfit.history import Timeline
from keepfit.history.upkeep import rollups
from keepfit.history.upkeep.rollups import parse

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
SETTING = "vote 5m size brand, price 1h open"
Run = Callable[..., Awaitable[Result]]


@pytest.fixture
def run(mongo_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return the command with two roll-ups; it runs in a thread, because it starts an event loop."""
    monkeypatch.setenv("KEEPFIT_MONGO_URL", mongo_url)
    monkeypatch.setenv("KEEPFIT_HISTORY_ROLLUPS", SETTING)

    async def invoke(*words: str, command: Sequence[str] = ("rollups",)) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, main.app, [*command, *words])

    return invoke


async def test_roll_ups_are_listed_and_rebuilt(run: Run, mongo_url: str) -> None:
    """The list has the progress of each roll-up; --rebuild rolls up what is there, of one type if it is named."""
    async with Timeline.open(mongo_url) as timeline:
        await timeline.bulk_upsert(
            {"type": type_, "timestamp": NOON + n, "brand": "nike", name: n}
            for n in range(3)
            for type_, name in (("vote", "size"), ("price", "open"))
        )
        await rollups.roll_up(timeline, parse(SETTING)[0], NOON + 600)
        await timeline.store({"type": "vote", "timestamp": NOON, "brand": "nike", "size": 9})
        listed = [json.loads(line) for line in (await run("--json")).stdout.splitlines()]
        assert listed == [
            {"type": "vote", "every": "5m", "field": "size", "group": "brand", "until": NOON + 600,
             "state": "has late documents"},
            {"type": "price", "every": "1h", "field": "open", "group": None, "until": None, "state": "new"},
        ]  # fmt: skip
        assert "2026-11-20T12:10:00Z" in (await run()).stdout
        assert (await run("--rebuild", "--type", "vote")).stdout == "1 roll-up documents changed\n"
        (rolled,) = await timeline.query({"type": "vote/5m"})
        assert (rolled["count"], rolled["max"]) == (4, 9)
        assert await timeline.query({"type": "price/1h"}) == []
        states = [json.loads(line)["state"] for line in (await run("--rebuild", "--json")).stdout.splitlines()]
        assert states == ["up to date", "up to date"]
        assert len(await timeline.query({"type": "price/1h"})) == 1
        await timeline.delete_many({"type": "price"})
        rebuild = ("history", "rebuild")
        assert (await run("--type", "price", command=rebuild)).stdout == "0 roll-up documents changed\n"
        assert await timeline.query({"type": "price/1h"}) == []
        listed = [json.loads(line) for line in (await run("--force", "--json", command=rebuild)).stdout.splitlines()]
        assert [(each["type"], each["state"]) for each in listed] == [("vote", "up to date"), ("price", "up to date")]
        assert isinstance((await run("--type", "shoes", command=rebuild)).exception, NotFoundError)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (
            ["--type", "shoes"],
            NotFoundError,
            "There is no roll-up of this type; KEEPFIT_HISTORY_ROLLUPS declares it.",
        ),
        (["--force"], SettingsError, "--force requires --rebuild."),
    ],
)
async def test_invalid_options_of_rollups_are_errors(
    run: Run, words: list[str], error: type[Exception], message: str
) -> None:
    """A type without roll-ups is an error, and --force without --rebuild."""
    done = await run(*words)
    assert (type(done.exception), str(done.exception)) == (error, message)
