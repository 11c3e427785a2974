"""All models in short, in memory, so that they can be searched and put in order of what changes.

Owns the readings: one is made when a client asks and the last one is old, and all clients share it. Never
describes a model in full; :mod:`keepfit_gateway.model_lookup` does that for the models of a page. Invariants: a request
reads nothing from Redis or MongoDB here, whatever the number of models; reading takes at most a tenth of the time, and
blocks the event loop no longer than :data:`SLICE` models take; memory is bounded, and above the bound there is an error
instead of a list that is not whole.
"""

import asyncio
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import redis.asyncio

from keepfit import conditions
from keepfit.client.overview import error_of
from keepfit.conditions import Conditions
from keepfit.errors import InvalidError
from keepfit.history import Registry
from keepfit.history.registry.names import metadata_of
from keepfit.identity import canonical
from keepfit.store.progress import Progress, read_metadata, read_progress

Sort = Literal["hash", "rate", "error", "inbox", "rows"]
SORTS: tuple[Sort, ...] = get_args(Sort)
MODELS_MAX = 50_000
METADATA_BYTES_MAX = 32 * 2**20
# A reading is used for so long at least, and for ten times the time that it took.
FRESH_S, FRESH_TIMES = 2.0, 10.0
# Models of one round trip; their answers are parsed in a few milliseconds.
SLICE = 200


class Line(NamedTuple):
    """One model. `error_share` is its error in relation to the baseline's, None if that is not known.

    `text` is what a search looks at: the hash and the metadata, in lower case.
    """

    hash: str
    metadata: dict[str, Any]
    text: str
    live: bool
    rows_seen: int
    rows_per_s: float
    inbox: int
    error_share: float | None


class Place(NamedTuple):
    """The place of a model in an order: the largest value first, then those without one, models of one value by hash.

    >>> Place.parse(str(Place(-2.5, "ab"))), Place(-3.0, "ff") < Place(-2.5, "aa")
    (Place(value=-2.5, hash='ab'), True)
    """

    value: float
    hash: str

    def __str__(self) -> str:
        return f"{self.value!r}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Return the place that a text writes."""
        value, _, model_hash = text.rpartition(":")
        return cls(float(value), model_hash)


# No value is above 0 here: a model without one comes last.
LAST = 1.0
VALUES: dict[Sort, Callable[[Line], float]] = {
    "hash": lambda line: 0.0,
    "rate": lambda line: -line.rows_per_s,
    "error": lambda line: LAST if line.error_share is None else -line.error_share,
    "inbox": lambda line: -float(line.inbox),
    "rows": lambda line: -float(line.rows_seen),
}


@dataclass(frozen=True)
class Reading:
    """All models at a moment, and their orders as far as they were asked for."""

    lines: Sequence[Line]
    read_s: float = 0.0
    took_s: float = 0.0
    _orders: dict[Sort, list[tuple[Place, Line]]] = field(default_factory=dict)

    @property
    def live(self) -> int:
        """Number of models in Redis."""
        return sum(line.live for line in self.lines)

    @property
    def pending(self) -> tuple[int, int]:
        """Number of models with pending requests, and of these requests."""
        waiting = [line.inbox for line in self.lines if line.inbox]
        return len(waiting), sum(waiting)

    def page(
        self, sort: Sort, wanted: "Wanted", limit: int, after: Place | None
    ) -> tuple[list[tuple[Place, Line]], bool]:
        """Return up to `limit` models after a place in an order, and whether there are more."""
        ordered = self._orders.get(sort)
        if ordered is None:
            value = VALUES[sort]
            ordered = sorted(((Place(value(line), line.hash), line) for line in self.lines), key=lambda one: one[0])
            self._orders[sort] = ordered
        begin = 0 if after is None else bisect_right(ordered, after, key=lambda one: one[0])
        found: list[tuple[Place, Line]] = []
        for position in range(begin, len(ordered)):
            if wanted.selects(ordered[position][1]):
                if len(found) == limit:
                    return found, True
                found.append(ordered[position])
        return found, False


class Wanted(NamedTuple):
    """Which models a client asks for: those whose text holds all `words`, and whose metadata fulfil all conditions."""

    words: tuple[str, ...] = ()
    where: Conditions = ()
    bound: Conditions = ()

    def selects(self, line: Line) -> bool:
        """Return whether a model is one of them.

        >>> line = Line("ab", {"type": "shoes"}, 'ab {"type":"shoes"}', True, 0, 0.0, 0, None)
        >>> Wanted(("sho",)).selects(line), Wanted(("sho", "x")).selects(line)
        (True, False)
        >>> Wanted(where=(("type", ("boots",)),)).selects(line)
        False
        """
        return (
            all(word in line.text for word in self.words)
            and (not self.where or conditions.matches(line.metadata, self.where))
            and (not self.bound or conditions.matches(line.metadata, self.bound))
        )


class ModelOverview:
    """The newest reading of one process of a gateway."""

    def __init__(
        self, store: redis.asyncio.Redis, history: Registry, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._history, self._clock = store, history, clock
        self._reading: Reading | None = None
        self._task: asyncio.Task[Reading] | None = None
        # Of models that were read before: metadata with their text, and the rows of a generation.
        self._names: dict[str, tuple[dict[str, Any], str]] = {}
        self._rows: dict[str, tuple[int, int]] = {}

    async def read(self) -> Reading:
        """Return the newest reading. One that is too old is replaced, and used until then.

        Raises
        ------
        UnavailableError
            If there is none yet, and Redis or MongoDB is unavailable.
        InvalidError
            If there are too many models.
        """
        reading, task = self._reading, self._task
        if task is not None and task.done():
            self._task = task = None
        if reading is None or self._clock() - reading.read_s > max(FRESH_S, FRESH_TIMES * reading.took_s):
            if task is None:
                task = self._task = asyncio.create_task(self._read())
                # Requests that wait for it get its error. Without one, the next reading has its own.
                task.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())
            if reading is None or self._clock() - reading.read_s > self._usable_s(reading):
                return await asyncio.shield(task)
        return reading

    @staticmethod
    def _usable_s(reading: Reading) -> float:
        """Return for how long a reading is used while the next one is made: after a pause it is not."""
        return 3 * max(FRESH_S, FRESH_TIMES * reading.took_s)

    async def close(self) -> None:
        """End a reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _read(self) -> Reading:
        began_s = self._clock()
        hashes = await self._history.hashes(limit=MODELS_MAX + 1)
        if len(hashes) > MODELS_MAX:
            raise _too_many(f"{MODELS_MAX} models")
        names = {each: self._names[each] for each in hashes if each in self._names}
        rows: dict[str, tuple[int, int]] = {}
        lines: list[Line] = []
        for begin in range(0, len(hashes), SLICE):
            some = hashes[begin : begin + SLICE]
            new = [each for each in some if each not in names]
            if new:
                found = await read_metadata(self._store, new)
                lost = [each for each in new if each not in found]
                found |= await metadata_of(self._history, lost) if lost else {}
                names |= {each: (metadata, _text(each, metadata)) for each, metadata in found.items()}
            progress = await read_progress(self._store, some)
            # A model that was deleted in between has no name.
            known = [(each, one) for each, one in zip(some, progress, strict=True) if each in names]
            lines += [self._line(each, names[each], one, began_s) for each, one in known]
            rows |= {each: (one.generation, one.rows_seen) for each, one in known if one is not None}
            await asyncio.sleep(0)
        if sum(len(text) for _, text in names.values()) > METADATA_BYTES_MAX:
            raise _too_many(f"{METADATA_BYTES_MAX} bytes of metadata")
        self._names, self._rows = names, rows
        self._reading = Reading(lines, began_s, self._clock() - began_s)
        return self._reading

    def _line(self, model_hash: str, name: tuple[dict[str, Any], str], progress: Progress | None, now_s: float) -> Line:
        metadata, text = name
        if progress is None:
            return Line(model_hash, metadata, text, False, 0, 0.0, 0, None)
        generation, seen = self._rows.get(model_hash, (0, 0))
        seconds = 0.0 if self._reading is None else now_s - self._reading.read_s
        # A model that is new, or was restored, has no rate.
        learned = max(progress.rows_seen - seen, 0) if generation == progress.generation else 0
        share = error_of(progress.metrics)[2]
        rate = learned / seconds if seconds > 0 else 0.0
        return Line(model_hash, metadata, text, True, progress.rows_seen, rate, progress.inbox, share)


def _text(model_hash: str, metadata: Mapping[str, Any]) -> str:
    return f"{model_hash} {canonical(dict(metadata)).decode()}".lower()


def _too_many(bound: str) -> InvalidError:
    return InvalidError(
        f"This service has more than {bound}, too many to sort or search: leave out sort and search, and select models "
        "by their metadata."
    )
