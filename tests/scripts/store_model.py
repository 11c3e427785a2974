"""The intended behaviour of the scripts over models, in plain Python, one method each.

Owns no Redis. It implements the intention and not the mechanism: a commit may happen depending on the rows and the
bundle that were read, never on a digest of them. :meth:`Store.keys` returns all that Redis should hold.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec

from keepfit.backends import redis_keys
from keepfit.store import stored_answers
from keepfit.store.commit import (
    DEAD_LETTER_GONE,
    GONE,
    REQUESTS_CHANGED,
    STAGED_BUNDLE_LOST,
    SUPERSEDED,
    Harm,
)
from keepfit.store.idle import IdleRecord

# Hours to live of a new key; no example takes an hour.
STAGED_H, MINTED_H, LOCK_H, BIG_H, RETRIED_H, CLIENTS_KEY_H, IDLE_H = 1, 1, 2, 3, 4, 24, 24
# The claim of a restore has some minutes, the wish for scorers some seconds.
CLAIM_H = FOLLOWED_H = 1
# Bytes of a model's answers of train_score_predict from which on they become the old ones.
HALF_BYTES_MAX = 12
# Keys of a caller that are remembered: in each of the two halves two.
KEYS_MAX = 4

# Bytes of a retained request beside its rows, and the limit of retained bytes.
PLACE, REPLAY_MAX = 64, 260

RowsBody = tuple[Any, int]


@dataclass(frozen=True, slots=True)
class Request:
    """An accepted request: `payload` as in the call (a digest for a large one), `past` all requests before it.

    `again` is its former id as a dead letter, '' if it never was one.
    """

    sequence: int
    payload: bytes
    big: str
    size: int
    past: tuple[bytes, ...]
    again: str = ""

    @property
    def history(self) -> tuple[bytes, ...]:
        """All requests of the model up to this one; a retried one includes its id as a dead letter."""
        link = self.again.encode() + b":" + self.stored_rows if self.again else self.payload
        return (*self.past, link)

    @property
    def stored_rows(self) -> bytes:
        """Rows in the stream: empty for a large request."""
        return b"" if self.big else self.payload

    @property
    def chain(self) -> str:
        """The request digest of the history."""
        return chain_of(self.history)

    def stored(self) -> dict[bytes, bytes]:
        """The fields of its entry in the inbox."""
        fields = {b"rows": self.stored_rows, b"chain": self.chain.encode()}
        if self.big:
            fields |= {b"big": self.big.encode(), b"size": b"%d" % self.size}
        return fields


@lru_cache(10_000)
def chain_of(history: tuple[bytes, ...]) -> str:
    """Return the request digest of a history."""
    chain = ""
    for payload in history:
        chain = hashlib.sha1(chain.encode() + b":" + payload, usedforsecurity=False).hexdigest()
    return chain


@dataclass(frozen=True, slots=True)
class BundleModel:
    """A bundle: the rows it learned, the history up to it (with dead letters), and the changed parameters."""

    digest: str
    learned_rows: tuple[bytes, ...]
    history: tuple[bytes, ...]
    metrics: bytes = b"{}"
    changed: tuple[tuple[str, int], ...] = ()


# This request changes parameters.
CHANGE = b"yyyy"
NEW = BundleModel("", (), ())
# The replay base of a repaired bundle is that of the bundle before.
SAME = (-1,)


@dataclass(slots=True)
class Model:
    """One model with its intended state."""

    metadata: str
    recipe: str
    generation: int
    version: int
    bundle: BundleModel
    snapshot: bytes
    snapshot_version: int
    width: int | None
    inbox: list[Request] = field(default_factory=list)
    attempts: int = 0
    pace: int | None = None
    tried: int | None = None
    suspect: int | None = None
    holder: str | None = None
    harm: str = ""
    removed: int = 0
    origin: int | None = None
    # Retained requests, the last sequences before them and of their older half, and the
    # bytes of all requests ever learned.
    kept: list[Request] = field(default_factory=list)
    cut: int = 0
    half: int = 0
    bytes_learned: int = 0
    # Replay base of the retained requests: its last sequence, its document (None: none), and its learned rows.
    base: tuple[int, tuple[int, ...] | None] = (0, ())
    based: tuple[bytes, ...] = ()
    # The field `large` exists once there were large requests.
    names_large: bool = False
    # The field `announced`: '*' after a commit that is announced, '+' if one was left out since, '' before both.
    announced: str = ""

    @property
    def first_generation(self) -> int:
        """Generation in which the sequences began."""
        return self.origin or self.generation

    @property
    def learned(self) -> int:
        """Last sequence that the bundle has learned."""
        return len(self.bundle.history)

    @property
    def accepted(self) -> int:
        """Last assigned sequence."""
        return self.learned + len(self.inbox)

    @property
    def history(self) -> tuple[bytes, ...]:
        """All requests ever accepted."""
        return self.inbox[-1].history if self.inbox else self.bundle.history

    @property
    def size(self) -> int:
        """Pending bytes."""
        return sum(request.size for request in self.inbox)

    @property
    def missing(self) -> range:
        """Learned requests that are neither retained nor part of the replay base."""
        return range(self.base[0] + 1, self.cut + 1)

    def bytes_until(self, sequence: int) -> int:
        """Return the bytes of all requests learned up to a sequence."""
        return self.bytes_learned - sum(request.size + PLACE for request in self.kept if request.sequence > sequence)

    def keep(self, cut: int, *, half: int = 0) -> list[Request]:
        """Retain the requests after `cut`, with the older half up to `half`; return the removed ones."""
        gone = [request for request in self.kept if request.sequence <= cut]
        self.kept = [request for request in self.kept if request.sequence > cut]
        self.cut, self.half = cut, max(cut, half)
        return gone

    def stored(self) -> dict[bytes, bytes]:
        """Fields of the state's hash."""
        fields: dict[str, Any] = {
            "metadata": self.metadata,
            "recipe": self.recipe,
            "generation": self.generation,
            "version": self.version,
            "rows_seen": len(self.bundle.learned_rows),
            "accepted": self.accepted,
            "learned": self.learned,
            "chain": chain_of(self.history),
            "digest": self.bundle.digest,
            "metrics": self.bundle.metrics,
            "snapshot": self.snapshot,
            "snapshot_version": self.snapshot_version,
            "bytes": self.size,
            "attempts": self.attempts,
            "kept": f"{self.cut} {self.bytes_until(self.cut)} "
            f"{self.half} {self.bytes_until(self.half)} {self.bytes_learned}",
            "base": "" if self.base[1] is None else " ".join(map(str, (self.base[0], *self.base[1]))),
        }
        if self.names_large:
            fields["large"] = " ".join(f"{request.sequence} {request.big}" for request in self.kept if request.big)
        if self.width is not None:
            fields["width"] = self.width
        if self.bundle.changed:
            fields["changed"] = msgspec.json.encode(dict(self.bundle.changed))
        if self.pace is not None:
            fields["pace"] = self.pace
        if self.tried is not None:
            fields["tried"] = self.tried
        if self.suspect is not None:
            fields["suspect"] = self.suspect
        if self.holder is not None:
            fields["holder"] = self.holder
        if self.harm:
            fields["harm"] = self.harm
        if self.removed:
            fields["removed"] = self.removed
        if self.origin is not None:
            fields["origin"] = self.origin
        if self.announced:
            fields["announced"] = self.announced
        return {name.encode(): v if isinstance(v, bytes) else str(v).encode() for name, v in fields.items()}


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """A dead letter."""

    generation: int
    request: Request
    reason: str

    @property
    def id(self) -> str:
        """Its id in the stream."""
        return f"{self.generation}-{self.request.sequence}"

    def stored(self) -> dict[bytes, bytes]:
        """The fields of its entry in the stream, without the time."""
        return {
            b"generation": b"%d" % self.generation,
            b"sequence": b"%d" % self.request.sequence,
            b"reason": self.reason.encode(),
            b"rows": self.request.stored_rows,
            b"big": self.request.big.encode(),
            b"size": b"%d" % self.request.size,
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """First answer to a call, stored under its idempotency key; a client's key has expired at 0 `hours`."""

    payloads: tuple[bytes, ...]
    first: int
    count: int
    generation: int
    hours: int

    def stored(self) -> bytes:
        """Value of a key of its own."""
        return f"{self._digest} {self.first} {self.count} {self.generation}".encode()

    def stored_with_others(self) -> bytes:
        """Value in the hash of a caller, with the hours until it expires."""
        return f"{self._digest[:32]} {self.first} {self.count} {self.generation} {self.hours}".encode()

    @property
    def _digest(self) -> str:
        return hashlib.sha256(b"".join(self.payloads)).hexdigest()


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments of one accept."""

    hash: str
    generation: int
    width: int
    payloads: tuple[bytes, ...]
    seen: str
    hours: int
    entries_max: int
    bytes_max: int
    big: str = ""
    big_size: int = 0
    answers: tuple[str, str] | None = None
    name: bytes = b""
    in_order: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """Arguments of one retry: ids, each with the key that the caller passes for its rows, '' for none."""

    hash: str
    generation: int
    named: tuple[tuple[str, str], ...]
    seen: str
    entries_max: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class RewindModel:
    """The model that the caller read, and the bundle it is rewound to, with the history of the live one."""

    hash: str
    generation: int
    version: int
    digest: str
    new_generation: int
    new_version: int
    bundle: BundleModel
    place: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class ClaimModel:
    """A worker's claim: requests, and the bundle at that moment."""

    hash: str
    generation: int
    bundle: BundleModel
    requests: tuple[Request, ...]


def _order(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.split("-")))


@dataclass(slots=True)
class Store:
    """All models, and all published messages."""

    models: dict[str, Model] = field(default_factory=dict)
    dead: dict[str, list[DeadLetters]] = field(default_factory=dict)
    locks: dict[str, tuple[str, int]] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    # Hashes of first answers by the names of clients' keys, each with its hours to live.
    answers: dict[str, tuple[dict[bytes, Seen], int]] = field(default_factory=dict)
    retried: dict[str, bytes] = field(default_factory=dict)
    # Answers of train_score_predict by model: the newest ones, and those before them, by origin and sequence.
    kept: dict[str, list[dict[str, tuple[int, int, bytes]]]] = field(default_factory=dict)
    big: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    idle: dict[str, IdleRecord] = field(default_factory=dict)
    staged: int = 0
    published: list[str] = field(default_factory=list)
    # Models whose scorers gateways want.
    followed: set[str] = field(default_factory=set)
    # Kind, hash and details of all events, and the models of which a commit is not announced.
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    due: set[str] = field(default_factory=set)

    def _publish(self, h: str, model: Model, *, put_aside: str = "") -> None:
        learned_rows = len(model.bundle.learned_rows)
        said = [h, model.generation, model.version, model.learned, learned_rows, int(bool(put_aside)), put_aside]
        self.published.append(" ".join(map(str, said)))

    def _forget_rows(self, h: str) -> None:
        model = self.models.get(h)
        for request in [*(model.kept + model.inbox if model else []), *(dead.request for dead in self.dead.get(h, []))]:
            self.big.pop(request.big, None)

    def store_answers(
        self, h: str, generation: int, born: int, keys: tuple[str, str], answers: dict[bytes, Seen]
    ) -> bool:
        """Claim a model that is not live, and store the first answers to a caller's calls, oldest first."""
        live = self.models.get(h)
        if (live is not None and live.generation >= born) or self._claim(h) > generation:
            return False
        self.locks[h] = (f"restore {generation}", CLAIM_H)
        for name, seen in answers.items():
            self._remember(keys, name, seen)
        return True

    def _remember(self, keys: tuple[str, str], name: bytes, seen: Seen) -> None:
        """Store the first answer to a call; if one half is full, the other half is forgotten."""
        new, old = keys
        answers, hours = self.answers.get(new, ({}, 0))
        if len(answers) >= KEYS_MAX // 2:
            self.answers[old] = self.answers.pop(new)
            answers, hours = {}, 0
        self.answers[new] = ({**answers, name: seen}, max(hours, seen.hours))

    def _first_answer(self, call: Call) -> Seen | None:
        """Return the first answer to a call; release 0.1 stored it under a key of its own."""
        for key in call.answers or ():
            seen = self.answers.get(key, ({}, 0))[0].get(call.name)
            if seen is not None:
                return seen if seen.hours else self.seen.get(call.seen)
        return self.seen.get(call.seen)

    def _last_chunk(self, call: Call) -> bytes:
        """Return the number of the last chunk of a job that was accepted."""
        answers, _ = self.answers.get((call.answers or ("",))[0], ({b"0": None}, 0))
        return next(iter(answers))

    def _claim(self, h: str) -> int:
        """Return the generation of a restore that has claimed a model; 0 for none."""
        holder = self.locks.get(h, ("", 0))[0]
        return int(holder.removeprefix("restore ")) if holder.startswith("restore ") else 0

    def install(self, h: str, new: Model, born: int, *, staged: bool, seen: IdleRecord | None = None) -> int:
        """Install a model if none with generation `born` or later is live, and no later restore has claimed it.

        A model that left Redis after the caller had `seen` its record may have learned more than the caller knows.
        """
        live = self.models.get(h)
        if live is not None and live.generation >= born:
            return 0
        if self._claim(h) > new.generation:
            return -2
        left = self.idle.get(h)
        if left is not None and left.generation >= born and left != seen:
            return -2
        if new.bundle.digest and not staged:
            return -1
        self._forget_rows(h)
        self.dead.pop(h, None)
        self.locks.pop(h, None)
        self.idle.pop(h, None)
        if seen is not None and seen.digest == new.bundle.digest:
            new.origin, new.removed = seen.origin, int(seen.removed or 0)
        new.cut = new.half = new.learned
        new.based = new.bundle.learned_rows
        self.models[h] = new
        self._publish(h, new)
        return 1

    def unload(self, h: str, generation: int, digest: str, *, is_idle: bool) -> bool:
        """Delete a model that nothing uses and that is saved as it is, and remember what it was."""
        model = self.models.get(h)
        if model is None or (model.generation, model.bundle.digest) != (generation, digest):
            return False
        is_saved = model.version == model.snapshot_version and not model.kept
        if not is_idle or not is_saved or model.inbox or h in self.locks or self.dead.get(h):
            return False
        removed = str(model.removed or "")
        text = f"{generation} {digest} {model.first_generation} {removed}"
        self.idle[h] = IdleRecord(text, generation, digest, model.first_generation, removed)
        del self.models[h]
        self.dead.pop(h, None)
        return True

    def rewind(self, rewound: RewindModel, *, staged: bool) -> int:
        """Rewind a live model if it is the one that the caller read; pending requests stay."""
        h, model = rewound.hash, self.models.get(rewound.hash)
        self.changed[h] = max(redis_keys.change_score(rewound.generation, rewound.version + 1), self.changed.get(h, 0))
        if model is not None and model.generation == rewound.new_generation:
            return 1
        if model is None or (model.generation, model.bundle.digest) != (rewound.generation, rewound.digest):
            self.staged += staged
            return 0
        if not staged:
            return -1
        model.origin = model.first_generation
        model.generation, model.version, model.bundle = rewound.new_generation, rewound.new_version, rewound.bundle
        model.snapshot, model.snapshot_version, model.attempts, model.width = b"", -1, 0, 2
        if rewound.place is not SAME:
            self._drop(model.keep(model.learned))
            model.base, model.based, model.names_large = (
                (model.learned, rewound.place),
                model.bundle.learned_rows,
                False,
            )
        self._publish(h, model)
        return 1

    def _drop(self, requests: list[Request]) -> None:
        for request in requests:
            self.big.pop(request.big, None)

    def delete(self, h: str) -> bool:
        """Delete a model with its stored answers, but not the first answers to its calls."""
        self.changed.pop(h, None)
        if h not in self.models:
            return False
        self._forget_rows(h)
        generation = self.models.pop(h).generation
        self.kept.pop(h, None)
        self.dead.pop(h, None)
        self.locks.pop(h, None)
        self.published.append(f"{h} {generation} -1 0 0 0 ")
        return True

    def accept(self, call: Call) -> list[Any]:  # noqa: PLR0911 - one for each answer
        """Append the requests that fit to the inbox."""
        model = self.models.get(call.hash)
        if model is None:
            return [b"missing"]
        seen = self._first_answer(call)
        alone, origin = int(call.hash not in self.locks), model.first_generation
        if seen is not None and seen.generation >= origin:
            if b"".join(seen.payloads) == b"".join(call.payloads):
                return [b"ok", seen.first, seen.count, model.version, alone, len(model.inbox), model.pace or 0, origin]
            if model.generation == call.generation:
                return [b"conflict"]
        if model.generation != call.generation:
            return [b"stale"]
        if call.in_order and int(self._last_chunk(call)) != int(call.name) - 1:
            return [b"conflict"]
        if call.width and model.width not in (None, call.width):
            return [b"width", str(model.width).encode()]
        is_question = call.big == redis_keys.inbox(call.hash)
        if call.big and not is_question and len(self.big.get(call.big, (b"", 0))[0]) != call.big_size:
            return [b"lost"]
        first, count = model.accepted + 1, 0
        for payload in call.payloads:
            size = call.big_size if call.big else len(payload)
            if len(model.inbox) >= call.entries_max or (model.inbox and model.size + size > call.bytes_max):
                break
            if is_question:
                return [b"fits"]
            model.inbox.append(Request(first + count, payload, call.big, size, model.history))
            count += 1
        if count:
            model.width = call.width or model.width
            seen = Seen(call.payloads, first, count, call.generation, call.hours)
            if call.answers and call.in_order:
                self.answers[call.answers[0]] = ({call.name: seen}, seen.hours)
            elif call.answers:
                self._remember(call.answers, call.name, seen)
            else:
                self.seen[call.seen] = seen
            if call.big:
                self.big[call.big] = (self.big[call.big][0], 0)
        return [b"ok", first, count, model.version, alone, len(model.inbox), model.pace or 0, origin]

    def unstage(self, name: str) -> int:
        """Delete staged rows; accepted ones have no time to live."""
        _, hours = self.big.get(name, (b"", 0))
        if hours:
            del self.big[name]
        return int(bool(hours))

    def claim(self, h: str, token: str, entries_max: int, bytes_max: int) -> ClaimModel | None:
        """Lock a model and read the first pending request and the following ones that fit."""
        model = self.models.get(h)
        if model is None or self.locks.get(h, (token, 0))[0] != token:
            return None
        self.locks[h] = (token, LOCK_H)
        requests: list[Request] = []
        for request in model.inbox[: min(entries_max, self._claim_limit(model))]:
            if requests and sum(r.size for r in requests) + request.size > bytes_max:
                break
            requests.append(request)
        if requests:
            model.tried, model.holder = requests[-1].sequence, token
        return ClaimModel(h, model.generation, model.bundle, tuple(requests))

    def _claim_limit(self, model: Model) -> int:
        """Return how many requests one claim may read: half of the suspects; after one death as many as before it."""
        suspects = (model.suspect or 0) - model.learned
        if suspects > 0:
            return max(suspects // 2, 1)
        return max((model.tried or 0) - model.learned, 1) if model.attempts else len(model.inbox)

    def commit(
        self,
        claimed: ClaimModel,
        count: int,
        after: BundleModel,
        pace: int,
        *,
        put_aside: str,
        staged: bool,
        width: int | None,
        scorer: str,
        kept: bytes,
        drift: dict[str, Any] | None = None,
        announced: bool = True,
        dead: tuple[tuple[str, str], ...] = (),
    ) -> int:
        """Make `after` live if the claimed bundle is still live and the claimed requests are still pending.

        It has learned rows of `width`, if it tells. The commit announces its `scorer`, if it has one, and keeps the
        answer `kept` to its last request. It is `announced` itself, if the interval since the one before is over. It
        removes the `dead` letters, all of which must be there.
        """
        last = claimed.requests[count - 1]
        # Workers set the mark and stage the bundle in any case.
        model = self.models.get(claimed.hash)
        answer = 1
        if model is None or model.generation != claimed.generation:
            answer = GONE
        elif (model.bundle.digest, model.learned) != (claimed.bundle.digest, len(claimed.bundle.history)):
            answer = SUPERSEDED
        elif last.history not in [request.history for request in model.inbox]:
            answer = REQUESTS_CHANGED
        elif not staged:
            answer = STAGED_BUNDLE_LOST
        elif {name for name, _ in dead} - {each.id for each in self.dead.get(claimed.hash, [])}:
            answer = DEAD_LETTER_GONE
        if answer < 1 or model is None:
            self.staged += staged
            return answer
        model.version += 1
        model.bundle = after
        model.inbox = model.inbox[count:]
        model.attempts, model.pace = 0, pace
        learned = claimed.requests[: count - 1] if put_aside else claimed.requests[:count]
        self._keep(model, list(learned), len(claimed.bundle.history))
        self.discard(claimed.hash, dead)
        model.names_large |= any(big for _, big in dead)
        if put_aside:
            self.dead.setdefault(claimed.hash, []).append(DeadLetters(model.generation, last, put_aside))
        # A width that no learned row has is that of a pending request only.
        if width is not None or (put_aside and not after.learned_rows):
            model.width = width
        if kept:
            answers = self.kept.setdefault(claimed.hash, [{}, {}])
            if sum(len(text) for *_, text in answers[0].values()) >= HALF_BYTES_MAX:
                answers[:] = {}, answers[0]
            seen = model.version, len(after.learned_rows)
            answers[0][f"{model.first_generation}-{last.sequence}"] = *seen, kept
        if scorer:
            self.published.append(f"{redis_keys.SCORERS} {claimed.hash} {model.generation} {model.version} {scorer}")
        self._publish(claimed.hash, model, put_aside=put_aside)
        if put_aside:
            reason = put_aside.partition(":")[0]
            self._announce("dead_letter", claimed.hash, sequence=last.sequence, reason=reason)
        if any(request.payload == CHANGE and not request.big for request in learned):
            self._announce("model_patched", claimed.hash)
        if drift is not None:
            self._announce("drift", claimed.hash, drift=drift)
        if announced or not model.announced:
            self._announce_commit(claimed.hash)
        else:
            model.announced = "+"
            self.due.add(claimed.hash)
        return model.version

    def _announce_commit(self, h: str) -> None:
        self._announce("commit", h, metrics=json.loads(self.models[h].bundle.metrics))
        self.models[h].announced = "*"
        self.due.discard(h)

    def _announce(self, kind: str, h: str, **details: Any) -> None:
        model = self.models[h]
        rows = len(model.bundle.learned_rows)
        fields = {"generation": model.generation, "version": model.version, "rows_seen": rows, **details}
        self.events.append((kind, h, fields))

    def announce_due(self, h: str, *, over: bool) -> int:
        """Announce the newest version of a model, if one was left out and the interval is `over`."""
        if not over or h not in self.due:
            return 0
        self.due.discard(h)
        if h not in self.models or self.models[h].announced != "+":
            return 0
        self._announce_commit(h)
        return 1

    def _keep(self, model: Model, learned: list[Request], before: int) -> None:
        """Retain the learned requests; above the limit, remove the older half, or all older ones, or all."""
        model.names_large |= any(request.big for request in [*model.kept, *learned])
        model.kept += learned
        model.bytes_learned += sum(request.size + PLACE for request in learned)
        for cut in (model.half, before, model.learned):
            if model.bytes_learned - model.bytes_until(model.cut) > REPLAY_MAX:
                self._drop(model.keep(cut, half=model.half))
        if model.half <= model.cut:
            model.half = (
                model.learned if model.bytes_learned - model.bytes_until(model.cut) > REPLAY_MAX / 2 else model.cut
            )

    def renew(self, h: str, token: str) -> None:
        """Extend the caller's lock to its full time to live."""
        if self.locks.get(h, ("", 0))[0] == token:
            self.locks[h] = (token, LOCK_H)

    def unlock(self, h: str, token: str, *, force: bool, harm: Harm | None = None) -> int:
        """Release the lock unless requests are pending; count what the last claim has done to its worker."""
        model = self.models.get(h)
        if model is not None and model.holder == token:
            model.holder = None
            if harm is not None and (model.tried or 0) > model.learned:
                self._count(model, harm)
        if self.locks.get(h, ("", 0))[0] != token:
            return -1
        waits = h in self.models and bool(self.models[h].inbox)
        if force or not waits:
            del self.locks[h]
        return int(waits)

    def _count(self, model: Model, harm: Harm) -> None:
        """Count a harm; the requests are suspects after the second death, or what would happen again in any case."""
        model.attempts, model.harm = model.attempts + harm.score, harm.name
        if model.attempts > 1 or (model.suspect or 0) > model.learned:
            model.suspect = model.tried
            if (model.tried or 0) - model.learned > 1:
                model.attempts = 0

    def retry(self, call: Retry) -> list[Any]:
        """Accept dead letters again, as far as they fit."""
        model = self.models.get(call.hash)
        if model is None:
            return [b"missing"]
        if model.generation != call.generation:
            return [b"stale"]
        if call.seen not in self.retried:
            outcomes = [self._retry(model, call, name, big) for name, big in call.named]
            published = " ".join(outcomes).encode()
            if any(outcome.isdecimal() for outcome in outcomes):
                self.retried[call.seen] = published
        else:
            published = self.retried[call.seen]
        return [b"ok", model.version, published, len(model.inbox), model.pace or 0]

    def _retry(self, model: Model, call: Retry, name: str, big: str) -> str:
        dead = next((dead for dead in self.dead.get(call.hash, []) if dead.id == name), None)
        if dead is None or (dead.request.big and dead.request.big != big):
            return "gone"
        request = dead.request
        if dead.generation < model.first_generation:
            return "other"
        if request.big and len(self.big.get(request.big, (b"", 0))[0]) != request.size:
            return "lost"
        too_large = model.inbox and model.size + request.size > call.bytes_max
        if len(model.inbox) >= call.entries_max or too_large:
            return "full"
        sequence = model.accepted + 1
        model.inbox.append(Request(sequence, request.payload, request.big, request.size, model.history, name))
        self.dead[call.hash].remove(dead)
        model.removed += 1
        return str(sequence)

    def discard(self, h: str, named: tuple[tuple[str, str], ...]) -> list[int]:
        """Delete dead letters and their rows."""
        model = self.models.get(h)
        if model is None:
            return []
        count = 0
        for name, big in named:
            for dead in [dead for dead in self.dead.get(h, []) if dead.id == name]:
                self.dead[h].remove(dead)
                count += 1
                if dead.request.big and dead.request.big == big:
                    self.big.pop(big, None)
        model.removed += count
        return [count, model.version]

    def page(self, h: str, after: str, limit: int, rows_max: int, bytes_max: int) -> list[tuple[DeadLetters, bytes]]:
        """Return dead letters after `after`, oldest first, each with its rows unless they are too long."""
        found: list[tuple[DeadLetters, bytes]] = []
        for dead in self.dead.get(h, []):
            rows = dead.request.stored_rows if len(dead.request.stored_rows) <= rows_max else b""
            if after and _order(dead.id) <= _order(after):
                continue
            if len(found) == limit or (found and sum(len(shown) for _, shown in found) + len(rows) > bytes_max):
                break
            found.append((dead, rows))
        return found

    def note(self, h: str, generation: int, version: int, snapshot: bytes, bundle: BundleModel) -> None:
        """Store the newest snapshot, remove the requests it contains, and remove its mark if nothing newer exists."""
        model = self.models.get(h)
        if model is not None and model.generation == generation and model.snapshot_version < version:
            model.snapshot, model.snapshot_version = snapshot, version
            # Nothing is removed if Redis lost the saved rows, whatever replaced them.
            is_learned = bundle.history in [request.history for request in model.kept]
            if bundle.digest == model.bundle.digest or is_learned:
                model.base, model.based = (len(bundle.history), (generation, version)), bundle.learned_rows
                self._drop(model.keep(max(model.cut, len(bundle.history)), half=model.half))
        if h in self.changed and self.changed[h] <= redis_keys.change_score(generation, version):
            del self.changed[h]

    def keys(self) -> dict[str, RowsBody]:
        """Return all keys of Redis except staged bundles: value (digest for a bundle) and hours to live."""
        claimed: dict[str, RowsBody] = {}
        for h, model in self.models.items():
            claimed[redis_keys.state(h)] = (model.stored(), 0)
            if model.bundle.digest:
                claimed[redis_keys.bundle(h)] = (model.bundle.digest, 0)
            claimed[redis_keys.inbox(h)] = ([(b"%d-0" % r.sequence, r.stored()) for r in model.kept + model.inbox], 0)
        for h, dead in self.dead.items():
            claimed[redis_keys.dead(h)] = ([(entry.id.encode(), entry.stored()) for entry in dead], 0)
        claimed |= {redis_keys.lock(h): (token.encode(), hours) for h, (token, hours) in self.locks.items()}
        claimed |= {key: (seen.stored(), seen.hours) for key, seen in self.seen.items()}
        for key, (answers, hours) in self.answers.items():
            claimed[key] = ({name: seen.stored_with_others() for name, seen in answers.items()}, hours)
        for h, halves in self.kept.items():
            for key, half in zip(stored_answers.keys_of(h), halves, strict=True):
                stored = {name.encode(): b"%d %d %b" % answer for name, answer in half.items()}
                size = sum(len(text) for *_, text in half.values())
                claimed |= {key: ({**stored, b"size": b"%d" % size}, CLIENTS_KEY_H)} if half else {}
        claimed |= {key: (published, RETRIED_H) for key, published in self.retried.items()}
        claimed |= {redis_keys.idle(h): (record.text.encode(), IDLE_H) for h, record in self.idle.items()}
        claimed |= {redis_keys.followed(h): (b"1", FOLLOWED_H) for h in self.followed}
        claimed |= self.big
        if self.changed:
            claimed[redis_keys.CHANGED] = (self.changed, 0)
        if self.events:
            claimed[redis_keys.EVENTS] = (self.events, 0)
        if self.due:
            claimed[redis_keys.DUE_EVENTS] = (self.due, 0)
        return {key: content for key, content in claimed.items() if content[0] != []}
