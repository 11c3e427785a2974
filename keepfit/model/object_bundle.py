"""The bundle of an uploaded object: the code of the object learns and predicts.

Owns how rows become calls of that code, and how its results and exceptions become those of a bundle. Never lets it end
a worker: whatever it raises is an error of the request. Invariants: a copy of the object predicts, so that a
``predict`` which changes the object never changes what is committed; only :mod:`keepfit.model.pickling` unpickles it.
"""

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np

from keepfit.errors import ConflictError, InvalidError, KeepfitError, LearningError, UnknownKeyError, describe_error
from keepfit.model import pickling, river_adapter
from keepfit.model.bundle import Bundle
from keepfit.model.columns import Columns
from keepfit.model.labels import BOOLEAN_KEYS, Labels
from keepfit.model.prequential import NO_LABEL, PrequentialScores
from keepfit.recipe import uploads
from keepfit.recipe.recipe import Recipe
from keepfit.recipe.uploads import ObjectHeader
from keepfit.rows.rows import Rows
from keepfit.rows.values import NUMBER_MAX
from keepfit.security import envelope
from keepfit.security.envelope import Keyring

INTEGER_BITS_MAX = 63


def new_bundle(recipe: Recipe, keyring: Keyring | None) -> Bundle:
    """Build the bundle of any `recipe` that has learned nothing; `keyring` has the upload keys.

    Raises
    ------
    EnvelopeError
        If no upload key signed its object; RuntimeMismatchError if the object cannot be loaded here.
    """
    if recipe.object is None:
        return Bundle.new(recipe)
    if keyring is None:
        raise UnknownKeyError(
            "The model is an uploaded object, and this worker has no KEEPFIT_UPLOAD_KEYS to verify it."
        )
    data = uploads.decode(recipe.object)
    _, uploaded = pickling.load(data, keyring, ObjectHeader, envelope.OBJECT, lambda header: None)
    classes: Any = recipe.classes
    labels = Labels.from_classes(classes) if recipe.entry.kind == "classifier" else None
    return ObjectBundle(recipe, Columns.new(recipe), labels, uploaded, [])


@contextmanager
def only_exceptions() -> Iterator[None]:
    """Convert SystemExit, KeyboardInterrupt and the like to LearningError; signals of the worker raise none of them."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:  # noqa: BLE001 - an object may raise any exception
        raise LearningError(f"it raised {describe_error(error)}") from None


class ObjectBundle(Bundle):
    """A bundle whose estimator is an uploaded object. A copy of it predicts, which is made at the first prediction."""

    __slots__ = ("_copy",)

    def __init__(self, recipe: Recipe, *fields: Any, **named_fields: Any) -> None:
        # Workers cache thousands of bundles, which need only the header of the object.
        short_recipe = msgspec.structs.replace(recipe, object=uploads.head(recipe.object or ""))
        super().__init__(short_recipe, *fields, **named_fields)

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
        self._copy: ObjectBundle | None = None
        y = self._target(rows)
        if self.recipe.entry.takes_y and self.rows_seen:
            self._update_object_scores(rows, y)
        finite_before = _finite_attributes(self.estimator)
        with only_exceptions():
            self._fit_object(rows)
        self.rows_seen += rows.n
        overflowed = sorted(finite_before - _finite_attributes(self.estimator))
        if overflowed:
            raise ArithmeticError(f"{overflowed[0]} of {self.recipe.name} would no longer be finite")

    def _fit_object(self, rows: Rows) -> None:
        """Call the object's ``partial_fit`` once, or its ``learn_one`` for each row."""
        takes_y = self.recipe.entry.takes_y
        if self._header.calls != "partial_fit":
            y = river_adapter.target_values(rows) if takes_y else None
            dicts = river_adapter.to_dicts(self.recipe, rows)
            river_adapter.learn(self.estimator, self._header.calls, dicts, y, rows.weights())
            return
        self.columns.partial_fit(self.recipe, rows)
        X = self.columns.transform(self.recipe, rows)
        optional: dict[str, Any] = {}
        if rows.sample_weight is not None:
            optional["sample_weight"] = rows.weights()
        if not self.rows_seen and self.recipe.classes and "classes" in _parameters(self.estimator.partial_fit):
            optional["classes"] = np.array(sorted(self.recipe.classes))
        if takes_y:
            self.estimator.partial_fit(X, _target(rows), **optional)
        else:
            self.estimator.partial_fit(X, **optional)

    def _update_object_scores(self, rows: Rows, y: Any) -> None:
        """Add predictions of `rows` to the scores; none are added if the object predicts nothing yet, or fails."""
        try:
            with only_exceptions():
                predicted, probabilities = self._predict(rows), self._probabilities(rows)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - real faults are raised while learning
            return
        if not self.prequential:
            self.prequential.append(PrequentialScores(self.recipe.window))
        self.prequential[0].update(self.recipe.entry.kind, y, predicted, probabilities)

    def predict(self, rows: Rows) -> list[Any]:
        """Predict `rows`: the object's value for each as JSON; None where it has none yet."""
        predictions: list[Any] = self._call_copy(rows, lambda bundle: bundle._values(rows))
        return predictions

    def confidences(self, rows: Rows) -> dict[str, Any]:
        """Return `probabilities` with `classes`."""
        return {"probabilities": self.predict_proba(rows), "classes": self.classes}

    def predict_proba(self, rows: Rows) -> list[list[float]]:
        """Return probabilities of `rows`, shape (n, classes), in the order of :attr:`classes`."""
        listed: list[list[float]] | None = self._call_copy(rows, lambda bundle: bundle._listed_probabilities(rows))
        if listed is None:
            raise InvalidError(f"{self.recipe.name} has no probabilities: leave out proba.")
        return listed

    def score(self, rows: Rows) -> dict[str, float | None]:
        """Score predictions of `rows` against their target."""
        scored: dict[str, float | None] = self._call_copy(rows, lambda bundle: Bundle.score(bundle, rows))
        return scored

    @property
    def classes(self) -> list[Any]:
        """Labels in the order of the columns of :meth:`predict_proba`."""
        own = getattr(self.estimator, "classes_", None) if self._header.calls == "partial_fit" else None
        known = [] if self._known_labels is None else list(self._known_labels.known)
        return known if own is None else [as_json(label) for label in own]

    @property
    def width(self) -> int | None:
        """Number of values of a row; None if neither the recipe nor rows have told it."""
        width = Bundle.width.__get__(self)
        return width if type(width) is int else None

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
                return call(self._copy)  # type: ignore[arg-type]
        except (MemoryError, InvalidError, ConflictError):
            raise
        except Exception as error:  # noqa: BLE001 - an object may raise any exception
            reason = str(error) if isinstance(error, KeepfitError) else describe_error(error)
            raise InvalidError(f"{self.recipe.name} cannot predict these rows: {reason}") from None

    def _values(self, rows: Rows) -> list[Any]:
        """Return predictions by this object itself, as JSON."""
        if self._header.calls == "partial_fit":
            X = self.columns.transform(self.recipe, rows)
            # The prediction of a transformer is the transformed row.
            call = self.estimator.transform if self.recipe.entry.kind == "transformer" else self.estimator.predict
            found = call(X)
        else:
            kind, known = self.recipe.entry.kind, [] if self._known_labels is None else self._known_labels.known
            dicts = river_adapter.to_dicts(self.recipe, rows)
            found = river_adapter.predict(self.estimator, self._header.calls, kind, dicts, known)
        values = as_json(found)
        if type(values) is not list or len(values) != rows.n:
            raise ValueError(f"predict returned {_describe_count(values)} for {rows.n} rows")
        return values

    def _predict(self, rows: Rows) -> Any:
        """Return predictions by this object itself, shape (n,); labels as codes.

        Raises
        ------
        ValueError
            If a row has none, or the square of one is not finite.
        """
        found = self._values(rows)
        if None in found:
            raise ValueError("a row has no prediction")
        if self._known_labels is not None:
            codes = self._known_labels.codes
            return np.array([codes.get(_key(label), NO_LABEL) for label in found], dtype=np.int64)
        values = np.array(found, dtype=np.float64)
        if values.shape != (rows.n,) or not (np.abs(values) <= NUMBER_MAX).all():
            raise ValueError("the prediction of a row is not a number, or too large")
        return values

    def _listed_probabilities(self, rows: Rows) -> list[list[float]] | None:
        """Return probabilities by this object itself, in the order of :attr:`classes`; None if it has none."""
        if self._known_labels is None:
            return None
        if self._header.calls != "partial_fit":
            dicts = river_adapter.to_dicts(self.recipe, rows)
            return river_adapter.predict_proba(self.estimator, self._header.calls, dicts, self.classes)
        if not hasattr(self.estimator, "predict_proba") or getattr(self.estimator, "classes_", None) is None:
            return None
        X = self.columns.transform(self.recipe, rows)
        probabilities = np.asarray(self.estimator.predict_proba(X), dtype=np.float64)
        if probabilities.shape != (rows.n, len(self.classes)):
            raise ValueError(f"predict_proba returned the shape {probabilities.shape}")
        listed: list[list[float]] = probabilities.tolist()
        return listed

    def _probabilities(self, rows: Rows) -> Any:
        """Return probabilities in the order of the labels' codes, shape (n, n_classes); None if the object has none."""
        listed = self._listed_probabilities(rows)
        if listed is None or self._known_labels is None:
            return None
        by_code = np.zeros((rows.n, self._known_labels.n_classes))
        for column, label in enumerate(self.classes):
            code = self._known_labels.codes.get(_key(label), NO_LABEL)
            if code != NO_LABEL:
                by_code[:, code] = [row[column] for row in listed]
        return by_code


def as_json(value: Any) -> Any:
    """Return `value` as JSON: numbers, text, booleans, None, lists, and objects whose keys are text.

    Raises
    ------
    TypeError
        If it has no JSON form.

    >>> as_json(np.array([[1, 2]])), as_json({0: np.float64(0.5), "a": None}), as_json(float("nan"))
    ([[1, 2]], {'0': 0.5, 'a': None}, None)
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | str):
        return value if value is None or type(value) in (bool, str) else str(value)
    if isinstance(value, int) and value.bit_length() <= INTEGER_BITS_MAX:
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    if isinstance(value, dict):
        return {str(key): as_json(each) for key, each in value.items()}
    raise TypeError(f"it returned {type(value).__name__}, which has no JSON form")


def _describe_count(values: Any) -> str:
    return f"{len(values)} values" if type(values) is list else type(values).__name__


def _key(label: Any) -> Any:
    """Return the key of a label in the label list; None if it cannot be a label."""
    return BOOLEAN_KEYS[label] if type(label) is bool else label if type(label) in (str, int) else None


def _target(rows: Rows) -> Any:
    """Return the target of `rows` as scikit-learn takes it; labels unchanged."""
    if not isinstance(rows.y, list) or len(set(map(type, rows.y))) == 1:
        return rows.target()
    mixed = np.empty(len(rows.y), dtype=object)
    mixed[:] = rows.y
    return mixed


def _parameters(method: Any) -> Sequence[str]:
    try:
        return list(inspect.signature(method).parameters)
    except (TypeError, ValueError):
        return []


def _finite_attributes(learner: Any) -> set[str]:
    """Return the names of the attributes that hold numbers, all of them finite."""
    attributes: dict[str, Any] = getattr(learner, "__dict__", {})
    numbers = {name: value for name, value in attributes.items() if isinstance(value, np.ndarray | float)}
    return {name for name, value in numbers.items() if _is_finite(value)}


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())
