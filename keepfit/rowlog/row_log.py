"""The row log: every accepted request, once more, in a place that does not go when Redis goes.

Owns its objects (``docs/concepts/row-log.md``): how calls are written in groups, found and read back. Never
decides what is
covered by a snapshot (:mod:`keepfit.rowlog.compaction`) or learned again. Invariants: when :meth:`RowLog.write`
returns, the calls are there as surely as a snapshot would be; an object is never changed, and one that is damaged is
said and not passed over. It holds data and no code: who learns a payload decodes it as strictly as if it stood in the
inbox. Calls come from gateways (:mod:`keepfit.store.inbox`) and go to restores.
"""

import hashlib
import itertools
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from keepfit.errors import CorruptLogError, UnavailableError

if TYPE_CHECKING:
    # Half of what a gateway weighs that has no log.
    from keepfit.backends.blobs import Entry, Storage

# Folders: what may be in no snapshot yet, and what all is. One per minute by Redis' clock.
NEEDED, OLD = "n", "o"
# Sorts behind every minute.
END = "~"
MINUTE_S = 60
MINUTE = "%Y%m%dT%H%M"
MAGIC = b"keepfit rows 1\n"
DIGEST_BYTES = hashlib.sha256().digest_size
# In no folder of a minute, and always the same: it tells a log that is empty from one that is elsewhere.
PROBE, PROBE_DATA = "probe/probe", b"Gateways write this to see whether the row log takes anything.\n"
# Objects that are kept parsed, because a restore of many models asks for each by itself; and what a call takes there
# beside its bytes.
CACHE_BYTES_MAX, CALL_BYTES = 128 * 2**20, 600
READ_AT_ONCE = 16
# An object that has gone since it was listed was merged, which happens to it two or three times in its life.
LOOKS_MAX = 20


@dataclass(frozen=True, slots=True)
class Call:
    """What one call of ``accept.lua`` took in for one model; payload `i` has the sequence `sequence` + `i`.

    `origin` is the generation in which the model's sequences began, `at` seconds since 1970 by Redis' clock. `digest`
    (hex) tells a repeat of the call from another one, `name` is that of its idempotency key (``c:<client's key>``), ""
    where the client sent none. `payloads` are msgpack as in the inbox, whole also where Redis has large rows in a key
    of their own.
    """

    hash: str
    origin: int
    sequence: int
    at: float
    digest: str
    name: str
    payloads: tuple[bytes, ...]

    @property
    def last(self) -> int:
        """Sequence of its last request."""
        return self.sequence + len(self.payloads) - 1


# What is in an object, by the hash of the model.
Parsed = dict[str, list[Call]]

_decode = msgspec.msgpack.Decoder(list[tuple[str, int, int, float, str, str, tuple[bytes, ...]]]).decode


def encode(calls: Iterable[Call]) -> bytes:
    """Make an object of calls: a first line, the SHA-256 of what follows, msgpack.

    >>> call = Call("ab12", 1, 7, 1.5, "c0ffee", "c:mine", (b"rows",))
    >>> decode(encode([call])) == [call]
    True
    """
    body = msgspec.msgpack.encode([(c.hash, c.origin, c.sequence, c.at, c.digest, c.name, c.payloads) for c in calls])
    return b"".join((MAGIC, hashlib.sha256(body).digest(), body))


def decode(data: bytes) -> list[Call]:
    """Read an object.

    Raises
    ------
    ValueError
        If it is not one that :func:`encode` made, to the bit.
    """
    begin = len(MAGIC) + DIGEST_BYTES
    body = memoryview(data)[begin:]
    if not data.startswith(MAGIC) or hashlib.sha256(body).digest() != data[len(MAGIC) : begin]:
        raise ValueError("not as it was written")
    try:
        return [Call(*fields) for fields in _decode(body)]
    except msgspec.MsgspecError as error:
        raise ValueError("in another form than this version writes") from error


def open_log(url: str) -> "RowLog | None":
    """Open the log at ``file:///path`` or ``s3://bucket/prefix``; None where `url` is "".

    Raises
    ------
    SettingsError
        For any other address.
    """
    if not url:
        return None
    from keepfit.backends.blobs import open_storage  # noqa: PLC0415 - see above

    return RowLog(open_storage(url, "KEEPFIT_ROW_LOG_URL"))


def minute_of(at: float) -> str:
    """Name of a minute.

    >>> minute_of(0.0), minute_of(1_700_000_000.5)
    ('19700101T0000', '20231114T2213')
    """
    return datetime.fromtimestamp(at // MINUTE_S * MINUTE_S, UTC).strftime(MINUTE)


def start_of(minute: str) -> float:
    """Seconds since 1970 at which a minute begins; ValueError where that is no minute's name.

    >>> minute_of(start_of("20231114T2213"))
    '20231114T2213'
    """
    return datetime.strptime(minute, MINUTE).replace(tzinfo=UTC).timestamp()


class RowLog:
    """The log in a storage; its methods block, and may be called from several threads at once."""

    def __init__(self, storage: "Storage", cache_bytes_max: int = CACHE_BYTES_MAX) -> None:
        self.storage = storage
        self._name = uuid.uuid4().hex[:16]
        self._numbers = itertools.count(1)
        self._probed = False
        self._cache_bytes_max = cache_bytes_max
        self._lock = threading.Lock()
        self._parsed: OrderedDict[str, tuple[Parsed, int]] = OrderedDict()
        self._parsed_bytes = 0

    def write(self, calls: Sequence[Call]) -> None:
        """Write calls, at least one, as one object, which is there whole or not at all.

        Raises
        ------
        UnavailableError
            If the storage is away or full; then it may be there or not.
        """
        if not self._probed:
            self.probe()
        # The minute in which the last was accepted: no call is in a folder of before its time.
        minute = minute_of(max(call.at for call in calls))
        self.storage.put(f"{NEEDED}{minute}/{self._name}-{next(self._numbers)}", encode(calls))

    def probe(self) -> None:
        """See whether the log takes anything, and begin it where there is none; UnavailableError if it does not."""
        self.storage.put(PROBE, PROBE_DATA)
        self._probed = True

    def view(self) -> "View":
        """List what is there; everything that was written before is found through the view.

        Raises
        ------
        UnavailableError
            If the log cannot be read, or there is none: one that is not found is not an empty one.
        """
        self.require()
        return View(self)

    def require(self) -> None:
        """Raise UnavailableError where there is no log, or it cannot be read."""
        if self.storage.get(PROBE) is None:
            raise UnavailableError(
                f"There is no row log at {self.storage.url}. Gateways begin it when they start with that setting."
            )

    def entries(self, after: str, until: str) -> list["Entry"]:
        """List objects, and what was left of unfinished ones, in folders with ``after < name <= until``.

        Twice, because one that is merged into another while they are listed may be missed, and the other too: it may
        stand where the list had been already. What was merged is let be for longer than a list takes.
        """
        twice = itertools.chain(self.storage.list(after, until), self.storage.list(after, until))
        return list({(entry.path, entry.unfinished): entry for entry in twice}.values())

    def paths(self, after: str, until: str) -> set[str]:
        """Paths of the objects in folders with ``after < name <= until``."""
        return {entry.path for entry in self.entries(after, until) if not entry.unfinished}

    def read(self, path: str, *, keep: bool = True) -> Parsed | None:
        """Read an object: its calls by the hash of their model; None where it has gone. Some are kept in memory.

        Raises
        ------
        UnavailableError
            If the log cannot be read; CorruptLogError if the object is damaged.
        """
        with self._lock:
            if path in self._parsed:
                self._parsed.move_to_end(path)
                return self._parsed[path][0]
        data = self.storage.get(path)
        if data is None:
            return None
        try:
            calls = decode(data)
        except ValueError as error:
            raise CorruptLogError(
                f"{self.storage.uri(path)} in the row log is damaged: it is {error}. It holds rows that may be nowhere "
                "else; to go on without them, move it out of there."
            ) from error
        parsed: Parsed = {}
        for call in calls:
            parsed.setdefault(call.hash, []).append(call)
        if keep:
            self._keep(path, parsed, len(data) + CALL_BYTES * len(calls))
        return parsed

    def _keep(self, path: str, parsed: Parsed, size: int) -> None:
        with self._lock:
            if path not in self._parsed:
                self._parsed[path] = parsed, size
                self._parsed_bytes += size
            while self._parsed_bytes > self._cache_bytes_max:
                _, (_, size) = self._parsed.popitem(last=False)
                self._parsed_bytes -= size


class View:
    """The log as it was at one moment or later; made by :meth:`RowLog.view`, to be used from any thread."""

    def __init__(self, log: RowLog) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._paths = log.paths(NEEDED, NEEDED + END)
        # Which models each object that was read has calls of.
        self._hashes: dict[str, frozenset[str]] = {}
        self._old_since: str | None = None

    def calls(self, model_hash: str, since: float | None) -> list[Call]:
        """Calls of a model: all that may be in no snapshot, and all later than `since` (seconds); unordered, repeated.

        They go with a snapshot whose document was found after the look: of what a later one covers, some may be
        missing.

        Raises
        ------
        UnavailableError
            If the log cannot be read; CorruptLogError if an object in it that may have calls of this model is damaged.
        """
        found: list[Call] = []
        done: set[str] = set()
        gone: set[str] = set()
        for _ in range(LOOKS_MAX):
            with self._lock:
                if gone:
                    self._look_again(gone)
                elif since is not None:
                    self._list_old(minute_of(since))
                self._index()
                paths = [path for path in self._paths - done if model_hash in self._hashes[path]]
            gone = set()
            for path in paths:
                parsed = self._log.read(path)
                if parsed is None:
                    gone.add(path)
                else:
                    found += parsed[model_hash]
            done.update(paths)
            if not gone:
                return found
        raise self._too_fast()

    def _list_old(self, minute: str) -> None:
        """Take in what is covered, from a minute on."""
        if self._old_since is None or minute < self._old_since:
            self._paths |= self._log.paths(_before(OLD + minute), OLD + END)
            self._old_since = minute

    def _index(self) -> None:
        """Read what was not read yet, to know which models it is of."""
        with ThreadPoolExecutor(READ_AT_ONCE, "rowlog") as threads:
            for _ in range(LOOKS_MAX):
                unread = sorted(self._paths - self._hashes.keys())
                gone = set()
                # Some at a time: what is read is in memory until it is looked at.
                for begin in range(0, len(unread), READ_AT_ONCE):
                    some = unread[begin : begin + READ_AT_ONCE]
                    for path, parsed in zip(some, threads.map(self._log.read, some), strict=True):
                        if parsed is None:
                            gone.add(path)
                        else:
                            self._hashes[path] = frozenset(parsed)
                if not gone:
                    return
                self._look_again(gone)
        raise self._too_fast()

    def _look_again(self, gone: set[str]) -> None:
        """Find what objects that have gone were merged into: others of their minutes."""
        self._paths -= gone
        self._paths |= self._log.paths(NEEDED, NEEDED + END)
        for folder in {path.partition("/")[0] for path in gone}:
            self._paths |= self._log.paths(_before(OLD + folder[1:]), OLD + folder[1:])

    def _too_fast(self) -> UnavailableError:
        return UnavailableError(f"{self._log.storage.url} changes faster than it can be read; try again.")


def _before(name: str) -> str:
    """Name right before `name`, for lists that begin behind one.

    >>> "o20231114T2209" < _before("o20231114T2210") < "o20231114T2210"
    True
    """
    return name[:-1] + chr(ord(name[-1]) - 1) + END
