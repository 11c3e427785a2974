"""The command `keepfit history` prints documents and points as a table, JSON, CSV and a plot."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from keepfit.cli import main
from keepfit.errors import InvalidError, MalformedError, SettingsError
from keepfit.history import Registry, Timeline
from tests.keepfit.cli.terminal import on_terminal
from tests.keepfit.history.test_registry import commit

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


async def test_queries_are_compared_chosen_and_shown_in_a_zone(run: Run) -> None:
    """Comparisons, choices, several groups and a zone are options; times are those of the zone, with their offset."""

    async def sizes(*words: str) -> list[int]:
        lines = (await run("--type", "vote", *words, "--json")).stdout.splitlines()
        return [json.loads(line)["fit"]["size"] for line in lines]

    assert await sizes("--where", "fit.size>=28") == [29, 28]
    assert await sizes("--where", "brand in nike,x", "--where", "fit.size<3") == [2, 0]
    assert await sizes("--where", f"timestamp={NOON}") == [0]
    assert await sizes("--per", "brand") == [29, 28]
    assert await sizes("--top", "2", "--field", "fit.size", "--where", "brand!=puma") == [28, 26]
    assert await sizes("--limit", "25") == list(range(29, 4, -1))
    words = ("--type", "vote", "--every", "1d", "--field", "fit.size", "--stat", "count", "--tz", "Europe/Berlin")
    table = (await run(*words, "--group", "brand", "--group", "type")).stdout.splitlines()
    assert table == [
        "time (Europe/Berlin)\tgroup\tvalue", "2026-11-20T00:00:00+01:00\tbrand=nike, type=vote\t15.0",
        "2026-11-20T00:00:00+01:00\tbrand=puma, type=vote\t15.0",
    ]  # fmt: skip
    after = (await run("--type", "vote", "--after", "2026-11-20 13:28", "--tz", "Europe/Berlin")).stdout.splitlines()
    assert [line.partition("\t")[0] for line in after[1:]] == ["2026-11-20T13:29:00+01:00", "2026-11-20T13:28:00+01:00"]
    steps = ("--type", "vote", "--every", "10m", "--field", "fit.size", "--stat", "last")
    points = (await run(*steps, "--increase", "--cumulative", "--json")).stdout.splitlines()
    assert [json.loads(line)["value"] for line in points] == [10, 20]


async def test_numbers_of_documents_are_plotted(run: Run) -> None:
    """Without --every, --plot draws a number of the documents, or says which option names one."""
    plot = (await run("--type", "vote", "--plot", "--field", "fit.size")).stdout
    assert plot.startswith("fit.size of 30 documents\n")
    assert "2.9" in plot or "29" in plot
    assert "--field names a number" in (await run("--type", "vote", "--plot")).stdout


async def test_tables_fit_a_narrow_terminal(run: Run, tmp_path: Path, mongo_url: str) -> None:
    """On a terminal of 80 columns no line is longer, and snapshots show their metric."""
    async with Registry(mongo_url) as registry:
        metrics = {"mean_absolute_error": 0.1234567}
        await commit(registry, type="shoes", metrics=metrics, timestamp=NOON + 0.1234567)
    variables = {"KEEPFIT_MONGO_URL": mongo_url}
    for words in (("--type", "shoes"), ("--type", "vote"), ("--type", "shoes", "--tz", "Europe/Berlin"),
                  ("--type", "vote", "--every", "10m", "--field", "fit.size", "--group", "brand"),
                  ("--type", "vote", "--plot", "--field", "fit.size")):  # fmt: skip
        shown = await asyncio.to_thread(on_terminal, "history", *words, cwd=tmp_path, variables=variables)
        assert max(map(len, shown.splitlines())) <= 80, shown
        if "shoes" in words:
            assert "MAE" in shown
            assert "0.1235" in shown


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--tz", "Mars"], InvalidError),
        (["--where", "n=1", "--where", "n=2"], SettingsError),
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
