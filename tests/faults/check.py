"""The check at the end of a run: is what was learned exactly what was accepted, once and in order?

Owns the comparison of three records of the same history: the clients' 202s, the store's counters and chain, and the
bundle itself. Never trusts one to speak for another. Data comes from the store, read past the proxies, when no mail is
left.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import redis.asyncio

from keepfit.backends import redis_keys
from keepfit.model.bundle import Bundle
from keepfit.model.serialization import unseal
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape
from keepfit.security import envelope
from keepfit.security.envelope import Keyring
from keepfit.store import inbox
from tests.faults.clients import Learner
from tests.faults.stack import SIGNING_KEYS


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of one model; `order_hash` covers every row as learned, `faults` is empty where all is right."""

    model: int
    estimator: str
    sent: int
    accepted: int
    learned: int
    put_aside: int
    order_hash: str
    expected_order_hash: str
    faults: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON has it."""
        return asdict(self)


async def examine(store: redis.asyncio.Redis, learner: Learner) -> Verdict:
    """Compare what clients were promised for one model with what the store holds."""
    fields = ("accepted", "learned", "rows_seen", "chain", "digest")
    state = dict(zip(fields, await store.hmget(redis_keys.state(learner.hash), fields), strict=True))
    data = await store.get(redis_keys.bundle(learner.hash))
    put_aside = await store.xlen(redis_keys.dead(learner.hash))
    recipe = parse(learner.recipe)
    header, bundle = unseal(data, Keyring.from_text(SIGNING_KEYS), recipe, learner.hash)
    sent, expected_chain = len(learner.rows), ""
    expected = Bundle.new(recipe)
    for X, y in learner.in_order():
        if isinstance(X, dict):
            payload = inbox.change(learner.hash, header.generation, X).payload
            expected.change(X)
        else:
            rows = shape(recipe, [X], [y], learning=True)
            payload = rows.encode()
            expected.partial_fit(rows)
        expected_chain = hashlib.sha1(f"{expected_chain}:".encode() + payload).hexdigest()
    faults = []
    seen = sum(isinstance(X, list) for X, _ in learner.rows)
    for name, found, wanted in (
        ("sequences given out", sorted(learner.accepted), list(range(1, sent + 1))),
        ("rows given a sequence", sorted(learner.accepted.values()), list(range(sent))),
        ("accepted, says the store", int(state["accepted"]), sent),
        ("learned, says the store", int(state["learned"]), sent),
        ("rows seen, says the store", int(state["rows_seen"]), seen),
        ("rows seen, says the bundle", bundle.rows_seen, seen),
        ("changed", bundle.changed, expected.changed),
        ("put aside", put_aside, 0),
        ("chain of the store", state["chain"].decode(), expected_chain),
        ("chain of the bundle", header.chain, expected_chain),
        ("digest of the bundle", state["digest"].decode(), envelope.digest_of(data)),
    ):
        if found != wanted:
            faults.append(f"{name}: {str(found)[:80]} where {str(wanted)[:80]} is right")
    faults += differences(bundle, expected)
    return Verdict(
        model=learner.number,
        estimator=recipe.estimator,
        sent=sent,
        accepted=len(learner.accepted),
        learned=int(state["learned"]),
        put_aside=put_aside,
        order_hash=header.chain,
        expected_order_hash=expected_chain,
        faults=faults,
    )


def differences(found: Bundle, expected: Bundle) -> list[str]:
    """Name what two bundles do not have in common, to the last bit."""
    faults = []
    if found.columns.labels != expected.columns.labels:
        faults.append("the labels differ")
    for part, ours, theirs in (
        ("scaler", found.columns.scaler, expected.columns.scaler),
        ("estimator", found.estimator, expected.estimator),
    ):
        assert vars(theirs), "nothing to compare"
        faults += [
            f"{part}.{name} differs" for name in vars(theirs) if not _same(vars(ours).get(name), vars(theirs)[name])
        ]
    return faults


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, np.ndarray):
        return isinstance(ours, np.ndarray) and ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    if isinstance(theirs, list | tuple) and isinstance(ours, Sequence):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if isinstance(theirs, int | float | str | None | bool):
        return bool(ours == theirs)
    # A random state, an optimizer, a loss: what they hold is what counts.
    if isinstance(theirs, np.random.RandomState):
        return _same(ours.get_state(), theirs.get_state())
    if hasattr(theirs, "__dict__"):
        return type(ours) is type(theirs) and all(_same(vars(ours).get(n), value) for n, value in vars(theirs).items())
    return type(ours) is type(theirs)
