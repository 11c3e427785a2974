"""The bundle: what is kept of a model (columns, estimator, counters, running error), and its whole life.

::

    new(recipe) ──▶ partial_fit(rows) ──▶ seal(...) ──▶ Redis, snapshots ──▶ unseal(...) ──▶ partial_fit, predict, score

Owns how rows are learned and predicted. Never talks to a store. Invariants: ``predict`` and ``score`` change nothing;
``partial_fit`` does what a plain scikit-learn loop over the same rows does, in the same order of calls; nothing is
unpickled but what we signed for this model (:mod:`keepfit.model.pickling`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np
from sklearn.decomposition import MiniBatchNMF

from keepfit.errors import ConflictError, InvalidError
from keepfit.model import fast_fit, fast_predict, finite, first_call, growth, outputs, parameters, pipeline, scores
from keepfit.model.columns import Columns
from keepfit.model.labels import Labels
from keepfit.model.outputs import Outputs, check_output_count, output_columns
from keepfit.model.prequential import PrequentialScores, combine_outputs
from keepfit.recipe import catalogue
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.security import envelope

# A class that was named and not seen yet has a prior of zero, whose logarithm naive Bayes takes, and a first row no
# variance, by which it divides.
of_zero = partial(np.errstate, divide="ignore", invalid="ignore")


@dataclass(slots=True)
class Bundle:
    """One model's learned state, in memory of one process."""

    recipe: Recipe
    columns: Columns
    labels: Labels | Outputs | None
    estimator: Any
    running: list[PrequentialScores]
    rows_seen: int = 0
    waiting: tuple[Rows, ...] = ()
    changed: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def new(cls, recipe: Recipe) -> Self:
        """Build the bundle of `recipe` that has learned nothing."""
        labels: Labels | Outputs | None = None
        parts = list(recipe.parts)
        if recipe.entry.target == "labels":
            labels = Outputs.from_classes(recipe.classes) if recipe.entry.many else Labels.from_classes(recipe.classes)  # type: ignore[arg-type]
            name, params = parts[-1]
            if isinstance(labels, Labels) and "class_weight" in params:
                parts[-1] = (name, {**params, "class_weight": labels.class_weight_by_code(params["class_weight"])})
        return cls(recipe, Columns.new(recipe), labels, pipeline.build(parts), [])

    @property
    def begun(self) -> bool:
        """Whether the estimator has learned; else `waiting` are all rows so far."""
        return self.rows_seen > 0 and not self.waiting

    def partial_fit(self, rows: Rows) -> None:
        """Predict `rows`, note the error, then learn them in one ``partial_fit`` call, and look what came of it.

        Raises
        ------
        ValueError, TypeError, ArithmeticError, InvalidError
            The estimator's own; the bundle is then half changed and must be thrown away.
        """
        self.learn(rows)
        self.check()

    def learn(self, rows: Rows) -> None:
        """Do what :meth:`partial_fit` does, and leave the look for NaN to :meth:`check`, before anything is kept.

        Where the estimator takes more rows to begin with, they wait in the bundle until there are as many; then the
        first call learns them together.

        Raises
        ------
        ValueError, TypeError, ArithmeticError, InvalidError
            The estimator's own; the bundle is then half changed and must be thrown away.
        """
        if self.labels is None:
            self._take_in(rows)
        else:
            with of_zero():
                self._take_in(rows)
        self.rows_seen += rows.n

    def _take_in(self, rows: Rows) -> None:
        if self.begun:
            self._learn(rows)
        else:
            self._begin(rows)

    def _begin(self, rows: Rows) -> None:
        needed = self._rows_needed(rows)
        if self.rows_seen + rows.n >= needed:
            whole, self.waiting = first_call.joined([*self.waiting, rows]), ()
            self._learn(whole, first=True)
            return
        first_call.check_waiting(self.waiting, rows, needed, labelled=self.labels is not None)
        trial = type(self).new(self.recipe)
        enough = first_call.shrink(trial.estimator)
        trial._learn(first_call.joined([rows] * enough), first=True)
        trial.check()
        self.waiting = (*self.waiting, rows)

    def _rows_needed(self, rows: Rows) -> int:
        return first_call.rows_needed(self.estimator, first_call.matrix_width(self.recipe, rows) or 0)

    def _learn(self, rows: Rows, *, first: bool = False) -> None:
        entry, slots = self.recipe.entry, self._slots()
        y, single = self._target(rows), None
        if not first:
            single = self.columns.partial_fit_transform_row(self.recipe, rows)
            if entry.kind in catalogue.LEARNERS:
                self._note_error(y, self.columns.transform(self.recipe, rows) if single is None else single[0])
            if self.labels is not None:
                self._grow(slots)
        X = pipeline.learn(
            self.estimator, self.columns.partial_fit_transform(self.recipe, rows) if single is None else single[1]
        )
        last = pipeline.last(self.estimator)
        if not entry.takes_y or rows.sample_weight is not None or not fast_fit.partial_fit(last, X, y):
            self._have_learned(last, rows, X, y, first=first)

    def change(self, params: dict[str, Any]) -> None:
        """Change parameters of the estimator, which goes by them from the next rows on.

        Raises
        ------
        InvalidError, ValueError
            If they cannot be; the bundle is then half changed and must be thrown away.
        """
        parameters.make(self.recipe, self.changed, params, self.estimator, self.labels)
        self.changed = {**self.changed, **params}

    def _target(self, rows: Rows, *, learning: bool = True) -> Any:
        """Target of `rows`, shape (n,) or (n, outputs): numbers, or codes of labels, which are learned here."""
        many = self.recipe.entry.many
        if self.labels is None or not isinstance(rows.y, list):
            y = rows.target()
            if not many or y is None:
                return y
            learned = getattr(pipeline.last(self.estimator), "estimators_", None)
            if learned is not None:
                check_output_count(len(learned), len(y) // rows.n)
            return y.reshape(rows.n, -1)
        given: Any = output_columns(rows.y, rows.n) if many else rows.y
        return self.labels.partial_fit_encode(given) if learning else self.labels.encode(given)

    @property
    def label_lists(self) -> list[Labels]:
        """Labels of each output."""
        if isinstance(self.labels, Outputs):
            return self.labels.each
        return [] if self.labels is None else [self.labels]

    def _slots(self) -> list[int]:
        """Classes that the estimator has to have, of each output."""
        return [labels.n_classes for labels in self.label_lists]

    def _grow(self, before: Sequence[int]) -> None:
        now = self._slots()
        if now != before:
            for learner, old, new in zip(pipeline.learners(self.estimator), before, now, strict=True):
                if new > old:
                    growth.grow(learner, new)

    def _have_learned(self, last: Any, rows: Rows, X: Any, y: Any, *, first: bool) -> None:
        """Have scikit-learn do it."""
        optional: dict[str, Any] = {}
        if rows.sample_weight is not None:
            optional["sample_weight"] = rows.weights()
        if self.labels is not None and first:
            classes = [np.arange(slots) for slots in self._slots()]
            optional["classes"] = classes if self.recipe.entry.many else classes[0]
        if self.recipe.entry.takes_y:
            last.partial_fit(X, y, **optional)
        else:
            last.partial_fit(X, **optional)

    def _note_error(self, y: Any, X: Any) -> None:
        """Note the error of predicting `X` before it is learned, where it can be predicted by then."""
        try:
            last = pipeline.last(self.estimator)
            X = pipeline.forward(self.estimator, X)
            predicted = self._settled(fast_predict.predict(last, X))
            chances = fast_predict.predict_proba(last, X) if fast_predict.has_predict_proba(last) else None
        except (ValueError, IndexError):
            # CategoricalNB predicts no category that it has not learned; what is truly wrong, learning will say.
            return
        kind, many = self.recipe.entry.kind, self.recipe.entry.many
        if not self.running:
            self.running = [PrequentialScores(self.recipe.window) for _ in (y.T if many else [y])]
        if not many:
            self.running[0].update(kind, y, predicted, chances)
            return
        for i, running in enumerate(self.running):
            running.update(kind, y[:, i], predicted[:, i], None if chances is None else chances[i])

    def check(self) -> None:
        """Look at all that a commit would store: what rows made infinite would stay so for ever.

        Raises
        ------
        ArithmeticError
            With the name of what is not finite.
        """
        for i, part in enumerate((self.columns.scaler, *pipeline.parts(self.estimator))):
            name = None if part is None else finite.find_non_finite(part)
            if name is not None:
                owners = [self.recipe.scaler, *([name for name, _ in self.recipe.parts] or [self.recipe.name])]
                raise ArithmeticError(f"{name} of {owners[i]} would no longer be finite")
        if not all(running.is_finite for running in self.running):
            raise ArithmeticError("the running error would no longer be finite, so far off are the predictions")

    def predict(self, rows: Rows) -> list[Any]:
        """Predict `rows`: n floats, labels, cluster numbers, 1 or -1, or transformed rows.

        docs/reference/estimators.md says which estimator gives which.

        Raises
        ------
        ConflictError
            If the model has not learned yet, or too little to predict.
        InvalidError
            If the rows have another width than those learned.
        """
        self._check_ready(rows)
        predicted = self._predict(rows)
        predictions: list[Any] = predicted.tolist() if self._named is None else self._named.decode(predicted)
        return predictions

    def chances(self, rows: Rows) -> dict[str, Any]:
        """Tell how sure predictions are: `probabilities` with `classes`, or the `scores` of an outlier detector.

        Raises
        ------
        InvalidError
            If the estimator gives neither.
        """
        if self.recipe.entry.kind != "outlier_detector":
            return {"probabilities": self.predict_proba(rows), "classes": self.classes}
        self._check_ready(rows)
        X = pipeline.forward(self.estimator, self.columns.transform(self.recipe, rows))
        return {"scores": pipeline.last(self.estimator).decision_function(X).tolist()}

    def predict_proba(self, rows: Rows) -> list[Any]:
        """Probabilities of `rows`, shape (n, classes) or n lists of one for each output, in the order of `classes`.

        Raises
        ------
        InvalidError
            If the estimator gives none.
        """
        self._check_ready(rows)
        probabilities = self._probabilities(rows)
        if probabilities is None:
            raise InvalidError(f"{self.recipe.name} with these params gives no probabilities: leave out proba.")
        if isinstance(self.labels, Outputs):
            return self.labels.known_probabilities(probabilities)
        listed: list[list[float]] = (
            probabilities if self.labels is None else self.labels.known_probabilities(probabilities)
        ).tolist()
        return listed

    @property
    def joins(self) -> bool:
        """Whether what is predicted of a row is the same whatever rows are beside it in the call."""
        return not any(isinstance(part, MiniBatchNMF) for part in pipeline.parts(self.estimator))

    @property
    def width(self) -> int | None:
        """Columns of a row as it comes in; None where the first row is to tell."""
        if self.recipe.features is not None:
            return len(self.recipe.features)
        if self.waiting:
            return self.waiting[0].width
        width: int | None = getattr(pipeline.parts(self.estimator)[0], "n_features_in_", None)
        return width

    @property
    def classes(self) -> list[Any]:
        """Labels in the order of the columns of :meth:`predict_proba`, or a list of them for each output."""
        if isinstance(self.labels, Outputs):
            return [list(labels.known) for labels in self.labels.each]
        return [] if self.labels is None else list(self.labels.known)

    @property
    def _named(self) -> Labels | Outputs | None:
        """Labels of what is predicted, if that is labels."""
        return self.labels if self.recipe.entry.kind == "classifier" else None

    def score(self, rows: Rows) -> dict[str, float | None]:
        """Score predictions of `rows` against their target.

        Raises
        ------
        InvalidError
            If the estimator takes no target.
        """
        self._check_ready(rows)
        if self.recipe.entry.kind not in catalogue.LEARNERS:
            raise InvalidError(f"{self.recipe.name} takes no y, so there is nothing to score against.")
        y, predicted = self._target(rows, learning=False), self._predict(rows)
        if self.labels is None:
            if not self.recipe.entry.many:
                return scores.regression_score(y, predicted)
            return outputs.combine_scores(
                [scores.regression_score(y[:, i], predicted[:, i]) for i in range(y.shape[1])]
            )
        chances, slots = self._probabilities(rows), self._slots()
        if not self.recipe.entry.many:
            return scores.classification_score(y, predicted, chances, slots[0])
        each = zip(y.T, predicted.T, chances or [None] * len(slots), slots, strict=True)
        return outputs.combine_scores([scores.classification_score(*one) for one in each])

    @of_zero()
    def _predict(self, rows: Rows) -> Any:
        """Predictions, shape (n,), (n, outputs) or that of transformed rows: labels as their codes."""
        return self._settled(self._answer(self.columns.transform(self.recipe, rows)))

    def _settled(self, predicted: Any) -> Any:
        return predicted if self._named is None else self._named.clip_to_known(predicted)

    def _answer(self, X: Any) -> Any:
        last, X = pipeline.last(self.estimator), pipeline.forward(self.estimator, X)
        return (
            fast_predict.transform(last, X)
            if self.recipe.entry.kind == "transformer"
            else fast_predict.predict(last, X)
        )

    @of_zero()
    def _probabilities(self, rows: Rows) -> Any:
        last = pipeline.last(self.estimator)
        if not fast_predict.has_predict_proba(last):
            return None
        X = pipeline.forward(self.estimator, self.columns.transform(self.recipe, rows))
        return fast_predict.predict_proba(last, X)

    def _check_ready(self, rows: Rows) -> None:
        if not self.rows_seen:
            raise ConflictError("The model has not learned any row yet; send partial_fit first.")
        if self.recipe.features is None and self.width is not None and rows.width != self.width:
            raise InvalidError(f"The rows have {rows.width} values where the model has learned {self.width}.")
        if self.waiting:
            needed = self._rows_needed(self.waiting[0])
            raise ConflictError(
                f"{self.recipe.name} begins to learn with {needed} rows; {self.rows_seen} wait, "
                f"and {needed - self.rows_seen} more are needed."
            )

    @property
    def runtime(self) -> dict[str, str]:
        """Versions that its pickle depends on."""
        return envelope.runtime()

    def metrics(self) -> dict[str, Any]:
        """Prequential metrics over all rows learned so far, and over the last ones."""
        return combine_outputs(self.running, None if self.labels is None else [one.known for one in self.label_lists])
