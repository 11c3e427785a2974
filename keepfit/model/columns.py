"""Columns of a bundle: growing label lists, running means, the scaler, and the matrix they give.

Owns what must be known of each column to turn rows into numbers. Never learns while it encodes for ``predict``.
Invariants: a label keeps its code for ever; a label not learned yet is encoded as unknown (ordinal -1, one-hot all
zeros). This is the ``partial_fit`` that scikit-learn's LabelEncoder and OneHotEncoder lack (scikit-learn #8136). A mean
is that of all learned values, however they were grouped into calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

import numpy as np
from msgspec.structs import asdict
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.utils import murmurhash3_32

from keepfit.model import estimators, fast_fit, fast_predict, timestamps
from keepfit.recipe.features import PLAIN, Column, Layout, Text
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.rows.values import Floats, NonNumeric

UNKNOWN = -1


@dataclass(slots=True)
class Means:
    """Running means of number columns: sums of what was learned, added up row by row, and how many there were."""

    totals: Floats
    counts: Floats

    @classmethod
    def of(cls, width: int) -> Self:
        """Means of `width` columns that have learned nothing."""
        return cls(np.zeros(width), np.zeros(width))

    def learn(self, values: Floats, missing: NDArray[np.bool_]) -> None:
        """Take in `values`, shape (n, width), but those that are `missing`."""
        added = np.where(missing, 0.0, values)
        # One after the other, which a plain sum is not: it would differ with the number of rows.
        self.totals = np.add.accumulate(np.concatenate([self.totals[np.newaxis], added]))[-1].copy()
        self.counts = self.counts + (~missing).sum(axis=0)

    def values(self) -> Floats:
        """The means, shape (width,); 0 where nothing was learned."""
        return self.totals / np.maximum(self.counts, 1.0)


@dataclass(slots=True)
class Columns:
    """Learned state of the feature columns.

    `labels` has one list per category column, in order of first sight (none where categories are hashed); `means` is
    None unless a column asks for one.
    """

    scaler: Any
    labels: list[dict[NonNumeric, int]] = field(default_factory=list)
    means: Means | None = None

    @classmethod
    def new(cls, recipe: Recipe) -> Self:
        """Columns that have learned nothing."""
        scaler = estimators.build_scaler(recipe.scaler) if recipe.scaler else None
        labels: list[dict[NonNumeric, int]] = [{} for _ in recipe.categories] if recipe.encoding != "hash" else []
        averaged = len(recipe.layout.averaged)
        return cls(scaler, labels, Means.of(averaged) if averaged else None)

    def partial_fit(self, recipe: Recipe, rows: Rows) -> None:
        """Learn unseen labels, update the means, and then the scaler, which sees missing numbers filled in."""
        layout = recipe.layout
        if layout.words:
            self._learn_labels(layout, rows)
        if self.means is not None:
            values = expanded(layout, rows.number_matrix())[:, layout.averaged]
            self.means.learn(values, np.isnan(values))
        if self.scaler is not None:
            numbers = rows.number_matrix() if layout.plain else self._filled(layout, rows)[0]
            fast_fit.scale(self.scaler, numbers)

    def _learn_labels(self, layout: Layout, rows: Rows) -> None:
        columns = [column for column in layout.words if column.kind == "category"]
        for known, column in zip(self.labels, columns, strict=False):
            for label in rows.categories[column.wire]:
                if label is not None or column.options.missing == "indicator":
                    known.setdefault(label, len(known))

    def learn(self, recipe: Recipe, rows: Rows) -> Any:
        """Learn rows, then turn them into the matrix that :meth:`transform` gives."""
        if not recipe.layout.plain or self.scaler is None:
            self.partial_fit(recipe, rows)
            return self.transform(recipe, rows)
        numbers = rows.number_matrix()
        fast_fit.scale(self.scaler, numbers)
        return fast_predict.transform(self.scaler, numbers)

    def learn_single(self, recipe: Recipe, rows: Rows) -> tuple[Floats, Floats] | None:
        """Learn a single row of numbers; give it as :meth:`transform` did before that, and as it does now.

        None, and nothing learned, where :meth:`transform` and :meth:`learn` have to do it, one after the other.
        """
        if rows.n != 1 or not recipe.layout.plain or self.scaler is None:
            return None
        return fast_fit.scale_single(self.scaler, rows.number_list())

    def transform(self, recipe: Recipe, rows: Rows) -> Any:
        """Turn rows into the estimator's matrix, shape (n, width), columns as :meth:`names` has them.

        For an estimator that counts words by itself it is the texts, shape (n,), a missing one empty.
        """
        layout = recipe.layout
        if layout.plain:
            numbers = rows.number_matrix()
            return numbers if self.scaler is None else fast_predict.transform(self.scaler, numbers)
        if recipe.takes_text:
            return np.array([text or "" for text in rows.categories[0]], dtype=object)
        return self._matrix(recipe, layout, rows)

    def _filled(self, layout: Layout, rows: Rows) -> tuple[Floats, NDArray[np.bool_] | None]:
        """Numbers after expansion, none missing any more; which were, if any may be. Shapes (n, len(places))."""
        numbers = expanded(layout, rows.number_matrix())
        if not layout.gaps:
            return numbers, None
        missing = np.isnan(numbers)
        means = np.zeros(numbers.shape[1])
        if self.means is not None:
            means[layout.averaged] = self.means.values()
        np.copyto(numbers, means, where=missing)
        return numbers, missing

    def _matrix(self, recipe: Recipe, layout: Layout, rows: Rows) -> Floats:
        matrix = np.zeros((rows.n, layout.width))
        if layout.numbers:
            numbers, missing = self._filled(layout, rows)
            if missing is not None and len(layout.flags):
                matrix[:, layout.flags] = missing[:, layout.flagged]
            matrix[:, layout.places] = numbers if self.scaler is None else fast_predict.transform(self.scaler, numbers)
        labels = iter(self.labels)
        for column in layout.words:
            values = rows.categories[column.wire]
            if column.kind == "text":
                _write_text(matrix, column, values)
            elif recipe.encoding == "hash":
                _write_hashes(matrix[:, layout.hashed :], column, values)
            else:
                known = next(labels)
                codes = [known.get(label, UNKNOWN) for label in values]
                if recipe.encoding == "onehot":
                    _mark(matrix[:, column.start : column.start + column.width], codes)
                else:
                    matrix[:, column.start] = codes
        return matrix

    def names(self, recipe: Recipe) -> list[str]:
        """Names of the matrix' columns, in order; none for rows without `features`, or for texts as they are.

        They are the column's; with ``=label`` of a label, ``:hour`` of a part, ``:missing`` of an indicator, and
        ``[place]`` where words or labels are hashed, or a place has no label yet.
        """
        layout = recipe.layout
        if recipe.takes_text:
            return []
        names, labels = [], iter(self.labels)
        for column in layout.columns:
            if column.kind == "text":
                names += [f"{column.name}[{place}]" for place in range(column.width)]
            elif column.kind == "category" and column.width:
                known = list(next(labels)) if recipe.encoding == "onehot" else []
                names += [column.name] if recipe.encoding == "ordinal" else _named(column, known)
            elif column.kind != "category":
                parts = column.parts
                names += [column.name] if parts == PLAIN else [f"{column.name}:{part}" for part in parts]
            names += [] if column.flag is None else [f"{column.name}:missing"]
        return names + [f"hash[{place}]" for place in range(layout.width - layout.hashed)]


def _named(column: Column, known: Sequence[NonNumeric]) -> list[str]:
    shown = ["null" if label is None else str(label) for label in known[: column.width]]
    rest = range(len(shown), column.width)
    return [f"{column.name}={label}" for label in shown] + [f"{column.name}[{place}]" for place in rest]


def expanded(layout: Layout, numbers: Floats) -> Floats:
    """Number columns, shape (n, k), with the parts of times in the place of each time that is to be expanded."""
    if not layout.expands:
        return numbers
    wide = np.empty((numbers.shape[0], len(layout.places)))
    wanted = [(column.wire, part) for column in layout.numbers for part in column.parts]
    for place, (wire, part) in enumerate(wanted):
        wide[:, place] = timestamps.part(numbers[:, wire], part)
    return wide


def _mark(block: Floats, codes: Sequence[int]) -> None:
    """Write codes as rows with a single 1; unknown ones and those beyond the block's width as zeros."""
    width = block.shape[1]
    for row, code in enumerate(codes):
        if 0 <= code < width:
            block[row, code] = 1.0


def _write_hashes(block: Floats, column: Column, labels: Sequence[NonNumeric]) -> None:
    """Hashing trick over "column=label" (Weinberger et al., ICML 2009); of a missing one over the column alone.

    The same numbers as scikit-learn's FeatureHasher gives, which takes 100 µs to begin with.
    """
    width = block.shape[1]
    for row, label in enumerate(labels):
        if label is None and column.options.missing != "indicator":
            continue
        code = murmurhash3_32(column.name if label is None else f"{column.name}={label}")
        block[row, abs(code) % width] += 1.0 if code >= 0 else -1.0


def _write_text(matrix: Floats, column: Column, texts: Sequence[NonNumeric]) -> None:
    """Counts of words as scikit-learn's HashingVectorizer gives them; a missing text has none."""
    if column.flag is not None:
        matrix[:, column.flag] = [text is None for text in texts]
    counts = _vectorizer(column.options).transform([text or "" for text in texts])
    matrix[:, column.start : column.start + column.width] = counts.toarray()


@lru_cache(256)
def _vectorizer(options: Text) -> HashingVectorizer:
    given = asdict(options)
    del given["missing"]
    return HashingVectorizer(**given)
