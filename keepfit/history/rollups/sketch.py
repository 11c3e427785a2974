"""Quantile sketches: numbers in bins of equal relative width, from which every percentile follows within 1 %.

Pure (numpy). Follows DDSketch (Masson, Rim and Lee, PVLDB 12, 2019), without its random or order-dependent parts.
Invariants: sketches of two sets of numbers, merged in whatever order and grouping, are the sketch of all of them, byte
for byte; the value of a rank differs from the number of this rank by at most :data:`ACCURACY` of it, or by 2e-18 of the
largest number if that is more; a sketch has at most 2 · :data:`SPAN` + 1 bins, whatever it was made of.

A bin has a code, and codes ascend with the numbers: 0 is zero, a positive one contains (g^(k-1), g^k], a negative one
the same numbers below zero, where g = (1 + ACCURACY) / (1 - ACCURACY) and k = code - :data:`OFFSET`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Whole = NDArray[np.int64]

ACCURACY = 0.01
LOG_GAMMA = math.log1p(ACCURACY) - math.log1p(-ACCURACY)
# More than the largest |k| of a 64-bit float, so that codes of positive numbers are positive.
OFFSET = 40_000
# Bins from the largest magnitude down that stay apart: a factor of 6e17. Smaller numbers share the last one.
SPAN = 2_048
FORM = 1


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """Bins in ascending order, and how many numbers each contains; shapes (n,), (n,)."""

    codes: Whole
    counts: Whole

    @classmethod
    def of(cls, values: Array) -> Self:
        """Return the sketch of finite numbers, shape (n,)."""
        magnitudes = np.abs(values)
        with np.errstate(divide="ignore"):
            bins = np.ceil(np.log(magnitudes) / LOG_GAMMA) + OFFSET
        codes = np.where(magnitudes == 0, 0.0, np.copysign(bins, values)).astype(np.int64)
        return cls._of_bins(codes, np.ones(len(codes), np.int64))

    @classmethod
    def _of_bins(cls, codes: Whole, counts: Whole) -> Self:
        if len(codes):
            # By the distance from the largest, not by the number of bins: then the order of merges does not matter.
            least = int(np.abs(codes).max()) - SPAN + 1
            codes = np.where((codes != 0) & (np.abs(codes) < least), np.sign(codes) * max(least, 1), codes)
        found, place = np.unique(codes, return_inverse=True)
        return cls(found, np.bincount(place, counts, len(found)).astype(np.int64))

    @classmethod
    def merged(cls, sketches: Iterable["Sketch"]) -> "Sketch":
        """Return the sketch of all numbers of some sketches."""
        some: list[Sketch] = [*sketches, cls(np.empty(0, np.int64), np.empty(0, np.int64))]
        return cls._of_bins(
            np.concatenate([each.codes for each in some]), np.concatenate([each.counts for each in some])
        )

    def percentile(self, percent: float) -> float:
        """Return a percentile, interpolated between the two nearest ranks; NaN without numbers."""
        if not len(self.codes):
            return math.nan
        ends = np.cumsum(self.counts)
        position = (int(ends[-1]) - 1) * (percent / 100)
        low = math.floor(position)
        ranks = np.minimum([low, low + 1], ends[-1] - 1)
        below, above = self._values()[np.searchsorted(ends, ranks, side="right")].tolist()
        share = position - low
        return float(below if below == above else below * (1 - share) + above * share)

    def _values(self) -> Array:
        """Return the value that stands for each bin: the one whose relative distance to both of its ends is equal."""
        powers = (np.abs(self.codes) - OFFSET) * LOG_GAMMA - math.log1p(math.expm1(LOG_GAMMA) / 2)
        largest = np.log(np.finfo(np.float64).max)
        return np.where(self.codes == 0, 0.0, np.sign(self.codes) * np.exp(np.minimum(powers, largest)))

    def to_bytes(self) -> bytes:
        """Return the stored form: a version, then codes (differences) and counts as LEB128 numbers."""
        steps = np.diff(self.codes, prepend=np.int64(0))
        # The first code may be negative; all later differences are positive.
        steps[:1] = np.where(steps[:1] < 0, -2 * steps[:1] - 1, 2 * steps[:1])
        return bytes([FORM]) + _encode(np.concatenate((steps, self.counts)))

    @classmethod
    def from_bytes(cls, stored: bytes) -> Self | None:
        """Return a stored sketch; None if it has the form of a later version."""
        if not stored or stored[0] != FORM:
            return None
        numbers = _decode(stored[1:])
        steps, counts = np.split(numbers, 2)
        steps = steps.copy()
        steps[:1] = np.where(steps[:1] % 2, -(steps[:1] + 1) // 2, steps[:1] // 2)
        return cls(np.cumsum(steps), counts)


def _encode(numbers: Whole) -> bytes:
    """Return whole numbers of at least 0 in LEB128: seven bits a byte, the lowest first.

    >>> _encode(np.array([1, 300])).hex()
    '01ac02'
    """
    # Bits beyond the 63rd are none.
    parts = (numbers[:, None] >> np.arange(0, 63, 7)) & 0x7F
    lengths = np.maximum(9 - np.argmax(parts[:, ::-1] > 0, axis=1), 1)
    lengths[numbers == 0] = 1
    place = np.arange(9)
    parts |= np.where(place < lengths[:, None] - 1, 0x80, 0)
    return bytes(parts[place < lengths[:, None]].astype(np.uint8))


def _decode(stored: bytes) -> Whole:
    """Return the numbers of :func:`_encode`.

    >>> _decode(bytes.fromhex("01ac02")).tolist()
    [1, 300]
    """
    parts = np.frombuffer(stored, np.uint8).astype(np.int64)
    if not len(parts):
        return np.empty(0, np.int64)
    starts = np.concatenate(([0], np.flatnonzero(parts < 0x80)[:-1] + 1))
    place = np.arange(len(parts)) - np.repeat(starts, np.diff(np.append(starts, len(parts))))
    return np.add.reduceat((parts & 0x7F) << (7 * place), starts)
