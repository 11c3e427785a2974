"""The state machine over models with open rows: kept, labelled, expired, and counted in the register.

Adds to :class:`tests.scripts.store_machine.StoreMachine` the calls of :mod:`keepfit.store.open_rows`. Invariant: that
of the extended machine; and a row that was answered as kept is open, in the inbox, learned, a dead letter or expired.
"""

from dataclasses import replace
from typing import Any
from unittest import mock

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import rule

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.errors import ConflictError, InboxFullError, KeepfitError, OpenRowsFullError
from keepfit.rows import served
from keepfit.rows.served import Served
from keepfit.store import first_answers, late_labels, open_rows
from keepfit.store.late_labels import Labelled, LabelRequest
from keepfit.store.open_rows import Count, KeepRequest, Kept, OpenRow, Total
from tests.scripts import store_model
from tests.scripts.open_rows_model import OPEN_S, OVER, REMEMBERED_MAX, LabelCall, OpenRowsStore
from tests.scripts.store_machine import WORKERS, StoreMachine, hashes, rarely

# Few ids and rows, so that they meet often.
IDS = ("a", "b", "c", "dd")
ASKED = (b"-x", b"-yyyy", b"px")
ANSWERED = {version: served.encode([Served(version, 9, 0.5)]) for version in (1, 2)}
TARGETS = (b"t", b"uuu")
EXPIRED_PER_CALL = 2
FORGET_US = 3_600_000_000

some_ids = st.lists(st.sampled_from(IDS), min_size=1, max_size=3, unique=True)
# Bytes left for open rows, beside the rows of the call: enough, exactly enough, one too few.
spaces = st.sampled_from((1000, 1000, 0, -1))
spares = st.sampled_from(((100, 1000), (100, 1000), (1, 1000), (2, 1000), (100, 30), (100, 0), (100, -1)))
keys = st.sampled_from((None, None, "k", "k", "l", "m", "k b"))
meanwhiles = st.sampled_from(("", "", "delete", "create again", "rewind", "learn", "put aside", "other", "expire"))


class OpenRowsMachine(StoreMachine):
    """Two models and their open rows.

    Rules of the extended machine that say nothing about open rows are left out: the machine `models` runs them.
    """

    idempotent_restore: Any = None
    repair: Any = None
    read_retained: Any = None
    load: Any = None
    accept_after_upgrade: Any = None
    accept_after_expiry: Any = None
    accept_large: Any = None
    worker_claims: Any = None
    follow: Any = None
    commit: Any = None
    commit_rounds: Any = None
    crash_workers: Any = None
    hold_lock: Any = None
    snapshot: Any = None
    note_snapshots: Any = None
    note_lost_snapshot: Any = None

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("EXPIRED_PER_CALL", EXPIRED_PER_CALL), ("REMEMBERED_MAX", REMEMBERED_MAX)):
            patch = mock.patch.object(open_rows, name, value)
            self.patches.append(patch)
            patch.start()
        self.plain: Any = OpenRowsStore()
        self.counts: list[Count] = []
        self.named = 0

    @property
    def _settings(self) -> Any:
        return StoreMachine._settings.__get__(self).model_copy(update={"open_rows_ttl_s": OPEN_S})

    def _model(self, h: str) -> Any:
        return self.plain.models.get(h)

    def _generation(self, h: str, *, stale: bool = False) -> int:
        model = self._model(h)
        return (model.generation if model else self.generations[h]) + stale

    # Rows are kept.

    @rule(h=hashes, ids=some_ids, asked=st.sampled_from(ASKED), version=st.sampled_from((1, 2)), space=spaces,
          stale=rarely(True, False), lost=rarely(True, False), again=st.sampled_from(("", "", "same", "one", "other")),
          over=rarely(True, False), noted=st.booleans())  # fmt: skip
    def keep(
        self, h: str, ids: list[str], asked: bytes, version: int, space: int, stale: bool, lost: bool, again: str,
        over: bool, noted: bool,
    ) -> None:  # fmt: skip
        """Keep rows; the reply may be lost, the call repeated, with the same rows or others, and rows may expire."""
        self._keep(h, ids, asked, version, space=space, stale=stale, lost=lost, noted=noted)
        if over:
            self._let_pass(h, ids[0])
        if again == "same":
            self._keep(h, ids, asked, 3 - version)
        elif again == "one":
            self._keep(h, [*ids[:1], "new"], asked, 3 - version)
        elif again == "other":
            self._keep(h, ids[:1], b"pother", version)

    def _keep(
        self, h: str, ids: list[str], asked: bytes, version: int = 1, *, space: int = 1000, stale: bool = False,
        lost: bool = False, noted: bool = True,
    ) -> None:  # fmt: skip
        rows = [OpenRow(name, asked, ANSWERED[version]) for name in ids]
        request = KeepRequest(h, self._generation(h, stale=stale), rows)
        size = sum(len(b"%d " % len(asked)) + row.size_bytes for row in rows)
        bytes_max = self.plain.numbers(h)[1] + size + space
        settings = self._settings.model_copy(update={"open_rows_bytes_max": bytes_max})
        recorder = self.bench.recorder
        recorder.loses_answer, recorder.trips = lost, []
        try:
            (result,) = self.bench.run(open_rows.keep(recorder, settings, [request]))
        except msgspec.ValidationError as error:
            raise AssertionError("what was answered is no prediction") from error
        recorder.loses_answer = False
        for _, answers in recorder.trips:
            # The first command announces the model, or expires its rows after a refusal.
            *_, answer = answers
            at_us = int(answer[-1]) if answer[0] == b"kept" else 0
            if len(answers[0]) == 2:
                self._announce(h)
            else:
                self.plain.expire(h, int(answers[0][2]) // 1000, EXPIRED_PER_CALL)
            expected = self.plain.keep(request, bytes_max, at_us // 1000)
            assert answer[: len(expected)] == expected
        outcome = result.outcome
        if isinstance(outcome, Kept):
            assert expected[0] == (b"repeated" if outcome.repeated else b"kept")
            served_now = [ANSWERED[version]] * len(ids) if expected[0] == b"kept" else expected[1]
            assert [served.encode([one]) for one in outcome.predictions] == served_now == served_now[:1] * len(ids)
        elif expected[0] == b"full":
            assert isinstance(outcome, OpenRowsFullError)
        else:
            assert isinstance(outcome, ConflictError if len(expected) == 2 else KeepfitError)
            assert expected[0] != b"repeated" or len(set(expected[1])) > 1
        if result.count is not None:
            self.counts.append(result.count)
            if noted:
                self._note(result.count)

    def _announce(self, h: str) -> None:
        self.plain.announce(h, self._registered_us(h))

    # Labels come.

    @rule(h=hashes, first=some_ids, labelled=st.lists(st.sampled_from((*IDS, "never")), min_size=1, max_size=4),
          text=st.sampled_from(TARGETS), key=keys, spare=spares, call_bytes=st.sampled_from((1000, 1000, 40, 1)),
          logged=st.booleans(), lost=rarely(True, False), stale=rarely(True, False), meanwhile=meanwhiles,
          again=st.sampled_from(("", "", "same", "same", "other")), over=rarely(True, False),
          unaware=st.booleans())  # fmt: skip
    def label(
        self, h: str, first: list[str], labelled: list[str], text: bytes, key: str | None, spare: tuple[int, int],
        call_bytes: int, logged: bool, lost: bool, stale: bool, meanwhile: str, again: str, over: bool,
        unaware: bool,
    ) -> None:  # fmt: skip
        """Label rows, some of them unknown, expired or labelled; repeat the call after other events."""
        self._keep(h, first, ASKED[0])
        if over:
            self._let_pass(h, first[0])
        self._label(h, labelled, text, key, spare=spare, call_bytes=call_bytes, logged=logged, lost=lost, stale=stale)
        before = self._generation(h)
        if meanwhile == "learn":
            self._commit_round(h, "")
        elif meanwhile == "put aside":
            self._put_one_aside(h)
        elif meanwhile == "rewind":
            self._learn_row(h)
            self._apply(h, "rewind")
        elif meanwhile == "other":
            for name in ("l", "m", "n"):
                self._keep(h, [f"of {name}"], ASKED[0])
                self._label(h, [f"of {name}"], text, name)
        elif meanwhile == "expire":
            self._end_keys(h, key)
        elif meanwhile:
            self._apply(h, meanwhile)
        if again:
            body = b"else" if again == "other" else text
            self._label(h, labelled, body, key, logged=logged, generation=before if unaware else None)

    @rule(h=hashes, ids=st.sampled_from((["a", "b", "c"], ["b", "c"])), key=st.sampled_from((None, "k", "k", "k b")),
          then=st.sampled_from(("put aside", "learn", "other", "snapshot", "")))  # fmt: skip
    def repeat_for_the_row_log(self, h: str, ids: list[str], key: str | None, then: str) -> None:
        """Repeat a call whose requests were put aside, learned or saved, or came before others."""
        self._release_locks(h)
        self._commit_round(h, "")
        self._keep(h, ids, ASKED[1])
        self._label(h, ids, TARGETS[0], key, logged=True, lost=key is None)
        if then == "put aside":
            self._put_one_aside(h)
        elif then == "learn":
            self._commit_round(h, "")
        elif then == "snapshot":
            self._learn_row(h)
            self._apply(h, "note")
        elif then:
            self._accept(h, [b"x"], (100, 1000))
        self._label(h, ids, TARGETS[0], key, logged=True)

    @rule(
        h=hashes, small_first=st.booleans(), space=st.sampled_from((0, 0, -1)), which=st.sampled_from((0, 1)),
        limit=st.sampled_from(("inbox", "call", "requests")),
    )  # fmt: skip
    def label_up_to_a_limit(self, h: str, small_first: bool, space: int, which: int, limit: str) -> None:
        """Label a large and a small row with space for one of them, exactly or one byte less; or for both."""
        self.named += 1
        names = {f"small {self.named}": ASKED[0], f"large {self.named}": ASKED[1]}
        ordered = list(names) if small_first else list(reversed(names))
        self._accept(h, [b"x"], (100, 1000))
        for name, asked in names.items():
            self._keep(h, [name], asked)
        sizes = [len(names[name]) + len(TARGETS[0]) + len(name) + len(ANSWERED[1]) for name in ordered]
        if limit == "inbox":
            self._label(h, ordered, TARGETS[0], spare=(100, sizes[which] + space))
        elif limit == "requests":
            self._label(h, ordered, TARGETS[0], spare=(which, 1000))
        else:
            self._label(h, ordered, TARGETS[0], call_bytes=sum(sizes) + space)

    def _label(
        self, h: str, ids: list[str], target: bytes, key: str | None = None, *, spare: tuple[int, int] = (100, 1000),
        call_bytes: int = 1000, logged: bool = False, lost: bool = False, stale: bool = False,
        generation: int | None = None,
    ) -> None:  # fmt: skip
        model = self._model(h)
        generation = self._generation(h, stale=stale) if generation is None else generation
        request = LabelRequest(h, generation, ids, [target + name.encode() for name in ids], key)
        limit = (spare[0] + len(model.inbox), spare[1] + model.size) if model else spare
        settings = self._settings.model_copy(update={"inbox_entries_max": limit[0], "inbox_bytes_max": limit[1]})
        recorder = self.bench.recorder
        recorder.loses_answer, recorder.trips = lost, []
        with mock.patch.object(late_labels, "CALL_BYTES_MAX", call_bytes):
            (result,) = self.bench.run(late_labels.label(recorder, settings, [request], logged=logged))
        recorder.loses_answer = False
        hours = store_model.MINTED_H if key is None else store_model.CLIENTS_KEY_H
        answers, name = (None, b"") if key is None else first_answers.answers_of(h, key)
        content = served.encode([*zip(ids, request.labels, strict=True)])
        for (command,), (answer,) in recorder.trips:
            call = LabelCall(request, (content,), command[5], hours, *limit, call_bytes, answers, name, logged)
            at_ms = int(answer[-1]) // 1000 if answer[0] == b"ok" else 0
            expected = self.plain.label(call, at_ms)
            assert answer[: len(expected)] == expected
        if expected[0] != b"ok":
            assert isinstance(result.outcome, KeepfitError)
            return
        _, first, count, version, unlocked, _, _, origin, outcomes, payloads, *numbers = expected
        if not count and b"f" in outcomes:
            assert isinstance(result.outcome, InboxFullError)
            return
        assert result.outcome == Labelled(first, count, version, outcomes.decode())
        assert result.is_unlocked == bool(unlocked and count)
        assert result.count is not None
        assert [result.count.rows, result.count.size_bytes] == numbers
        assert (result.call is None) == (not payloads)
        if result.call is not None:
            entry = result.call
            assert (entry.origin, entry.last, round(entry.at * 1e6)) == (origin, first + count - 1, int(answer[-1]))
            assert (list(entry.payloads), entry.name) == (payloads, "" if key is None else f"c:{key}")
        self.counts.append(result.count)
        self._note(result.count)

    def _put_one_aside(self, h: str) -> None:
        """Learn the first pending request, put the second aside, and learn the others."""
        for reason in ("", "ValueError: no"):
            self._release_locks(h)
            self._claim(h, WORKERS[0], known=True)
            if self.claims and self.claims[-1].received.hash == h and self.claims[-1].expected.requests:
                self._commit(self.claims.pop(), 1, reason, staged=True)
        self._commit_round(h, "")

    def _end_keys(self, h: str, key: str | None) -> None:
        """Let the answers to the calls of a caller expire, one by one in their hash."""
        for name in first_answers.answers_of(h, key or "k")[0]:
            answers, _ = self.plain.answers.get(name, ({}, 0))
            for own, seen in answers.items():
                value = self.client.hget(name, own).rpartition(b" ")[0]  # type: ignore[union-attr]
                self.client.hset(name, own, value + b" 1")  # type: ignore[arg-type]
                answers[own] = _expired(seen)

    # Time passes, and gateways expire rows and count them.

    def _let_pass(self, h: str, name: str) -> None:
        ends, closed = redis_keys.open_row_ends(h), redis_keys.closed_rows(h)
        if name in self.plain.open.get(h, {}):
            self.client.zadd(ends, {name: OVER})
            self.plain.open[h][name].ends_ms = OVER
        for member in ("l" + name, "e" + name):
            if member in self.plain.closed.get(h, {}):
                self.client.zadd(closed, {member: OVER})
                self.plain.closed[h][member] = OVER

    @rule(
        h=hashes, kept=some_ids, names=some_ids,
        then=st.sampled_from(("", "label", "keep", "forget", "expire again", "label late")),
    )  # fmt: skip
    def let_rows_expire(self, h: str, kept: list[str], names: list[str], then: str) -> None:
        """The time of some rows passes, or what was remembered of them; the pass comes, or not yet."""
        self._keep(h, kept, ASKED[0])
        for name in names:
            self._let_pass(h, name)
        if then in ("forget", "expire again", "label late"):
            self._expire()
            for name in names:
                self._let_pass(h, name)
        if then == "expire again":
            self._expire()
        elif then in ("label", "label late"):
            self._label(h, names, TARGETS[0])
        elif then:
            self._keep(h, names, ASKED[1])

    @rule(busy=rarely(True, False), forget=st.sampled_from((FORGET_US, FORGET_US, -1)))
    def expire(self, busy: bool, forget: int) -> None:
        """Run the pass that expires rows; another gateway may run it."""
        self._expire(busy=busy, forget=forget)

    def _expire(self, *, busy: bool = False, forget: int = FORGET_US) -> None:
        if busy:
            self.client.set(redis_keys.EXPIRING, "1")
        trips: list[tuple[Command, Any]] = []

        async def run(client: object, *commands: Command) -> list[Any]:
            answers = await self.bench.run_async(client, *commands)
            trips.extend(zip(commands, answers, strict=True))
            assert len(trips) < 200, "the pass has no end"
            return answers

        with (
            mock.patch.object(open_rows, "FORGET_US", forget),
            mock.patch.object(redis_scripts, "run_async", run),
        ):
            left = self.bench.run(open_rows.expire(self.bench.store, self._settings))
        self.client.delete(redis_keys.EXPIRING)
        assert (left == -1) == busy
        if busy:
            return
        for command, answer in trips:
            if command[1] == redis_scripts.SHA1["expire_rows"]:
                h = redis_keys.hash_of_state(command[3])
                rows, size, more = self.plain.expire(h, int(answer[2]) // 1000, EXPIRED_PER_CALL)
                assert (answer[:2], answer[3]) == ([rows, size], more)
            elif command[1] == redis_scripts.SHA1["note_rows"]:
                self._note_plain(*command[4:])
        assert not any(row.ends_ms == OVER for h in self.plain.register for row in self.plain.open.get(h, {}).values())
        assert left == sum(rows for rows, _, _ in self.plain.register.values())

    def _note_plain(self, h: str, rows: int, size: int, at_us: Any, forget_us: int) -> None:
        self.plain.note_count(h, (rows, size), int(at_us or self._registered_us(h)), self._now_us(), forget_us)

    def _registered_us(self, h: str) -> int:
        """Return the time under which a model is in the register, which is now if it was noted without a time."""
        stored: Any = self.client.hget(redis_keys.OPEN_ROWS, h)
        return int(stored.split()[2]) if stored else 0

    def _delete(self, h: str, *, recreated: bool, late: bool = False) -> None:
        before = h in self.plain.register
        StoreMachine._delete(self, h, recreated=recreated, late=late)
        if before:
            self.plain.note_count(h, (0, 0), self._registered_us(h), self._now_us(), 0)

    def _now_us(self) -> int:
        seconds, micros = self.client.time()  # type: ignore[misc]
        return int(seconds) * 1_000_000 + int(micros)

    def _note(self, count: Count) -> None:
        total = self.bench.run(open_rows.note_counts(self.bench.recorder, [count]))
        self._note_plain(count.hash, count.rows, count.size_bytes, count.at_us, FORGET_US)
        noted = [numbers[:2] for numbers in self.plain.register.values()]
        assert total == Total(sum(rows for rows, _ in noted), sum(size for _, size in noted))

    @rule(data=st.data())
    def note_late(self, data: st.DataObject) -> None:
        """Note numbers of a model that a slow gateway has read earlier."""
        if self.counts:
            self._note(data.draw(st.sampled_from(self.counts[-6:])))

    @rule(h=hashes, before=st.sampled_from(("keep", "label", "expire", "", "learn")))
    def unload_with_open_rows(self, h: str, before: str) -> None:
        """Save an idle model and unload it, with open rows, or with others that were open."""
        if before == "learn":
            self._learn_row(h)
        if before in ("keep", "label", "expire"):
            self._keep(h, ["a"], ASKED[0])
        if before == "label":
            self._label(h, ["a"], TARGETS[0])
        if before == "expire":
            self._let_pass(h, "a")
            self._expire()
        self._release_locks(h)
        self._commit_round(h, "x")
        self._apply(h, "snapshot")
        self._apply(h, "note")
        self._unload(h, "")


def _expired(seen: Any) -> Any:
    return replace(seen, hours=0)
