"""The intended behaviour of the scripts over open rows, in plain Python, beside that of the other scripts over models.

Owns no Redis. The end of an open row, and of what is remembered, is in milliseconds of Redis' clock, which the caller
reads from the answers of the scripts. It is :data:`OVER` where the machine has let it pass.
"""

from dataclasses import dataclass, field
from typing import Any

from keepfit.backends import redis_keys
from keepfit.store.late_labels import LabelRequest
from keepfit.store.open_rows import KeepRequest
from tests.scripts.store_model import Model, Request, RowsBody, Seen, Store

# Seconds for which a row is kept, and for which it is remembered that it was labelled or has expired.
OPEN_S = 5 * 3600
OVER = 1
REMEMBERED_MAX = 3
# What a row counts beside its id and content.
ENTRY = 200


@dataclass(slots=True)
class Row:
    """An open row: what was asked and answered, and its end."""

    asked: bytes
    answered: bytes
    ends_ms: int

    def stored(self) -> bytes:
        """Value under its id."""
        return b"%d %b%b" % (len(self.asked), self.asked, self.answered)

    def size(self, name: str) -> int:
        """Bytes that it counts."""
        return len(name.encode()) + len(self.stored()) + ENTRY


@dataclass(frozen=True, slots=True)
class LabelSeen(Seen):
    """First answer to a call with labels."""

    outcomes: str = ""

    def stored(self) -> bytes:
        """Value of a key of its own."""
        return Seen.stored(self) + b" " + self.outcomes.encode()

    def stored_with_others(self) -> bytes:
        """Value in the hash of a caller, with the hours until it expires."""
        before, _, hours = Seen.stored_with_others(self).rpartition(b" ")
        return b"%b %b %b" % (before, self.outcomes.encode(), hours)


@dataclass(frozen=True, slots=True)
class LabelCall:
    """Arguments of labels, as those of :class:`tests.scripts.store_model.Call`."""

    request: LabelRequest
    payloads: tuple[bytes, ...]
    seen: str
    hours: int
    entries_max: int
    bytes_max: int
    call_bytes_max: int
    answers: tuple[str, str] | None
    name: bytes
    logged: bool


@dataclass(slots=True)
class OpenRowsStore(Store):
    """All models with their open rows, and the register of how many each has."""

    open: dict[str, dict[str, Row]] = field(default_factory=dict)
    # Ids of labelled ('l' before the id) and expired rows ('e'), with the time until which that is remembered.
    closed: dict[str, dict[str, int]] = field(default_factory=dict)
    # Models whose state has the two numbers.
    counted: set[str] = field(default_factory=set)
    register: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    has_sums: bool = False

    def numbers(self, h: str) -> tuple[int, int]:
        """Return how many rows a model has open, and their bytes."""
        rows = self.open.get(h, {})
        return len(rows), sum(row.size(name) for name, row in rows.items())

    def _remembers(self, h: str, member: str) -> bool:
        return self.closed.get(h, {}).get(member, OVER) != OVER

    def _forget_open(self, h: str) -> None:
        self.open.pop(h, None)
        self.closed.pop(h, None)
        self.counted.discard(h)

    def install(self, h: str, new: Model, born: int, *, staged: bool, seen: Any = None) -> int:
        """Install a model; what a predecessor has left open is gone."""
        answer = Store.install(self, h, new, born, staged=staged, seen=seen)
        if answer == 1:
            self._forget_open(h)
        return answer

    def delete(self, h: str) -> bool:
        """Delete a model with its open rows."""
        if h in self.models:
            self._forget_open(h)
        return Store.delete(self, h)

    def unload(self, h: str, generation: int, digest: str, *, is_idle: bool) -> bool:
        """Delete an idle model that has no open rows."""
        if self.open.get(h):
            return False
        done = Store.unload(self, h, generation, digest, is_idle=is_idle)
        if done:
            self._forget_open(h)
        return done

    def keep(self, request: KeepRequest, bytes_max: int, now_ms: int) -> list[Any]:  # noqa: PLR0911 - one for each answer
        """Keep all rows of a call, or none."""
        model = self.models.get(request.hash)
        if model is None:
            return [b"missing"]
        if model.generation != request.generation:
            return [b"stale"]
        rows, answered, fresh, open_id = dict(self.open.get(request.hash, {})), [], False, ""
        for row in request.rows:
            found = rows.get(row.id)
            if found is not None and found.ends_ms != OVER:
                if found.asked != row.asked:
                    return [b"open", row.id.encode()]
                answered.append(found.answered)
                open_id = row.id
            else:
                if self._remembers(request.hash, "l" + row.id):
                    return [b"labelled", row.id.encode()]
                rows[row.id] = Row(row.asked, row.answered, now_ms + 1000 * OPEN_S)
                fresh = True
        if not fresh:
            return [b"repeated", answered]
        if open_id:
            return [b"mixed", open_id.encode()]
        if sum(row.size(name) for name, row in rows.items()) > bytes_max:
            return [b"full", *self.numbers(request.hash)]
        self.open[request.hash] = rows
        self.counted.add(request.hash)
        for row in request.rows:
            self.closed.get(request.hash, {}).pop("e" + row.id, None)
        return [b"kept", *self.numbers(request.hash)]

    def label(self, call: LabelCall, now_ms: int) -> list[Any]:
        """Move open rows into the inbox, each with its label."""
        request = call.request
        h, model = request.hash, self.models.get(request.hash)
        if model is None:
            return [b"missing"]
        seen = self._seen(call)
        if seen is not None and seen.generation >= model.first_generation:
            if seen.payloads == call.payloads:
                outcomes, left = (seen.outcomes if isinstance(seen, LabelSeen) else ""), list[bytes]()
                if call.logged and outcomes:
                    of_call = range(seen.first, seen.first + seen.count)
                    found = [entry for entry in (*model.kept, *model.inbox) if entry.sequence in of_call]
                    saved = 0 if model.base[1] is None else model.base[0]
                    if [entry.sequence for entry in found] != [one for one in of_call if one > saved]:
                        return [b"unlogged"]
                    left = [entry.payload for entry in found]
                return self._ok(h, model, seen.first, seen.count, outcomes, left)
            if model.generation == request.generation:
                return [b"conflict"]
        if model.generation != request.generation:
            return [b"stale"]
        rows, closed = self.open.get(h, {}), self.closed.setdefault(h, {})
        first, outcomes, payloads, is_full = model.accepted + 1, "", list[bytes](), False
        for name, target in zip(request.ids, request.labels, strict=True):
            row = rows.get(name)
            if row is None or row.ends_ms == OVER:
                labelled = self._remembers(h, "l" + name)
                expired = row is not None or self._remembers(h, "e" + name)
                outcomes += "l" if labelled else "e" if expired else "u"
                continue
            # The request id of these calls is empty.
            payload = row.asked[1:] + target + row.answered + b"\xa0"
            is_full |= len(model.inbox) >= call.entries_max
            is_full |= bool(model.inbox) and model.size + len(payload) > call.bytes_max
            is_full |= bool(payloads) and sum(map(len, [*payloads, payload])) > call.call_bytes_max
            outcomes += "f" if is_full else "a"
            if not is_full:
                model.inbox.append(Request(model.accepted + 1, payload, "", len(payload), model.history))
                payloads.append(payload)
                del rows[name]
                closed["l" + name] = now_ms + 1000 * OPEN_S
        if payloads:
            self._bound(h)
            answer = LabelSeen(call.payloads, first, len(payloads), request.generation, call.hours, outcomes)
            if call.answers:
                self._remember(call.answers, call.name, answer)
            else:
                self.seen[call.seen] = answer
        return self._ok(h, model, first, len(payloads), outcomes, payloads if call.logged else [])

    def _ok(self, h: str, model: Model, first: int, count: int, outcomes: str, payloads: list[bytes]) -> list[Any]:
        return [
            b"ok", first, count, model.version, int(h not in self.locks), len(model.inbox), model.pace or 0,
            model.first_generation, outcomes.encode(), payloads, *self.numbers(h),
        ]  # fmt: skip

    def _seen(self, call: LabelCall) -> Seen | None:
        if not call.answers:
            return self.seen.get(call.seen)
        for key in call.answers:
            seen = self.answers.get(key, ({}, 0))[0].get(call.name)
            if seen is not None:
                return seen if seen.hours else None
        return None

    def _bound(self, h: str) -> None:
        """Forget the ids whose memory would end first."""
        closed = self.closed.get(h, {})
        for name in sorted(closed, key=lambda name: (closed[name], name))[: max(len(closed) - REMEMBERED_MAX, 0)]:
            del closed[name]

    def expire(self, h: str, now_ms: int, most: int) -> list[int]:
        """Delete up to `most` rows of a model whose time is over, and forget as many that were remembered long enough.

        Returns the numbers of open rows and bytes, and whether there may be more to delete.
        """
        if h not in self.models:
            return [0, 0, 0]
        closed = self.closed.setdefault(h, {})
        expired = sorted(name for name, row in self.open.get(h, {}).items() if row.ends_ms == OVER)[:most]
        for name in expired:
            del self.open[h][name]
            closed["e" + name] = now_ms + 1000 * OPEN_S
        forgotten = sorted(member for member, ends_ms in closed.items() if ends_ms == OVER)[:most]
        for member in forgotten:
            del closed[member]
        if expired:
            self._bound(h)
        return [*self.numbers(h), int(max(len(expired), len(forgotten)) >= most)]

    def announce(self, h: str, now_us: int) -> None:
        """Announce a model in the register before it keeps rows."""
        if self.register.get(h, (0, 0, 0))[0] == 0:
            self.register[h] = (0, 0, now_us)

    def note_count(self, h: str, numbers: tuple[int, int], at_us: int, now_us: int, forget_us: int) -> None:
        """Note how many rows a model had open, and their bytes, at a time; forget it if it has had none for long."""
        rows, _, at = self.register.get(h, (0, 0, 0))
        if rows == numbers[0] == 0:
            if now_us - at > forget_us:
                self.register.pop(h, None)
        elif at_us >= at:
            self.register[h] = (*numbers, at_us)
            self.has_sums = True

    def keys(self) -> dict[str, RowsBody]:
        """Return all keys of Redis, with those of open rows."""
        found = Store.keys(self)
        for h in self.counted & set(self.models):
            rows, size = self.numbers(h)
            found[redis_keys.state(h)][0].update({b"open_rows": b"%d" % rows, b"open_bytes": b"%d" % size})
        for h, rows_by_id in self.open.items():
            name, ends = redis_keys.open_rows(h), redis_keys.open_row_ends(h)
            found[name] = ({own.encode(): row.stored() for own, row in rows_by_id.items()}, 0)
            found[ends] = ({own: row.ends_ms for own, row in rows_by_id.items()}, 0)
        for h, closed in self.closed.items():
            found[redis_keys.closed_rows(h)] = (dict(closed), 0)
        noted: dict[bytes, bytes] = {h.encode(): b"%d %d %d" % numbers for h, numbers in self.register.items()}
        if self.has_sums:
            sums = [sum(numbers[i] for numbers in self.register.values()) for i in (0, 1)]
            noted |= {b"rows": b"%d" % sums[0], b"bytes": b"%d" % sums[1]}
        found[redis_keys.OPEN_ROWS] = (noted, 0)
        return {key: content for key, content in found.items() if content[0] != {} or key == redis_keys.CHANGED}
