"""Retention: decide which of a model's snapshots are expired.

Owns the rule and nothing else: pure functions of documents and the time. Invariants: the newest good snapshot of a
model that is not deleted never expires, whatever its age; of an hour or a day the last snapshot is kept, so the result
does not depend on how often, or by how many processes, the rule is applied.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from keepfit.history import COMMITTED, CORRUPT, Document
from keepfit.history.registry.snapshot_upkeep import ModelLifetime

HOUR_S, DAY_S = 3600, 86_400


@dataclass(frozen=True, slots=True)
class Rules:
    """Ages in seconds: up to `all_s` all are kept, up to `hourly_s` the last of each hour, up to `daily_s` of each day.

    An unfinished snapshot counts as abandoned after `grace_s`.
    """

    all_s: float = HOUR_S
    hourly_s: float = DAY_S
    daily_s: float = 30 * DAY_S
    grace_s: float = HOUR_S


@dataclass(frozen=True, slots=True)
class Expiry:
    """Expired documents of one lifetime of a model.

    `only_remaining` is the good snapshot that would be the model's only one without them; None if several remain.
    """

    expired: list[Document]
    only_remaining: Document | None = None


def find_expired(lifetime: ModelLifetime, documents: Iterable[Document], rules: Rules, now_s: float) -> list[Expiry]:
    """Find the expired ones among a model's documents, for its present and for its former lifetimes.

    Only documents older than `rules.all_s` are needed: the newest of them is kept whether there are younger ones or
    not.

    >>> def snapshot(version, age_s):
    ...     return {"generation": 1, "version": version, "timestamp": 1e9 - age_s, "status": "committed"}
    >>> ages_s = (60 * DAY_S, 40 * DAY_S, 3 * DAY_S + 60, 3 * DAY_S, 9000, 8950)
    >>> snapshots = [snapshot(version, age_s) for version, age_s in enumerate(ages_s)]
    >>> [expiry] = find_expired(ModelLifetime("ab", 1), snapshots, Rules(), 1e9)
    >>> [document["version"] for document in expiry.expired]
    [4, 2, 1, 0]
    """
    found = sorted(documents, key=lambda document: (document["generation"], document["version"]), reverse=True)
    current = [document for document in found if document["generation"] >= lifetime.born and not lifetime.deleted]
    former = found[len(current) :]
    expiries = []
    for some, keep_newest in ((current, True), (former, _keep_newest(lifetime, former, rules, now_s))):
        good = [document for document in some if document["status"] == COMMITTED]
        corrupt = [document for document in some if document["status"] == CORRUPT]
        if keep_newest and not good:
            # Without it, a model whose snapshots are all damaged would come back as one that has learned nothing.
            corrupt = corrupt[1:]
        expired = _expired(good, rules, now_s, keep_newest=keep_newest)
        remaining = len(good) - len(expired)
        expiries.append(
            Expiry(
                expired + [document for document in corrupt if now_s - document["timestamp"] > rules.daily_s],
                good[0] if expired and remaining == 1 and keep_newest else None,
            )
        )
    return [expiry for expiry in expiries if expiry.expired]


def _keep_newest(lifetime: ModelLifetime, former: Sequence[Document], rules: Rules, now_s: float) -> bool:
    """Return whether the newest snapshot of a deleted model is still kept: as if it were as old as the deletion."""
    deleted_s = lifetime.deleted_s
    if deleted_s is None:
        deleted_s = max((document["timestamp"] for document in former), default=now_s)
    return now_s - deleted_s <= rules.daily_s


def _expired(good: Sequence[Document], rules: Rules, now_s: float, *, keep_newest: bool) -> list[Document]:
    """Return the expired ones of good snapshots, given newest first; the first is kept if `keep_newest`."""
    spans: set[tuple[int, int]] = set()
    expired = []
    for index, document in enumerate(good):
        span = _span(document["timestamp"], rules, now_s)
        is_young = now_s - document["timestamp"] <= rules.all_s
        if is_young or (index == 0 and keep_newest) or (span is not None and span not in spans):
            spans.add(span or (0, 0))
        else:
            expired.append(document)
    return expired


def _span(timestamp: float, rules: Rules, now_s: float) -> tuple[int, int] | None:
    """Return the hour or day of which one snapshot is kept; None if no rule keeps one of that age."""
    age_s = now_s - timestamp
    if age_s <= rules.hourly_s:
        return HOUR_S, int(timestamp // HOUR_S)
    return (DAY_S, int(timestamp // DAY_S)) if age_s <= rules.daily_s else None
