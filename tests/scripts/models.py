"""The state machine over the scripts that keep models: accept, take, commit and what belongs to them.

Drives them through the calls that gateways, workers and snapshotters make, on a real Valkey, beside the plain model of
:mod:`tests.scripts.plain`. Invariant, looked at after every step: Redis holds what the plain store holds, key by key,
field by field, and has told what the plain store told.
"""

import copy
import math
import time
import uuid
from dataclasses import replace
from hashlib import sha256
from typing import Any, ClassVar
from unittest import mock

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from keepfit import identity
from keepfit.backends import redis_keys, redis_scripts
from keepfit.errors import InboxFullError, KeepfitError, MissingRequestsError, StaleModelError, UnavailableError
from keepfit.history import RegistryEntry
from keepfit.model.bundle import Bundle
from keepfit.model.columns import Columns
from keepfit.model.serialization import unseal
from keepfit.recipe.recipe import parse
from keepfit.restore import idempotency, repair
from keepfit.restore.snapshot_bundle import SnapshotBundle
from keepfit.rowlog.row_log import Call as LoggedRequest
from keepfit.security import envelope
from keepfit.security.envelope import Keyring
from keepfit.store import commit as commits
from keepfit.store import inbox
from keepfit.store import models as stores
from keepfit.store.commit import Claimed, InboxConsumer
from keepfit.store.inbox import Accepted, LearnRequest
from keepfit.store.models import Install, Model, Rewind, Store
from keepfit.store.retained import ReplayBase, RetentionNote
from tests.conftest import SHOES_RECIPE, SIGNING_KEYS
from tests.factories import commit_bundle
from tests.scripts import plain
from tests.scripts.bench import HOUR_MS, Bench, without_staging, without_staging_async
from tests.scripts.hands import WRONG, Hand, Snapshot, spoiled
from tests.scripts.plain import NEW, Bundled, Call, Held

KEYRING = Keyring.from_text(SIGNING_KEYS)
RECIPE = parse(SHOES_RECIPE)
METADATA = {identity.hash_of(m): identity.canonical(m).decode() for m in ({"type": "a"}, {"type": "b"})}
A, B = METADATA
WORKERS = ("one", "two")
# So few that rows, keys and sizes often come again: what must be told apart then is what goes wrong.
ROWS = (b"x", b"yyyy")
# After these, a bundle's parameters are others.
CHANGE = b"yyyy"

hashes = st.sampled_from((A, A, A, B))
workers = st.sampled_from(WORKERS)
some_rows = st.one_of(
    st.lists(st.sampled_from(ROWS), min_size=1, max_size=3),
    st.just([b"x"] * 20),
)
limits = st.sampled_from(((100, 1000), (3, 1000), (3, 1000), (100, 5)))
# What happens while a worker has a model in hand.
EVENTS = ("accept", "sleep", "let go", "delete", "make again", "replace", "go back")
LATER = ("delete", "make again", "replace", "snapshot", "note", "restore", "go back")


def rarely(value: Any, otherwise: Any) -> Any:
    """Strategy that draws `value` one time in five."""
    return st.sampled_from((otherwise,) * 4 + (value,))


class Models(RuleBasedStateMachine):
    """Two models, two workers, gateways, snapshots, and a Redis that may lose its tail."""

    bench: ClassVar[Bench]

    def __init__(self) -> None:
        super().__init__()
        self.patches: list[Any] = [
            mock.patch.object(commits, "STAGED_TTL_MS", HOUR_MS * plain.STAGED_H),
            mock.patch.object(stores, "STAGED_TTL_MS", HOUR_MS * plain.STAGED_H),
            mock.patch.object(inbox, "GENERATED_KEY_TTL_S", 3600 * plain.MINTED_H),
            mock.patch.object(redis_scripts, "run_async", self.bench.run_async),
        ]
        for patch in self.patches:
            patch.start()
        self.bench.empty()
        self.client = self.bench.client
        self.consumer = InboxConsumer(self.client, plain.LOCK_H * 3600, plain.REPLAY_MAX)
        self.store = Store(self.bench.store)
        self.plain = plain.Store()
        self.generations = dict.fromkeys(METADATA, 0)
        self.born = dict.fromkeys(METADATA, 0)
        self.hands: list[Hand] = []
        self.snapshots: dict[str, list[Snapshot]] = {h: [] for h in METADATA}
        self.remembered: list[Any] = []
        self.opened: dict[str, Bundled] = {}

    def teardown(self) -> None:
        """Give keepfit its times back."""
        for patch in self.patches:
            patch.stop()

    # Models come and go.

    def _next_generation(self, h: str) -> int:
        self.generations[h] += 1
        return self.generations[h]

    @initialize()
    def first(self) -> None:
        """There are models to begin with."""
        self._make(A, again=True)
        self._make(B, again=True)

    @rule(h=hashes, again=rarely(True, False), late=rarely(True, False))
    def make(self, h: str, again: bool, late: bool) -> None:
        """Make a model; `again` after its register was told that the one before is deleted."""
        self._make(h, again=again, late=late)

    def _make(self, h: str, *, again: bool, late: bool = False) -> None:
        generation = self._next_generation(h)
        if again or not self.born[h]:
            self.born[h] = generation
        new = plain.Model(METADATA[h], RECIPE.text(), generation, 0, NEW, b"", -1, None)
        asked = Install(h, METADATA[h], RECIPE.text(), generation, born=self.born[h])
        self._be_late(h, late=late)
        installed = self.bench.run(self.store.install(asked))
        assert installed == bool(self.plain.install(h, new, self.born[h], staged=False))

    @precondition(lambda self: any(self.snapshots.values()))
    @rule(data=st.data(), lost=rarely(True, False), again=rarely(True, False), gone=st.booleans(),
          known=st.booleans())  # fmt: skip
    def restore(self, data: st.DataObject, lost: bool, again: bool, gone: bool, known: bool) -> None:
        """Put a snapshot back, where the model is gone or perhaps is not; the bundle written ahead may be lost."""
        h = data.draw(st.sampled_from([h for h in METADATA if self.snapshots[h]]))
        snapshot = data.draw(st.sampled_from(self.snapshots[h]))
        if gone:
            self._delete(h, made_again=False)
        self._restore(h, snapshot, lost=lost, again=again, known=known)

    @precondition(lambda self: any(self.snapshots.values()))
    @rule(
        data=st.data(), gone=rarely(False, True), again=rarely(True, False), payload=st.sampled_from(ROWS),
        key=st.sampled_from(("k", "l")), first=st.integers(1, 3), other=st.booleans(),
        overtaken=st.sampled_from(("", "", "claim", "died", "live")),
    )  # fmt: skip
    def come_back(
        self, data: st.DataObject, gone: bool, again: bool, payload: bytes, key: str, first: int, overtaken: str,
        other: bool,
    ) -> None:  # fmt: skip
        """Bring a model back with what its calls were answered; a later restore may come before its end."""
        h = data.draw(st.sampled_from([h for h in METADATA if self.snapshots[h]]))
        snapshot = data.draw(st.sampled_from(self.snapshots[h]))
        if gone:
            self._delete(h, made_again=False)
        generation = self._next_generation(h)
        if again:
            self.born[h] = generation
        self._remember(h, generation, key, payload, first)
        if overtaken:
            later = self._next_generation(h)
            self._remember(h, later, key, payload, first + 1)
            if overtaken == "live":
                self._restore(h, snapshot, generation=later)
            self._remember(h, generation, key, payload, first)
            self._restore(h, snapshot, generation=generation)
            if overtaken == "died":
                return
            self._restore(h, snapshot, generation=later)
        else:
            self._restore(h, snapshot, generation=generation)
        self._accept(h, [b"other" if other else payload], (100, 1000), key=key)

    def _remember(self, h: str, generation: int, key: str, payload: bytes, first: int) -> None:
        registered = RegistryEntry(h, METADATA[h], RECIPE.text(), generation, self.born[h])
        # Of the day for which it is known, two hours are left; of another call's nothing is.
        hours = plain.LOCK_H
        calls = {
            f"c:{name}": LoggedRequest(h, 1, first, left * 3600.0, sha256(payload).hexdigest(), f"c:{name}", (payload,))
            for name, left in ((key, hours), ("over", 0))
        }
        answers = {redis_keys.idempotency(h, f"c:{key}"): plain.Seen((payload,), first, 1, generation, hours)}
        done = self.bench.run(idempotency.restore_answers(self.store.client, registered, generation, calls, 0, 0))
        assert done == self.plain.remember(h, generation, self.born[h], answers)

    def _restore(
        self, h: str, snapshot: Snapshot, *, lost: bool = False, again: bool = False, generation: int = 0,
        known: bool = True,
    ) -> None:  # fmt: skip
        generation = generation or self._next_generation(h)
        if again:
            self.born[h] = generation
        noted = msgspec.json.encode(snapshot.document)
        bundle = snapshot.bundle
        new = plain.Model(METADATA[h], RECIPE.text(), generation, snapshot.version, bundle, noted, snapshot.version, 2)
        new.base = (new.learned, snapshot.place if known else None)
        asked = Install(
            h, METADATA[h], RECIPE.text(), generation, snapshot.version, len(bundle.taught), len(bundle.history),
            plain.chain_of(bundle.history), bundle.digest, bundle.metrics.decode(), noted.decode(), snapshot.data, 2,
            self.born[h], dict(bundle.changed), ReplayBase(new.learned, snapshot.place).text() if known else "",
        )  # fmt: skip
        expected = self.plain.install(h, new, self.born[h], staged=not lost)
        run = without_staging_async(self.bench.run_async) if lost else self.bench.run_async
        with mock.patch.object(redis_scripts, "run_async", run):
            try:
                answer = int(self.bench.run(self.store.install(asked)))
            except UnavailableError:
                answer = -1
            except StaleModelError:
                answer = -2
        assert answer == expected
        self.plain.staged += expected in (0, -2) and not lost

    @precondition(lambda self: any(self.snapshots.values()))
    @rule(
        data=st.data(),
        seen=st.sampled_from(("now", "now", "now", "other bundle", "other generation", "gone")),
        lost=rarely(True, False),
        fresh=rarely(True, False),
        repeated=st.sampled_from(("", "", "at once", "later")),
        known=st.booleans(),
    )
    def rewind(self, data: st.DataObject, seen: str, lost: bool, fresh: bool, repeated: str, known: bool) -> None:
        """Let a live model go back to a snapshot; it may be another by then, or the call may be made twice."""
        h = data.draw(st.sampled_from([h for h in METADATA if self.snapshots[h]]))
        snapshot = data.draw(st.sampled_from(self.snapshots[h]))
        if fresh:
            self._delete(h, made_again=True)
        self._rewind(h, snapshot, seen=seen, lost=lost, repeated=repeated, known=known)

    def _rewind(
        self, h: str, snapshot: Snapshot, *, seen: str = "now", lost: bool = False, repeated: str = "",
        known: bool = True,
    ) -> None:  # fmt: skip
        live = self.bench.run(self.store.describe(h))
        if live is None:
            return
        generation, history = self._next_generation(h), self.plain.models[h].bundle.history
        if seen == "other bundle":
            live = replace(live, digest="f" * 64)
        elif seen == "other generation":
            live = replace(live, generation=live.generation - 1)
        elif seen == "gone":
            self._delete(h, made_again=False)
        header, payload = KEYRING.open(snapshot.data, envelope.BUNDLE)
        fetched = SnapshotBundle(snapshot.document, header, snapshot.data, payload, 2, dict(snapshot.bundle.changed))
        signed = fetched.sign(KEYRING, generation, len(history), plain.chain_of(history))
        digest, metrics = sha256(signed.data).hexdigest(), b'{"rows":%d}' % generation
        bundle = replace(snapshot.bundle, digest=digest, history=history, metrics=metrics)
        to = Rewind(
            h, generation, snapshot.version, header.rows_seen, bundle.digest, bundle.metrics.decode(), signed.data, 2,
            dict(bundle.changed), ReplayBase(len(history), snapshot.place).text() if known else "",
        )  # fmt: skip
        place = snapshot.place if known else None
        back = plain.Back(h, live.generation, live.version, live.digest, generation, snapshot.version, bundle, place)
        self._rewind_once(live, to, back, lost=lost)
        if repeated == "later":
            self._accept(h, [b"x"], (100, 1000))
        if repeated:
            self._rewind_once(live, to, back, lost=lost)

    @rule(h=hashes, lost=rarely(True, False), seen=st.sampled_from(("now", "now", "other bundle")))
    def repair(self, h: str, lost: bool, seen: str) -> None:
        """Put a bundle in a live one's place that has learned the same; what is kept is kept on."""
        live, model = self.bench.run(self.store.describe(h)), self.plain.models.get(h)
        if live is None or model is None or not live.digest:
            return
        data: Any = self.client.get(redis_keys.bundle(h))
        header, payload = KEYRING.open(data, envelope.BUNDLE)
        generation, history = self._next_generation(h), model.bundle.history
        fetched = SnapshotBundle({}, header, data, payload, 2, dict(model.bundle.changed))
        signed = fetched.sign(KEYRING, generation, len(history), plain.chain_of(history))
        bundle = replace(model.bundle, digest=sha256(signed.data).hexdigest())
        to = Rewind(
            h, generation, live.version, header.rows_seen, bundle.digest, bundle.metrics.decode(), signed.data, 2,
            dict(bundle.changed), "=",
        )  # fmt: skip
        if seen == "other bundle":
            live = replace(live, digest="f" * 64)
        back = plain.Back(h, live.generation, live.version, live.digest, generation, live.version, bundle, plain.SAME)
        self._rewind_once(live, to, back, lost=lost)

    @rule(h=hashes, gone=rarely(True, False))
    def read_kept(self, h: str, gone: bool) -> None:
        """What is read of kept requests is what was learned on top of the snapshot; or it is said what is missing."""
        self._read_kept(h)
        live, model = self.bench.run(self.store.describe(h)), self.plain.models.get(h)
        if gone and live is not None and model is not None and model.kept and not model.lacks:
            lost = model.kept[-1]
            name = lost.big or redis_keys.inbox(h)
            dumped = self.client.dump(name)
            self.client.delete(name)
            with pytest.raises(MissingRequestsError):
                self.bench.run(repair.read_retained(self.bench.store, h, live.learned, live.retained))
            self.client.restore(name, 0, dumped)  # type: ignore[arg-type]

    def _read_kept(self, h: str) -> None:
        live, model = self.bench.run(self.store.describe(h)), self.plain.models.get(h)
        if live is None or model is None:
            return
        try:
            base, requests = self.bench.run(repair.read_retained(self.bench.store, h, live.learned, live.retained))
        except MissingRequestsError as error:
            lost, told = model.base[1] is None or model.lacks[-1], str(error)
            assert lost is True or f"{lost} are not retained" in told or f"{lost} is not retained" in told
        else:
            assert not model.lacks
            rows = [self.plain.big[r.big][0] if r.big else r.payload for r in model.kept]
            assert [request.payload for request in requests] == rows
            assert (base.sequence, base.place or ()) == model.base
            assert model.based + tuple(r.payload for r in model.kept) == model.bundle.taught

    def _rewind_once(self, live: Model, to: Rewind, back: plain.Back, *, lost: bool) -> None:
        expected = self.plain.rewind(back, staged=not lost)
        run = without_staging_async(self.bench.run_async) if lost else self.bench.run_async
        with mock.patch.object(redis_scripts, "run_async", run):
            try:
                answer = int(self.bench.run(self.store.rewind(live, to)))
            except UnavailableError:
                answer = -1
        assert answer == expected

    @rule(h=hashes, made_again=rarely(False, True), late=rarely(True, False))
    def delete(self, h: str, made_again: bool, late: bool) -> None:
        """Delete a model, which as a rule is made again at once."""
        self._delete(h, made_again=made_again, late=late)

    def _be_late(self, h: str, *, late: bool) -> None:
        """Let a large request come in between the look for what there is and the script that removes it."""
        if late:
            self.bench.after_next_trip = lambda: self._accept_big(h, (100, 1000))

    def _delete(self, h: str, *, made_again: bool, late: bool = False) -> None:
        self._be_late(h, late=late)
        assert self.bench.run(self.store.delete(h)) == self.plain.delete(h)
        if made_again:
            self._make(h, again=True)

    @rule(h=hashes, known=st.booleans())
    def load(self, h: str, known: bool) -> None:
        """Read a model for predicting, with its bundle in hand already or not."""
        self._load(h, known=known)

    def _load(self, h: str, *, known: bool) -> None:
        model = self.plain.models.get(h)
        digest = model.bundle.digest if model and known else ""
        loaded = self.consumer.load({h: digest})
        described = self.bench.run(self.store.describe(h))
        if model is None:
            assert (loaded, described) == ({}, None)
            return
        found = loaded[h]
        expected = (model.generation, model.version, len(model.bundle.taught), model.bundle.digest)
        assert (found.generation, found.version, found.rows_seen, found.digest) == expected
        if not digest:
            assert found.recipe_text == RECIPE.text().encode()
            assert (sha256(found.data).hexdigest() if found.data else "") == model.bundle.digest
        assert described is not None
        assert (described.inbox, described.learned) == (len(model.inbox), model.learned)

    # Rows come in.

    @rule(h=hashes, payloads=some_rows, limit=limits, stale=rarely(True, False),
          wide=st.sampled_from((2, 2, 2, 2, 3, inbox.NO_WIDTH)), repeated=st.booleans())  # fmt: skip
    def accept(
        self, h: str, payloads: list[bytes], limit: tuple[int, int], stale: bool, wide: int, repeated: bool
    ) -> None:
        """Accept what came during a trip; the answer may be lost, then the trip is made twice."""
        self._accept(h, payloads, limit, stale=stale, width=wide, repeated=repeated)

    @rule(h=hashes, payload=st.sampled_from(ROWS), key=st.sampled_from("kl"), limit=limits,
          again=st.sampled_from(("", "", "same", "other", "made again", "gone back")), unaware=st.booleans(),
          other=st.booleans())  # fmt: skip
    def accept_with_key(
        self, h: str, payload: bytes, key: str, limit: tuple[int, int], again: str, unaware: bool, other: bool
    ) -> None:
        """Accept a request with a client's key, which may come again: with its body, another, or to another model.

        The model may have gone back meanwhile, which the caller may not know.
        """
        if again == "gone back":
            self._teach(h)
        self._accept(h, [payload], limit, key=key)
        before = self.plain.models[h].generation if h in self.plain.models else None
        if again == "made again":
            self._delete(h, made_again=True)
        elif again == "gone back" and self.snapshots[h]:
            self._rewind(h, self.snapshots[h][-1])
        if again:
            body = b"other" if other or again == "other" else payload
            self._accept(h, [body], limit, key=key, generation=before if unaware else None)

    @rule(h=hashes, written=st.sampled_from(("all", "all", "all", "part", "none")), limit=limits,
          repeated=st.booleans())  # fmt: skip
    def accept_big(self, h: str, written: str, limit: tuple[int, int], repeated: bool) -> None:
        """Accept a large request, whose rows were written ahead, or were lost in whole or in part."""
        self._accept_big(h, limit, written=written, repeated=repeated)

    def _accept_big(self, h: str, limit: tuple[int, int], *, written: str = "all", repeated: bool = False) -> None:
        name, rows = redis_keys.big(h, uuid.uuid4().hex), b"a large request"
        if written != "none":
            part = rows if written == "all" else rows[:5]
            self.client.set(name, part, px=plain.BIG_H * HOUR_MS)
            self.plain.big[name] = (part, plain.BIG_H)
        digest = sha256(rows).hexdigest().encode()
        self._accept(h, [digest], limit, big=name, big_size=len(rows), repeated=repeated)

    def _accept(
        self, h: str, payloads: list[bytes], limit: tuple[int, int], *, stale: bool = False, width: int = 2,
        key: str | None = None, big: str = "", big_size: int = 0, repeated: bool = False,
        generation: int | None = None,
    ) -> None:  # fmt: skip
        model = self.plain.models.get(h)
        if generation is None:
            generation = (model.generation if model else self.generations[h]) + stale
        requests = [LearnRequest(h, generation, width, payload, key, big, big_size) for payload in payloads]
        settings = self.bench.settings.model_copy(
            update={
                "inbox_entries_max": limit[0],
                "inbox_bytes_max": limit[1],
                "idempotency_ttl_s": 3600 * plain.CLIENTS_KEY_H,
            }
        )
        line = self.bench.line
        line.loses_answer, line.trips = repeated, []
        outcomes, told = self.bench.run(inbox.accept(line, settings, requests))
        hours = plain.MINTED_H if key is None else plain.CLIENTS_KEY_H
        for (command,), (answer,) in line.trips:
            call = Call(h, generation, width, tuple(payloads), command[5], hours, *limit, big, big_size)
            expected = self.plain.accept(call)
            assert answer == expected
        assert told == ([h] if expected[0] == b"ok" and expected[4] else [])
        if expected[0] == b"ok":
            _, first, count, version, _, waiting, pace, _ = expected
            assert outcomes[:count] == [Accepted(first + i, version) for i in range(count)]
            for full in outcomes[count:]:
                assert isinstance(full, InboxFullError)
                assert full.retry_after_s == (min(max(math.ceil(waiting / 2 / pace), 1), 60) if pace else 1)
        else:
            assert all(isinstance(outcome, KeepfitError) for outcome in outcomes)

    # Workers learn.

    @rule(h=hashes, token=workers, known=st.booleans(), entries_max=st.sampled_from((1, 2, 18, 512)),
          bytes_max=st.sampled_from((3, 1000, 1000)))  # fmt: skip
    def take(self, h: str, token: str, known: bool, entries_max: int, bytes_max: int) -> None:
        """Take a model, which may be free, the worker's own, or another's."""
        self._take(h, token, known=known, entries_max=entries_max, bytes_max=bytes_max)

    def _take(self, h: str, token: str, *, known: bool, entries_max: int = 512, bytes_max: int = 1000) -> None:
        model = self.plain.models.get(h)
        digest = model.bundle.digest if model and known else ""
        held = self.plain.take(h, token, entries_max, bytes_max)
        with (
            mock.patch.object(commits, "ENTRIES_MAX", entries_max),
            mock.patch.object(commits, "BYTES_MAX", bytes_max),
        ):
            taken = self.consumer.claim(h, token, digest)
        self._taken(h, token, taken, held, digest)

    def _taken(self, h: str, token: str, taken: Claimed | None, held: Held | None, known: str) -> None:
        """See that what was taken is what the plain model gave, and have it in hand."""
        model = self.plain.models.get(h)
        if taken is None or held is None or model is None:
            assert (taken, held) == (None, None)
            return
        bundle = model.bundle
        found = (taken.generation, taken.version, taken.rows_seen, taken.learned, taken.digest, taken.attempts)
        assert found == (
            model.generation, model.version, len(bundle.taught), model.learned, bundle.digest, model.attempts
        )  # fmt: skip
        assert taken.recipe_text == RECIPE.text().encode()
        assert (sha256(taken.data).hexdigest() if taken.data else "") == (
            "" if known == bundle.digest else bundle.digest
        )
        assert [(e.sequence, e.request_digest, e.payload, e.large_key, e.size_bytes) for e in taken.entries] == [
            (r.sequence, r.chain, self.plain.big.get(r.big, (b"", 0))[0] if r.big else r.payload, r.big, r.size)
            for r in held.requests
        ]
        self.hands = [*self.hands[-3:], Hand(taken, held, token)]

    @precondition(lambda self: any(hand.held.requests for hand in self.hands))
    @rule(data=st.data(), put_aside=rarely("ValueError: no", ""), repeated=rarely(True, False), keep=st.booleans(),
          wrong=st.sampled_from(("",) * 5 + WRONG))  # fmt: skip
    def commit(self, data: st.DataObject, put_aside: str, repeated: bool, keep: bool, wrong: str) -> None:
        """Commit what a worker has in hand, however long ago it was taken, in whole or in part, rightly or wrongly."""
        hand = data.draw(st.sampled_from([hand for hand in self.hands if hand.held.requests]))
        count = data.draw(st.sampled_from((len(hand.held.requests), 1)))
        if not keep:
            self.hands.remove(hand)
        self._commit(spoiled(hand, count, wrong), count, put_aside, staged=wrong != "stage")
        if repeated:
            self._commit(spoiled(hand, count, wrong), count, put_aside, staged=wrong != "stage")

    def _commit(self, hand: Hand, count: int, put_aside: str, *, staged: bool) -> None:
        h, held = hand.taken.hash, hand.held
        done = held.requests[:count]
        learned = tuple(r.payload for r in (done[:-1] if put_aside else done))
        taught = held.bundle.taught + learned
        changed = {**dict(held.bundle.changed), "C": len(taught)} if CHANGE in learned else dict(held.bundle.changed)
        bundle = Bundle(RECIPE, Columns.new(RECIPE), None, list(taught), [], len(taught), changed=changed)
        # Taken in a moment to come, so that the pace is that of the shortest time.
        taken = replace(hand.taken, claimed_s=math.inf)
        with mock.patch.object(
            redis_scripts, "run", redis_scripts.run if staged else without_staging(redis_scripts.run)
        ):
            committed = commit_bundle(self.consumer, KEYRING, taken, bundle, count, hand.token, put_aside)
        score = redis_keys.change(taken.generation, taken.version + 1)
        self.plain.changed[h] = max(score, self.plain.changed.get(h, 0))
        history = done[-1].history
        after = Bundled(
            committed.digest, taught, history, msgspec.json.encode(bundle.metrics()), tuple(changed.items())
        )
        version = self.plain.commit(held, count, after, 1000 * count, put_aside=put_aside, staged=staged)
        assert committed.version == version
        if count == len(held.requests):
            assert committed.has_pending == (self.plain.unlock(h, hand.token, force=False) == 1)
            assert committed.claimed is None
        else:
            # The rest is taken in the same trip.
            assert committed.has_pending
            next_held = self.plain.take(h, hand.token, commits.ENTRIES_MAX, commits.BYTES_MAX)
            self._taken(h, hand.token, committed.claimed, next_held, committed.digest)

    @rule(h=hashes, token=workers, payloads=some_rows, big=rarely(True, False),
          put_aside=st.sampled_from(("", "", "TypeError: no")), part=rarely(True, False),
          meanwhile=st.sampled_from(("",) * 3 + EVENTS + WRONG), later=st.sampled_from(("",) * 3 + LATER))  # fmt: skip
    def learn(
        self, h: str, token: str, payloads: list[bytes], big: bool, put_aside: str, part: bool, meanwhile: str,
        later: str,
    ) -> None:  # fmt: skip
        """Do a worker's round: rows come in, are taken and committed; much may happen, or go wrong, in between."""
        self._accept(h, payloads, (100, 1000))
        if big:
            self._accept_big(h, (100, 1000))
        self._take(h, token, known=True)
        hand = self.hands[-1] if self.hands else None
        if hand is None or hand.taken.hash != h or hand.token != token or not hand.held.requests:
            return
        self._happen(h, meanwhile)
        if meanwhile != "sleep":
            self.hands.remove(hand)
            count = 1 if part else len(hand.held.requests)
            self._commit(spoiled(hand, count, meanwhile), count, put_aside, staged=meanwhile != "stage")
            self._load(h, known=part)
            self._happen(h, later)

    @rule(h=hashes, rounds=st.lists(st.sampled_from(("x", "xx", "xxx", "xy", "yyy", "L", "xL", "x!", "L!", "snapshot",
          "snapshot", "note", "late note", "saved late", "saved late")), min_size=2, max_size=7))  # fmt: skip
    def go_on(self, h: str, rounds: list[str]) -> None:
        """Learn a few requests at a time, large ones (L) and some that are put aside (!), with snapshots in between."""
        self._let_go(h)
        for what in rounds:
            if what in ("snapshot", "note"):
                self._happen(h, what)
            elif what == "saved late":
                self._go_on(h, "L")
                self._happen(h, "snapshot")
                self._go_on(h, "L")
                self._happen(h, "note")
            elif what == "late note":
                for snapshot in self.snapshots[h][-2:-1]:
                    self._note(h, snapshot)
            else:
                self._go_on(h, what)
            self._read_kept(h)

    def _go_on(self, h: str, what: str) -> None:
        for kind in what.removesuffix("!"):
            if kind == "L":
                self._accept_big(h, (100, 1000))
            else:
                self._accept(h, [{"x": b"x", "y": b"yyyy"}[kind]], (100, 1000))
        self._take(h, WORKERS[0], known=True)
        if self.hands and self.hands[-1].taken.hash == h and self.hands[-1].held.requests:
            hand = self.hands.pop()
            aside = "ValueError: no" if what.endswith("!") else ""
            self._commit(hand, len(hand.held.requests), aside, staged=True)

    def _happen(self, h: str, event: str) -> None:
        if event == "accept":
            self._accept(h, [b"x"], (100, 1000))
        elif event == "sleep":
            self._lock_expires(h)
        elif event == "replace":
            self._make(h, again=True)
        elif event in ("delete", "make again"):
            self._delete(h, made_again=event == "make again")
        elif event == "let go":
            self._let_go(h)
        elif event == "snapshot":
            self._snapshot(h)
        elif event == "restore":
            self._snapshot(h)
            self._delete(h, made_again=False)
            if self.snapshots[h]:
                self._restore(h, self.snapshots[h][-1])
        elif event == "go back" and self.snapshots[h]:
            self._rewind(h, self.snapshots[h][0])
        elif event == "note" and self.snapshots[h]:
            self._note(h, self.snapshots[h][-1])

    @rule(h=hashes, token=workers, payloads=some_rows, times=st.sampled_from((1, 2, 2, 3, 7)), late=st.booleans(),
          then=st.sampled_from(("", "", "give back", "learn", "go back")))  # fmt: skip
    def die(self, h: str, token: str, payloads: list[bytes], times: int, late: bool, then: str) -> None:
        """Workers die in turn of what they read, while more comes in; the last one may live, and learn or not."""
        if then == "go back":
            self._teach(h)
        self._accept(h, payloads, (100, 1000))
        for _ in range(times):
            self._let_go(h)
            self._take(h, token, known=True)
            self._unlock(h, token, force=True, harmed=True)
            if late:
                self._accept(h, [b"x"], (100, 1000))
        self._take(h, token, known=True)
        if then == "give back":
            self._unlock(h, token, force=False)
        elif then == "go back":
            self._happen(h, "go back")
        elif then == "learn" and self.hands and self.hands[-1].taken.hash == h and self.hands[-1].held.requests:
            hand = self.hands.pop()
            self._commit(hand, len(hand.held.requests), "", staged=True)
            self._take(h, token, known=True)

    @rule(h=hashes, token=workers, own=st.booleans(),
          what=st.sampled_from(("renew", "unlock", "unlock by force", "die", "stand still")))  # fmt: skip
    def hold(self, h: str, token: str, own: bool, what: str) -> None:
        """Keep or let go of a lock, one's own or another's, perhaps while mail waits; or let its time pass."""
        if own and h in self.plain.locks:
            token = self.plain.locks[h][0]
        if what == "stand still":
            self._lock_expires(h)
        elif what == "renew":
            for worker in WORKERS:
                self._renew(h, worker)
        else:
            self._unlock(h, token, force=what != "unlock", harmed=what == "die")

    def _unlock(self, h: str, token: str, *, force: bool, harmed: bool = False) -> None:
        expected = self.plain.unlock(h, token, force=force, harmed=harmed)
        assert self.consumer.unlock(h, token, force=force, harmed=harmed) == (expected == 1)

    def _let_go(self, h: str) -> None:
        for token in WORKERS:
            self._unlock(h, token, force=True)

    def _renew(self, h: str, token: str) -> None:
        if h in self.plain.locks:
            # It has little time left.
            self.client.pexpire(redis_keys.lock(h), HOUR_MS)
            self.plain.locks[h] = (self.plain.locks[h][0], 1)
        self.consumer.renew(h, token)
        self.plain.renew(h, token)
        left: Any = self.client.pttl(redis_keys.lock(h))
        assert math.ceil(max(left, 0) / HOUR_MS) == self.plain.locks.get(h, ("", 0))[1]

    def _lock_expires(self, h: str) -> None:
        self.client.delete(redis_keys.lock(h))
        self.plain.locks.pop(h, None)

    def _teach(self, h: str) -> None:
        """Let a model learn a row, and read its bundle for storage."""
        self._let_go(h)
        self._accept(h, [b"x"], (100, 1000))
        self._take(h, WORKERS[0], known=True)
        if self.hands and self.hands[-1].taken.hash == h and self.hands[-1].held.requests:
            hand = self.hands.pop()
            self._commit(hand, len(hand.held.requests), "", staged=True)
            self._snapshot(h)

    # Snapshots.

    @rule(h=hashes)
    def snapshot(self, h: str) -> None:
        """Read a bundle for storage."""
        self._snapshot(h)

    def _snapshot(self, h: str) -> None:
        found, model = self.bench.wait(self.store.bundle(h)), self.plain.models.get(h)
        assert (found is None) == (model is None or not model.bundle.digest)
        if found is not None and model is not None:
            state, data = found
            assert (state.version, state.digest) == (model.version, model.bundle.digest)
            document = {"version": model.version, "generation": model.generation}
            self.snapshots[h].append(Snapshot(model.generation, model.version, model.bundle, data, document, state))

    @precondition(lambda self: any(self.snapshots.values()))
    @rule(data=st.data())
    def note(self, data: st.DataObject) -> None:
        """Tell a model of its snapshots, also of older ones last."""
        h = data.draw(st.sampled_from([h for h in METADATA if self.snapshots[h]]))
        for snapshot in data.draw(st.lists(st.sampled_from(self.snapshots[h][-2:]), min_size=1, max_size=2)):
            self._note(h, snapshot)

    def _note(self, h: str, snapshot: Snapshot) -> None:
        chain = plain.chain_of(snapshot.bundle.history)
        state = snapshot.state
        noted = RetentionNote(
            h, state.generation, state.learned, state.digest, state.retained, chain, snapshot.place, snapshot.document
        )
        self.bench.run(self.store.note_snapshots([noted]))
        document = msgspec.json.encode(snapshot.document)
        self.plain.note(h, snapshot.generation, snapshot.version, document, snapshot.bundle)

    # Time passes, and Redis loses what it held last.

    @rule()
    def keys_expire(self) -> None:
        """A day passes: all that was to live for a while is gone."""
        for name, (_, hours) in self.bench.keys().items():
            if hours:
                self.client.delete(name)
        self.plain.locks.clear()
        self.plain.seen.clear()
        self.plain.retried.clear()
        self.plain.staged = 0
        self.plain.big = {name: (rows, hours) for name, (rows, hours) in self.plain.big.items() if not hours}

    @rule()
    def remember(self) -> None:
        """Note what Redis would be if it lost all that comes now."""
        self.remembered = [*self.remembered[-2:], (self.bench.dump(), copy.deepcopy(self.plain))]

    @precondition(lambda self: self.remembered)
    @rule(data=st.data(), payloads=some_rows)
    def lose_tail(self, data: st.DataObject, payloads: list[bytes]) -> None:
        """Redis loses its tail, and other rows take the sequences; workers still have in hand what they read."""
        dumped, remembered = data.draw(st.sampled_from(self.remembered))
        self.bench.put_back(dumped)
        self.plain = copy.deepcopy(remembered)
        self._accept(A, payloads, (100, 1000))

    @rule(h=hashes, waits=st.booleans())
    def note_what_was_lost(self, h: str, waits: bool) -> None:
        """Redis loses what is in a snapshot that it is not told of yet; the rows wait again, or others are learned."""
        self._let_go(h)
        kept_on = self.bench.dump(), copy.deepcopy(self.plain)
        self._accept(h, [b"x"], (100, 1000))
        if waits:
            kept_on = self.bench.dump(), copy.deepcopy(self.plain)
        before = len(self.snapshots[h])
        self._go_on(h, "")
        self._snapshot(h)
        self.bench.put_back(kept_on[0])
        kept_on[1].told = self.plain.told
        self.plain = kept_on[1]
        if not waits:
            self._go_on(h, "y")
            self._go_on(h, "x")
        for snapshot in self.snapshots[h][before:]:
            self._note(h, snapshot)

    # What must hold after every step.

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        """Redis holds and has told what the plain store holds and told, and every bundle says what it has learned.

        What a model has learned is what it comes on top of and what is kept, or it is known which of it is not kept.
        """
        self.bench.steps += 1
        found = self.bench.keys()
        staged = [name for name in found if ":stg:" in name]
        assert [found.pop(name)[1] for name in staged] == [plain.STAGED_H] * self.plain.staged
        for h, model in self.plain.models.items():
            rest = tuple(request.payload for request in model.kept)
            assert model.lacks or model.base[1] is None or model.based + rest == model.bundle.taught
            assert sum(request.size + plain.PLACE for request in model.kept) <= plain.REPLAY_MAX
            if redis_keys.bundle(h) in found:
                data, hours = found[redis_keys.bundle(h)]
                found[redis_keys.bundle(h)] = (sha256(data).hexdigest(), hours)
                self._look_into(h, model, data)
            for _, fields in found.get(redis_keys.dead(h), ([], 0))[0]:
                assert abs(int(fields.pop(b"at")) - 1000 * time.time()) < HOUR_MS
        assert {name: content for name, content in found.items() if content[0] != []} == self.plain.keys()
        told, self.plain.told = self.plain.told, []
        assert self.bench.heard() == told

    def _look_into(self, h: str, model: plain.Model, data: bytes) -> None:
        digest = sha256(data).hexdigest()
        if digest not in self.opened:
            header, bundle = unseal(data, KEYRING, RECIPE, h)
            self.opened[digest] = Bundled(digest, tuple(bundle.estimator), (), b"")
            assert (header.version, header.sequence, header.rows_seen) == (
                model.version, model.learned, len(model.bundle.taught)
            )  # fmt: skip
            assert header.chain == plain.chain_of(model.bundle.history)
        assert self.opened[digest].taught == model.bundle.taught
