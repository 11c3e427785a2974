"""Traffic of models: rows in and out, predictions by source and their latency, of all processes of gateways.

Owns the form of the counts in the queue's Redis, their writing and their sums. Each process of a gateway writes what it
has counted in every period (:mod:`keepfit_gateway.traffic`) into one of its slots, in place of what was there before.
Never decides anything by them. Invariants: a slot holds at most :data:`MODELS_MAX` models, the busiest ones, and the
sum of all models; what was counted more than :data:`WINDOW_S` seconds ago is in no sum, whatever died.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from keepfit.backends import redis_keys, redis_scripts
from keepfit.jobs import gateway_records

PERIOD_S = 10.0
SLOTS = 6
WINDOW_S = PERIOD_S * SLOTS
# Models of one process and period, of about 300 bytes each in Redis.
MODELS_MAX = 2_000
# The field of a slot that has the sum of all models.
ALL = ""

# Counts of a model: rows accepted to be learned, rows predicted beyond one for each prediction, predictions by source
# and latency. A source has one number for each power of two seconds, from a microsecond to 17 minutes: one addition
# counts a prediction of one row, since gateways count each.
ROWS_IN, MORE_ROWS_OUT, FIRST = range(3)
EXPONENT_MIN, EXPONENTS = -19, 30
# The position of latencies of a source from 0.5 s to 1 s, whose binary exponent is 0.
KEPT, SCORED, WORKER, STALE = (FIRST - EXPONENT_MIN + EXPONENTS * source for source in range(4))
SOURCES = {"kept": KEPT, "scored": SCORED, "worker": WORKER, "stale": STALE}
WIDTH = FIRST + EXPONENTS * len(SOURCES)
Counts = list[int]


def position_of(source: int, seconds: float) -> int:
    """Return the position of the count of a latency.

    >>> position_of(KEPT, 0.75) == KEPT, position_of(KEPT, 1e-6) >= FIRST, position_of(STALE, 1000.0) < WIDTH
    (True, True, True)
    """
    return source + math.frexp(seconds)[1]


def by_latency(counts: Sequence[int], sources: Iterable[int] = SOURCES.values()) -> list[int]:
    """Return the numbers of predictions from sources, by latency."""
    begins = [source + EXPONENT_MIN for source in sources]
    return [sum(counts[begin + exponent] for begin in begins) for exponent in range(EXPONENTS)]


def rows_out(counts: Sequence[int]) -> int:
    """Return the number of rows that were predicted."""
    return sum(counts[FIRST:]) + counts[MORE_ROWS_OUT]


def latency_s(numbers: Sequence[int], share: float) -> float:
    """Return the latency that this share of predictions had at most, within a factor of 1.5; 0.0 without any.

    >>> counts = [0] * WIDTH
    >>> latency_s(by_latency(counts), 0.5)
    0.0
    >>> counts[position_of(KEPT, 0.0003)], counts[position_of(WORKER, 0.1)] = 98, 2
    >>> round(latency_s(by_latency(counts), 0.5), 6), round(latency_s(by_latency(counts), 0.99), 3)
    (0.000348, 0.088)
    """
    due = share * sum(numbers)
    if not due:
        return 0.0
    position = 0
    while due > numbers[position]:
        due -= numbers[position]
        position += 1
    # Latencies of one power of two lie evenly on a logarithmic scale.
    return math.ldexp(2 ** (due / numbers[position]), position + EXPONENT_MIN - 1)


def added_up(each: Iterable[Sequence[int]]) -> Counts:
    """Return the sum of counts, of the same form."""
    return [sum(column) for column in zip(*each, strict=True)] or [0] * WIDTH


def describe(counts: Sequence[int]) -> dict[str, Any]:
    """Return what counts of the whole window say, for people and programs."""
    numbers = by_latency(counts)
    return {
        "window_s": WINDOW_S,
        "rows_in_per_s": counts[ROWS_IN] / WINDOW_S,
        "rows_out_per_s": rows_out(counts) / WINDOW_S,
        "predictions": {name: sum(by_latency(counts, [source])) for name, source in SOURCES.items()},
        "latency_p50_s": latency_s(numbers, 0.5),
        "latency_p99_s": latency_s(numbers, 0.99),
    }


def encode(counts: Counts) -> bytes:
    """Return counts as a slot holds them."""
    return msgspec.msgpack.encode(counts)


async def write(queue: Any, gateway: str, slot: int, fields: Mapping[str, bytes]) -> None:
    """Write the encoded counts of a period, by hash, in place of what the slot had.

    Raises
    ------
    UnavailableError
        If the queue's Redis is unavailable.
    """
    key = redis_keys.traffic(gateway, slot)
    commands: list[tuple[Any, ...]] = [("DEL", key)]
    if fields:
        commands.append(("HSET", key, *(each for pair in fields.items() for each in pair)))
        commands.append(("PEXPIRE", key, int(1000 * (WINDOW_S + PERIOD_S))))
    await redis_scripts.run_async(queue, *commands)


async def read(queue: Any, hashes: Sequence[str]) -> dict[str, Counts]:
    """Return the counts of the last :data:`WINDOW_S` seconds of models, or of :data:`ALL`; raises as :func:`write`."""
    gateways = await gateway_records.read_all(queue)
    keys = [redis_keys.traffic(record.name, slot) for record in gateways for slot in range(SLOTS)]
    slots = await redis_scripts.run_async(queue, *(("HMGET", key, *hashes) for key in keys)) if keys and hashes else []
    found: dict[str, list[Counts]] = {name: [] for name in hashes}
    for values in slots:
        for name, text in zip(hashes, values, strict=True):
            if text is not None and (counts := _decoded(text)) is not None:
                found[name].append(counts)
    return {name: added_up(each) for name, each in found.items()}


def joined(each: Sequence[Mapping[str, Counts]]) -> dict[str, Counts]:
    """Return the sums of what was read from several servers of the queue."""
    return {name: added_up([counts[name] for counts in each]) for name in each[0]}


def _decoded(text: bytes) -> Counts | None:
    """Return the counts of a field; None if another release wrote them."""
    try:
        counts = msgspec.msgpack.decode(text, type=Counts)
    except msgspec.MsgspecError:
        return None
    return counts if len(counts) == WIDTH else None
