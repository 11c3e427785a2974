"""What the store should hold and answer: the scripts over models, in plain Python, one method each.

Owns no Redis. It knows what is meant, not how it is done: whether a commit may happen is decided by the rows that were
read and by the bundle they were read with, never by a digest of them. :meth:`Store.keys` is all that Redis should hold.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import msgspec

from keepfit.backends import redis_keys
from keepfit.store.commit import BEATEN, GONE, LOST_STAGE, OTHER_ROWS

# Hours that a key has to live when it is new; no example takes one.
STAGED_H, MINTED_H, LOCK_H, BIG_H, RETRIED_H, CLIENTS_KEY_H = 1, 1, 2, 3, 4, 24
# Of what is claimed, some minutes.
CLAIM_H = 1

# What a kept request takes beside its rows, and what may be kept.
PLACE, REPLAY_MAX = 64, 260

RowsBody = tuple[Any, int]


@dataclass(frozen=True, slots=True)
class Request:
    """An accepted request: `payload` is what the call carried (of a large one a digest), `past` all before it.

    `again` is the id that it had among those put aside, '' where it never was.
    """

    sequence: int
    payload: bytes
    big: str
    size: int
    past: tuple[bytes, ...]
    again: str = ""

    @property
    def history(self) -> tuple[bytes, ...]:
        """All requests of the model up to this one; one that came again is named by its id of before too."""
        link = self.again.encode() + b":" + self.stored_rows if self.again else self.payload
        return (*self.past, link)

    @property
    def stored_rows(self) -> bytes:
        """Rows that a stream holds: none of a large request."""
        return b"" if self.big else self.payload

    @property
    def chain(self) -> str:
        """Name of the history."""
        return chain_of(self.history)

    def stored(self) -> dict[bytes, bytes]:
        """What the inbox's stream holds of it."""
        fields = {b"rows": self.stored_rows, b"chain": self.chain.encode()}
        if self.big:
            fields |= {b"big": self.big.encode(), b"size": b"%d" % self.size}
        return fields


def chain_of(history: tuple[bytes, ...]) -> str:
    """Digest that names a whole history."""
    chain = ""
    for payload in history:
        chain = hashlib.sha1(chain.encode() + b":" + payload, usedforsecurity=False).hexdigest()
    return chain


@dataclass(frozen=True, slots=True)
class Bundled:
    """A bundle: what it has learned, what all had come up to then, rows put aside among them, and what was changed."""

    digest: str
    taught: tuple[bytes, ...]
    history: tuple[bytes, ...]
    metrics: bytes = b"{}"
    changed: tuple[tuple[str, int], ...] = ()


NEW = Bundled("", (), ())
# Where a bundle that has learned the same as the one before stands in the history: where that one does.
SAME = (-1,)


@dataclass(slots=True)
class Model:
    """One model as it should be."""

    metadata: str
    recipe: str
    generation: int
    version: int
    bundle: Bundled
    snapshot: bytes
    snapshot_version: int
    width: int | None
    inbox: list[Request] = field(default_factory=list)
    attempts: int = 0
    pace: int | None = None
    tried: int | None = None
    suspect: int = 0
    removed: int = 0
    origin: int | None = None
    # Requests that were learned and that no snapshot has, the last sequences of those before them and of their older
    # half, and the bytes of all ever learned.
    kept: list[Request] = field(default_factory=list)
    cut: int = 0
    half: int = 0
    fed: int = 0
    # What kept requests come on top of: its last sequence, where it is (None: nowhere), and what it has learned.
    base: tuple[int, tuple[int, ...] | None] = (0, ())
    based: tuple[bytes, ...] = ()
    # Once there were large ones, it is said which, or that there are none.
    names_large: bool = False

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
        """Last sequence given to a request."""
        return self.learned + len(self.inbox)

    @property
    def history(self) -> tuple[bytes, ...]:
        """All requests that ever came."""
        return self.inbox[-1].history if self.inbox else self.bundle.history

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return sum(request.size for request in self.inbox)

    @property
    def lacks(self) -> range:
        """Learned requests that are neither in what the kept ones come on top of, nor kept."""
        return range(self.base[0] + 1, self.cut + 1)

    def fed_by(self, sequence: int) -> int:
        """Bytes of all that was learned up to a request."""
        return self.fed - sum(request.size + PLACE for request in self.kept if request.sequence > sequence)

    def keep(self, cut: int, *, half: int = 0) -> list[Request]:
        """Keep what comes after `cut`, parted at `half`; return what goes."""
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
            "rows_seen": len(self.bundle.taught),
            "accepted": self.accepted,
            "learned": self.learned,
            "chain": chain_of(self.history),
            "digest": self.bundle.digest,
            "metrics": self.bundle.metrics,
            "snapshot": self.snapshot,
            "snapshot_version": self.snapshot_version,
            "bytes": self.size,
            "attempts": self.attempts,
            "kept": f"{self.cut} {self.fed_by(self.cut)} {self.half} {self.fed_by(self.half)} {self.fed}",
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
            fields |= {"tried": self.tried, "suspect": self.suspect}
        if self.removed:
            fields["removed"] = self.removed
        if self.origin is not None:
            fields["origin"] = self.origin
        return {name.encode(): v if isinstance(v, bytes) else str(v).encode() for name, v in fields.items()}


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """A request put aside."""

    generation: int
    request: Request
    reason: str

    @property
    def id(self) -> str:
        """Name among those put aside."""
        return f"{self.generation}-{self.request.sequence}"

    def stored(self) -> dict[bytes, bytes]:
        """What the stream of dead requests holds of it, but the time."""
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
    """What a call was answered, under its key."""

    payloads: tuple[bytes, ...]
    first: int
    count: int
    generation: int
    hours: int

    def stored(self) -> bytes:
        """Value of the key."""
        digest = hashlib.sha256(b"".join(self.payloads)).hexdigest()
        return f"{digest} {self.first} {self.count} {self.generation}".encode()


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


@dataclass(frozen=True, slots=True)
class Retry:
    """Arguments of one retry: ids, and beside each the key that the caller thinks its rows are under, '' for none."""

    hash: str
    generation: int
    named: tuple[tuple[str, str], ...]
    seen: str
    entries_max: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class Back:
    """What a model was seen to be, and what it goes back to: a bundle whose history is that of the live one."""

    hash: str
    generation: int
    version: int
    digest: str
    new_generation: int
    new_version: int
    bundle: Bundled
    place: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Held:
    """What a worker read, and with which bundle."""

    hash: str
    generation: int
    bundle: Bundled
    requests: tuple[Request, ...]


def _order(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.split("-")))


@dataclass(slots=True)
class Store:
    """All models, and what is told to those who listen."""

    models: dict[str, Model] = field(default_factory=dict)
    dead: dict[str, list[DeadLetters]] = field(default_factory=dict)
    locks: dict[str, tuple[str, int]] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    retried: dict[str, bytes] = field(default_factory=dict)
    big: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    staged: int = 0
    told: list[str] = field(default_factory=list)

    def _tell(self, h: str, model: Model, *, put_aside: str = "") -> None:
        taught = len(model.bundle.taught)
        said = [h, model.generation, model.version, model.learned, taught, int(bool(put_aside)), put_aside]
        self.told.append(" ".join(map(str, said)))

    def _forget_rows(self, h: str) -> None:
        model = self.models.get(h)
        for request in [*(model.kept + model.inbox if model else []), *(dead.request for dead in self.dead.get(h, []))]:
            self.big.pop(request.big, None)

    def remember(self, h: str, generation: int, born: int, answers: dict[str, Seen]) -> bool:
        """Claim a model that is not live, and know what calls were answered."""
        live = self.models.get(h)
        if (live is not None and live.generation >= born) or self._claim(h) > generation:
            return False
        self.locks[h] = (f"restore {generation}", CLAIM_H)
        self.seen |= answers
        return True

    def _claim(self, h: str) -> int:
        """Generation for which a model is claimed; 0 for none."""
        holder = self.locks.get(h, ("", 0))[0]
        return int(holder.removeprefix("restore ")) if holder.startswith("restore ") else 0

    def install(self, h: str, new: Model, born: int, *, staged: bool) -> int:
        """Put a model in where none is live that began with `born` or later, and no later one is claimed."""
        live = self.models.get(h)
        if live is not None and live.generation >= born:
            return 0
        if self._claim(h) > new.generation:
            return -2
        if new.bundle.digest and not staged:
            return -1
        self._forget_rows(h)
        self.dead.pop(h, None)
        self.locks.pop(h, None)
        new.cut = new.half = new.learned
        new.based = new.bundle.taught
        self.models[h] = new
        self._tell(h, new)
        return 1

    def rewind(self, back: Back, *, staged: bool) -> int:
        """Let a live model be what it was, if it is what it was seen to be; what waits stays."""
        h, model = back.hash, self.models.get(back.hash)
        self.changed[h] = max(redis_keys.change(back.generation, back.version + 1), self.changed.get(h, 0))
        if model is not None and model.generation == back.new_generation:
            return 1
        if model is None or (model.generation, model.bundle.digest) != (back.generation, back.digest):
            self.staged += staged
            return 0
        if not staged:
            return -1
        model.origin = model.first_generation
        model.generation, model.version, model.bundle = back.new_generation, back.new_version, back.bundle
        model.snapshot, model.snapshot_version, model.attempts, model.width = b"", -1, 0, 2
        if back.place is not SAME:
            self._drop(model.keep(model.learned))
            model.base, model.based, model.names_large = (model.learned, back.place), model.bundle.taught, False
        self._tell(h, model)
        return 1

    def _drop(self, requests: list[Request]) -> None:
        for request in requests:
            self.big.pop(request.big, None)

    def delete(self, h: str) -> bool:
        """Forget a model, not what calls were answered."""
        self.changed.pop(h, None)
        if h not in self.models:
            return False
        self._forget_rows(h)
        generation = self.models.pop(h).generation
        self.dead.pop(h, None)
        self.locks.pop(h, None)
        self.told.append(f"{h} {generation} -1 0 0 0 ")
        return True

    def accept(self, call: Call) -> list[Any]:  # noqa: PLR0911 - one for each answer
        """Take what fits into the inbox."""
        model = self.models.get(call.hash)
        if model is None:
            return [b"missing"]
        seen = self.seen.get(call.seen)
        alone, origin = int(call.hash not in self.locks), model.first_generation
        if seen is not None and seen.generation >= origin:
            if b"".join(seen.payloads) == b"".join(call.payloads):
                return [b"ok", seen.first, seen.count, model.version, alone, len(model.inbox), model.pace or 0, origin]
            if model.generation == call.generation:
                return [b"conflict"]
        if model.generation != call.generation:
            return [b"stale"]
        if call.width and model.width not in (None, call.width):
            return [b"width", str(model.width).encode()]
        if call.big and len(self.big.get(call.big, (b"", 0))[0]) != call.big_size:
            return [b"lost"]
        first, count = model.accepted + 1, 0
        for payload in call.payloads:
            size = call.big_size if call.big else len(payload)
            if len(model.inbox) >= call.entries_max or (model.inbox and model.size + size > call.bytes_max):
                break
            model.inbox.append(Request(first + count, payload, call.big, size, model.history))
            count += 1
        if count:
            model.width = call.width or model.width
            self.seen[call.seen] = Seen(call.payloads, first, count, call.generation, call.hours)
            if call.big:
                self.big[call.big] = (self.big[call.big][0], 0)
        return [b"ok", first, count, model.version, alone, len(model.inbox), model.pace or 0, origin]

    def take(self, h: str, token: str, entries_max: int, bytes_max: int) -> Held | None:
        """Lock a model and read it: the first request that waits, and those after it that fit."""
        model = self.models.get(h)
        if model is None or self.locks.get(h, (token, 0))[0] != token:
            return None
        self.locks[h] = (token, LOCK_H)
        requests: list[Request] = []
        for request in model.inbox[: min(entries_max, self._suspicion(model))]:
            if requests and sum(r.size for r in requests) + request.size > bytes_max:
                break
            requests.append(request)
        if requests:
            model.attempts += 1
            model.tried = requests[-1].sequence
        return Held(h, model.generation, model.bundle, tuple(requests))

    def _suspicion(self, model: Model) -> int:
        """Draw the conclusion from workers that died of what they read; return how many may be read at once now.

        After one death the same are read once more; after another one, or of suspects, half of them.
        """
        together = (model.tried or 0) - model.learned
        if model.attempts:
            benefit_of_doubt = model.attempts == 1 and together > 1 and model.suspect <= model.learned
            if benefit_of_doubt:
                return together
            model.suspect = model.tried or 0
            if together > 1:
                model.attempts = 0
        suspects = model.suspect - model.learned
        return max(suspects // 2, 1) if suspects > 0 else len(model.inbox)

    def commit(self, held: Held, count: int, after: Bundled, pace: int, *, put_aside: str, staged: bool) -> int:
        """Make `after` live, if the bundle that was read is live still and the rows that were read wait still."""
        last = held.requests[count - 1]
        # Workers mark what they are about to commit, and stage the bundle, whatever comes of it.
        model = self.models.get(held.hash)
        answer = 1
        if model is None or model.generation != held.generation:
            answer = GONE
        elif (model.bundle.digest, model.learned) != (held.bundle.digest, len(held.bundle.history)):
            answer = BEATEN
        elif last.history not in [request.history for request in model.inbox]:
            answer = OTHER_ROWS
        elif not staged:
            answer = LOST_STAGE
        if answer < 1 or model is None:
            self.staged += staged
            return answer
        model.version += 1
        model.bundle = after
        model.inbox = model.inbox[count:]
        model.attempts, model.pace = 0, pace
        learned = held.requests[: count - 1] if put_aside else held.requests[:count]
        self._keep(model, list(learned), len(held.bundle.history))
        if put_aside:
            self.dead.setdefault(held.hash, []).append(DeadLetters(model.generation, last, put_aside))
        self._tell(held.hash, model, put_aside=put_aside)
        return model.version

    def _keep(self, model: Model, learned: list[Request], before: int) -> None:
        """Keep what was learned now; where that is too much, the oldest goes: half of it, or all before, or all."""
        model.names_large |= any(request.big for request in [*model.kept, *learned])
        model.kept += learned
        model.fed += sum(request.size + PLACE for request in learned)
        for cut in (model.half, before, model.learned):
            if model.fed - model.fed_by(model.cut) > REPLAY_MAX:
                self._drop(model.keep(cut, half=model.half))
        if model.half <= model.cut:
            model.half = model.learned if model.fed - model.fed_by(model.cut) > REPLAY_MAX / 2 else model.cut

    def renew(self, h: str, token: str) -> None:
        """Give a lock its whole life again, if it is the caller's."""
        if self.locks.get(h, ("", 0))[0] == token:
            self.locks[h] = (token, LOCK_H)

    def unlock(self, h: str, token: str, *, force: bool, harmed: bool = False) -> int:
        """Let go, unless requests wait; who was not harmed takes its attempt back."""
        if self.locks.get(h, ("", 0))[0] != token:
            return -1
        waits = h in self.models and bool(self.models[h].inbox)
        if force or not waits:
            del self.locks[h]
        if not harmed and h in self.models:
            self.models[h].attempts = max(self.models[h].attempts - 1, 0)
        return int(waits)

    def retry(self, call: Retry) -> list[Any]:
        """Accept again what was put aside, as far as it fits."""
        model = self.models.get(call.hash)
        if model is None:
            return [b"missing"]
        if model.generation != call.generation:
            return [b"stale"]
        if call.seen not in self.retried:
            outcomes = [self._retry(model, call, name, big) for name, big in call.named]
            told = " ".join(outcomes).encode()
            if any(outcome.isdecimal() for outcome in outcomes):
                self.retried[call.seen] = told
        else:
            told = self.retried[call.seen]
        return [b"ok", model.version, told, len(model.inbox), model.pace or 0]

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
        """Forget what was put aside, with its rows."""
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
        """What was put aside since `after`, oldest first, each with its rows where they are not too long."""
        found: list[tuple[DeadLetters, bytes]] = []
        for dead in self.dead.get(h, []):
            rows = dead.request.stored_rows if len(dead.request.stored_rows) <= rows_max else b""
            if after and _order(dead.id) <= _order(after):
                continue
            if len(found) == limit or (found and sum(len(shown) for _, shown in found) + len(rows) > bytes_max):
                break
            found.append((dead, rows))
        return found

    def note(self, h: str, generation: int, version: int, snapshot: bytes, bundle: Bundled) -> None:
        """Remember the newest snapshot, let go of what it has learned, and know that there is nothing newer to save."""
        model = self.models.get(h)
        if model is not None and model.generation == generation and model.snapshot_version < version:
            model.snapshot, model.snapshot_version = snapshot, version
            # Nothing goes where Redis lost the rows that were saved, whatever has come in their place.
            is_learned = bundle.history in [request.history for request in model.kept]
            if bundle.digest == model.bundle.digest or is_learned:
                model.base, model.based = (len(bundle.history), (generation, version)), bundle.taught
                self._drop(model.keep(max(model.cut, len(bundle.history)), half=model.half))
        if h in self.changed and self.changed[h] <= redis_keys.change(generation, version):
            del self.changed[h]

    def keys(self) -> dict[str, RowsBody]:
        """Everything Redis should hold but staged bundles: value and hours to live by key; of a bundle its digest."""
        held: dict[str, RowsBody] = {}
        for h, model in self.models.items():
            held[redis_keys.state(h)] = (model.stored(), 0)
            if model.bundle.digest:
                held[redis_keys.bundle(h)] = (model.bundle.digest, 0)
            held[redis_keys.inbox(h)] = ([(b"%d-0" % r.sequence, r.stored()) for r in model.kept + model.inbox], 0)
        for h, dead in self.dead.items():
            held[redis_keys.dead(h)] = ([(entry.id.encode(), entry.stored()) for entry in dead], 0)
        held |= {redis_keys.lock(h): (token.encode(), hours) for h, (token, hours) in self.locks.items()}
        held |= {key: (seen.stored(), seen.hours) for key, seen in self.seen.items()}
        held |= {key: (told, RETRIED_H) for key, told in self.retried.items()}
        held |= self.big
        if self.changed:
            held[redis_keys.CHANGED] = (self.changed, 0)
        return {key: content for key, content in held.items() if content[0] != []}
