"""Verify after a run that exactly the accepted rows were learned, once and in order.

Owns the comparison of three independent records: the 202 answers of the clients, the counters and the digest in the
store, and the bundle. Data comes from the store, read without the proxies, when no request is pending.
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
from keepfit.rows import acceptance
from keepfit.rows.served import HEAD, ServedRows
from keepfit.rows.shaping import shape
from keepfit.security import envelope
from keepfit.security.envelope import Keyring
from keepfit.store import inbox
from tests.faults.clients import TrackedModel
from tests.faults.stack import SIGNING_KEYS


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result for one model; `order_hash` covers every row in learned order, `errors` is empty if all records agree."""

    model: int
    estimator: str
    sent: int
    accepted: int
    learned: int
    put_aside: int
    order_hash: str
    expected_order_hash: str
    errors: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as plain JSON."""
        return asdict(self)


async def verify(store: redis.asyncio.Redis, model: TrackedModel) -> Verdict:
    """Compare the accepted rows of one model with the state in the store."""
    fields = ("accepted", "learned", "rows_seen", "chain", "digest")
    state = dict(zip(fields, await store.hmget(redis_keys.state(model.hash), fields), strict=True))
    data = await store.get(redis_keys.bundle(model.hash))
    put_aside = await store.xlen(redis_keys.dead(model.hash))
    recipe = parse(model.recipe)
    header, bundle = unseal(data, Keyring.from_text(SIGNING_KEYS), recipe, model.hash)
    sent, expected_chain = len(model.rows), ""
    # All learned requests are retained (:mod:`tests.faults.stack`).
    retained = [fields[b"rows"] for _, fields in await store.xrange(redis_keys.inbox(model.hash))]
    expected = Bundle.new(recipe)
    for position, ((X, y), prediction) in enumerate(model.in_order()):
        if isinstance(X, dict):
            payload = inbox.make_change(model.hash, header.generation, X).payload
            expected.change(X)
        else:
            rows = shape(recipe, [X], [y], learning=True)
            if prediction is not None:
                rows = ServedRows(1, rows.numbers, rows.categories, rows.y, predictions=[prediction])
            payload = rows.encode()
            expected.partial_fit(rows)
        if position < len(retained) and is_accepted(retained[position], payload):
            # The client does not know when the gateway accepted the rows.
            payload = retained[position]
        expected_chain = hashlib.sha1(f"{expected_chain}:".encode() + payload).hexdigest()
    errors = []
    seen = sum(isinstance(X, list) for X, _ in model.rows)
    for name, found, right in (
        ("assigned sequences", sorted(model.accepted), list(range(1, sent + 1))),
        ("rows with a sequence", sorted(model.accepted.values()), list(range(sent))),
        ("accepted, in the store", int(state["accepted"]), sent),
        ("learned, in the store", int(state["learned"]), sent),
        ("rows seen, in the store", int(state["rows_seen"]), seen),
        ("rows seen, in the bundle", bundle.rows_seen, seen),
        ("changed", bundle.changed, expected.changed),
        ("metrics", bundle.metrics(), expected.metrics()),
        ("rows that wait for a label", await store.hlen(redis_keys.open_rows(model.hash)), 0),
        ("dead letters", put_aside, 0),
        ("chain of the store", state["chain"].decode(), expected_chain),
        ("chain of the bundle", header.chain, expected_chain),
        ("digest of the bundle", state["digest"].decode(), envelope.digest_of(data)),
    ):
        if found != right:
            errors.append(f"{name}: {str(found)[:80]} where {str(right)[:80]} is right")
    errors += differences(bundle, expected)
    return Verdict(
        model=model.number,
        estimator=recipe.estimator,
        sent=sent,
        accepted=len(model.accepted),
        learned=int(state["learned"]),
        put_aside=put_aside,
        order_hash=header.chain,
        expected_order_hash=expected_chain,
        errors=errors,
    )


def is_accepted(stored: bytes, payload: bytes) -> bool:
    """Return whether a stored request is that of `payload`, with the time at which it was accepted."""
    sent = payload[:-1] if payload[0] == HEAD else payload
    head = payload[0] if payload[0] == HEAD else payload[0] + 1
    end = -acceptance.FLOAT_BYTES
    return bool(acceptance.accepted_s(stored)) and stored[0] == head and stored[1:end] == sent[1:]


def differences(found: Bundle, expected: Bundle) -> list[str]:
    """Return the differences of two bundles, compared to the last bit."""
    result = []
    if found.columns.labels != expected.columns.labels:
        result.append("the labels differ")
    for part, actual, right in (
        ("scaler", found.columns.scaler, expected.columns.scaler),
        ("estimator", found.estimator, expected.estimator),
    ):
        assert vars(right), "nothing to compare"
        result += [
            f"{part}.{name} differs" for name in vars(right) if not _same(vars(actual).get(name), vars(right)[name])
        ]
    return result


def _same(actual: Any, right: Any) -> bool:
    if isinstance(right, np.ndarray):
        return isinstance(actual, np.ndarray) and actual.dtype == right.dtype and np.array_equal(actual, right)
    if isinstance(right, list | tuple) and isinstance(actual, Sequence):
        return len(actual) == len(right) and all(map(_same, actual, right))
    if isinstance(right, int | float | str | None | bool):
        return bool(actual == right)
    # Random states, optimizers and losses are equal if their content is.
    if isinstance(right, np.random.RandomState):
        return _same(actual.get_state(), right.get_state())
    if hasattr(right, "__dict__"):
        return type(actual) is type(right) and all(
            _same(vars(actual).get(n), value) for n, value in vars(right).items()
        )
    return type(actual) is type(right)
