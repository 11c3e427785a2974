"""The bundle of an uploaded object: the code of the object learns and predicts.

Owns how rows become calls of that code, and how its results and exceptions become those of a bundle. Never lets it end
a worker: whatever it raises is an error of the request. Invariants: a copy of the object predicts, so that a
``predict`` which changes the object never changes what is committed; only :mod:`keepfit.model.pickling` unpickles it.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from keepfit.errors import (
    ConflictError,
    EnvelopeError,
    InvalidError,
    KeepfitError,
    UnknownKeyError,
    describe_error,
)
from keepfit.model import (
    evaluation,
    finite,
    loss_curves,
    new_code,
    object_targets,
    pickling,
    river_adapter,
    scores,
    sklearn_pipeline,
)
from keepfit.model.bundle import Bundle
from keepfit.model.columns import Columns
from keepfit.model.evaluation import Answers
from keepfit.model.labels import Labels
from keepfit.model.object_answers import (
    Asked,
    AskedObject,
    Probabilities,
    as_sent,
    by_code,
    codes_of,
    is_unchanged_by_questions,
    numbers_of,
    own_classes,
    seed_globals,
    served,
)
from keepfit.model.object_calls import only_exceptions, parameters_of
from keepfit.model.outputs import Outputs
from keepfit.model.prequential import PrequentialScores
from keepfit.recipe import uploads
from keepfit.recipe.patch import KEEP, OBJECT, STATE, with_changes
from keepfit.recipe.recipe import CLASSES_MAX, Recipe
from keepfit.recipe.uploads import ObjectHeader
from keepfit.rows.free_rows import values_of
from keepfit.rows.rows import Rows
from keepfit.security import envelope
from keepfit.security.envelope import Keyring


def new_bundle(recipe: Recipe, keyring: Keyring | None) -> Bundle:
    """Build the bundle of any `recipe` that has learned nothing; `keyring` has the upload keys.

    Raises
    ------
    EnvelopeError
        If no upload key signed its object, or it was uploaded trained; RuntimeMismatchError if the object cannot be
        loaded here.
    """
    if recipe.object is None:
        return Bundle.new(recipe)
    if uploads.trained_file(recipe.object) is not None:
        raise EnvelopeError(
            "The model had learned before it was uploaded, so a new bundle would lack that: it is in its "
            "snapshots, none of which is good. Upload it again."
        )
    if keyring is None:
        raise UnknownKeyError(
            "The model is an uploaded object, and this worker has no KEEPFIT_UPLOAD_KEYS to verify it."
        )
    data = uploads.decode(recipe.object)
    _, uploaded = pickling.load(data, keyring, ObjectHeader, envelope.OBJECT, lambda header: None)
    classes: Any = recipe.classes
    labels: Labels | Outputs | None = None
    if recipe.entry.kind == "classifier":
        labels = Outputs() if recipe.entry.multi_output else Labels.from_classes(classes)
    bundle = ObjectBundle(recipe, Columns.new(recipe), labels, uploaded, [])
    bundle.upload_keys = keyring
    return bundle


class ObjectBundle(Bundle):
    """A bundle whose estimator is an uploaded object. A copy of it predicts, which is made at the first prediction."""

    __slots__ = ("_copy", "_freely", "upload_keys")

    def __init__(self, recipe: Recipe, *fields: Any, **named_fields: Any) -> None:
        # Workers cache thousands of bundles, which need only the header of the object.
        short_recipe = msgspec.structs.replace(recipe, object=uploads.head(recipe.object or ""))
        super().__init__(short_recipe, *fields, **named_fields)
        self.recipe = with_changes(self.recipe, self.changed)
        # Those that a change of the code must be signed with; None: this process makes no such change.
        self.upload_keys: Keyring | None = None

    def change(self, params: dict[str, Any]) -> None:
        """Replace the code of the object; raise as :func:`new_code.apply` does."""
        if OBJECT in params:
            with only_exceptions():
                new_code.apply(self, params[OBJECT], params.get(STATE, KEEP))
        else:
            Bundle.change(self, params)

    def replace_object(self, new: Any, changed: dict[str, Any]) -> None:
        """Put the object `new`, which `changed` describes, in the place of the present one."""
        self.estimator, self.changed, self.recipe = new, changed, with_changes(self.recipe, changed)
        self._copy: ObjectBundle | None = None
        self._freely: bool | None = None

    def partial_fit_unchecked(self, rows: Rows) -> None:
        """Learn with the check, which compares the object's numbers before and after."""
        self.partial_fit(rows)

    def check_finite(self) -> None:
        """Do nothing: :meth:`partial_fit_unchecked` has checked."""

    def partial_fit(self, rows: Rows) -> None:
        """Predict `rows`, add to the prequential scores, then let the object learn them.

        Raises
        ------
        Exception
            The errors of the object. The bundle is then partly changed and must be discarded.
        """
        # Even if learning fails: the copy must not answer for an object that has changed.
        self._copy = None
        if self.recipe.entry.takes_y:
            asked = self._ask(rows) if rows.served is None else served(rows, self.rows_seen)
            if self.recipe.entry.multi_output:
                self._update_target_scores(rows, asked)
            else:
                self._update_object_scores(self._target(rows), asked)
        else:
            seed_globals(self.rows_seen)
        finite_before = self._finite_attributes()
        with only_exceptions():
            self._fit_object(rows)
            loss_curves.shorten(self.estimator)
        self.rows_seen += rows.n
        self.learned_width = rows.width
        overflowed = sorted(finite_before - self._finite_attributes())
        if overflowed:
            raise ArithmeticError(f"{overflowed[0][1]} of {self.recipe.name} would no longer be finite")

    def _finite_attributes(self) -> set[tuple[int, str]]:
        """Return the step and name of each attribute that holds numbers, all of them finite."""
        steps = enumerate(sklearn_pipeline.steps_of(self.estimator))
        return {(position, name) for position, step in steps for name in finite.finite_attributes(step)}

    def _fit_object(self, rows: Rows) -> None:
        """Call the object's ``partial_fit`` once, or its ``learn_one`` for each row."""
        takes_y = self.recipe.entry.takes_y
        if self._header.calls != "partial_fit":
            y = river_adapter.target_values(self.recipe, rows) if takes_y else None
            dicts = river_adapter.to_dicts(self.recipe, rows)
            river_adapter.learn(self.estimator, self._header.calls, dicts, y, rows.weights())
            return
        self.columns.partial_fit(self.recipe, rows)
        X = self.columns.transform(self.recipe, rows)
        optional: dict[str, Any] = {}
        if rows.sample_weight is not None:
            optional["sample_weight"] = rows.weights()
        if not self.rows_seen and self.recipe.classes and "classes" in parameters_of(self.estimator.partial_fit):
            optional["classes"] = np.array(sorted(self.recipe.classes))
        target = (object_targets.matrix_target(rows),) if takes_y else ()
        sklearn_pipeline.partial_fit(self.estimator, X, *target, **optional)

    def _ask(self, rows: Rows) -> list[Asked]:
        """Return what the object answers to `rows`, which it learns next; if need be in parts, or nothing.

        An object that has learned nothing is asked once.
        """
        asked = self._asked
        try:
            with only_exceptions():
                if getattr(self, "_freely", None) is None:
                    self._freely = is_unchanged_by_questions(self.estimator)
                copied = asked if self._freely else asked.copy_for_probabilities()
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - real faults are raised while learning
            return []

        def ask_part(part: slice) -> tuple[list[Any], Probabilities | None] | None:
            try:
                with only_exceptions():
                    return asked.ask(rows.part(part.start, part.stop), self.rows_seen, copied)
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001 - real faults are raised while learning
                return None

        found = evaluation.ask_in_parts(rows.n, ask_part, evaluation.QUESTIONS_MAX if self.has_learned else 1)
        return [Asked(list(range(part.start, part.stop)), *answered) for part, answered in found]

    def _update_object_scores(self, y: Any, asked: Sequence[Asked]) -> None:
        """Add the answers to the scores, then let their baseline learn `y`."""
        kind, labels = self.recipe.entry.kind, self._known_labels
        if not self.prequential:
            self.prequential.append(PrequentialScores.of_output(0, self.recipe.window))
        answers = []
        for positions, values, found in asked:
            answered = [i for i, value in enumerate(values) if value is not None]
            if labels is None:
                predicted, probabilities = numbers_of(values)[answered], None
            else:
                predicted = codes_of([values[i] for i in answered], labels)
                probabilities = None if found is None else by_code(found, labels)[answered]
            answers.append(Answers([positions[i] for i in answered], predicted, probabilities))
        evaluation.add(self.prequential, kind, [y], [answers], self.curve, self.rows_seen)
        self.prequential[0].learn(kind, y)

    def _update_target_scores(self, rows: Rows, asked: Sequence[Asked]) -> None:
        """Add the answers about several targets to the scores of each."""
        found = self._targets(rows)
        self.targets = object_targets.names_of(found, self.targets)
        labels = self.labels.each if isinstance(self.labels, Outputs) else None
        object_targets.update(self, self.prequential, labels, found, asked)

    def _targets(self, rows: Rows) -> list[object_targets.Targets]:
        return [object_targets.by_name(values_of(str(text))) for text in rows.y or ()]

    def _score_targets(self, rows: Rows) -> scores.Score:
        found = self._targets(rows)
        labels = self.labels.each if isinstance(self.labels, Outputs) else None
        names = object_targets.names_of(found, self.targets)
        asked = self._ask(rows)
        if not asked:
            # Raises why no row can be predicted.
            self._asked.predict(rows)
        return object_targets.score(asked, found, names, labels)

    def _answers(self, rows: Rows) -> list[Any]:
        """Return the predictions of this object itself, with labels in the form in which they were sent."""
        values = self._asked.predict(rows)
        if not isinstance(self.labels, Outputs):
            return values
        return object_targets.answers_as_sent(values, self.targets, self.labels.each)

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of :meth:`Bundle.metrics`, with the name of each of several targets under `target`."""
        found = Bundle.metrics(self)
        for name, of_output in zip(self.targets, found.get("outputs", ()), strict=False):
            of_output["target"] = name
        return found

    def _target(self, rows: Rows, *, learning: bool = True) -> Any:
        """Return the target of `rows`: numbers, or codes of labels, after those of the object's own classes."""
        return rows.target() if self._known_labels is None else self._codes(rows, self._known_labels)

    def _codes(self, rows: Rows, labels: Labels) -> Any:
        """Return the codes of the labels of `rows`; `labels` learns those, and before them the object's own classes."""
        own = as_sent((own_classes(self.estimator) or []) if self._header.calls == "partial_fit" else [], labels.known)
        codes_of(own, labels, CLASSES_MAX)
        return labels.partial_fit_encode(as_sent(list(rows.y or []), own))

    def predict(self, rows: Rows) -> list[Any]:
        """Predict `rows`: the object's value for each as JSON; None where it has none yet.

        Raises
        ------
        ConflictError
            If the object has learned nothing and cannot predict before.
        InvalidError
            If it cannot predict these rows.
        """
        predictions: list[Any] = self._call_copy(rows, lambda bundle: bundle._answers(rows))
        return predictions

    def confidences(self, rows: Rows) -> dict[str, Any]:
        """Return `probabilities` with `classes`; raises what :meth:`predict` raises."""
        found: Probabilities | None = self._call_copy(rows, lambda bundle: bundle._asked.probabilities(rows))
        if found is None:
            raise InvalidError(f"{self.recipe.name} has no probabilities: leave out proba.")
        return {"probabilities": found.rows, "classes": found.classes}

    def predict_proba(self, rows: Rows) -> list[list[float]]:
        """Return the `probabilities` of :meth:`confidences`, shape (n, classes)."""
        listed: list[list[float]] = self.confidences(rows)["probabilities"]
        return listed

    def score(self, rows: Rows) -> dict[str, float | None]:
        """Score predictions of `rows` against their target; raises what :meth:`predict` raises."""
        if not self.recipe.entry.takes_y:
            raise InvalidError(f"{self.recipe.name} takes no y: there is nothing to score against.")
        scored: dict[str, float | None] = self._call_copy(rows, lambda bundle: bundle._score_own(rows))
        return scored

    def _score_own(self, rows: Rows) -> dict[str, float | None]:
        """Return the scores of this object itself; raises its error if it can predict no row."""
        if self.recipe.entry.multi_output:
            return self._score_targets(rows)
        asked, known = self._ask(rows), self._known_labels
        if not asked:
            # Raises why no row can be predicted.
            self._asked.predict(rows)
        positions = [position for each in asked for position in each.positions]
        values = [value for each in asked for value in each.values]
        if known is None:
            return scores.score(rows.target()[positions], numbers_of(values), labelled=False, rows=rows.n)
        # A copy: a score does not learn labels.
        labels = Labels(list(known.known), dict(known.codes))
        y = self._codes(rows, labels)
        answered = [i for i, value in enumerate(values) if value is not None]
        predicted = codes_of([values[i] for i in answered], labels)
        none = np.full((1, len(labels.known)), np.nan)
        of_parts = [
            none.repeat(len(each.positions), 0) if each.probabilities is None else by_code(each.probabilities, labels)
            for each in asked
        ]
        probabilities = np.concatenate([none, *of_parts])[1:][answered]
        return scores.score(y[positions][answered], predicted, probabilities, labelled=True, rows=rows.n)

    @property
    def classes(self) -> list[Any]:
        """Labels in the order of the columns of :meth:`predict_proba`."""
        own = own_classes(self.estimator) if self._header.calls == "partial_fit" else None
        known = [] if self._known_labels is None else list(self._known_labels.known)
        return known if own is None else as_sent(own, known)

    @property
    def _asked(self) -> AskedObject:
        known = [] if self._known_labels is None else self._known_labels.known
        return AskedObject(self.estimator, self.recipe, self.columns, self._header.calls, known)

    @property
    def predicts_rows_independently(self) -> bool:
        """Whether requests may share a call: not with a trained object, which answers to the bit as elsewhere."""
        return self._header.trained is None and Bundle.predicts_rows_independently.__get__(self) is True

    @property
    def width(self) -> int | None:
        """Number of values of a row; None if neither the recipe nor rows have told it."""
        width = Bundle.width.__get__(self)
        return width if type(width) is int else self.learned_width

    @property
    def runtime(self) -> dict[str, str]:
        """Versions that the pickle of the bundle depends on."""
        return envelope.runtime(*(name for name in self._header.runtime if name not in envelope.LIBRARIES))

    @property
    def _known_labels(self) -> Labels | None:
        """The labels that a classifier has learned; None of other kinds."""
        return self.labels if isinstance(self.labels, Labels) else None

    @property
    def _header(self) -> ObjectHeader:
        return uploads.header_of(self.recipe.object or "")

    @property
    def has_learned(self) -> bool:
        """Whether the object has learned, here or before it was uploaded."""
        return self.rows_seen > 0 or self._header.trained is not None

    def _check_ready(self, rows: Rows) -> None:
        """Check the width; an object that has learned nothing here may still be able to predict."""
        width = self.width
        if self.has_learned and self.recipe.features is None and width is not None and rows.width != width:
            raise InvalidError(f"The rows have {rows.width} values where the model has learned {width}.")

    def _call_copy(self, rows: Rows, call: Callable[["ObjectBundle"], Any]) -> Any:
        """Return the result of `call` with the copy; report whatever the object raises as an error of `rows`."""
        try:
            with only_exceptions():
                self._check_ready(rows)
                if getattr(self, "_copy", None) is None:
                    self._copy = ObjectBundle(
                        **{f.name: getattr(self, f.name) for f in dataclasses.fields(Bundle)}
                        | {"estimator": copy.deepcopy(self.estimator)}
                    )
                with sklearn_pipeline.without_names_warning(self.estimator):
                    return call(self._copy)  # type: ignore[arg-type]
        except (MemoryError, InvalidError, ConflictError):
            raise
        except Exception as error:  # noqa: BLE001 - an object may raise any exception
            reason = str(error) if isinstance(error, KeepfitError) else describe_error(error)
            if not self.has_learned:
                raise ConflictError(
                    f"The model has not learned any row yet; send partial_fit first. {self.recipe.name} cannot "
                    f"predict before: {reason}"
                ) from None
            raise InvalidError(f"{self.recipe.name} cannot predict these rows: {reason}") from None
