"""Columns of a bundle: growing label lists, the scaler, and the matrix they give.

Owns what must be known of each column to turn rows into numbers. Never learns while it encodes for ``predict``.
Invariant: a label keeps its code for ever; a label not learned yet is encoded as unknown (ordinal -1, one-hot all
zeros). This is the ``partial_fit`` that scikit-learn's LabelEncoder and OneHotEncoder lack (scikit-learn #8136).
"""

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from sklearn.feature_extraction import FeatureHasher

from keepfit import estimators
from keepfit.recipe import Recipe
from keepfit.rows import Floats, Rows

UNKNOWN = -1


@dataclass(slots=True)
class Columns:
    """Learned state of the feature columns; `labels` has one list per category column, in order of first sight."""

    scaler: Any
    labels: list[dict[str | int, int]] = field(default_factory=list)

    @classmethod
    def new(cls, recipe: Recipe) -> Self:
        """Columns that have learned nothing."""
        scaler = estimators.build_scaler(recipe.scaler) if recipe.scaler else None
        return cls(scaler, [{} for _ in recipe.categories])

    def partial_fit(self, rows: Rows) -> None:
        """Learn unseen labels and update the scaler."""
        for known, column in zip(self.labels, rows.categories, strict=True):
            for label in column:
                known.setdefault(label, len(known))
        if self.scaler is not None:
            self.scaler.partial_fit(rows.number_matrix())

    def transform(self, recipe: Recipe, rows: Rows) -> Floats:
        """Turn rows into the estimator's matrix, shape (n, width), columns in the recipe's order.

        With ``hash`` the number columns come first and the `n_features` hashed ones after them.
        """
        numbers = rows.number_matrix()
        if self.scaler is not None:
            numbers = self.scaler.transform(numbers)
        if not self.labels:
            return numbers
        if recipe.encoding == "hash":
            return np.hstack([numbers, _hashed(recipe, rows)])
        return self._in_order(recipe, numbers, rows)

    def _in_order(self, recipe: Recipe, numbers: Floats, rows: Rows) -> Floats:
        blocks: list[Floats] = []
        next_number, next_category = 0, 0
        for kind in (recipe.features or {}).values():
            if kind == "number":
                blocks.append(numbers[:, next_number : next_number + 1])
                next_number += 1
            else:
                known = self.labels[next_category]
                codes = np.array([known.get(label, UNKNOWN) for label in rows.categories[next_category]])
                blocks.append(_onehot(codes, recipe.max_categories) if recipe.encoding == "onehot" else codes[:, None])
                next_category += 1
        return np.hstack(blocks).astype(np.float64, copy=False)


def _onehot(codes: Any, width: int) -> Floats:
    """Codes as rows with a single 1; unknown ones and those beyond `width` as zeros."""
    matrix = np.zeros((len(codes), width))
    rows = np.flatnonzero((codes >= 0) & (codes < width))
    matrix[rows, codes[rows]] = 1.0
    return matrix


def _hashed(recipe: Recipe, rows: Rows) -> Floats:
    """Hashing trick over "column=label" (Weinberger et al., ICML 2009), by scikit-learn's FeatureHasher."""
    hasher = FeatureHasher(n_features=recipe.n_features, input_type="string")
    names = recipe.categories
    pairs = [
        [f"{name}={label}" for name, label in zip(names, row, strict=True)]
        for row in zip(*rows.categories, strict=True)
    ]
    hashed: Floats = hasher.transform(pairs).toarray()
    return hashed
