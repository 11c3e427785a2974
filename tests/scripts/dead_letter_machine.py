"""The state machine over models, with dead letters: listed, retried, discarded.

Adds to :class:`tests.scripts.store_machine.StoreMachine` the calls of :mod:`keepfit.store.dead_letters`, and direct
calls of the scripts with arguments that it would never pass. Invariant: that of the extended machine.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import rule

from keepfit.backends import redis_keys, redis_scripts
from keepfit.errors import InboxFullError, KeepfitError, NotFoundError, StaleModelError
from keepfit.store import dead_letters as deads
from keepfit.store.dead_letters import REASONS, DeadLetter, RetryResult
from tests.scripts import store_model
from tests.scripts.bench import HOUR_MS
from tests.scripts.store_machine import ROWS, WORKERS, StoreMachine, hashes, rarely, workers
from tests.scripts.store_model import DeadLetters, Request, Retry

# Events between the look-up of dead letters and the script, or between a call and its repeat.
MEANWHILE = ("retry", "discard", "delete", "create again", "lose rows", "learn", "expire")
Named = tuple[tuple[str, str], ...]

# Free space: requests and bytes.
spaces = st.sampled_from(((100, 1000), (100, 1000), (1, 1000), (2, 1000), (100, 1), (100, 5)))
firsts = st.sampled_from(("", "pile", "large", "large", "alone"))
# "gap": a row that exceeds a page among others that do not, more than the script reads at a time.
listed = st.sampled_from(("", "pile", "large", "gap", "alone"))
piles = st.sampled_from(([b"x"], [b"yyyy"], [b"x", b"yyyy"], [b"yyyy", b"x", b"x"], [b"x"] * 18))


class DeadLetterMachine(StoreMachine):
    """Two models and their dead letters."""

    def __init__(self) -> None:
        super().__init__()
        patch = mock.patch.object(deads, "REPEAT_TTL_S", 3600 * store_model.RETRIED_H)
        self.patches.append(patch)
        patch.start()
        self.dead = deads.DeadLetters(self.bench.store)

    def _named(self, h: str) -> Named:
        return tuple((dead.id, dead.request.big) for dead in self.plain.dead.get(h, []))

    @rule(h=hashes, token=workers, payloads=piles, big=st.booleans(), then=st.sampled_from(("", "", *MEANWHILE)))
    def create_dead_letters(self, h: str, token: str, payloads: list[bytes], big: bool, then: str) -> None:
        """Create dead letters one after another, with or without a large one first."""
        self._create_dead_letters(h, token, payloads, big=big)
        self._intervene(h, then)

    def _create_dead_letters(self, h: str, token: str, payloads: list[bytes], *, big: bool = False) -> None:
        self._release_locks(h)
        if big:
            self._accept_large(h, (100, 1000))
        self._accept(h, payloads, (100, 1000))
        for _ in range(len(payloads) + big):
            self._claim(h, token, known=True, entries_max=1)
            if self.claims and self.claims[-1].received.hash == h and self.claims[-1].expected.requests:
                self._commit(self.claims.pop(), 1, "ValueError: no", staged=True)

    def _prepare(self, h: str, first: str, space: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        """Create some dead letters (`alone`: with an empty inbox); return the limits that leave this space."""
        if first:
            rows = [b"x", b"yyyyyy", *[b"x"] * 15] if first == "gap" else [b"yyyy", b"x"]
            self._create_dead_letters(h, WORKERS[0], rows, big=first == "large")
        if first == "alone":
            self._intervene(h, "learn")
        model = self.plain.models.get(h)
        return (space[0] + len(model.inbox), space[1] + model.size) if model else space

    @rule(h=hashes, payload=st.sampled_from(ROWS))
    def insert_stale_dead_letter(self, h: str, payload: bytes) -> None:
        """Insert a dead letter of another generation, which no script creates."""
        if h in self.plain.models and not self.client.exists(redis_keys.dead(h)):
            left = DeadLetters(
                self.plain.models[h].generation - 1, Request(1, payload, "", len(payload), ()), "KeyError: no"
            )
            self.client.xadd(redis_keys.dead(h), {**left.stored(), "at": round(1000 * time.time())}, id=left.id)
            self.plain.dead[h] = [left]

    @rule(h=hashes, part=st.booleans())
    def lose_dead_letter_rows(self, h: str, part: bool) -> None:
        """Redis loses large rows of dead letters, in whole or in part."""
        self._lose_dead_letter_rows(h, part=part)

    def _lose_dead_letter_rows(self, h: str, *, part: bool) -> None:
        for _, big in self._named(h):
            if big in self.plain.big:
                self.client.delete(big)
                self.plain.big.pop(big)
                if part:
                    self.client.set(big, b"a la")
                    self.plain.big[big] = (b"a la", 0)

    def _intervene(self, h: str, event: str) -> None:
        if event == "retry":
            self._retry(h, None, (100, 1000))
        elif event == "discard":
            self._discard(h, [name for name, _ in self._named(h)][-2:])
        elif event == "lose rows":
            self._lose_dead_letter_rows(h, part=True)
        elif event == "learn":
            self._release_locks(h)
            self._claim(h, WORKERS[0], known=True)
            if self.claims and self.claims[-1].received.hash == h and self.claims[-1].expected.requests:
                claim = self.claims.pop()
                self._commit(claim, len(claim.expected.requests), "", staged=True)
        elif event == "expire":
            self.expire_keys()
        else:
            self._apply(h, event)

    # Listing.

    @rule(h=hashes, skip=st.sampled_from((0, 0, 1, 2)), limit=st.sampled_from((1, 2, 17, 100)),
          shown=st.sampled_from((3, 100)), page=st.sampled_from((2, 5, 1000)), first=listed)  # fmt: skip
    def list_dead_letters(self, h: str, skip: int, limit: int, shown: int, page: int, first: str) -> None:
        """Read a page, and the reason of each dead letter."""
        self._prepare(h, first)
        there = self.plain.dead.get(h, [])
        after = there[skip - 1].id if 0 < skip <= len(there) else ""
        expected = self.plain.page(h, after, limit, shown, page)
        with (
            mock.patch.object(deads, "SHOWN_BYTES_MAX", shown),
            mock.patch.object(deads, "PAGE_BYTES_MAX", page),
        ):
            entries, following = self.bench.run(self.dead.page(h, limit, after))
        assert [replace(entry, timestamp=0) for entry in entries] == [
            self._entry(dead, rows) for dead, rows in expected
        ]
        assert all(abs(entry.timestamp - time.time()) < HOUR_MS / 1000 for entry in entries)
        last = expected[-1][0].id if expected else None
        assert following == (last if last and last != there[-1].id else None)
        model = self.plain.models.get(h)
        assert self.bench.run(self.dead.find_reason(h, 0, 0))[0] is None
        for dead in there[:2]:
            reason = self.bench.run(self.dead.find_reason(h, dead.generation, dead.request.sequence))
            assert reason == (dead.reason, bool(model and model.removed))

    def _entry(self, dead: DeadLetters, rows: bytes) -> DeadLetter:
        request = dead.request
        head = self.plain.big.get(request.big, (b"", 0))[0] if request.big else request.payload
        # These rows must not be msgpack of more than 127 rows.
        count = head[1] if len(head) > 1 else None
        return DeadLetter(
            dead.id, dead.generation, request.sequence, dead.reason, 0, request.size, count, rows, request.big
        )  # fmt: skip

    # Retrying and discarding.

    def _select(self, h: str, which: str) -> list[str]:
        names = [name for name, _ in self._named(h)]
        some = {"first": names[:1], "last": names[-1:], "reversed": names[::-1], "all": names}.get(which, [])
        if which == "odd":
            some = [*names[:2], "9-9", *names[:1], *(name.replace("-", "-0") for name in names[1:3])]
        return some

    @rule(h=hashes, which=st.sampled_from(("", "first", "last", "reversed", "all", "odd")), space=spaces,
          first=firsts, stale=rarely(True, False), meanwhile=st.sampled_from(("",) * 4 + MEANWHILE),
          repeated=st.sampled_from(("", "", "at once", *MEANWHILE)))  # fmt: skip
    def retry(
        self, h: str, which: str, space: tuple[int, int], first: str, stale: bool, meanwhile: str, repeated: str
    ) -> None:
        """Retry named dead letters, or the oldest; if the reply is lost, the script runs again."""
        limit = self._prepare(h, first, space)
        names = self._select(h, which) if which else None
        self._retry(h, names, limit, stale=stale, meanwhile=meanwhile, repeated=repeated)

    def _retry(
        self, h: str, names: list[str] | None, limit: tuple[int, int], *, stale: bool = False, meanwhile: str = "",
        repeated: str = "",
    ) -> None:  # fmt: skip
        model = self.bench.run(self.store.describe(h))
        if model is None:
            return
        model = replace(model, generation=model.generation + stale)
        there, refused = dict(self._named(h)), {}
        if names is None:
            first = self.plain.models[h].first_generation
            own = [dead.id for dead in self.plain.dead.get(h, []) if first <= dead.generation <= model.generation]
            named = tuple((name, there[name]) for name in own[: deads.CALL_ENTRIES_MAX])
        else:
            found = dict.fromkeys(name for name in names if name in there)
            named = tuple((name, there[name]) for name in found)
            refused = {name: REASONS["gone"] for name in names if name not in there}
        answers: list[Any] = []

        def call(command: redis_scripts.Command) -> None:
            beside = [big or redis_keys.dead(h) for _, big in named]
            assert list(command[7 : 7 + len(named)]) == beside
            assert list(command[-len(named) :]) == [name for name, _ in named]
            answers.append(self.plain.retry(Retry(h, model.generation, named, command[6], *limit)))

        settings = self.bench.settings.model_copy(update={"inbox_entries_max": limit[0], "inbox_bytes_max": limit[1]})
        with self._between(h, "retry", call, answers, meanwhile, repeated):
            try:
                outcome: Any = self.bench.run(self.dead.retry(model, settings, names))
            except KeepfitError as error:
                outcome = type(error)
        left = len(self.plain.dead.get(h, []))
        if not named:
            assert (answers, outcome) == ([], RetryResult(model.version, [], refused, left))
        elif answers[-1][0] != b"ok":
            assert outcome == {b"missing": NotFoundError, b"stale": StaleModelError}[answers[-1][0]]
        else:
            words = dict(zip([name for name, _ in named], answers[-1][2].decode().split(), strict=True))
            moved = [int(word) for word in words.values() if word.isdecimal()]
            refused |= {name: REASONS[word] for name, word in words.items() if not word.isdecimal()}
            full = not moved and "full" in words.values()
            assert outcome == (InboxFullError if full else RetryResult(answers[-1][1], moved, refused, left))

    def _between(
        self, h: str, script: str, call: Callable[[redis_scripts.Command], None], answers: list[Any], meanwhile: str,
        repeated: str,
    ) -> Any:  # fmt: skip
        async def run(_client: object, *commands: redis_scripts.Command) -> list[Any]:
            if commands[0][1] != redis_scripts.SHA1[script]:
                return await self.bench.run_async(None, *commands)
            with mock.patch.object(redis_scripts, "run_async", self.bench.run_async):
                self._intervene(h, meanwhile)
                call(commands[0])
                found = await self.bench.run_async(None, *commands)
                assert found[0] == answers[-1]
                if repeated:
                    self._intervene(h, repeated)
                    call(commands[0])
                    found = await self.bench.run_async(None, *commands)
                    assert found[0] == answers[-1]
            return found

        return mock.patch.object(redis_scripts, "run_async", run)

    @rule(h=hashes, space=spaces, first=firsts, strange=st.sampled_from(("", "twice", "other rows")))
    def retry_directly(self, h: str, space: tuple[int, int], first: str, strange: str) -> None:
        """Run the script directly, with an id named twice, or with a wrong key for its rows."""
        limit = self._prepare(h, first, space)
        named = self._named(h)
        if not named:
            return
        if strange == "twice":
            named += named[:2]
        elif strange == "other rows":
            named = tuple((name, big and self._other_rows(h)) for name, big in named)
        seen = redis_keys.idempotency(h, f"r:{uuid.uuid4().hex}")
        call = Retry(h, self.plain.models[h].generation, named, seen, *limit)
        command = redis_scripts.call(
            "retry",
            [
                redis_keys.state(h),
                redis_keys.inbox(h),
                redis_keys.dead(h),
                seen,
                *(big or redis_keys.dead(h) for _, big in named),
            ],
            [call.generation, store_model.RETRIED_H * HOUR_MS, *limit, *(name for name, _ in named)],
        )
        for _ in range(2):
            expected = self.plain.retry(call)
            assert redis_scripts.run(self.client, command) == [expected]

    def _other_rows(self, h: str) -> str:
        name = redis_keys.large_rows(h, uuid.uuid4().hex)
        self.client.set(name, b"a large request", px=store_model.BIG_H * HOUR_MS)
        self.plain.big[name] = (b"a large request", store_model.BIG_H)
        return name

    @rule(h=hashes, which=st.sampled_from(("first", "last", "all", "odd")),
          meanwhile=st.sampled_from(("", "", "retry", "retry", "retry", *MEANWHILE)),
          repeated=st.sampled_from(("", "", "at once", *MEANWHILE)),
          other_rows=rarely(True, False), first=firsts)  # fmt: skip
    def discard(self, h: str, which: str, meanwhile: str, repeated: str, other_rows: bool, first: str) -> None:
        """Discard named dead letters, which may be missing or pending again; the call may be repeated."""
        self._prepare(h, first)
        if other_rows and h in self.plain.models and self._named(h):
            ((name, big),) = self._named(h)[:1]
            named = ((name, big and self._other_rows(h)),)
            command = redis_scripts.call(
                "discard", [redis_keys.state(h), redis_keys.dead(h), named[0][1] or redis_keys.dead(h)], [name]
            )
            assert redis_scripts.run(self.client, command) == [self.plain.discard(h, named)]
        else:
            self._discard(h, self._select(h, which), meanwhile, repeated)

    def _discard(self, h: str, names: list[str], meanwhile: str = "", repeated: str = "") -> None:
        there = dict(self._named(h))
        found = dict.fromkeys(name for name in names if name in there)
        named = tuple((name, there[name]) for name in found)
        answers: list[Any] = []

        def call(_: redis_scripts.Command) -> None:
            answers.append(self.plain.discard(h, named))

        with self._between(h, "discard", call, answers, meanwhile, repeated):
            try:
                outcome: Any = self.bench.run(self.dead.discard(h, names))
            except NotFoundError:
                outcome = ()
        assert list(outcome) == answers[-1]
