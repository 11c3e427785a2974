"""Retention: which snapshots stay, by their age."""

import random
from typing import Any

import pytest

from keepfit.history import COMMITTED, CORRUPT, PENDING
from keepfit.history.registry.snapshot_upkeep import ModelLifetime
from keepfit.snapshots.retention import DAY_S, HOUR_S, Rules, find_expired

# The begin of an hour and of a day.
NOW_S = 20_000.0 * DAY_S
LIVE = ModelLifetime("ab", born=1)


def snapshot(version: int, age_s: float, status: str = COMMITTED, generation: int = 1) -> dict[str, Any]:
    """Return the fields of a document that retention reads."""
    return {"generation": generation, "version": version, "timestamp": NOW_S - age_s, "status": status}


def expired(lifetime: ModelLifetime, documents: list[dict[str, Any]], now_s: float = NOW_S) -> list[int]:
    """Return the expired versions, in order."""
    found = find_expired(lifetime, documents, Rules(), now_s)
    return sorted(document["version"] for expiry in found for document in expiry.expired)


def test_all_snapshots_of_the_last_hour_are_kept() -> None:
    """No snapshot younger than an hour expires, however many there are."""
    assert expired(LIVE, [snapshot(version, age_s=3600 - version) for version in range(3600)]) == []


def test_the_last_snapshot_of_each_hour_is_kept_for_a_day() -> None:
    """With a snapshot per minute, all of a full hour but the last expire."""
    documents = [snapshot(version, age_s=5 * HOUR_S - version * 60) for version in range(180)]
    assert expired(LIVE, documents) == [version for version in range(180) if version % 60 != 59]


def test_the_last_snapshot_of_each_day_is_kept_for_a_month() -> None:
    """With a snapshot per hour, all of a full day but the last expire."""
    documents = [snapshot(version, age_s=4 * DAY_S - version * HOUR_S) for version in range(72)]
    assert expired(LIVE, documents) == [version for version in range(72) if version % 24 != 23]


def test_older_snapshots_expire_except_the_newest() -> None:
    """Only the last snapshot of a model that has not learned for months stays."""
    assert expired(LIVE, [snapshot(version, age_s=(90 - version) * DAY_S) for version in range(10)]) == list(range(9))
    assert expired(LIVE, [snapshot(3, age_s=900 * DAY_S)]) == []


def test_the_newest_is_determined_by_generation_and_version() -> None:
    """If a clock went back, the newest snapshot looks old; it stays because it is the newest."""
    newest = snapshot(1, age_s=400 * DAY_S, generation=2)
    assert expired(LIVE, [snapshot(7, age_s=40 * DAY_S), newest]) == [7]


def test_a_damaged_snapshot_does_not_replace_the_one_before() -> None:
    """While the newest is corrupt the good one before it stays; corrupt ones expire after a month."""
    documents = [
        snapshot(1, 70 * DAY_S),
        snapshot(2, 60 * DAY_S),
        snapshot(3, 50 * DAY_S, CORRUPT),
        snapshot(4, 20 * DAY_S, CORRUPT),
    ]
    assert expired(LIVE, documents) == [1, 3]


def test_the_newest_damaged_snapshot_stays_while_there_is_no_good_one() -> None:
    """It tells that the model has learned rows, so that it does not come back as an empty one."""
    documents = [snapshot(1, 70 * DAY_S, CORRUPT), snapshot(2, 60 * DAY_S, CORRUPT)]
    assert expired(LIVE, documents) == [1]


def test_intents_do_not_expire() -> None:
    """A pending document neither counts as the last of its hour nor expires."""
    assert expired(LIVE, [snapshot(1, 40 * DAY_S), snapshot(2, 40 * DAY_S, PENDING)]) == []


@pytest.mark.parametrize(("deleted_days", "lost"), [(1, [1]), (29, [1]), (31, [1, 2])])
def test_the_last_snapshot_of_a_deleted_model_stays_for_a_month(deleted_days: int, lost: list[int]) -> None:
    """A model that was deleted by mistake can be restored for as long as retention keeps anything."""
    lifetime = ModelLifetime("ab", born=1, deleted=True, deleted_s=NOW_S - deleted_days * DAY_S)
    assert expired(lifetime, [snapshot(1, 80 * DAY_S), snapshot(2, 70 * DAY_S)]) == lost


def test_without_a_time_of_deletion_the_newest_snapshot_counts() -> None:
    """If the time of the deletion is not known, the age of the newest snapshot is used."""
    lifetime = ModelLifetime("ab", born=1, deleted=True)
    assert expired(lifetime, [snapshot(1, 10 * DAY_S), snapshot(2, 9 * DAY_S)]) == []
    assert expired(lifetime, [snapshot(1, 50 * DAY_S), snapshot(2, 40 * DAY_S)]) == [1, 2]


def test_a_recreated_model_does_not_keep_snapshots_of_its_predecessor() -> None:
    """Each lifetime has its own newest snapshot; that of a former one expires."""
    lifetime = ModelLifetime("ab", born=3, deleted_s=NOW_S - 31 * DAY_S)
    documents = [snapshot(9, 50 * DAY_S, generation=1), snapshot(1, 45 * DAY_S, generation=3)]
    assert expired(lifetime, documents) == [9]


def test_the_only_remaining_snapshot_is_named() -> None:
    """If only one good snapshot would remain it is named, so that it can be verified first."""
    (expiry,) = find_expired(LIVE, [snapshot(1, 80 * DAY_S), snapshot(2, 70 * DAY_S)], Rules(), NOW_S)
    assert expiry.only_remaining == snapshot(2, 70 * DAY_S)
    (expiry,) = find_expired(
        LIVE, [snapshot(1, 80 * DAY_S), snapshot(2, 5 * DAY_S), snapshot(3, 4 * DAY_S)], Rules(), NOW_S
    )
    assert expiry.only_remaining is None


def test_the_result_does_not_depend_on_how_often_the_rule_is_applied() -> None:
    """Applied at random intervals over two days, the rule leaves the same snapshots as applied once."""
    all_of_them = [snapshot(version, age_s=50 * HOUR_S - version * 60) for version in range(48 * 60)]
    once = {document["version"] for document in all_of_them} - set(expired(LIVE, all_of_them))
    chance = random.Random(7)
    for _ in range(3):
        now_s, kept, made = NOW_S - 50 * HOUR_S, [], iter([*all_of_them, None])
        document = next(made)
        while now_s < NOW_S:
            now_s = min(NOW_S, now_s + chance.uniform(60, 7 * HOUR_S))
            while document is not None and document["timestamp"] <= now_s:
                kept.append(document)
                document = next(made)
            lost = expired(LIVE, kept, now_s=now_s)
            kept = [one for one in kept if one["version"] not in lost]
        assert {one["version"] for one in kept} == once
    # The hours of the last day except the two without a snapshot, and the two days before.
    assert len(once) == 22 + 2
