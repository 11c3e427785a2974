"""The row log: every accepted request, stored a second time where a loss of Redis does not affect it.

Owns its objects (`docs/concepts/row-log.md`): how calls are written in batches, listed and read. Never decides what a
snapshot covers (:mod:`keepfit.rowlog.compaction`) or what is replayed. Invariants: when :meth:`RowLog.write` returns,
the calls are as durable as a snapshot; an object is never changed, and a damaged one is an error and never skipped. The
log holds data and no code: its readers decode payloads as strictly as from the inbox. Calls come from gateways
(:mod:`keepfit.store.inbox`) and go to restores.
"""

import hashlib
import itertools
import math
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from keepfit.errors import ConflictError, CorruptLogError, UnavailableError

if TYPE_CHECKING:
    # Without a row log a gateway does not import it: it would double the gateway's memory.
    from keepfit.backends.blobs import Entry, Storage

# Prefixes of folders: calls that may be in no snapshot yet, and calls that snapshots cover. One folder per minute of
# Redis' clock.
UNCOVERED, COVERED = "n", "o"
# Sorts after every minute.
END = "~"
MINUTE_S = 60
MINUTE = "%Y%m%dT%H%M"
MAGIC = b"keepfit rows 1\n"
DIGEST_BYTES = hashlib.sha256().digest_size
# Outside of the minutes' folders, with fixed content: it distinguishes an empty log from one at another address.
PROBE, PROBE_DATA = "probe/probe", b"Gateways write this to see whether the row log takes anything.\n"
# Bound of parsed objects in memory, because a restore of many models reads each model's calls separately; and the
# memory of a parsed call in addition to its bytes.
CACHE_BYTES_MAX, CALL_BYTES = 128 * 2**20, 600
READ_AT_ONCE = 16
# An object that disappeared after the listing was merged, which happens to an object two or three times.
LIST_TRIES_MAX = 20
# Begins the name of a call that is a retry.
RETRY = "r:"


@dataclass(frozen=True, slots=True)
class Call:
    """The requests that one call of ``accept.lua`` accepted for a model; payload `i` has sequence `sequence` + `i`.

    `origin` is the generation in which the model's sequences began, `at` seconds since 1970 by Redis' clock. `digest`
    (hex) distinguishes a repeat of the call from another call, `name` is that of its idempotency key
    (``c:<client's key>``, and a space and the name of the API key if there is one), "" if the client sent none; that of
    a retried dead letter is ``r:<sequence>``, the sequence that it had before.
    `payloads` are msgpack as in the inbox, complete even if Redis stores large rows in a separate key.
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

    @property
    def retry_of(self) -> int | None:
        """Sequence that its request had before it became a dead letter and was retried; None of other calls."""
        return int(self.name.removeprefix(RETRY)) if self.name.startswith(RETRY) else None


# Calls of an object, by the hash of their model.
Parsed = dict[str, list[Call]]

_decode = msgspec.msgpack.Decoder(list[tuple[str, int, int, float, str, str, tuple[bytes, ...]]]).decode


def encode(calls: Iterable[Call]) -> bytes:
    """Encode calls as an object: a first line, the SHA-256 of the rest, msgpack.

    >>> call = Call("ab12", 1, 7, 1.5, "c0ffee", "c:mine", (b"rows",))
    >>> decode(encode([call])) == [call]
    True
    """
    body = msgspec.msgpack.encode([(c.hash, c.origin, c.sequence, c.at, c.digest, c.name, c.payloads) for c in calls])
    return b"".join((MAGIC, hashlib.sha256(body).digest(), body))


def decode(data: bytes) -> list[Call]:
    """Decode an object.

    Raises
    ------
    ValueError
        If it is not exactly as :func:`encode` wrote it.
    """
    begin = len(MAGIC) + DIGEST_BYTES
    body = memoryview(data)[begin:]
    if not data.startswith(MAGIC) or hashlib.sha256(body).digest() != data[len(MAGIC) : begin]:
        raise ValueError("not as it was written")
    try:
        return [Call(*fields) for fields in _decode(body)]
    except msgspec.MsgspecError as error:
        raise ValueError("in another format than this version writes") from error


def open_log(url: str) -> "RowLog | None":
    """Open the log at ``file:///path`` or ``s3://bucket/prefix``; return None if `url` is "".

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
    """Return the name of the minute of a time (seconds since 1970).

    >>> minute_of(0.0), minute_of(1_700_000_000.5)
    ('19700101T0000', '20231114T2213')
    """
    return datetime.fromtimestamp(at // MINUTE_S * MINUTE_S, UTC).strftime(MINUTE)


def start_of(minute: str) -> float:
    """Return the seconds since 1970 at which a minute begins; raises ValueError if it is not the name of a minute.

    >>> minute_of(start_of("20231114T2213"))
    '20231114T2213'
    """
    return datetime.strptime(minute, MINUTE).replace(tzinfo=UTC).timestamp()


class RowLog:
    """The row log in a storage. Its methods block; several threads may call them at once."""

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
        """Write calls, at least one, as one object, atomically.

        Raises
        ------
        UnavailableError
            If the storage is unavailable or full; the object may then exist or not.
        """
        if not self._probed:
            self.probe()
        # The minute of the last call: no call is in a folder of an earlier minute than its own.
        minute = minute_of(max(call.at for call in calls))
        self.storage.put(f"{UNCOVERED}{minute}/{self._name}-{next(self._numbers)}", encode(calls))

    def probe(self) -> None:
        """Check that the log can be written, and create it if needed; raises UnavailableError if it cannot."""
        self.storage.put(PROBE, PROBE_DATA)
        self._probed = True

    def view(self) -> "View":
        """List the objects; the view finds everything that was written before.

        Raises
        ------
        UnavailableError
            If the log cannot be read or does not exist: a missing log is not an empty one.
        """
        self.check_exists()
        return View(self)

    def check_exists(self) -> None:
        """Raise UnavailableError if the log does not exist or cannot be read."""
        if self.storage.get(PROBE) is None:
            raise UnavailableError(
                f"There is no row log at {self.storage.url}. A gateway that starts with that setting creates it.",
                "There is no row log.",
            )

    def entries(self, after: str, until: str) -> list["Entry"]:
        """List objects, and remains of unfinished ones, in folders with ``after < name <= until``.

        It lists twice: an object that is merged during the listing may be missed, and the merged one too, if it is
        written where the listing has already been. Merged objects stay unchanged for longer than a listing takes.
        """
        twice = itertools.chain(self.storage.list(after, until), self.storage.list(after, until))
        return list({(entry.path, entry.unfinished): entry for entry in twice}.values())

    def paths(self, after: str, until: str) -> set[str]:
        """Return the paths of the objects in folders with ``after < name <= until``."""
        return {entry.path for entry in self.entries(after, until) if not entry.unfinished}

    def read(self, path: str, *, use_cache: bool = True) -> Parsed | None:
        """Read an object; return its calls by the hash of their model, or None if the object does not exist any more.

        With `use_cache` the parsed object stays in memory, within bounds.

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
                f"The object {self.storage.uri(path)} of the row log is damaged: it is {error}. It may be the only "
                "copy of some rows; to continue without them, move the object out of the row log.",
                "An object of the row log is damaged.",
            ) from error
        parsed: Parsed = {}
        for call in calls:
            parsed.setdefault(call.hash, []).append(call)
        if use_cache:
            self._add_to_cache(path, parsed, len(data) + CALL_BYTES * len(calls))
        return parsed

    def _add_to_cache(self, path: str, parsed: Parsed, size: int) -> None:
        with self._lock:
            if path not in self._parsed:
                self._parsed[path] = parsed, size
                self._parsed_bytes += size
            while self._parsed_bytes > self._cache_bytes_max:
                _, (_, size) = self._parsed.popitem(last=False)
                self._parsed_bytes -= size


class View:
    """The row log as of one moment or later; created by :meth:`RowLog.view`, for use from any thread."""

    def __init__(self, log: RowLog) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._paths = log.paths(UNCOVERED, UNCOVERED + END)
        # Hashes of the models in each object that was read.
        self._hashes: dict[str, frozenset[str]] = {}
        self._covered_since: str | None = None

    def calls(self, model_hash: str, since: float | None, bytes_max: float = math.inf) -> list[Call]:
        """Return the calls of a model: all uncovered ones, and covered ones since `since` (seconds), unordered.

        There may be repeats. The calls belong with a snapshot whose document was found after the listing: of the calls
        that a later snapshot covers some may be missing.

        Raises
        ------
        UnavailableError
            If the log cannot be read; CorruptLogError if an object that may have calls of this model is damaged.
        ConflictError
            If the calls have more than `bytes_max` bytes.
        """
        found: list[Call] = []
        done: set[str] = set()
        gone: set[str] = set()
        size = 0
        for _ in range(LIST_TRIES_MAX):
            with self._lock:
                if gone:
                    self._list_again(gone)
                elif since is not None:
                    self._list_covered(minute_of(since))
                self._index()
                paths = [path for path in self._paths - done if model_hash in self._hashes[path]]
            gone = set()
            for path in paths:
                parsed = self._log.read(path)
                if parsed is None:
                    gone.add(path)
                else:
                    found += parsed[model_hash]
                    size += sum(CALL_BYTES + sum(map(len, call.payloads)) for call in parsed[model_hash])
                    if size > bytes_max:
                        raise ConflictError(f"The row log has more than {bytes_max:,} bytes of the model's rows.")
            done.update(paths)
            if not gone:
                return found
        raise self._changes_too_fast()

    def _list_covered(self, minute: str) -> None:
        """List covered calls from a minute on."""
        if self._covered_since is None or minute < self._covered_since:
            self._paths |= self._log.paths(_before(COVERED + minute), COVERED + END)
            self._covered_since = minute

    def _index(self) -> None:
        """Read the objects that were not read yet, to know which models they have calls of."""
        with ThreadPoolExecutor(READ_AT_ONCE, "rowlog") as threads:
            for _ in range(LIST_TRIES_MAX):
                unread = sorted(self._paths - self._hashes.keys())
                gone = set()
                # In batches, to bound the memory of objects that are read and not indexed yet.
                for begin in range(0, len(unread), READ_AT_ONCE):
                    some = unread[begin : begin + READ_AT_ONCE]
                    for path, parsed in zip(some, threads.map(self._log.read, some), strict=True):
                        if parsed is None:
                            gone.add(path)
                        else:
                            self._hashes[path] = frozenset(parsed)
                if not gone:
                    return
                self._list_again(gone)
        raise self._changes_too_fast()

    def _list_again(self, gone: set[str]) -> None:
        """Find the objects into which objects that are gone were merged: others of the same minutes."""
        self._paths -= gone
        self._paths |= self._log.paths(UNCOVERED, UNCOVERED + END)
        for folder in {path.partition("/")[0] for path in gone}:
            self._paths |= self._log.paths(_before(COVERED + folder[1:]), COVERED + folder[1:])

    def _changes_too_fast(self) -> UnavailableError:
        message = "changes faster than it can be read; try again."
        return UnavailableError(f"{self._log.storage.url} {message}", f"The row log {message}")


def _before(name: str) -> str:
    """Return the name right before `name`, for listings that begin after a name.

    >>> "o20231114T2209" < _before("o20231114T2210") < "o20231114T2210"
    True
    """
    return name[:-1] + chr(ord(name[-1]) - 1) + END
