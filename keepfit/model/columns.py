"""Columns of a bundle: label lists, running means and the scaler, which learn.

Owns the state of each column that is needed to turn rows into numbers; :mod:`keepfit.scoring.matrix` writes the matrix,
except columns of words. ``predict`` never changes it. This is the
``partial_fit`` that scikit-learn's LabelEncoder and OneHotEncoder lack (scikit-learn #8136);
:mod:`keepfit.model.categories` has the rules of the label lists. Invariant: a mean covers all learned values,
independent of how they were grouped into calls. Rows come in as :class:`keepfit.rows.rows.Rows`; the matrix goes to the
estimator.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

import numpy as np
from msgspec.structs import asdict
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer

from keepfit.model import categories, estimators, fast_fit, fast_predict
from keepfit.recipe.features import UNEXPANDED, Column, Layout, TextOptions
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.rows.values import Floats, NonNumeric
from keepfit.scoring import category_codes, matrix


@dataclass(slots=True)
class Means:
    """Running means of number columns: sums of the learned values, added row by row, and their number."""

    totals: Floats
    counts: Floats

    @classmethod
    def zeros(cls, width: int) -> Self:
        """Return the means of `width` columns that have learned nothing."""
        return cls(np.zeros(width), np.zeros(width))

    def partial_fit(self, values: Floats, missing: NDArray[np.bool_]) -> None:
        """Add `values`, shape (n, width), except those that are `missing`."""
        added = np.where(missing, 0.0, values)
        # Sequential, unlike np.sum, whose result would depend on how many rows are in one call.
        self.totals = np.add.accumulate(np.concatenate([self.totals[np.newaxis], added]))[-1].copy()
        self.counts = self.counts + (~missing).sum(axis=0)

    def values(self) -> Floats:
        """Return the means, shape (width,); 0 where nothing was learned."""
        return self.totals / np.maximum(self.counts, 1.0)


@dataclass(slots=True)
class Columns:
    """Learned state of the feature columns.

    `labels` maps labels to positions, one dict per category column, in order of first occurrence; it is empty where
    categories are hashed. `means` is None unless a column uses one. `rule` is that of the release that made the
    bundle: which text of a label is hashed, and whether infrequent labels have a code. `room` is the size that labels
    of all columns may still have.
    """

    scaler: Any
    labels: list[dict[NonNumeric, int]] = field(default_factory=list)
    means: Means | None = None
    rule: int = category_codes.RULE
    room: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Measure the label lists."""
        self.room = category_codes.SIZE_MAX - sum(map(category_codes.size, self.labels))

    @classmethod
    def new(cls, recipe: Recipe) -> Self:
        """Return the columns of a recipe, which have learned nothing."""
        scaler = estimators.build_scaler(recipe.scaler) if recipe.scaler else None
        labels: list[dict[NonNumeric, int]] = [{} for _ in recipe.categories] if recipe.encoding != "hash" else []
        averaged = len(recipe.layout.with_mean)
        return cls(scaler, labels, Means.zeros(averaged) if averaged else None)

    def partial_fit(self, recipe: Recipe, rows: Rows) -> None:
        """Learn new labels, update the means, then the scaler, for which missing numbers are imputed."""
        layout = recipe.layout
        if layout.non_numeric:
            self._learn_labels(recipe, layout, rows)
        if self.means is not None:
            values = matrix.expand_timestamps(layout, rows.number_matrix())[:, layout.with_mean]
            self.means.partial_fit(values, np.isnan(values))
        if self.scaler is not None:
            numbers = rows.number_matrix() if layout.numbers_only else matrix.imputed(self, layout, rows)[0]
            fast_fit.partial_fit_scaler(self.scaler, numbers)

    def _learn_labels(self, recipe: Recipe, layout: Layout, rows: Rows) -> None:
        """Add new labels of the category columns, as far as there are codes for them."""
        if recipe.encoding != "hash":
            columns = [column for column in layout.non_numeric if column.kind == "category"]
            values = [rows.categories[column.rows_index] for column in columns]
            self.room = categories.learn(self.labels, columns, values, self.rule, self.room)

    def partial_fit_transform(self, recipe: Recipe, rows: Rows) -> Any:
        """Learn rows, then return the matrix that :meth:`transform` gives for them."""
        if not recipe.layout.numbers_only or self.scaler is None:
            self.partial_fit(recipe, rows)
            return self.transform(recipe, rows)
        # Not copied before they are learned: scalers take an array of the same size for themselves.
        numbers = rows.number_view()
        fast_fit.partial_fit_scaler(self.scaler, numbers)
        return fast_predict.transform(self.scaler, numbers.astype(np.float64))

    def partial_fit_transform_row(self, recipe: Recipe, rows: Rows) -> tuple[Floats, Floats] | None:
        """Learn a single row of numbers; return its matrix before and after learning, shape (1, width) each.

        Returns None and learns nothing where this fast path does not apply: then call :meth:`transform` and
        :meth:`partial_fit_transform`.
        """
        if rows.n != 1 or not recipe.layout.numbers_only or self.scaler is None:
            return None
        return fast_fit.partial_fit_scaler_row(self.scaler, rows.number_list())

    def transform(self, recipe: Recipe, rows: Rows) -> Any:
        """Return the estimator's matrix, shape (n, width), with the columns that :meth:`names` lists.

        For an estimator that counts words itself, returns the texts, shape (n,), with '' for a missing one.
        """
        layout = recipe.layout
        if layout.numbers_only:
            numbers = rows.number_matrix()
            return numbers if self.scaler is None else fast_predict.transform(self.scaler, numbers)
        if recipe.reads_text:
            return np.array([text or "" for text in rows.categories[0]], dtype=object)
        built = matrix.build(self, recipe, rows, fast_predict.transform)
        for column in layout.non_numeric:
            if column.kind == "text":
                _write_text(built, column, rows.categories[column.rows_index])
        return built

    @property
    def mean_values(self) -> Floats | None:
        """What replaces a missing number, for the columns `with_mean` of the layout; None if no column uses a mean."""
        return None if self.means is None else self.means.values()

    def names(self, recipe: Recipe) -> list[str]:
        """Return the names of the matrix' columns, in order; none for rows without `features`, or for raw texts.

        A name is the recipe's column, followed by ``=label`` for a label, ``:infrequent`` for infrequent labels,
        ``:hour`` for a part of a timestamp, ``:missing`` for an indicator, and ``[index]`` where words or labels are
        hashed or an index has no label yet.
        """
        layout = recipe.layout
        if recipe.reads_text:
            return []
        names, labels = [], iter(self.labels)
        for column in layout.columns:
            if column.kind == "text":
                names += [f"{column.name}[{index}]" for index in range(column.width)]
            elif column.kind == "category" and column.width:
                is_onehot = recipe.encoding == "onehot"
                names += categories.onehot_names(next(labels), column, self.rule) if is_onehot else [column.name]
            elif column.kind != "category":
                parts = column.time_parts
                names += [column.name] if parts == UNEXPANDED else [f"{column.name}:{part}" for part in parts]
            names += [] if column.indicator is None else [f"{column.name}:missing"]
        return names + [f"hash[{index}]" for index in range(layout.width - layout.hash_start)]


def _write_text(built: Floats, column: Column, texts: Sequence[NonNumeric]) -> None:
    """Write the word counts of scikit-learn's HashingVectorizer; a missing text has none."""
    if column.indicator is not None:
        built[:, column.indicator] = [text is None for text in texts]
    counts = _vectorizer(column.options).transform([text or "" for text in texts])
    built[:, column.start : column.start + column.width] = counts.toarray()


@lru_cache(256)
def _vectorizer(options: TextOptions) -> HashingVectorizer:
    params = asdict(options)
    del params["missing"]
    return HashingVectorizer(**params)
