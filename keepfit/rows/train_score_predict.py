"""The rows of a call of train_score_predict: rows to learn in two parts, and rows to predict after that.

Owns their form and its msgpack encoding: that of :class:`~keepfit.rows.rows.Rows` with two more elements. Never learns
and never answers; :mod:`keepfit.model.train_score_predict` does. Invariant: what reads plain rows reads these as the
rows to learn, so inboxes, dead letters and the row log carry them like any other; and :func:`is_one` recognizes them by
their first byte.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from keepfit.rows.rows import Rows

# An array of seven elements, or of eight with the client's request id.
FIRST_BYTES = (b"\x97", b"\x98")


class ToPredict(msgspec.Struct, array_like=True, frozen=True):
    """Rows to predict once the others are learned; `proba` asks for probabilities, too."""

    proba: bool
    rows: Rows


class TrainScorePredict(Rows, array_like=True, frozen=True, dict=True, kw_only=True):
    """Rows to learn, of which the last `test_rows` are scored before they are learned, and rows to predict."""

    test_rows: int
    to_predict: ToPredict

    @classmethod
    def of(cls, rows: Rows, test_rows: int, to_predict: ToPredict) -> "TrainScorePredict":
        """Return the rows of a call; `test_rows` is 1 to the number of `rows`."""
        return cls(
            rows.n, rows.numbers, rows.categories, rows.y, rows.sample_weight,
            test_rows=test_rows, to_predict=to_predict,
        )  # fmt: skip

    def parts(self) -> tuple[Rows | None, Rows]:
        """Return the rows to train on (None if there are none) and the rows to score, each with target and weights.

        >>> rows = Rows(3, bytes(24), [["a", "b", "c"]], ["x", "y", "z"])
        >>> train, test = TrainScorePredict.of(rows, 1, ToPredict(False, rows)).parts()
        >>> train.n, train.y, test.n, test.categories, test.y
        (2, ['x', 'y'], 1, [['c']], ['z'])
        """
        cut = self.n - self.test_rows
        return (self._cut(0, cut) if cut else None), self._cut(cut, self.n)

    def _cut(self, begin: int, end: int) -> Rows:
        def part(values: Any) -> Any:
            if values is None:
                return None
            size = len(values) // self.n
            return values[begin * size : end * size]

        return Rows(
            end - begin,
            part(self.numbers),
            [column[begin:end] for column in self.categories],
            part(self.y),
            part(self.sample_weight),
        )

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Yield what :meth:`encode` returns in pieces, as :meth:`Rows.pieces` does."""
        learned = super().pieces()
        yield FIRST_BYTES[0] + bytes(next(learned))[1:]
        yield from learned
        yield _encode(self.test_rows) + b"\x92" + _encode(self.to_predict.proba)
        yield from self.to_predict.rows.pieces()

    def fits(self, bytes_max: int) -> bool:
        """Return whether the encoding has at most `bytes_max` bytes."""
        return super().fits(bytes_max) and self.size_bytes <= bytes_max


def is_one(payload: bytes) -> bool:
    """Return whether an encoded request is of this kind."""
    return payload[:1] in FIRST_BYTES


def decode(payload: bytes) -> Rows:
    """Decode the rows of a request, plain ones or those of train_score_predict; raises as :meth:`Rows.decode`."""
    return (TrainScorePredict if is_one(payload) else Rows).decode(payload)


_encode = msgspec.msgpack.Encoder().encode
