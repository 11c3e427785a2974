"""Rows with the predictions that were served for them: what a late label is joined with.

Owns the form of a prediction that is stored with its row, and the encoding of both. Never checks a value and never
predicts. Invariant: the payload of a learning request with served predictions begins as that of other rows
(:class:`keepfit.rows.rows.Rows`), so what reads plain rows finds them in it, and its first byte says what it is. Rows
come from predictions with an `id`; workers and replays learn them, and evaluate the stored predictions instead of
asking the model again.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec

from keepfit.errors import Fault, InvalidError
from keepfit.recipe.recipe import Recipe
from keepfit.rows import train_score_predict
from keepfit.rows.rows import Rows, concatenate
from keepfit.rows.targets import shape_target, shape_weights
from keepfit.rows.values import FAULTS_MAX, describe_faults

# First byte of the msgpack of such rows: an array of nine elements.
HEAD = 0x99


class Served(msgspec.Struct, array_like=True, frozen=True):
    """The prediction of one row by the bundle of `version`, which had learned `rows_seen` rows.

    `prediction` is a number, a label, or those of several outputs; None if the model had none. `probabilities` are in
    the order of `classes`; both have a list for each of several outputs, and are None if they are not known.
    """

    version: int
    rows_seen: int
    prediction: Any
    probabilities: list[Any] | None = None
    classes: list[Any] | None = None


class ServedRows(Rows, array_like=True, frozen=True, dict=True):
    """Rows to learn with one served prediction each; `acceptance` as in :mod:`keepfit.rows.acceptance`."""

    # Two elements that the calls of train_score_predict have.
    test_rows: None = None
    to_predict: None = None
    predictions: list[Served] = []  # noqa: RUF012 - msgspec copies it
    acceptance: Any = ""

    @property
    def served(self) -> list[Served]:
        """Predictions that were served for the rows."""
        return self.predictions


_decode: Any = msgspec.msgpack.Decoder(ServedRows).decode
encode = msgspec.msgpack.Encoder().encode


def encode_row(rows: Rows, position: int) -> bytes:
    """Return the beginning of a payload: one row without its target.

    >>> rows = Rows(2, bytes(8) + b"weights.", [["a", "b"]])
    >>> served = [Served(3, 9, 0.5)]
    >>> payload = encode_row(rows, 1) + encode(b"target..") + 3 * encode(None) + encode(served) + encode("")
    >>> decode(payload) == ServedRows(1, b"weights.", [["b"]], b"target..", predictions=served)
    True
    """
    row = rows.part(position, position + 1)
    return b"%c%b%b%b" % (HEAD, encode(1), encode(row.numbers), encode(row.categories))


def decode(payload: bytes) -> Rows:
    """Decode the rows of a learning request of any kind, with their served predictions if it has some.

    Raises
    ------
    msgspec.DecodeError
        If `payload` is not such a request.
    """
    if payload[:1] and payload[0] == HEAD:
        # Its rows are decoded as all rows are, with text in normal form.
        rows = Rows.decode(payload)
        return _with_predictions(rows, _decode(payload).predictions)
    return train_score_predict.decode(payload)


def plain(rows: Rows) -> Rows:
    """Return rows without their served predictions, which share no memory with the request."""
    if rows.served is None and type(rows.numbers) is bytes:
        return rows
    return Rows(rows.n, bytes(rows.numbers), rows.categories, rows.y, rows.sample_weight)


def _with_predictions(rows: Rows, predictions: list[Served]) -> ServedRows:
    return ServedRows(rows.n, rows.numbers, rows.categories, rows.y, rows.sample_weight, predictions=predictions)


def concatenate_requests(requests: Sequence[Rows]) -> Rows:
    """Return the rows of several requests as one; all have served predictions, or none has."""
    rows = concatenate(requests)
    if len(requests) == 1 or requests[0].served is None:
        return rows
    return _with_predictions(rows, list(chain.from_iterable([each.served for each in requests])))


def encode_labels(recipe: Recipe, y: Sequence[Any], sample_weight: Sequence[Any]) -> list[bytes]:
    """Check the targets and weights (None: no weight) of single rows; return the msgpack of both for each row.

    Raises
    ------
    InvalidError
        If the estimator takes no target or no weights; or with the position of each invalid value as its row.
    """
    n = len(y)
    target = shape_target(recipe, list(y), n)
    if target is None:
        raise InvalidError(f"{recipe.name} takes no y: its rows have no labels.")
    weights, faults = [], []
    for position, weight in enumerate(sample_weight):
        try:
            weights.append(None if weight is None else shape_weights(recipe, [weight], 1))
        except InvalidError as error:
            if not recipe.entry.takes_sample_weight:
                raise
            details = [fault.detail for fault in error.faults] or [f"{weight} is not greater than 0"]
            faults.append(Fault(details[0], position, "sample_weight"))
    if faults:
        raise InvalidError(describe_faults(faults, "weights"), faults[:FAULTS_MAX])
    size = len(target) // n
    targets = (target[i * size : (i + 1) * size] for i in range(n))
    unused = 2 * encode(None)
    return [encode(one) + encode(weight) + unused for one, weight in zip(targets, weights, strict=True)]
