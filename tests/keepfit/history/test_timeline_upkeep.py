"""Roll-ups and retention of stored documents, on a real MongoDB server."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from keepfit.errors import SettingsError
from keepfit.history import Registry, Timeline, reading, rollups, timeline_upkeep
from keepfit.history.rollups import Rollup
from keepfit.history.timeline_upkeep import Upkeep
from keepfit.settings import Settings
from tests.keepfit.history.test_registry import commit

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
ROLLUP = Rollup("vote", "5m", "fit.size", "brand")


@pytest.fixture
def timeline(registry: Registry) -> Timeline:
    """Return the empty timeline."""
    return registry.timeline


def votes(*minutes: float) -> list[dict[str, Any]]:
    """Return documents of two brands, these minutes after noon."""
    return [
        {
            "type": "vote",
            "timestamp": NOON + 60 * minute,
            "brand": ("nike", "puma")[int(minute) % 2],
            "fit": {"size": minute},
        }
        for minute in minutes
    ]


async def rollup_documents(timeline: Timeline) -> dict[tuple[float, str], dict[str, Any]]:
    """Return the roll-up documents by minute after noon and brand."""
    found = await timeline.query({"type": "vote/5m", "of": "fit.size"})
    return {((document["timestamp"] - NOON) / 60, document["brand"]): document for document in found}


async def test_each_finished_interval_is_rolled_up_once(timeline: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each interval and group is one document with all statistics, also with concurrent calls and small windows."""
    monkeypatch.setattr(reading, "COLUMNS_CHUNK", 3)
    await timeline.bulk_upsert(votes(*range(20), -60 * 24 * 400))
    now = NOON + 60 * 18
    await asyncio.gather(*(rollups.roll_up(timeline, ROLLUP, now) for _ in range(4)))
    found = await rollup_documents(timeline)
    minutes = {(float(begin), brand) for begin in (0, 5, 10) for brand in ("nike", "puma")}
    assert found.keys() == minutes | {(-60 * 24 * 400.0, "nike")}
    assert found[5.0, "puma"] == {
        "type": "vote/5m", "timestamp": NOON + 300, "of": "fit.size", "brand": "puma",
        "count": 3.0, "sum": 21.0, "mean": 7.0, "min": 5.0, "max": 9.0, "first": 5.0, "last": 9.0,
    }  # fmt: skip
    points = await timeline.points("max", "1h", "max", {"type": "vote/5m", "brand": "puma"}, start=NOON)
    assert points == [{"timestamp": NOON, "value": 13.0}]


async def test_a_rollup_continues_where_it_stopped(timeline: Timeline) -> None:
    """The next call writes new intervals only, and the last one again, for documents that were stored late."""
    await timeline.bulk_upsert(votes(0, 2, 6))
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 600) == 2
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 600) == 1
    before = await rollup_documents(timeline)
    await timeline.bulk_upsert(votes(8, 11, 14))
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 900) == 3
    after = await rollup_documents(timeline)
    assert (before[5.0, "nike"]["count"], after[5.0, "nike"]["count"]) == (1, 2)
    assert after[0.0, "nike"] == before[0.0, "nike"]
    assert after[10.0, "puma"]["mean"] == 11


async def test_expired_documents_are_deleted_after_their_roll_up(registry: Registry) -> None:
    """Rules apply to a type or all others; roll-ups and snapshots stay; repeated and concurrent runs change no more."""
    timeline = registry.timeline
    await commit(registry, type="vote", timestamp=NOON - 1e6)
    await timeline.bulk_upsert([*votes(0, 1, 59), {"type": "other", "timestamp": NOON}])
    upkeep = Upkeep((ROLLUP,), (("vote", 1800.0), ("*", 1e5)))
    await asyncio.gather(*(timeline_upkeep.run(timeline, upkeep, NOON + 3600) for _ in range(3)))
    assert await timeline_upkeep.run(timeline, upkeep, NOON + 3600) == (1, 0)
    left = await timeline.query({"type": "vote"})
    assert [document["timestamp"] - NOON for document in left] == [59 * 60, -1e6]
    assert len(await rollup_documents(timeline)) == 3
    assert len(await timeline.query({"type": "other"})) == 1
    assert await timeline_upkeep.run(
        timeline, Upkeep(keep_s=(("vote/5m", 1e9), ("vote", 1e9), ("*", 60.0))), NOON + 3600
    ) == (
        0,
        1,
    )
    assert await timeline.query({"type": "other"}) == []


async def test_documents_are_kept_if_their_roll_up_fails(timeline: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a roll-up fails, no rule deletes documents of its type, and other roll-ups are written."""
    await timeline.bulk_upsert([*votes(0, 1, 2), {"type": "other", "timestamp": NOON, "n": 1}])
    monkeypatch.setattr(reading, "GROUPED_MAX", 2)
    upkeep = Upkeep((ROLLUP, Rollup("other", "5m", "n")), (("vote", 60.0), ("*", 60.0)))
    # The roll-up's own document is as old as the documents it aggregates.
    assert await timeline_upkeep.run(timeline, upkeep, NOON + 3600) == (1, 2)
    assert len(await timeline.query({"type": "vote"})) == 3
    assert await timeline_upkeep.run(timeline, Upkeep((ROLLUP,), (("*", 60.0),)), NOON + 3600) == (0, 0)


def test_upkeep_is_parsed_from_the_settings() -> None:
    """Both settings are comma-separated lists."""
    settings = Settings(history_rollups="vote 5m fit.size brand, vote 1h n", history_keep="vote 30d, my type 1w,* 1d")
    assert Upkeep.of(settings) == Upkeep(
        (ROLLUP, Rollup("vote", "1h", "n")), (("vote", 2_592_000.0), ("my type", 604_800.0), ("*", 86_400.0))
    )
    assert Upkeep.of(Settings()) == Upkeep()


@pytest.mark.parametrize(
    "wrong",
    [
        {"history_rollups": text}
        for text in ("vote", "vote 5m", "vote 5 n", "vote 5m a..b", "vote 5m n mean", "a 5m b c d")
    ]
    + [{"history_keep": text} for text in ("30d", "vote", "vote 30", "vote 0d")],
    ids=str,
)
def test_a_malformed_setting_is_named(wrong: dict[str, str]) -> None:
    """A malformed roll-up or rule is an error with the name of the variable and the malformed entry."""
    with pytest.raises(SettingsError, match=f"KEEPFIT_{next(iter(wrong)).upper()}: '"):
        Upkeep.of(Settings(**wrong))
