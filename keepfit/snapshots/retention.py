"""Retention: which of a model's snapshots have done their time.

Owns the rule and nothing else: pure functions of documents and the time. Invariants: of a model that is not deleted the
newest good snapshot never goes, whatever its age; what is kept of an hour or a day is its last one, so that it does not
matter how often, or by how many, the rule is applied.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from keepfit.history import COMMITTED, CORRUPT, Document
from keepfit.history.snapshot_upkeep import ModelLifetime

HOUR_S, DAY_S = 3600, 86_400


@dataclass(frozen=True, slots=True)
class Rules:
    """Ages in seconds: up to `all_s` all are kept, up to `hourly_s` the last of each hour, up to `daily_s` of each day.

    What is unfinished counts as abandoned after `grace_s`.
    """

    all_s: float = HOUR_S
    hourly_s: float = DAY_S
    daily_s: float = 30 * DAY_S
    grace_s: float = HOUR_S


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to go of a model's documents; `last` is the good snapshot that would then be its only one, if it is."""

    expired: list[Document]
    last: Document | None = None


def judge(life: ModelLifetime, documents: Iterable[Document], rules: Rules, now_s: float) -> list[Verdict]:
    """Judge a model's documents that are older than `rules.all_s`; a verdict for each of its lives.

    Younger ones need not be given: the newest of the older ones is kept either way.

    >>> def snapshot(version, age_s):
    ...     return {"generation": 1, "version": version, "timestamp": 1e9 - age_s, "status": "committed"}
    >>> ages_s = (60 * DAY_S, 40 * DAY_S, 3 * DAY_S + 60, 3 * DAY_S, 9000, 8950)
    >>> [verdict] = judge(Life("ab", 1), [snapshot(i, age) for i, age in enumerate(ages_s)], Rules(), 1e9)
    >>> [document["version"] for document in verdict.expired]
    [4, 2, 1, 0]
    """
    found = sorted(documents, key=lambda document: (document["generation"], document["version"]), reverse=True)
    here = [document for document in found if document["generation"] >= life.born and not life.deleted]
    past = found[len(here) :]
    verdicts = []
    for some, stays in ((here, True), (past, _stays(life, past, rules, now_s))):
        good = [document for document in some if document["status"] == COMMITTED]
        spoilt = [document for document in some if document["status"] == CORRUPT]
        old = _old(good, rules, now_s, stays=stays)
        kept = len(good) - len(old)
        verdicts.append(
            Verdict(
                old + [document for document in spoilt if now_s - document["timestamp"] > rules.daily_s],
                good[0] if old and kept == 1 and stays else None,
            )
        )
    return [verdict for verdict in verdicts if verdict.expired]


def _stays(life: ModelLifetime, past: Sequence[Document], rules: Rules, now_s: float) -> bool:
    """Tell whether the newest snapshot of a deleted model is still kept: as if it had been made at the deletion."""
    deleted_s = life.deleted_s
    if deleted_s is None:
        deleted_s = max((document["timestamp"] for document in past), default=now_s)
    return now_s - deleted_s <= rules.daily_s


def _old(good: Sequence[Document], rules: Rules, now_s: float, *, stays: bool) -> list[Document]:
    """Good snapshots that go, of those given newest first; the first is kept where it `stays`."""
    spans: set[tuple[int, int]] = set()
    old = []
    for place, document in enumerate(good):
        span = _span(document["timestamp"], rules, now_s)
        young = now_s - document["timestamp"] <= rules.all_s
        if young or (place == 0 and stays) or (span is not None and span not in spans):
            spans.add(span or (0, 0))
        else:
            old.append(document)
    return old


def _span(timestamp: float, rules: Rules, now_s: float) -> tuple[int, int] | None:
    """Return the stretch of time of which one snapshot is kept; None where it is over."""
    age_s = now_s - timestamp
    if age_s <= rules.hourly_s:
        return HOUR_S, int(timestamp // HOUR_S)
    return (DAY_S, int(timestamp // DAY_S)) if age_s <= rules.daily_s else None
