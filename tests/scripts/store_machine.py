"""The state machine over the scripts that change models: accept, claim_inbox, commit and the related ones.

Drives them through the calls of gateways, workers and snapshotters, on a real Valkey, beside the plain model of
:mod:`tests.scripts.store_model`. Invariant, checked after every step: Redis holds what the plain store holds, key by
key, field by field, and has published what the plain store published.
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
from keepfit.settings import Settings
from keepfit.store import commit as commits
from keepfit.store import events, first_answers, idle, inbox, stored_answers
from keepfit.store import models as stores
from keepfit.store.commit import Claimed, Harm, InboxConsumer
from keepfit.store.idle import IdleRecord
from keepfit.store.inbox import Accepted, LearnRequest
from keepfit.store.models import Install, Model, Rewind, Store
from keepfit.store.retained import ReplayBase, RetentionNote
from keepfit_workers.learning import seal_bundle
from tests.conftest import SHOES_RECIPE, SIGNING_KEYS
from tests.scripts import store_model
from tests.scripts.bench import HOUR_MS, Bench, is_answers, without_staging, without_staging_async
from tests.scripts.claims import MISMATCHES, Claim, Snapshot, mismatched
from tests.scripts.store_model import NEW, BundleModel, Call, ClaimModel

KEYRING = Keyring.from_text(SIGNING_KEYS)
RECIPE = parse(SHOES_RECIPE)
METADATA = {identity.hash_of(m): identity.canonical(m).decode() for m in ({"type": "a"}, {"type": "b"})}
A, B = METADATA
WORKERS = ("one", "two")
# Few values, so that rows, keys and sizes repeat often: the scripts must distinguish them by other means.
ROWS = (b"x", b"yyyy")
# The rows of a large request.
LARGE = b"a large request"
LARGE_DIGEST = sha256(LARGE).hexdigest().encode()
# Keys of two callers; the second one has an API key.
KEYS = ("k", "k", "l", "m", "n", "k b")

hashes = st.sampled_from((A, A, A, B))
workers = st.sampled_from(WORKERS)
some_rows = st.one_of(
    st.lists(st.sampled_from(ROWS), min_size=1, max_size=3),
    st.just([b"x"] * 20),
)
limits = st.sampled_from(((100, 1000), (3, 1000), (3, 1000), (100, 5)))
# Events while a worker has claimed a model.
EVENTS = ("accept", "lock expires", "release", "delete", "create again", "replace", "rewind")
LATER = ("delete", "create again", "replace", "snapshot", "note", "restore", "rewind")


# Seconds without use after which a model leaves; no example takes so long.
IDLE_S = 3600


def rarely(value: Any, otherwise: Any) -> Any:
    """Strategy that draws `value` one time in five."""
    return st.sampled_from((otherwise,) * 4 + (value,))


class StoreMachine(RuleBasedStateMachine):
    """Two models, two workers, gateways, snapshots, and a Redis that may lose its last writes."""

    bench: ClassVar[Bench]

    def __init__(self) -> None:
        super().__init__()
        self.patches: list[Any] = [
            mock.patch.object(commits, "STAGED_TTL_MS", HOUR_MS * store_model.STAGED_H),
            mock.patch.object(stores, "STAGED_TTL_MS", HOUR_MS * store_model.STAGED_H),
            mock.patch.object(stored_answers, "HALF_BYTES_MAX", store_model.HALF_BYTES_MAX),
            mock.patch.object(first_answers, "GENERATED_KEY_TTL_S", 3600 * store_model.MINTED_H),
            mock.patch.object(redis_scripts, "run_async", self.bench.run_async),
            mock.patch.object(commits, "is_change", lambda payload: payload == store_model.CHANGE),
        ]
        for patch in self.patches:
            patch.start()
        self.bench.empty()
        self.client = self.bench.client
        self.consumer = InboxConsumer(
            self.client,
            store_model.LOCK_H * 3600,
            store_model.REPLAY_MAX,
            answers_ttl_s=3600 * store_model.CLIENTS_KEY_H,
        )
        self.store = Store(self.bench.store)
        self.plain = store_model.Store()
        self.generations = dict.fromkeys(METADATA, 0)
        self.born = dict.fromkeys(METADATA, 0)
        self.claims: list[Claim] = []
        self.snapshots: dict[str, list[Snapshot]] = {h: [] for h in METADATA}
        self.redis_copies: list[Any] = []
        self.opened: dict[str, BundleModel] = {}

    @property
    def _settings(self) -> Settings:
        ttl_s = 3600 * store_model.CLIENTS_KEY_H
        return self.bench.settings.model_copy(
            update={"idempotency_ttl_s": ttl_s, "idempotency_entries_max": store_model.KEYS_MAX}
        )

    def teardown(self) -> None:
        """Restore the durations of keepfit."""
        for patch in self.patches:
            patch.stop()

    # Models are created and deleted.

    def _next_generation(self, h: str) -> int:
        self.generations[h] += 1
        return self.generations[h]

    @initialize()
    def first(self) -> None:
        """Create the models."""
        self._install(A, again=True)
        self._install(B, again=True)

    @rule(h=hashes, again=rarely(True, False), late=rarely(True, False))
    def install(self, h: str, again: bool, late: bool) -> None:
        """Create a model; with `again`, after its deletion was registered."""
        self._install(h, again=again, late=late)

    def _install(self, h: str, *, again: bool, late: bool = False) -> None:
        generation = self._next_generation(h)
        if again or not self.born[h]:
            self.born[h] = generation
        new = store_model.Model(METADATA[h], RECIPE.text(), generation, 0, NEW, b"", -1, None)
        asked = Install(h, METADATA[h], RECIPE.text(), generation, born=self.born[h])
        self._accept_late(h, late=late)
        try:
            installed = int(self.bench.run(self.store.install(asked)))
        except StaleModelError:
            installed = -2
        assert installed == self.plain.install(h, new, self.born[h], staged=False)

    @precondition(lambda self: any(self.snapshots.values()))
    @rule(data=st.data(), lost=rarely(True, False), again=rarely(True, False), gone=st.booleans(),
          known=st.booleans())  # fmt: skip
    def restore(self, data: st.DataObject, lost: bool, again: bool, gone: bool, known: bool) -> None:
        """Restore a snapshot, with or without a live model; the staged bundle may be missing."""
        h = data.draw(st.sampled_from([h for h in METADATA if self.snapshots[h]]))
        snapshot = data.draw(st.sampled_from(self.snapshots[h]))
        if gone:
            self._delete(h, recreated=False)
        self._restore(h, snapshot, lost=lost, again=again, known=known)

    @precondition(lambda self: any(self.snapshots.values()))
    @rule(
        data=st.data(), gone=rarely(False, True), again=rarely(True, False), payload=st.sampled_from(ROWS),
        key=st.sampled_from(("k", "l")), first=st.integers(1, 3), other=st.booleans(),
        overtaken=st.sampled_from(("", "", "claim", "died", "live")),
    )  # fmt: skip
    def idempotent_restore(
        self, data: st.DataObject, gone: bool, again: bool, payload: bytes, key: str, first: int, overtaken: str,
        other: bool,
    ) -> None:  # fmt: skip
        """Restore a model with the answers to its calls; a later restore may start before this one ends."""
        h = data.draw(st.sampled_from([h for h in METADATA if self.snapshots[h]]))
        snapshot = data.draw(st.sampled_from(self.snapshots[h]))
        if gone:
            self._delete(h, recreated=False)
        generation = self._next_generation(h)
        if again:
            self.born[h] = generation
        self._store_answers(h, generation, key, payload, first)
        if overtaken:
            later = self._next_generation(h)
            self._store_answers(h, later, key, payload, first + 1)
            if overtaken == "live":
                self._restore(h, snapshot, generation=later)
            self._store_answers(h, generation, key, payload, first)
            self._restore(h, snapshot, generation=generation)
            if overtaken == "died":
                return
            self._restore(h, snapshot, generation=later)
        else:
            self._restore(h, snapshot, generation=generation)
        self._accept(h, [b"other" if other else payload], (100, 1000), key=key)

    def _store_answers(self, h: str, generation: int, key: str, payload: bytes, first: int) -> None:
        registered = RegistryEntry(h, METADATA[h], RECIPE.text(), generation, self.born[h])
        # The key of this call is recognized for two more hours, an older key for one; the key of a third has expired.
        left = {key: store_model.LOCK_H, "m": 1, "over": 0}
        calls = {
            f"c:{name}": LoggedRequest(
                h, 1, first, hours * 3600.0, sha256(payload).hexdigest(), f"c:{name}", (payload,)
            )
            for name, hours in left.items()
        }
        keys, _ = first_answers.answers_of(h, key)
        answers = {
            first_answers.answers_of(h, name)[1]: store_model.Seen((payload,), first, 1, generation, left[name])
            for name in ("m", key)
        }
        settings = self._settings.model_copy(update={"idempotency_ttl_s": 0})
        done = self.bench.run(
            idempotency.restore_answers(self.store.client, registered, generation, calls, settings, 0)
        )
        assert done == self.plain.store_answers(h, generation, self.born[h], keys, answers)

    def _restore(
        self, h: str, snapshot: Snapshot, *, lost: bool = False, again: bool = False, generation: int = 0,
        known: bool = True, seen: IdleRecord | None = None,
    ) -> None:  # fmt: skip
        generation = generation or self._next_generation(h)
        if again:
            self.born[h] = generation
        noted = msgspec.json.encode(snapshot.document)
        bundle = snapshot.bundle
        new = store_model.Model(
            METADATA[h], RECIPE.text(), generation, snapshot.version, bundle, noted, snapshot.version, 2
        )
        new.base = (new.learned, snapshot.place if known else None)
        asked = Install(
            h, METADATA[h], RECIPE.text(), generation, snapshot.version, len(bundle.learned_rows), len(bundle.history),
            store_model.chain_of(bundle.history), bundle.digest, bundle.metrics.decode(), noted.decode(), snapshot.data,
            2, self.born[h], dict(bundle.changed), ReplayBase(new.learned, snapshot.place).text() if known else "",
            seen, seen is not None and seen.digest == bundle.digest,
        )  # fmt: skip
        expected = self.plain.install(h, new, self.born[h], staged=not lost, seen=seen)
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
        """Rewind a live model to a snapshot; the model may have changed by then, and the call may be repeated."""
        h = data.draw(st.sampled_from([h for h in METADATA if self.snapshots[h]]))
        snapshot = data.draw(st.sampled_from(self.snapshots[h]))
        if fresh:
            self._delete(h, recreated=True)
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
            self._delete(h, recreated=False)
        header, payload = KEYRING.open(snapshot.data, envelope.BUNDLE)
        fetched = SnapshotBundle(snapshot.document, header, snapshot.data, payload, 2, dict(snapshot.bundle.changed))
        signed = fetched.sign(KEYRING, generation, len(history), store_model.chain_of(history))
        digest, metrics = sha256(signed.data).hexdigest(), b'{"rows":%d}' % generation
        bundle = replace(snapshot.bundle, digest=digest, history=history, metrics=metrics)
        to = Rewind(
            h, generation, snapshot.version, header.rows_seen, bundle.digest, bundle.metrics.decode(), signed.data, 2,
            dict(bundle.changed), ReplayBase(len(history), snapshot.place).text() if known else "",
        )  # fmt: skip
        place = snapshot.place if known else None
        rewound = store_model.RewindModel(
            h, live.generation, live.version, live.digest, generation, snapshot.version, bundle, place
        )
        self._rewind_once(live, to, rewound, lost=lost)
        if repeated == "later":
            self._accept(h, [b"x"], (100, 1000))
        if repeated:
            self._rewind_once(live, to, rewound, lost=lost)

    @rule(h=hashes, lost=rarely(True, False), seen=st.sampled_from(("now", "now", "other bundle")))
    def repair(self, h: str, lost: bool, seen: str) -> None:
        """Replace a live bundle by one that has learned the same requests; retained requests stay."""
        live, model = self.bench.run(self.store.describe(h)), self.plain.models.get(h)
        if live is None or model is None or not live.digest:
            return
        data: Any = self.client.get(redis_keys.bundle(h))
        header, payload = KEYRING.open(data, envelope.BUNDLE)
        generation, history = self._next_generation(h), model.bundle.history
        fetched = SnapshotBundle({}, header, data, payload, 2, dict(model.bundle.changed))
        signed = fetched.sign(KEYRING, generation, len(history), store_model.chain_of(history))
        bundle = replace(model.bundle, digest=sha256(signed.data).hexdigest())
        to = Rewind(
            h, generation, live.version, header.rows_seen, bundle.digest, bundle.metrics.decode(), signed.data, 2,
            dict(bundle.changed), "=",
        )  # fmt: skip
        if seen == "other bundle":
            live = replace(live, digest="f" * 64)
        rewound = store_model.RewindModel(
            h, live.generation, live.version, live.digest, generation, live.version, bundle, store_model.SAME
        )
        self._rewind_once(live, to, rewound, lost=lost)

    @rule(h=hashes, gone=rarely(True, False))
    def read_retained(self, h: str, gone: bool) -> None:
        """Retained requests are those learned after the replay base; otherwise the error names the missing ones."""
        self._read_retained(h)
        live, model = self.bench.run(self.store.describe(h)), self.plain.models.get(h)
        if gone and live is not None and model is not None and model.kept and not model.missing:
            lost = model.kept[-1]
            name = lost.big or redis_keys.inbox(h)
            dumped = self.client.dump(name)
            self.client.delete(name)
            with pytest.raises(MissingRequestsError):
                self.bench.run(repair.read_retained(self.bench.store, h, live.learned, live.retained))
            self.client.restore(name, 0, dumped)  # type: ignore[arg-type]

    def _read_retained(self, h: str) -> None:
        live, model = self.bench.run(self.store.describe(h)), self.plain.models.get(h)
        if live is None or model is None:
            return
        try:
            base, requests = self.bench.run(repair.read_retained(self.bench.store, h, live.learned, live.retained))
        except MissingRequestsError as error:
            lost, message = model.base[1] is None or model.missing[-1], str(error)
            assert lost is True or f"{lost} are not retained" in message or f"{lost} is not retained" in message
        else:
            assert not model.missing
            rows = [self.plain.big[r.big][0] if r.big else r.payload for r in model.kept]
            assert [request.payload for request in requests] == rows
            assert (base.sequence, base.place or ()) == model.base
            assert model.based + tuple(r.payload for r in model.kept) == model.bundle.learned_rows

    def _rewind_once(self, live: Model, to: Rewind, rewound: store_model.RewindModel, *, lost: bool) -> None:
        expected = self.plain.rewind(rewound, staged=not lost)
        run = without_staging_async(self.bench.run_async) if lost else self.bench.run_async
        with mock.patch.object(redis_scripts, "run_async", run):
            try:
                answer = int(self.bench.run(self.store.rewind(live, to)))
            except UnavailableError:
                answer = -1
        assert answer == expected

    @rule(h=hashes, recreated=rarely(False, True), late=rarely(True, False))
    def delete(self, h: str, recreated: bool, late: bool) -> None:
        """Delete a model; usually it is created again at once."""
        self._delete(h, recreated=recreated, late=late)

    def _accept_late(self, h: str, *, late: bool) -> None:
        """Accept a large request between the look-up of existing keys and the script that deletes them."""
        if late:
            self.bench.after_next_trip = lambda: self._accept_large(h, (100, 1000))

    def _delete(self, h: str, *, recreated: bool, late: bool = False) -> None:
        self._accept_late(h, late=late)
        assert self.bench.run(self.store.delete(h)) == self.plain.delete(h)
        if recreated:
            self._install(h, again=True)

    @rule(h=hashes, known=st.booleans())
    def load(self, h: str, known: bool) -> None:
        """Read a model for predicting, with or without its bundle in memory."""
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
        expected = (model.generation, model.version, len(model.bundle.learned_rows), model.bundle.digest)
        assert (found.generation, found.version, found.rows_seen, found.digest) == expected
        if not digest:
            assert found.recipe_text == RECIPE.text().encode()
            assert (sha256(found.data).hexdigest() if found.data else "") == model.bundle.digest
        assert described is not None
        assert (described.inbox, described.learned) == (len(model.inbox), model.learned)

    # Rows are accepted.

    @rule(h=hashes, payloads=some_rows, limit=limits, stale=rarely(True, False),
          wide=st.sampled_from((2, 2, 2, 2, 3, inbox.NO_WIDTH)), repeated=st.booleans())  # fmt: skip
    def accept(
        self, h: str, payloads: list[bytes], limit: tuple[int, int], stale: bool, wide: int, repeated: bool
    ) -> None:
        """Accept the requests of one round trip; if the reply is lost, the trip is repeated."""
        self._accept(h, payloads, limit, stale=stale, width=wide, repeated=repeated)

    @rule(h=hashes, payload=st.sampled_from(ROWS), key=st.sampled_from(KEYS), limit=limits,
          again=st.sampled_from(("", "", "same", "other", "later", "created again", "rewound")), unaware=st.booleans(),
          other=st.booleans())  # fmt: skip
    def accept_with_key(
        self, h: str, payload: bytes, key: str, limit: tuple[int, int], again: str, unaware: bool, other: bool
    ) -> None:
        """Accept a request with a client's key; it may repeat, with the same or another body, or for another model.

        Its caller may use other keys in between; the model may be rewound, with or without the caller's knowledge.
        """
        if again == "rewound":
            self._learn_row(h)
        self._accept(h, [payload], limit, key=key)
        before = self.plain.models[h].generation if h in self.plain.models else None
        if again == "created again":
            self._delete(h, recreated=True)
        elif again == "rewound" and self.snapshots[h]:
            self._rewind(h, self.snapshots[h][-1])
        elif again == "later":
            for later in ("m", "n"):
                self._accept(h, [payload], (100, 1000), key=later + key[1:])
        if again:
            body = b"other" if other or again == "other" else payload
            self._accept(h, [body], limit, key=key, generation=before if unaware else None)

    @rule(h=hashes, payload=st.sampled_from(ROWS), job=st.sampled_from(("a", "b")), limit=limits,
          step=st.sampled_from((1, 1, 1, 0, 0, 2, -1)), repeated=st.booleans(), stale=rarely(True, False),
          more=st.sampled_from((0, 0, 2)))  # fmt: skip
    def accept_chunk(
        self, h: str, payload: bytes, job: str, limit: tuple[int, int], step: int, repeated: bool, stale: bool,
        more: int,
    ) -> None:  # fmt: skip
        """Accept a chunk of a pull job: the next one, the last one again, one too early, or one from long ago.

        It may be followed by `more`.
        """
        answers, _ = self.plain.answers.get(redis_keys.chunk_answers(h, job), ({b"0": None}, 0))
        number = max(int(next(iter(answers))) + step, 1)
        self._accept(h, [payload], limit, key=first_answers.chunk_key(job, number), repeated=repeated, stale=stale)
        for later in range(number + 1, number + 1 + more):
            self._accept(h, [payload], (100, 1000), key=first_answers.chunk_key(job, later))

    @rule(h=hashes, payload=st.sampled_from(ROWS), key=st.sampled_from(KEYS), other=rarely(True, False))
    def accept_after_upgrade(self, h: str, payload: bytes, key: str, other: bool) -> None:
        """Accept a request whose first answer was stored by release 0.1, which knew no callers."""
        model, hours = self.plain.models.get(h), store_model.CLIENTS_KEY_H
        if model is not None:
            name = redis_keys.idempotency(h, f"c:{key[0]}")
            seen = store_model.Seen((payload,), 7, 1, model.generation, hours)
            self.client.set(name, seen.stored(), px=hours * HOUR_MS)
            self.plain.seen[name] = seen
        self._accept(h, [b"other" if other else payload], (100, 1000), key=key)

    @rule(h=hashes, payload=st.sampled_from(ROWS), key=st.sampled_from(KEYS))
    def accept_after_expiry(self, h: str, payload: bytes, key: str) -> None:
        """Accept a request under a key that has expired, while others of its caller are remembered."""
        self._accept(h, [payload], (100, 1000), key=key)
        for name in first_answers.answers_of(h, key)[0]:
            answers, _ = self.plain.answers.get(name, ({}, 0))
            for own, seen in answers.items():
                expired = replace(seen, hours=0)
                value = expired.stored_with_others()[:-1] + b"%d" % (1000 * time.time())
                self.client.hset(name, own, value)  # type: ignore[arg-type]
                answers[own] = expired
        self._accept(h, [payload], (100, 1000), key=key)

    @rule(h=hashes, written=st.sampled_from(("all", "all", "all", "part", "none")), limit=limits,
          repeated=st.booleans(), key=st.sampled_from((None, None, "k")), asked=st.booleans(),
          deleted=st.booleans())  # fmt: skip
    def accept_large(
        self, h: str, written: str, limit: tuple[int, int], repeated: bool, key: str | None, asked: bool,
        deleted: bool,
    ) -> None:  # fmt: skip
        """Accept a large request, which may be asked for before; its staged rows may be lost in whole or in part.

        In the end the gateway deletes staged rows that were not accepted.
        """
        if asked:
            self._accept(h, [LARGE_DIGEST], limit, big=redis_keys.inbox(h), big_size=len(LARGE), key=key)
        name = self._accept_large(h, limit, written=written, repeated=repeated, key=key)
        if deleted:
            (answer,) = redis_scripts.run(self.client, redis_scripts.call("unstage", [name]))
            assert answer == self.plain.unstage(name)

    def _accept_large(
        self, h: str, limit: tuple[int, int], *, written: str = "all", repeated: bool = False, key: str | None = None
    ) -> str:
        name, rows = redis_keys.large_rows(h, uuid.uuid4().hex), LARGE
        if written != "none":
            part = rows if written == "all" else rows[:5]
            self.client.set(name, part, px=store_model.BIG_H * HOUR_MS)
            self.plain.big[name] = (part, store_model.BIG_H)
        self._accept(h, [LARGE_DIGEST], limit, big=name, big_size=len(rows), repeated=repeated, key=key)
        return name

    def _accept(
        self, h: str, payloads: list[bytes], limit: tuple[int, int], *, stale: bool = False, width: int = 2,
        key: str | None = None, big: str = "", big_size: int = 0, repeated: bool = False,
        generation: int | None = None,
    ) -> None:  # fmt: skip
        model = self.plain.models.get(h)
        if generation is None:
            generation = (model.generation if model else self.generations[h]) + stale
        requests = [LearnRequest(h, generation, width, payload, key, big, big_size) for payload in payloads]
        settings = self._settings.model_copy(update={"inbox_entries_max": limit[0], "inbox_bytes_max": limit[1]})
        recorder = self.bench.recorder
        recorder.loses_answer, recorder.trips = repeated, []
        is_question = big == redis_keys.inbox(h)
        if is_question:
            # As `inbox.ask` does, which reads its answer as `accept` does.
            self.bench.run(recorder.run(inbox._accept_command(settings, requests)))
        else:
            outcomes, published = self.bench.run(inbox.accept(recorder, settings, requests))
        place = first_answers.place_of(settings, h, key)
        answers = None if key is None else (place.new, place.old)
        for (command,), (answer,) in recorder.trips:
            call = Call(
                h, generation, width, tuple(payloads), command[5], place.ttl_s // 3600, *limit, big, big_size, answers,
                place.name, place.entries_max == 0,
            )  # fmt: skip
            expected = self.plain.accept(call)
            assert answer == expected
        if is_question:
            return
        assert published == ([h] if expected[0] == b"ok" and expected[4] else [])
        if expected[0] == b"ok":
            _, first, count, version, _, waiting, pace, _ = expected
            assert outcomes[:count] == [Accepted(first + i, version) for i in range(count)]
            for full in outcomes[count:]:
                assert isinstance(full, InboxFullError)
                assert full.retry_after_s == (min(max(math.ceil(waiting / 2 / pace), 1), 60) if pace else 1)
        else:
            assert all(isinstance(outcome, KeepfitError) for outcome in outcomes)

    # Workers claim and commit.

    @rule(h=hashes, token=workers, known=st.booleans(), entries_max=st.sampled_from((1, 2, 18, 512)),
          bytes_max=st.sampled_from((3, 1000, 1000)))  # fmt: skip
    def worker_claims(self, h: str, token: str, known: bool, entries_max: int, bytes_max: int) -> None:
        """Claim a model, which may be unlocked, locked by the worker itself, or by another one."""
        self._claim(h, token, known=known, entries_max=entries_max, bytes_max=bytes_max)

    def _claim(self, h: str, token: str, *, known: bool, entries_max: int = 512, bytes_max: int = 1000) -> None:
        model = self.plain.models.get(h)
        digest = model.bundle.digest if model and known else ""
        claimed = self.plain.claim(h, token, entries_max, bytes_max)
        with (
            mock.patch.object(commits, "ENTRIES_MAX", entries_max),
            mock.patch.object(commits, "BYTES_MAX", bytes_max),
        ):
            received = self.consumer.claim(h, token, digest)
        self._check_claim(h, token, received, claimed, digest)

    def _check_claim(
        self, h: str, token: str, received: Claimed | None, claimed: ClaimModel | None, known: str
    ) -> None:
        """Compare a claim with that of the plain model, and keep it."""
        model = self.plain.models.get(h)
        if received is None or claimed is None or model is None:
            assert (received, claimed) == (None, None)
            return
        bundle = model.bundle
        found = (
            received.generation,
            received.version,
            received.rows_seen,
            received.learned,
            received.digest,
            (received.attempts, received.harm),
            received.followed,
        )
        assert found == (
            model.generation, model.version, len(bundle.learned_rows), model.learned, bundle.digest,
            (model.attempts, model.harm), h in self.plain.followed,
        )  # fmt: skip
        assert received.recipe_text == RECIPE.text().encode()
        assert (sha256(received.data).hexdigest() if received.data else "") == (
            "" if known == bundle.digest else bundle.digest
        )
        assert [(e.sequence, e.request_digest, e.payload, e.large_key, e.size_bytes) for e in received.entries] == [
            (r.sequence, r.chain, self.plain.big.get(r.big, (b"", 0))[0] if r.big else r.payload, r.big, r.size)
            for r in claimed.requests
        ]
        self.claims = [*self.claims[-3:], Claim(received, claimed, token)]

    @rule(h=hashes)
    def follow(self, h: str) -> None:
        """A gateway wants the scorers of a model."""
        self.client.set(redis_keys.followed(h), 1, px=HOUR_MS * store_model.FOLLOWED_H)
        self.plain.followed.add(h)

    @precondition(lambda self: any(claim.expected.requests for claim in self.claims))
    @rule(data=st.data(), put_aside=rarely("ValueError: no", ""), repeated=rarely(True, False), keep=st.booleans(),
          wrong_field=st.sampled_from(("",) * 5 + MISMATCHES), dead=rarely("+", ""))  # fmt: skip
    def commit(
        self, data: st.DataObject, put_aside: str, repeated: bool, keep: bool, wrong_field: str, dead: str
    ) -> None:
        """Commit a recent or old claim, in whole or in part, with or without a mismatch."""
        claim = data.draw(st.sampled_from([claim for claim in self.claims if claim.expected.requests]))
        count = data.draw(st.sampled_from((len(claim.expected.requests), 1)))
        if not keep:
            self.claims.remove(claim)
        self._commit(mismatched(claim, count, wrong_field), count, put_aside, staged=wrong_field != "stage", dead=dead)
        if repeated:
            self._commit(mismatched(claim, count, wrong_field), count, put_aside, staged=wrong_field != "stage")

    def _commit(self, claim: Claim, count: int, put_aside: str, *, staged: bool, dead: str = "") -> None:
        """Commit; the bundle has learned all dead letters (`dead` is "+"), one of which may be missing ("?")."""
        h, claimed = claim.received.hash, claim.expected
        learned_dead = tuple((each.id, each.request.big) for each in self.plain.dead.get(h, [])) if dead else ()
        if dead == "?":
            learned_dead += (("9-9", ""),)
        done = claimed.requests[:count]
        learned = tuple(r.payload for r in (done[:-1] if put_aside else done))
        learned_rows = claimed.bundle.learned_rows + learned
        changed = (
            {**dict(claimed.bundle.changed), "C": len(learned_rows)}
            if store_model.CHANGE in learned
            else dict(claimed.bundle.changed)
        )
        bundle = Bundle(RECIPE, Columns.new(RECIPE), None, list(learned_rows), [], len(learned_rows), changed=changed)
        # The claim lies in the future, so that the pace is that of the shortest time.
        received = replace(claim.received, claimed_s=math.inf)
        drift = {"metric": "accuracy", "text": "a\nb"} if len(learned_rows) % 2 else None
        announced = len(claimed.bundle.history) % 3 == 0
        with (
            mock.patch.object(
                redis_scripts, "run", redis_scripts.run if staged else without_staging(redis_scripts.run)
            ),
            mock.patch.object(events, "COMMIT_INTERVAL_MS", 0 if announced else HOUR_MS),
        ):
            # Some bundles do not tell which width they have learned.
            width = 2 if learned_rows and not put_aside else None
            scorer = b"scorer" if received.followed else b""
            # Some requests want an answer.
            kept = b"answer" if done[-1].payload == b"x" and not put_aside else b""
            sealed = replace(seal_bundle(KEYRING, received, bundle, count), width=width, scorer=scorer, answer=kept)
            sealed = replace(sealed, drifts=(drift,) * bool(drift), dead_letters=learned_dead)
            committed = self.consumer.commit(received, sealed, count, claim.token, put_aside)
        score = redis_keys.change_score(received.generation, received.version + 1)
        self.plain.changed[h] = max(score, self.plain.changed.get(h, 0))
        history = done[-1].history
        after = BundleModel(
            committed.digest, learned_rows, history, msgspec.json.encode(bundle.metrics()), tuple(changed.items())
        )
        version = self.plain.commit(
            claimed, count, after, 1000 * count, put_aside=put_aside, staged=staged, width=width,
            scorer=scorer.decode(), kept=kept, drift=drift, announced=announced, dead=learned_dead,
        )  # fmt: skip
        assert committed.version == version
        if count == len(claimed.requests):
            assert committed.has_pending == (self.plain.unlock(h, claim.token, force=False) == 1)
            assert committed.claimed is None
        else:
            # The rest is claimed in the same trip.
            assert committed.has_pending
            next_claim = self.plain.claim(h, claim.token, commits.ENTRIES_MAX, commits.BYTES_MAX)
            self._check_claim(h, claim.token, committed.claimed, next_claim, committed.digest)

    @rule(h=hashes, token=workers, payloads=some_rows, big=rarely(True, False),
          put_aside=st.sampled_from(("", "", "TypeError: no")), part=rarely(True, False),
          meanwhile=st.sampled_from(("",) * 3 + EVENTS + MISMATCHES),
          later=st.sampled_from(("",) * 3 + LATER))  # fmt: skip
    def learn(
        self, h: str, token: str, payloads: list[bytes], big: bool, put_aside: str, part: bool, meanwhile: str,
        later: str,
    ) -> None:  # fmt: skip
        """Accept, claim and commit requests; another event or a mismatch may occur in between."""
        self._accept(h, payloads, (100, 1000))
        if big:
            self._accept_large(h, (100, 1000))
        self._claim(h, token, known=True)
        claim = self.claims[-1] if self.claims else None
        if claim is None or claim.received.hash != h or claim.token != token or not claim.expected.requests:
            return
        self._apply(h, meanwhile)
        if meanwhile != "lock expires":
            self.claims.remove(claim)
            count = 1 if part else len(claim.expected.requests)
            self._commit(mismatched(claim, count, meanwhile), count, put_aside, staged=meanwhile != "stage")
            self._load(h, known=part)
            self._apply(h, later)

    @rule(h=hashes, over=st.booleans())
    def announce_due(self, h: str, over: bool) -> None:
        """Announce the last commit of a model, while or after others of it were announced."""
        with mock.patch.object(events, "COMMIT_INTERVAL_MS", 0 if over else HOUR_MS):
            (announced,) = redis_scripts.run(self.client, events.due(h))
        assert announced == self.plain.announce_due(h, over=over)

    @rule(h=hashes, rounds=st.lists(st.sampled_from(("x", "xx", "xxx", "xy", "yyy", "L", "xL", "x!", "L!", "x+", "L+",
          "x?", "snapshot", "snapshot", "note", "late note", "saved late", "saved late")),
          min_size=2, max_size=7))  # fmt: skip
    def commit_rounds(self, h: str, rounds: list[str]) -> None:
        """Learn a few requests at a time, large ones (L) and dead letters (!), with snapshots in between.

        Dead letters may be learned again (+), if none of them is missing (?).
        """
        self._release_locks(h)
        for what in rounds:
            if what in ("snapshot", "note"):
                self._apply(h, what)
            elif what == "saved late":
                self._commit_round(h, "L")
                self._apply(h, "snapshot")
                self._commit_round(h, "L")
                self._apply(h, "note")
            elif what == "late note":
                for snapshot in self.snapshots[h][-2:-1]:
                    self._note_snapshot(h, snapshot)
            else:
                self._commit_round(h, what)
            self._read_retained(h)

    def _commit_round(self, h: str, what: str) -> None:
        for kind in what.rstrip("!+?"):
            if kind == "L":
                self._accept_large(h, (100, 1000))
            else:
                self._accept(h, [{"x": b"x", "y": b"yyyy"}[kind]], (100, 1000))
        self._claim(h, WORKERS[0], known=True)
        if self.claims and self.claims[-1].received.hash == h and self.claims[-1].expected.requests:
            claim = self.claims.pop()
            aside = "ValueError: no" if what.endswith("!") else ""
            dead = what[-1] if what[-1:] in ("+", "?") else ""
            self._commit(claim, len(claim.expected.requests), aside, staged=True, dead=dead)

    def _apply(self, h: str, event: str) -> None:
        if event == "accept":
            self._accept(h, [b"x"], (100, 1000))
        elif event == "lock expires":
            self._lock_expires(h)
        elif event == "replace":
            self._install(h, again=True)
        elif event in ("delete", "create again"):
            self._delete(h, recreated=event == "create again")
        elif event == "release":
            self._release_locks(h)
        elif event == "snapshot":
            self._snapshot(h)
        elif event == "restore":
            self._snapshot(h)
            self._delete(h, recreated=False)
            if self.snapshots[h]:
                self._restore(h, self.snapshots[h][-1])
        elif event == "rewind" and self.snapshots[h]:
            self._rewind(h, self.snapshots[h][0])
        elif event == "note" and self.snapshots[h]:
            self._note_snapshot(h, self.snapshots[h][-1])

    @rule(h=hashes, token=workers, payloads=some_rows, times=st.sampled_from((1, 2, 2, 3, 7)), late=st.booleans(),
          harm=st.sampled_from((Harm.DEATH, Harm.DEATH, Harm.MEMORY)), expires=st.booleans(),
          then=st.sampled_from(("", "", "unlock", "learn", "rewind")))  # fmt: skip
    def crash_workers(
        self, h: str, token: str, payloads: list[bytes], times: int, late: bool, harm: Harm, expires: bool, then: str
    ) -> None:
        """Workers die in turn after a claim, while more is accepted; the last one may survive, and may commit."""
        if then == "rewind":
            self._learn_row(h)
        self._accept(h, payloads, (100, 1000))
        for _ in range(times):
            self._release_locks(h)
            self._claim(h, token, known=True)
            if expires:
                # Another worker claims the requests: the late report of the death says nothing about its claim.
                self._lock_expires(h)
                self._claim(h, WORKERS[WORKERS.index(token) - 1], known=True)
            self._unlock(h, token, force=True, harm=harm)
            if late:
                self._accept(h, [b"x"], (100, 1000))
        self._claim(h, token, known=True)
        if then == "unlock":
            self._unlock(h, token, force=False)
        elif then == "rewind":
            self._apply(h, "rewind")
        elif (
            then == "learn" and self.claims and self.claims[-1].received.hash == h and self.claims[-1].expected.requests
        ):
            claim = self.claims.pop()
            self._commit(claim, len(claim.expected.requests), "", staged=True)
            # The worker dies between commit and release: what it claimed is learned.
            if h in self.plain.models:
                self.plain.models[h].holder = token
                self.client.hset(redis_keys.state(h), "holder", token)
            self._unlock(h, token, force=True, harm=harm)
            self._claim(h, token, known=True)

    @rule(h=hashes, token=workers, own=st.booleans(),
          what=st.sampled_from(("renew", "unlock", "unlock by force", "die", "lock expires")))  # fmt: skip
    def hold_lock(self, h: str, token: str, own: bool, what: str) -> None:
        """Renew or release a lock of this or another worker, with or without pending requests; or let it expire."""
        if own and h in self.plain.locks:
            token = self.plain.locks[h][0]
        if what == "lock expires":
            self._lock_expires(h)
        elif what == "renew":
            if own:
                # Renewals of locks that no worker holds find little.
                self._claim(h, token, known=True)
            for worker in WORKERS:
                self._renew(h, worker)
        else:
            self._unlock(h, token, force=what != "unlock", harm=Harm.DEATH if what == "die" else None)

    def _unlock(self, h: str, token: str, *, force: bool, harm: Harm | None = None) -> None:
        expected = self.plain.unlock(h, token, force=force, harm=harm)
        assert self.consumer.unlock(h, token, force=force, harm=harm) == (expected == 1)

    def _release_locks(self, h: str) -> None:
        for token in WORKERS:
            self._unlock(h, token, force=True)

    def _renew(self, h: str, token: str) -> None:
        if h in self.plain.locks:
            # Shorten its remaining time.
            self.client.pexpire(redis_keys.lock(h), HOUR_MS)
            self.plain.locks[h] = (self.plain.locks[h][0], 1)
        redis_scripts.run(self.client, commits.renew_lock(h, token, store_model.LOCK_H * 3600))
        self.plain.renew(h, token)
        left: Any = self.client.pttl(redis_keys.lock(h))
        assert math.ceil(max(left, 0) / HOUR_MS) == self.plain.locks.get(h, ("", 0))[1]

    def _lock_expires(self, h: str) -> None:
        self.client.delete(redis_keys.lock(h))
        self.plain.locks.pop(h, None)

    def _learn_row(self, h: str) -> None:
        """Learn one row and save the bundle as a snapshot."""
        self._release_locks(h)
        self._accept(h, [b"x"], (100, 1000))
        self._claim(h, WORKERS[0], known=True)
        if self.claims and self.claims[-1].received.hash == h and self.claims[-1].expected.requests:
            claim = self.claims.pop()
            self._commit(claim, len(claim.expected.requests), "", staged=True)
            self._snapshot(h)

    # Snapshots.

    @rule(h=hashes)
    def snapshot(self, h: str) -> None:
        """Read a bundle to save it."""
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
    def note_snapshots(self, data: st.DataObject) -> None:
        """Store the newest snapshots of a model in its state, in any order."""
        h = data.draw(st.sampled_from([h for h in METADATA if self.snapshots[h]]))
        for snapshot in data.draw(st.lists(st.sampled_from(self.snapshots[h][-2:]), min_size=1, max_size=2)):
            self._note_snapshot(h, snapshot)

    def _note_snapshot(self, h: str, snapshot: Snapshot) -> None:
        chain = store_model.chain_of(snapshot.bundle.history)
        state = snapshot.state
        noted = RetentionNote(
            h, state.generation, state.learned, state.digest, state.retained, chain, snapshot.place, snapshot.document
        )
        self.bench.run(self.store.note_snapshots([noted]))
        document = msgspec.json.encode(snapshot.document)
        self.plain.note(h, snapshot.generation, snapshot.version, document, snapshot.bundle)

    # Idle models leave Redis.

    @rule(
        h=hashes, before=st.sampled_from(("saved", "saved", "put aside", "rewound", "", "discarded")),
        meanwhile=st.sampled_from(("", "", "", "accept", "lock", "other bundle", "other generation", "use")),
        then=st.sampled_from(("restore", "restore", "older", "late", "create", "delete", "")),
    )  # fmt: skip
    def unload(self, h: str, before: str, meanwhile: str, then: str) -> None:
        """Save an idle model and unload it; it may be used meanwhile. Then restore it, or an older snapshot."""
        self._release_locks(h)
        if before:
            self._commit_round(h, "x!" if before == "put aside" else "x")
            self._apply(h, "snapshot")
            self._apply(h, "note")
        model = self.plain.models.get(h)
        if before == "rewound" and self.snapshots[h]:
            self._rewind(h, self.snapshots[h][-1])
        if before == "discarded" and model is not None:
            self.client.hset(redis_keys.state(h), "removed", 3)
            model.removed = 3
        if meanwhile == "accept":
            self._accept(h, [b"x"], (100, 1000))
        if meanwhile == "lock":
            self._claim(h, WORKERS[0], known=True)
        left_before = self.plain.idle.get(h)
        self._unload(h, meanwhile)
        seen = self.bench.run(idle.read_record(self.store.client, h))
        assert seen == self.plain.idle.get(h)
        if then == "restore" and self.snapshots[h]:
            self._restore(h, self.snapshots[h][-1], seen=seen)
            self._accept(h, [b"x"], (100, 1000), key="k")
        elif then in ("older", "late") and self.snapshots[h]:
            self._restore(h, self.snapshots[h][0], seen=seen if then == "older" else left_before)
        elif then == "create":
            self._install(h, again=True)
        elif then == "delete":
            self._delete(h, recreated=False)

    def _unload(self, h: str, meanwhile: str) -> None:
        model = self.plain.models.get(h)
        generation, digest = (0, "") if model is None else (model.generation, model.bundle.digest)
        if meanwhile == "other generation":
            generation -= 1
        elif meanwhile == "other bundle":
            digest = "f" * 64
        name = redis_keys.bundle(h)
        if model is not None and model.bundle.digest:
            data = self.client.dump(name)
            idle_s = 0 if meanwhile == "use" else IDLE_S
            self.client.execute_command("RESTORE", name, 0, data, "REPLACE", "IDLETIME", idle_s)
        done = self.bench.run(idle.unload(self.store.client, h, generation, digest, IDLE_S, 0))
        assert done == self.plain.unload(h, generation, digest, is_idle=meanwhile != "use" and bool(digest))

    # Keys expire, and Redis loses its last writes.

    @rule()
    def expire_keys(self) -> None:
        """A day passes: every key with a time to live expires."""
        for name, (_, hours) in self.bench.keys().items():
            if hours:
                self.client.delete(name)
        self.plain.locks.clear()
        self.plain.seen.clear()
        self.plain.answers.clear()
        self.plain.retried.clear()
        self.plain.kept.clear()
        self.plain.idle.clear()
        self.plain.followed.clear()
        self.plain.staged = 0
        self.plain.big = {name: (rows, hours) for name, (rows, hours) in self.plain.big.items() if not hours}

    @rule()
    def save_redis_copy(self) -> None:
        """Copy Redis, so that it can lose all later writes."""
        self.redis_copies = [*self.redis_copies[-2:], (self.bench.dump(), copy.deepcopy(self.plain))]

    @precondition(lambda self: self.redis_copies)
    @rule(data=st.data(), payloads=some_rows)
    def lose_last_writes(self, data: st.DataObject, payloads: list[bytes]) -> None:
        """Redis loses its last writes, and other rows get their sequences; workers still have their former claims."""
        dumped, remembered = data.draw(st.sampled_from(self.redis_copies))
        self.bench.put_back(dumped)
        self.plain = copy.deepcopy(remembered)
        self._accept(A, payloads, (100, 1000))

    @rule(h=hashes, waits=st.booleans())
    def note_lost_snapshot(self, h: str, waits: bool) -> None:
        """Redis loses requests of a snapshot that is not noted yet; they are pending again, or others are learned."""
        self._release_locks(h)
        kept_on = self.bench.dump(), copy.deepcopy(self.plain)
        self._accept(h, [b"x"], (100, 1000))
        if waits:
            kept_on = self.bench.dump(), copy.deepcopy(self.plain)
        before = len(self.snapshots[h])
        self._commit_round(h, "")
        self._snapshot(h)
        self.bench.put_back(kept_on[0])
        kept_on[1].published = self.plain.published
        self.plain = kept_on[1]
        if not waits:
            self._commit_round(h, "y")
            self._commit_round(h, "x")
        for snapshot in self.snapshots[h][before:]:
            self._note_snapshot(h, snapshot)

    # What must hold after every step.

    @invariant()
    def redis_equals_plain_model(self) -> None:
        """Redis holds and has published what the plain store holds and published; bundles hold their learned rows.

        Replay base and retained requests together are all that a model has learned, or the missing ones are known.
        """
        self.bench.steps += 1
        found = self.bench.keys()
        staged = [name for name in found if ":stg:" in name]
        assert [found.pop(name)[1] for name in staged] == [store_model.STAGED_H] * self.plain.staged
        for h, model in self.plain.models.items():
            rest = tuple(request.payload for request in model.kept)
            assert model.missing or model.base[1] is None or model.based + rest == model.bundle.learned_rows
            assert sum(request.size + store_model.PLACE for request in model.kept) <= store_model.REPLAY_MAX
            if redis_keys.bundle(h) in found:
                data, hours = found[redis_keys.bundle(h)]
                found[redis_keys.bundle(h)] = (sha256(data).hexdigest(), hours)
                self._check_bundle(h, model, data)
            for _, fields in found.get(redis_keys.dead(h), ([], 0))[0]:
                assert abs(int(fields.pop(b"at")) - 1000 * time.time()) < HOUR_MS
            self._normalize_announced(found[redis_keys.state(h)][0])
        if redis_keys.EVENTS in found:
            found[redis_keys.EVENTS] = ([self._event(fields) for _, fields in found[redis_keys.EVENTS][0]], 0)
        if redis_keys.DUE_EVENTS in found:
            found[redis_keys.DUE_EVENTS] = (set(found[redis_keys.DUE_EVENTS][0]), 0)
        for name in filter(is_answers, found):
            for own, value in found[name][0].items():
                answer, _, expires = value.rpartition(b" ")
                left = math.ceil((int(expires) / 1000 - time.time()) / 3600)
                found[name][0][own] = b"%b %d" % (answer, max(left, 0))
        assert {name: content for name, content in found.items() if content[0] != []} == self.plain.keys()
        published, self.plain.published = self.plain.published, []
        assert self.bench.published() == published

    def _normalize_announced(self, state: dict[bytes, bytes]) -> None:
        """Replace the time in a state's field `announced` by a '*'; '+' stays."""
        if b"announced" in state:
            time_ms, waits, _ = state[b"announced"].partition(b"+")
            assert abs(int(time_ms) - 1000 * time.time()) < HOUR_MS
            state[b"announced"] = waits or b"*"

    def _event(self, fields: dict[bytes, bytes]) -> tuple[str, str, Any]:
        """Return what the plain model keeps of an event."""
        h = fields[b"hash"].decode()
        assert fields[b"metadata"].decode() == METADATA[h]
        return fields[b"kind"].decode(), h, msgspec.json.decode(fields[b"details"])

    def _check_bundle(self, h: str, model: store_model.Model, data: bytes) -> None:
        digest = sha256(data).hexdigest()
        if digest not in self.opened:
            header, bundle = unseal(data, KEYRING, RECIPE, h)
            self.opened[digest] = BundleModel(digest, tuple(bundle.estimator), (), b"")
            assert (header.version, header.sequence, header.rows_seen) == (
                model.version, model.learned, len(model.bundle.learned_rows)
            )  # fmt: skip
            assert header.chain == store_model.chain_of(model.bundle.history)
        assert self.opened[digest].learned_rows == model.bundle.learned_rows
