"""Retention: which snapshots stay, by the age they have when one looks."""

import random
from typing import Any

import pytest

from keepfit.history import COMMITTED, CORRUPT, PENDING
from keepfit.history.snapshot_upkeep import ModelLifetime
from keepfit.snapshots.retention import DAY_S, HOUR_S, Rules, find_expired

# A round hour of a round day.
NOW_S = 20_000.0 * DAY_S
LIVE = ModelLifetime("ab", born=1)


def snapshot(version: int, age_s: float, status: str = COMMITTED, generation: int = 1) -> dict[str, Any]:
    """Make what retention looks at of a document."""
    return {"generation": generation, "version": version, "timestamp": NOW_S - age_s, "status": status}


def gone(life: ModelLifetime, documents: list[dict[str, Any]], now_s: float = NOW_S) -> list[int]:
    """Versions that are let go, in order."""
    found = find_expired(life, documents, Rules(), now_s)
    return sorted(document["version"] for expiry in found for document in expiry.expired)


def test_of_the_last_hour_all_are_kept() -> None:
    """Nothing younger than an hour goes, however many there are."""
    assert gone(LIVE, [snapshot(version, age_s=3600 - version) for version in range(3600)]) == []


def test_of_an_hour_of_the_last_day_the_last_is_kept() -> None:
    """Of a snapshot a minute, those of each full hour but its last go."""
    documents = [snapshot(version, age_s=5 * HOUR_S - version * 60) for version in range(180)]
    assert gone(LIVE, documents) == [version for version in range(180) if version % 60 != 59]


def test_of_a_day_of_the_last_month_the_last_is_kept() -> None:
    """Of a snapshot an hour, those of each full day but its last go."""
    documents = [snapshot(version, age_s=4 * DAY_S - version * HOUR_S) for version in range(72)]
    assert gone(LIVE, documents) == [version for version in range(72) if version % 24 != 23]


def test_what_is_older_goes_but_the_newest_good_one() -> None:
    """Of a model that learned nothing for months its last snapshot stays, and none besides."""
    assert gone(LIVE, [snapshot(version, age_s=(90 - version) * DAY_S) for version in range(10)]) == list(range(9))
    assert gone(LIVE, [snapshot(3, age_s=900 * DAY_S)]) == []


def test_the_newest_is_told_by_generation_and_version() -> None:
    """A clock that went back makes a snapshot look old: it stays, being the newest of the model."""
    newest = snapshot(1, age_s=400 * DAY_S, generation=2)
    assert gone(LIVE, [snapshot(7, age_s=40 * DAY_S), newest]) == [7]


def test_a_damaged_snapshot_is_nobodys_successor() -> None:
    """While the newest is corrupt the good one before it stays; corrupt ones go after a month."""
    documents = [
        snapshot(1, 70 * DAY_S),
        snapshot(2, 60 * DAY_S),
        snapshot(3, 50 * DAY_S, CORRUPT),
        snapshot(4, 20 * DAY_S, CORRUPT),
    ]
    assert gone(LIVE, documents) == [1, 3]


def test_intents_are_none_of_its_business() -> None:
    """What is pending is neither kept for the hour's last nor let go."""
    assert gone(LIVE, [snapshot(1, 40 * DAY_S), snapshot(2, 40 * DAY_S, PENDING)]) == []


@pytest.mark.parametrize(("deleted_days", "lost"), [(1, [1]), (29, [1]), (31, [1, 2])])
def test_a_deleted_models_last_snapshot_stays_for_a_month(deleted_days: int, lost: list[int]) -> None:
    """Deleted by mistake, a model can be had back for as long as retention keeps anything."""
    life = ModelLifetime("ab", born=1, deleted=True, deleted_s=NOW_S - deleted_days * DAY_S)
    assert gone(life, [snapshot(1, 80 * DAY_S), snapshot(2, 70 * DAY_S)]) == lost


def test_a_deleted_model_without_a_date_goes_by_its_snapshots() -> None:
    """Where it is not known when a model was deleted, its newest snapshot is as old as that."""
    life = ModelLifetime("ab", born=1, deleted=True)
    assert gone(life, [snapshot(1, 10 * DAY_S), snapshot(2, 9 * DAY_S)]) == []
    assert gone(life, [snapshot(1, 50 * DAY_S), snapshot(2, 40 * DAY_S)]) == [1, 2]


def test_a_model_made_again_does_not_keep_its_predecessors() -> None:
    """Each life has a newest snapshot of its own: that of the past one goes when its time has come."""
    life = ModelLifetime("ab", born=3, deleted_s=NOW_S - 31 * DAY_S)
    documents = [snapshot(9, 50 * DAY_S, generation=1), snapshot(1, 45 * DAY_S, generation=3)]
    assert gone(life, documents) == [9]


def test_what_would_be_left_alone_is_named() -> None:
    """Where but one good snapshot would be left it is named, to be looked at; where more are left none is."""
    (expiry,) = find_expired(LIVE, [snapshot(1, 80 * DAY_S), snapshot(2, 70 * DAY_S)], Rules(), NOW_S)
    assert expiry.only_remaining == snapshot(2, 70 * DAY_S)
    (expiry,) = find_expired(
        LIVE, [snapshot(1, 80 * DAY_S), snapshot(2, 5 * DAY_S), snapshot(3, 4 * DAY_S)], Rules(), NOW_S
    )
    assert expiry.only_remaining is None


def test_it_does_not_matter_when_or_how_often_one_looks() -> None:
    """Two days of a snapshot a minute: looked at in random intervals, in the end there is what one look leaves."""
    all_of_them = [snapshot(version, age_s=50 * HOUR_S - version * 60) for version in range(48 * 60)]
    once = {document["version"] for document in all_of_them} - set(gone(LIVE, all_of_them))
    chance = random.Random(7)
    for _ in range(3):
        now_s, kept, made = NOW_S - 50 * HOUR_S, [], iter([*all_of_them, None])
        document = next(made)
        while now_s < NOW_S:
            now_s = min(NOW_S, now_s + chance.uniform(60, 7 * HOUR_S))
            while document is not None and document["timestamp"] <= now_s:
                kept.append(document)
                document = next(made)
            lost = gone(LIVE, kept, now_s=now_s)
            kept = [one for one in kept if one["version"] not in lost]
        assert {one["version"] for one in kept} == once
    # The hours of the last day but the two that had none, and the two days before.
    assert len(once) == 22 + 2
