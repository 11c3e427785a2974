"""Tensors as rows: one matrix, or one tensor for each column of the recipe.

Owns which tensors a model takes, by name and shape. Never checks a value: :mod:`keepfit.rows.tables` does, with the
result that the same rows have in JSON, npy or Arrow. Invariant: tensors become rows only when the recipe is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from keepfit.errors import InvalidError
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.rows.tables import Column, Matrix, NamedColumns
from keepfit.rows.values import format_value
from keepfit_gateway.inference_protocol.tensors import Tensor
from keepfit_gateway.web.offload import INLINE_BYTES_MAX
from keepfit_gateway.web.rows_body import LargeRows, RowsBody

MATRIX = "X"


@dataclass(slots=True)
class TensorRows:
    """The tensors of a small request; see :class:`~keepfit_gateway.web.rows_body.RowsBody`."""

    size: int
    tensors: Sequence[Tensor]
    proba: bool
    model_hash: str

    def shape(self, recipe: Recipe, *, learning: bool) -> Rows:
        """Check the tensors against `recipe` and return them as rows."""
        return shape(self.tensors, recipe, learning=learning)


def rows_of(size: int, tensors: Sequence[Tensor], *, proba: bool, model_hash: str) -> RowsBody:
    """Return the tensors of a request of `size` bytes as rows of a model."""
    if size <= INLINE_BYTES_MAX:
        return TensorRows(size, tensors, proba, model_hash)
    return LargeRows(size, partial(shape, tensors), proba=proba, model_hash=model_hash)


def shape(tensors: Sequence[Tensor], recipe: Recipe, *, learning: bool) -> Rows:
    """Check tensors against `recipe` and return them as rows.

    Raises
    ------
    InvalidError
        If the model takes other tensors, or with the row and column of each invalid value, at most 20.
    """
    if _is_matrix(tensors, recipe):
        return _matrix(tensors[0], recipe).shape(recipe, learning=learning)
    if recipe.features is None and not recipe.takes_dicts:
        raise InvalidError(
            f"The model has one input, {MATRIX!r}, of the shape [rows, columns]; its recipe names no columns."
        )
    n = tensors[0].shape[0]
    return NamedColumns(n, [_column(tensor, recipe, n) for tensor in tensors]).shape(recipe, learning=learning)


def _is_matrix(tensors: Sequence[Tensor], recipe: Recipe) -> bool:
    first, *others = tensors
    if others or first.name != MATRIX:
        return False
    return MATRIX not in (recipe.features or ()) or (len(first.shape) == 2 and first.shape[1] > 1)


def _matrix(tensor: Tensor, recipe: Recipe) -> Matrix:
    if recipe.layout.non_numeric:
        column = recipe.layout.non_numeric[0]
        raise InvalidError(
            f"column {column.name!r} is a {column.kind}: send one input for each column instead of {MATRIX!r}."
        )
    if tensor.texts is not None:
        raise InvalidError(f"input {MATRIX!r} is BYTES: send numbers.")
    if len(tensor.shape) != 2:
        raise InvalidError(
            f"input {MATRIX!r} has the shape {[*tensor.shape]}; send [rows, columns]: a single row is "
            f"{[1, *tensor.shape]}."
        )
    return Matrix(tensor.memory, tensor.offset, tensor.values.reshape(tensor.shape))


def _column(tensor: Tensor, recipe: Recipe, n: int) -> Column:
    if tensor.shape not in ((n,), (n, 1)):
        raise InvalidError(
            f"input {format_value(tensor.name)} has the shape {[*tensor.shape]}; a column of {n} rows has [{n}] or "
            f"[{n}, 1]."
        )
    if tensor.texts is None:
        return Column(tensor.name, [tensor.values])
    # Bytes have no null, so the empty text stands for it where a value may be missing.
    absent = (None, "") if recipe.known_name(tensor.name) in recipe.layout.nullable else (None,)
    missing = [row for row, text in enumerate(tensor.texts) if text in absent]
    return Column(tensor.name, labels=partial(list, tensor.texts), missing=missing)
