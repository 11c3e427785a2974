"""The bundle of an object that a Python user sent: what is learned and predicted is the object's own code.

Owns how rows become calls of that code, and what may come of them. Never lets it end a worker: whatever it raises is an
error about the request. Invariants: an object is asked by a copy of itself, so that a ``predict`` which changes the
object changes nothing that is ever committed; it is unpickled only by :mod:`keepfit.model.pickling`.
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
from keepfit.model import pickling
from keepfit.model import river_adapter as streams
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


def begin(recipe: Recipe, keyring: Keyring | None) -> Bundle:
    """Build the bundle of `recipe` that has learned nothing, whatever it names; `keyring` has the upload keys.

    Raises
    ------
    EnvelopeError
        If it is an object that none of the upload keys signed; RuntimeMismatchError if it cannot be loaded here.
    """
    if recipe.object is None:
        return Bundle.new(recipe)
    if keyring is None:
        raise UnknownKeyError("The model is an object, and this worker has no KEEPFIT_UPLOAD_KEYS to verify it with.")
    data = uploads.signed(recipe.object)
    _, learner = pickling.load(data, keyring, ObjectHeader, envelope.OBJECT, lambda header: None)
    classes: Any = recipe.classes
    labels = Labels.from_classes(classes) if recipe.entry.kind == "classifier" else None
    return ObjectBundle(recipe, Columns.new(recipe), labels, learner, [])


@contextmanager
def contained() -> Iterator[None]:
    """Turn what is no ``Exception`` (SystemExit, KeyboardInterrupt) into one; a worker's own signals raise nothing."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:  # noqa: BLE001 - an object may raise anything
        raise LearningError(f"it raised {describe_error(error)}") from None


class ObjectBundle(Bundle):
    """A bundle whose estimator is somebody else's; `reader` is the copy that answers, made when first asked."""

    __slots__ = ("_reader",)

    def __init__(self, recipe: Recipe, *parts: Any, **named: Any) -> None:
        # Of the object itself nothing is needed any more, and bundles are kept by the thousand.
        short = msgspec.structs.replace(recipe, object=uploads.head(recipe.object or ""))
        super().__init__(short, *parts, **named)

    def learn(self, rows: Rows) -> None:
        """Learn and look: what an object's numbers were before is known only now."""
        self.partial_fit(rows)

    def check(self) -> None:
        """Nothing is left to look at."""

    def partial_fit(self, rows: Rows) -> None:
        """Predict `rows`, note the error, then have the object learn them.

        Raises
        ------
        Exception
            The object's own; the bundle is then half changed and must be thrown away.
        """
        # In any case, as it must not answer for what was learned since.
        self._reader: ObjectBundle | None = None
        y = self._target(rows)
        if self.recipe.entry.takes_y and self.rows_seen:
            self._evaluate(rows, y)
        sound = _sound(self.estimator)
        with contained():
            self._taught(rows)
        self.rows_seen += rows.n
        lost = sorted(sound - _sound(self.estimator))
        if lost:
            raise ArithmeticError(f"{lost[0]} of {self.recipe.name} would no longer be finite")

    def _taught(self, rows: Rows) -> None:
        """One call of the object's ``partial_fit``, or of ``learn_one`` for each row."""
        takes_y = self.recipe.entry.takes_y
        if self._header.calls != "partial_fit":
            y = streams.target(rows) if takes_y else None
            streams.learn(self.estimator, self._header.calls, streams.dicts(self.recipe, rows), y, rows.weights())
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

    def _evaluate(self, rows: Rows, y: Any) -> None:
        """Note the error of predicting `rows`; an object that predicts nothing yet, or fails at it, has none."""
        try:
            with contained():
                predicted, chances = self._predict(rows), self._probabilities(rows)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - what is truly wrong, learning will say
            return
        if not self.running:
            self.running.append(PrequentialScores(self.recipe.window))
        self.running[0].update(self.recipe.entry.kind, y, predicted, chances)

    def predict(self, rows: Rows) -> list[Any]:
        """Predict `rows`: what the object answers for each, as JSON has it; None where it has no answer yet."""
        answers: list[Any] = self._asked(rows, lambda reader: reader._answers(rows))
        return answers

    def chances(self, rows: Rows) -> dict[str, Any]:
        """Tell how sure predictions are: `probabilities` with `classes`."""
        return {"probabilities": self.predict_proba(rows), "classes": self.classes}

    def predict_proba(self, rows: Rows) -> list[list[float]]:
        """Probabilities of `rows`, shape (n, classes), in the order of :attr:`classes`."""
        listed: list[list[float]] | None = self._asked(rows, lambda reader: reader._chances(rows))
        if listed is None:
            raise InvalidError(f"{self.recipe.name} gives no probabilities: leave out proba.")
        return listed

    def score(self, rows: Rows) -> dict[str, float | None]:
        """Score predictions of `rows` against their target."""
        scored: dict[str, float | None] = self._asked(rows, lambda reader: Bundle.score(reader, rows))
        return scored

    @property
    def classes(self) -> list[Any]:
        """Labels in the order of the columns of :meth:`predict_proba`."""
        own = getattr(self.estimator, "classes_", None) if self._header.calls == "partial_fit" else None
        known = [] if self._known is None else list(self._known.known)
        return known if own is None else [as_json(label) for label in own]

    @property
    def width(self) -> int | None:
        """Columns of a row as it comes in; None where the first row is to tell."""
        width = Bundle.width.__get__(self)
        return width if type(width) is int else None

    @property
    def runtime(self) -> dict[str, str]:
        """Versions that its pickle depends on."""
        return envelope.runtime(*(name for name in self._header.runtime if name not in envelope.LIBRARIES))

    @property
    def _known(self) -> Labels | None:
        """Labels that have come, of a classifier."""
        return self.labels if isinstance(self.labels, Labels) else None

    @property
    def _header(self) -> ObjectHeader:
        return uploads.header_of(self.recipe.object or "")

    def _asked(self, rows: Rows, question: Callable[["ObjectBundle"], Any]) -> Any:
        """Put `question` about `rows` to the reader; whatever the object raises is said to be about these rows."""
        try:
            with contained():
                self._check_ready(rows)
                if getattr(self, "_reader", None) is None:
                    self._reader = ObjectBundle(
                        **{f.name: getattr(self, f.name) for f in dataclasses.fields(Bundle)}
                        | {"estimator": copy.deepcopy(self.estimator)}
                    )
                return question(self._reader)  # type: ignore[arg-type]
        except (MemoryError, InvalidError, ConflictError):
            raise
        except Exception as error:  # noqa: BLE001 - an object may raise anything
            words = str(error) if isinstance(error, KeepfitError) else describe_error(error)
            raise InvalidError(f"{self.recipe.name} cannot answer for these rows: {words}") from None

    def _answers(self, rows: Rows) -> list[Any]:
        """Predictions by this very object, as JSON has them."""
        if self._header.calls == "partial_fit":
            X = self.columns.transform(self.recipe, rows)
            # A transformer without labels or values of its own answers what it makes of the rows.
            call = self.estimator.transform if self.recipe.entry.kind == "transformer" else self.estimator.predict
            found = call(X)
        else:
            kind, known = self.recipe.entry.kind, [] if self._known is None else self._known.known
            dicts = streams.dicts(self.recipe, rows)
            found = streams.predict(self.estimator, self._header.calls, kind, dicts, known)
        answers = as_json(found)
        if type(answers) is not list or len(answers) != rows.n:
            raise ValueError(f"predict gave {_counted(answers)} for {rows.n} rows")
        return answers

    def _predict(self, rows: Rows) -> Any:
        """Predictions by this very object, shape (n,): labels as their codes.

        Raises
        ------
        ValueError
            If there is none for one of the rows, or its square would not be finite.
        """
        answers = self._answers(rows)
        if None in answers:
            raise ValueError("there is no prediction of some row")
        if self._known is not None:
            codes = self._known.codes
            return np.array([codes.get(_key(label), NO_LABEL) for label in answers], dtype=np.int64)
        values = np.array(answers, dtype=np.float64)
        if values.shape != (rows.n,) or not (np.abs(values) <= NUMBER_MAX).all():
            raise ValueError("the prediction of some row is no number that an error could be told of")
        return values

    def _chances(self, rows: Rows) -> list[list[float]] | None:
        """Probabilities by this very object, in the order of :attr:`classes`; None where it gives none."""
        if self._known is None:
            return None
        if self._header.calls != "partial_fit":
            return streams.chances(self.estimator, self._header.calls, streams.dicts(self.recipe, rows), self.classes)
        if not hasattr(self.estimator, "predict_proba") or getattr(self.estimator, "classes_", None) is None:
            return None
        chances = np.asarray(self.estimator.predict_proba(self.columns.transform(self.recipe, rows)), dtype=np.float64)
        if chances.shape != (rows.n, len(self.classes)):
            raise ValueError(f"predict_proba gave the shape {chances.shape}")
        listed: list[list[float]] = chances.tolist()
        return listed

    def _probabilities(self, rows: Rows) -> Any:
        """Probabilities in the order of the labels' codes, shape (n, slots); None where the object gives none."""
        chances = self._chances(rows)
        if chances is None or self._known is None:
            return None
        by_code = np.zeros((rows.n, self._known.n_classes))
        for column, label in enumerate(self.classes):
            code = self._known.codes.get(_key(label), NO_LABEL)
            if code != NO_LABEL:
                by_code[:, code] = [row[column] for row in chances]
        return by_code


def as_json(value: Any) -> Any:
    """`value` as JSON has it: numbers, text, booleans, None, lists, and objects with text for keys.

    Raises
    ------
    TypeError
        If there is no such form.

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
    raise TypeError(f"it answered with {type(value).__name__}, which JSON has no form for")


def _counted(answers: Any) -> str:
    return f"{len(answers)} answers" if type(answers) is list else type(answers).__name__


def _key(label: Any) -> Any:
    """Key of a label in the list of labels; what is none has no place there."""
    return BOOLEAN_KEYS[label] if type(label) is bool else label if type(label) in (str, int) else None


def _target(rows: Rows) -> Any:
    """Target of `rows` as scikit-learn would have been given it: labels as they came in."""
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


def _sound(learned: Any) -> set[str]:
    """Names of the attributes that hold numbers, all of them finite."""
    attributes: dict[str, Any] = getattr(learned, "__dict__", {})
    numbers = {name: value for name, value in attributes.items() if isinstance(value, np.ndarray | float)}
    return {name for name, value in numbers.items() if _finite(value)}


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())
