"""The bundle: everything a model has learned, and how it learns and predicts.

::

    new(recipe) ──▶ partial_fit(rows) ──▶ seal(...) ──▶ Redis, snapshots ──▶ unseal(...) ──▶ partial_fit, predict, score

Owns how rows are learned and predicted. Never accesses a store. Invariants: ``predict`` and ``score`` change nothing;
``partial_fit`` does the same as a plain scikit-learn loop over the same rows, with the same calls in the same order.
Rows come from :mod:`keepfit.model.fit_loop` and the workers; :mod:`keepfit.model.serialization` stores bundles.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np
from sklearn.decomposition import MiniBatchNMF

from keepfit.errors import ConflictError, InvalidError
from keepfit.model import (
    category_check,
    evaluation,
    fast_fit,
    fast_predict,
    finite,
    first_call,
    growth,
    loss_curves,
    outputs,
    parameters,
    pipeline,
    scores,
)
from keepfit.model.columns import Columns
from keepfit.model.labels import Labels
from keepfit.model.learning_curve import LearningCurve
from keepfit.model.outputs import Outputs, check_output_count, output_columns
from keepfit.model.prequential import PrequentialScores, combine_outputs
from keepfit.model.smoothing import smoothed
from keepfit.recipe import catalogue
from keepfit.recipe.recipe import Recipe
from keepfit.rows import served
from keepfit.rows.rows import Rows
from keepfit.scoring import class_labels
from keepfit.security import envelope

# Naive Bayes takes the logarithm of the prior of a class without rows, which is 0, and divides by the variance of a
# first row, which is 0 too.
ignore_zeros = partial(np.errstate, divide="ignore", invalid="ignore")


@dataclass(slots=True)
class Bundle:
    """The learned state of one model.

    `waiting` are the rows collected for the first call of an estimator that needs several; `changed` are the parameters
    changed since the recipe was posted; `prequential` has the scores of each output. `targets` are the names of the
    outputs, where the estimator takes several targets by name. `learned_width` is the width of the rows that an
    uploaded object has learned, which need not have an attribute that tells it. `curve` is the learning curve.
    """

    recipe: Recipe
    columns: Columns
    labels: Labels | Outputs | None
    estimator: Any
    prequential: list[PrequentialScores]
    rows_seen: int = 0
    waiting: tuple[Rows, ...] = ()
    changed: dict[str, Any] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)
    learned_width: int | None = None
    curve: LearningCurve = field(default_factory=LearningCurve)

    @classmethod
    def new(cls, recipe: Recipe) -> Self:
        """Build the bundle of `recipe` that has learned nothing."""
        labels: Labels | Outputs | None = None
        named_steps, classes = list(recipe.named_steps), recipe.classes
        if recipe.entry.target == "labels":
            multi_output = recipe.entry.multi_output
            labels = Outputs.from_classes(classes) if multi_output else Labels.from_classes(classes)  # type: ignore[arg-type]
            name, params = named_steps[-1]
            if isinstance(labels, Labels) and "class_weight" in params:
                weights = labels.class_weight_by_code(params["class_weight"])
                named_steps[-1] = (name, {**params, "class_weight": weights})
        return cls(recipe, Columns.new(recipe), labels, pipeline.build(named_steps), [])

    @property
    def is_fitted(self) -> bool:
        """Whether the estimator has learned; until then `waiting` has all rows."""
        return self.rows_seen > 0 and not self.waiting

    def partial_fit(self, rows: Rows) -> None:
        """Predict `rows`, add to the prequential scores, learn them in one ``partial_fit`` call, and check for NaN.

        Raises
        ------
        ValueError, TypeError, ArithmeticError, InvalidError
            The errors of the estimator. The bundle is then partly changed and must be discarded.
        """
        self.partial_fit_unchecked(rows)
        self.check_finite()

    def partial_fit_unchecked(self, rows: Rows) -> None:
        """Do what :meth:`partial_fit` does without the check; call :meth:`check_finite` before the bundle is stored.

        If the first call of the estimator needs more rows, they are collected in the bundle and learned together.

        Raises
        ------
        ValueError, TypeError, ArithmeticError, InvalidError
            The errors of the estimator. The bundle is then partly changed and must be discarded.
        """
        with nullcontext() if self.labels is None else ignore_zeros():
            self._fit_or_collect(rows)
        self.rows_seen += rows.n

    def _fit_or_collect(self, rows: Rows) -> None:
        if self.is_fitted:
            self._fit(rows)
        else:
            self._fit_first_or_collect(rows)

    def _fit_first_or_collect(self, rows: Rows) -> None:
        needed = self._rows_needed(rows)
        if self.rows_seen + rows.n >= needed:
            all_rows, self.waiting = first_call.concatenate_rows([*self.waiting, rows]), ()
            self._fit(all_rows, first=True)
            return
        first_call.check_waiting(self.waiting, rows, needed, labelled=self.labels is not None)
        # What cannot be learned is rejected with the request that brings it, not later with the rows of others.
        trial = type(self).new(self.recipe)
        trial_rows = first_call.shrink(trial.estimator)
        trial._fit(first_call.concatenate_rows([rows] * trial_rows), first=True)
        trial.check_finite()
        self.waiting = (*self.waiting, served.plain(rows))

    def _rows_needed(self, rows: Rows) -> int:
        return first_call.rows_needed(self.estimator, first_call.matrix_width(self.recipe, rows) or 0)

    def _fit(self, rows: Rows, *, first: bool = False) -> None:
        entry, n_classes = self.recipe.entry, self._n_classes()
        is_supervised, single_row, answers = entry.kind in catalogue.SUPERVISED_KINDS, None, None
        if not first:
            single_row = self.columns.partial_fit_transform_row(self.recipe, rows)
            if is_supervised and rows.served is None:
                # Before the labels of these rows are learned: they must not change what would have been answered.
                matrix = partial(self.columns.transform, self.recipe, rows)
                answers = evaluation.ask(self.estimator, self._answer, matrix, single_row and single_row[0])
        y = self._target(rows)
        if is_supervised:
            answers = evaluation.served(rows, self.labels) or answers
            evaluation.update(self.prequential, self.recipe, y, answers, self.curve, self.rows_seen)
        if not first and self.labels is not None:
            self._grow(n_classes)
        X = self.columns.partial_fit_transform(self.recipe, rows) if single_row is None else single_row[1]
        X = pipeline.fit_transformers(self.estimator, X)
        final = pipeline.final_of(self.estimator)
        category_check.check(self.estimator, X, partial(self.columns.names, self.recipe), learning=True)
        if not entry.takes_y or rows.sample_weight is not None or not fast_fit.partial_fit(final, X, y):
            self._call_partial_fit(final, rows, X, y, first=first)

    def change(self, params: dict[str, Any]) -> None:
        """Change parameters of the estimator, with effect from the next rows on.

        Raises
        ------
        InvalidError, ValueError
            If they cannot be changed. The bundle is then partly changed and must be discarded.
        """
        parameters.apply(self.recipe, self.changed, params, self.estimator, self.labels)
        self.changed = {**self.changed, **params}

    def _target(self, rows: Rows, *, learning: bool = True) -> Any:
        """Return the target of `rows`, shape (n,) or (n, outputs): numbers, or codes of labels.

        With `learning` unknown labels are learned.
        """
        multi_output = self.recipe.entry.multi_output
        if self.labels is None or not isinstance(rows.y, list):
            y = rows.target()
            if not multi_output or y is None:
                return y
            fitted = getattr(pipeline.final_of(self.estimator), "estimators_", None)
            if fitted is not None:
                check_output_count(len(fitted), len(y) // rows.n)
            return y.reshape(rows.n, -1)
        labels: Any = output_columns(rows.y, rows.n) if multi_output else rows.y
        return self.labels.partial_fit_encode(labels) if learning else self.labels.encode(labels)

    @property
    def label_lists(self) -> list[Labels]:
        """Labels of each output."""
        if isinstance(self.labels, Outputs):
            return self.labels.each
        return [] if self.labels is None else [self.labels]

    def _n_classes(self) -> list[int]:
        """Return the number of classes that the estimator must have, for each output."""
        return [labels.n_classes for labels in self.label_lists]

    def _grow(self, before: Sequence[int]) -> None:
        """Add the classes that appeared since the numbers of classes were `before`."""
        now = self._n_classes()
        if now != before:
            for estimator, old, new in zip(pipeline.output_estimators(self.estimator), before, now, strict=True):
                if new > old:
                    growth.grow(estimator, new)

    def _call_partial_fit(self, final: Any, rows: Rows, X: Any, y: Any, *, first: bool) -> None:
        """Call scikit-learn's ``partial_fit``."""
        optional: dict[str, Any] = {}
        if rows.sample_weight is not None:
            optional["sample_weight"] = rows.weights()
        if self.labels is not None and first:
            classes = [np.arange(n_classes) for n_classes in self._n_classes()]
            optional["classes"] = classes if self.recipe.entry.multi_output else classes[0]
        if self.recipe.entry.takes_y:
            final.partial_fit(X, y, **optional)
        else:
            final.partial_fit(X, **optional)
        loss_curves.shorten(final)

    def _answer(self, X: Any) -> tuple[Any, Any]:
        """Return the predictions of `X`, which may be overwritten, and the probabilities of the known labels."""
        final = smoothed(pipeline.final_of(self.estimator))
        X = pipeline.transform(self.estimator, X)
        predicted = self._clipped(fast_predict.predict(final, X))
        has_probabilities = fast_predict.has_predict_proba(final)
        return predicted, self._known(fast_predict.predict_proba(final, X)) if has_probabilities else None

    def _known(self, probabilities: Any) -> Any:
        """Return the probabilities of the known labels, which are those that are answered."""
        return probabilities if self.labels is None else self.labels.known_probabilities(probabilities)

    def check_finite(self) -> None:
        """Check everything that a commit would store for NaN and infinity, which would never go away again.

        Raises
        ------
        ArithmeticError
            With the name of the attribute that is not finite.
        """
        for i, step in enumerate((self.columns.scaler, *pipeline.steps_of(self.estimator))):
            name = None if step is None else finite.find_non_finite(step)
            if name is not None:
                owners = [self.recipe.scaler, *([name for name, _ in self.recipe.named_steps] or [self.recipe.name])]
                raise ArithmeticError(f"{name} of {owners[i]} would no longer be finite")
        if not all(each.is_finite for each in self.prequential):
            raise ArithmeticError("the prequential error would no longer be finite: the predictions are too far off")

    def predict(self, rows: Rows) -> list[Any]:
        """Predict `rows`: n floats, labels, cluster numbers, 1 or -1, or transformed rows.

        docs/reference/estimators.md says which estimator gives which.

        Raises
        ------
        ConflictError
            If the model has not learned enough rows to predict.
        InvalidError
            If the rows have another width than those learned.
        """
        self._check_ready(rows)
        predicted, labels = self._predict(rows), self._predicted_labels
        predictions: list[Any] = predicted.tolist() if labels is None else labels.decode(predicted)
        return predictions

    def confidences(self, rows: Rows) -> dict[str, Any]:
        """Return `probabilities` with `classes`, or for an outlier detector the `scores`.

        Raises
        ------
        InvalidError
            If the estimator has neither.
        """
        if self.recipe.entry.kind != "outlier_detector":
            return {"probabilities": self.predict_proba(rows), "classes": self.classes}
        self._check_ready(rows)
        X = pipeline.transform(self.estimator, self.columns.transform(self.recipe, rows))
        return {"scores": fast_predict.inlier_scores(pipeline.final_of(self.estimator), X).tolist()}

    def predict_proba(self, rows: Rows) -> list[Any]:
        """Return probabilities of `rows`, shape (n, classes) or n lists of one per output, in the order of `classes`.

        Raises
        ------
        InvalidError
            If the estimator has none.
        """
        self._check_ready(rows)
        probabilities = self._probabilities(rows)
        if probabilities is None:
            raise InvalidError(f"{self.recipe.name} with these params has no probabilities: leave out proba.")
        if isinstance(self.labels, Outputs):
            return class_labels.by_row(probabilities)
        listed: list[list[float]] = probabilities.tolist()
        return listed

    @property
    def predicts_rows_independently(self) -> bool:
        """Whether the prediction of a row does not depend on the other rows of the call."""
        return not any(isinstance(step, MiniBatchNMF) for step in pipeline.steps_of(self.estimator))

    @property
    def width(self) -> int | None:
        """Number of values of a row; None if neither the recipe nor rows have told it."""
        if self.recipe.features is not None:
            return len(self.recipe.features)
        if self.waiting:
            return self.waiting[0].width
        width: int | None = getattr(pipeline.steps_of(self.estimator)[0], "n_features_in_", None)
        return width

    @property
    def classes(self) -> list[Any]:
        """Labels in the order of the columns of :meth:`predict_proba`, or a list for each output."""
        if isinstance(self.labels, Outputs):
            return [list(labels.known) for labels in self.labels.each]
        return [] if self.labels is None else list(self.labels.known)

    @property
    def _predicted_labels(self) -> Labels | Outputs | None:
        """The labels that predictions name; None if predictions are not labels."""
        return self.labels if self.recipe.entry.kind == "classifier" else None

    def score(self, rows: Rows) -> dict[str, float | None]:
        """Score predictions of `rows` against their target.

        Raises
        ------
        InvalidError
            If the estimator takes no target.
        """
        self._check_ready(rows)
        if self.recipe.entry.kind not in catalogue.SUPERVISED_KINDS:
            raise InvalidError(f"{self.recipe.name} takes no y: there is nothing to score against.")
        y, labelled = self._target(rows, learning=False), self.labels is not None
        with ignore_zeros():
            answers = evaluation.ask(self.estimator, self._answer, partial(self.columns.transform, self.recipe, rows))
        if answers is None:
            # Raises why no row can be predicted.
            answers = evaluation.Answers(None, self._predict(rows), None)
        if answers.rows is not None:
            y = y[answers.rows]
        if not self.recipe.entry.multi_output:
            return scores.score(y, answers.predicted, answers.probabilities, labelled=labelled, rows=rows.n)
        each = zip(y.T, answers.predicted.T, answers.probabilities or [None] * y.shape[1], strict=True)
        return outputs.combine_scores([scores.score(*one, labelled=labelled, rows=rows.n) for one in each])

    @ignore_zeros()
    def _predict(self, rows: Rows) -> Any:
        """Return predictions, shape (n,), (n, outputs) or that of transformed rows; labels as codes."""
        return self._clipped(self._predict_matrix(self.columns.transform(self.recipe, rows)))

    def _clipped(self, predicted: Any) -> Any:
        return predicted if self._predicted_labels is None else self._predicted_labels.clip_to_known(predicted)

    def _predict_matrix(self, X: Any) -> Any:
        final, X = smoothed(pipeline.final_of(self.estimator)), pipeline.transform(self.estimator, X)
        category_check.check(self.estimator, X, partial(self.columns.names, self.recipe), learning=False)
        return (
            fast_predict.transform(final, X)
            if self.recipe.entry.kind == "transformer"
            else fast_predict.predict(final, X)
        )

    @ignore_zeros()
    def _probabilities(self, rows: Rows) -> Any:
        """Return the probabilities of the known labels, or a list of those of each output; None if there are none."""
        final = smoothed(pipeline.final_of(self.estimator))
        if not fast_predict.has_predict_proba(final):
            return None
        X = pipeline.transform(self.estimator, self.columns.transform(self.recipe, rows))
        category_check.check(self.estimator, X, partial(self.columns.names, self.recipe), learning=False)
        return self._known(fast_predict.predict_proba(final, X))

    def _check_ready(self, rows: Rows) -> None:
        if not self.rows_seen:
            raise ConflictError("The model has not learned any row yet; send partial_fit first.")
        if self.recipe.features is None and self.width is not None and rows.width != self.width:
            raise InvalidError(f"The rows have {rows.width} values where the model has learned {self.width}.")
        if self.waiting:
            needed = self._rows_needed(self.waiting[0])
            raise ConflictError(
                f"{self.recipe.name} needs {needed} rows for its first call; {self.rows_seen} are waiting, "
                f"{needed - self.rows_seen} more are needed."
            )

    @property
    def runtime(self) -> dict[str, str]:
        """Versions that the pickle of the bundle depends on."""
        return envelope.runtime()

    def metrics(self) -> dict[str, Any]:
        """Return prequential metrics over all rows learned so far, and over the last ones."""
        return combine_outputs(self.prequential, [one.known for one in self.label_lists] or None)
