"""The command `keepfit history` prints documents and points as a table, JSON, CSV and a plot."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner, Result

from keepfit.cli import main
from keepfit.errors import MalformedError, SettingsError
from keepfit.history import Timeline

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
Run = Callable[..., Awaitable[Result]]


@pytest.fixture
async def run(mongo_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return the command on a history of 30 documents; it runs in a thread, because it starts an event loop."""
    monkeypatch.setenv("KEEPFIT_MONGO_URL", mongo_url)
    async with Timeline.open(mongo_url) as timeline:
        await timeline.bulk_upsert(
            {"type": "vote", "timestamp": NOON + 60 * n, "brand": ("nike", "puma")[n % 2], "fit": {"size": n}}
            for n in range(30)
        )

    async def invoke(*words: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, main.app, ["history", *words])

    return invoke


async def test_documents_are_printed_in_each_format(run: Run) -> None:
    """The table has the newest 20 documents; JSON has one document per line; CSV has dotted names."""
    table = (await run("--type", "vote")).stdout
    assert table.count("2026-11-20T12:") == 20
    assert '{"brand": "puma", "fit": {"size": 29}}' in table
    lines = (await run("--last", "2", "--where", "brand=nike", "--json")).stdout.splitlines()
    assert [json.loads(line)["fit"] for line in lines] == [{"size": 28}, {"size": 26}]
    rows = (await run("--closest", "2026-11-20T12:01:10Z", "--csv")).stdout
    assert rows == f"type,timestamp,brand,fit.size\nvote,{NOON + 60},puma,1\n"


async def test_points_are_printed_in_each_format(run: Run) -> None:
    """Points are printed as a table, JSON, CSV, or a plot with one line per group."""
    words = ("--type", "vote", "--every", "10m", "--field", "fit.size")
    table = (await run(*words, "--stat", "max")).stdout
    assert [value for value in ("9.0", "19.0", "29.0") if value in table] == ["9.0", "19.0", "29.0"]
    rows = (await run(*words, "--group", "brand", "--after", "2026-11-20T12:20Z", "--csv")).stdout
    assert rows == f"timestamp,value,group\n{NOON + 1200},24.0,nike\n{NOON + 1200},25.0,puma\n"
    lines = (await run(*words, "--moving", "2", "--json")).stdout.splitlines()
    assert [json.loads(line)["value"] for line in lines] == [4.5, 9.5, 19.5]
    plot = (await run(*words, "--group", "brand", "--plot")).stdout
    assert plot.startswith("mean of fit.size every 10m\n")
    assert "puma" in plot
    assert re.search(r"[0-9] 12:[012][0-9]|12:[012][0-9]:[0-9]{2}", plot)
    assert (await run(*words, "--before", "yesterday", "--after", "2 days ago", "--plot")).stdout == "no points\n"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--plot"], SettingsError),
        (["--json", "--csv"], SettingsError),
        (["--where", "brand"], MalformedError),
        (["--where", "limit=1"], MalformedError),
        (["--where", "brand=nike", "--where", "brand=puma"], SettingsError),
        (["--every", "5 minutes", "--field", "n"], MalformedError),
        (["--before", "whenever"], MalformedError),
    ],
    ids=str,
)
async def test_invalid_options_are_errors(run: Run, words: list[str], error: type[Exception]) -> None:
    """Options that exclude each other, or whose value is malformed, are errors."""
    assert isinstance((await run(*words)).exception, error)
