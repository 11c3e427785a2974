"""What an uploaded object answers: its predictions as JSON, its labels, and its probabilities.

Owns the questions that are put to an object, and how many. Before an object learns rows it is asked once about them,
because a question may change it: ``predict``, or for a River classifier whose prediction is the most probable label,
``predict_proba_one``. Probabilities for the log loss come from the same question, or from estimators of scikit-learn
and River, which no question changes, or else from a copy. Never learns rows. Labels come back as they were sent.
"""

import copy
import math
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NamedTuple

import numpy as np

from keepfit.model import river_adapter
from keepfit.model.columns import Columns
from keepfit.model.labels import Labels, key_of
from keepfit.model.sums import NO_LABEL
from keepfit.recipe.recipe import Recipe, label_fault
from keepfit.recipe.uploads import LearnMethod
from keepfit.rows.rows import Rows
from keepfit.rows.values import NUMBER_MAX

INTEGER_BITS_MAX = 63
EXACT_INTEGER_MAX = 2**53
LABEL_TYPES = (str, int, bool)
# Up to this number of labels, one that an object answers and no client has sent gets a code. The other codes are for
# labels that are sent.
ANSWERED_LABELS_MAX = 1000
# Packages whose code changes no estimator that is asked, beside Python's own library. A class that a call creates may
# have the module `abc`.
UNCHANGED_BY_QUESTIONS = ({"sklearn", "river", "numpy", "scipy"} | sys.stdlib_module_names) - {"abc"}
# Methods of which one makes an object an estimator, whose parts are asked when it is.
QUESTIONS = ("predict", "predict_one", "predict_many", "transform", "transform_one", "score_one")
PLAIN = (str, int, float, bool, bytes, type(None))
# River's modules of pipelines, and of the method by which a prediction is the most probable label.
RIVER_PIPELINE, RIVER_DEFAULT = "river.compose.pipeline", "river.base.classifier"
SEED_END = 2**32


class Probabilities(NamedTuple):
    """The probabilities of labels: `rows` has one list for each row, in the order of `classes`."""

    classes: list[Any]
    rows: list[list[float]]


class Asked(NamedTuple):
    """Rows that an object was asked about: their positions, predictions (None: it has none) and probabilities."""

    positions: list[int]
    values: list[Any]
    probabilities: Probabilities | None


@dataclass(frozen=True, slots=True)
class AskedObject:
    """An object that can be asked; `known` are the labels that were learned, in the form in which they were sent."""

    estimator: Any
    recipe: Recipe
    columns: Columns
    calls: LearnMethod
    known: Sequence[Any] = ()

    @property
    def is_classifier(self) -> bool:
        """Whether its predictions are labels of one target."""
        return self.recipe.entry.kind == "classifier" and not self.recipe.entry.multi_output

    def predict(self, rows: Rows) -> list[Any]:
        """Return a prediction for each row as JSON; None where it has none.

        Raises
        ------
        Exception
            The errors of the object, or ValueError if there is not one prediction for each row.
        """
        if self.calls == "partial_fit":
            X = self.columns.transform(self.recipe, rows)
            # The prediction of a transformer is the transformed row.
            call = self.estimator.transform if self.recipe.entry.kind == "transformer" else self.estimator.predict
            found = call(X)
        else:
            dicts = river_adapter.to_dicts(self.recipe, rows)
            found = river_adapter.predict(self.estimator, self.calls, self.recipe.entry.kind, dicts)
            if self.recipe.entry.multi_output:
                found = [positional(value) for value in found]
        values = as_json(found)
        if type(values) is not list or len(values) != rows.n:
            raise ValueError(f"predict returned {_describe_count(values)} for {rows.n} rows")
        return as_sent(values, self.known) if self.is_classifier else values

    def probabilities(self, rows: Rows) -> Probabilities | None:
        """Return the probabilities of its labels; None if it has none. Raises what :meth:`predict` raises."""
        if not self.is_classifier:
            return None
        if self.calls != "partial_fit":
            dicts = river_adapter.to_dicts(self.recipe, rows)
            found = river_adapter.predict_proba(self.estimator, self.calls, dicts)
            return None if found is None else self._by_label(found)
        classes = own_classes(self.estimator)
        if classes is None or not hasattr(self.estimator, "predict_proba"):
            return None
        X = self.columns.transform(self.recipe, rows)
        array = np.asarray(self.estimator.predict_proba(X), dtype=np.float64)
        if array.shape != (rows.n, len(classes)):
            raise ValueError(f"predict_proba returned the shape {array.shape}")
        return Probabilities(as_sent(classes, self.known), array.tolist())

    def _by_label(self, found: Iterable[dict[Any, Any]]) -> Probabilities:
        """Return River's probabilities: those of the labels learned, then those of other labels that it names."""
        by_row = [
            {key_of(label): (label, float(value)) for label, value in self._labelled(row) if type(label) in LABEL_TYPES}
            for row in found
        ]
        classes = {key_of(label): label for label in self.known}
        for row in by_row:
            for key, (label, _) in row.items():
                classes.setdefault(key, label)
        return Probabilities(
            list(classes.values()), [[row.get(key, (None, 0.0))[1] for key in classes] for row in by_row]
        )

    def _labelled(self, row: dict[Any, Any]) -> Iterable[tuple[Any, Any]]:
        return zip(as_sent(as_json(list(row)), self.known), row.values(), strict=True)

    def ask(self, rows: Rows, seed: int, copied: "AskedObject | None") -> tuple[list[Any], Probabilities | None]:
        """Return predictions and probabilities, with one question.

        `copied` is asked for the probabilities: a copy of this object, or itself where no question changes it; None if
        they come with the prediction, or there are none. Raises what :meth:`predict` raises; a fault of the
        probabilities alone means that there are none.
        """
        probabilities = None if copied is None or copied is self else copied._try_probabilities(rows)
        # The generators are those of the process, so the copy has drawn from them too. Without the seed the object
        # would draw other numbers than in a loop that asks no copy.
        seed_globals(seed)
        if self.is_classifier and self.calls == "learn_one" and _predicts_most_probable(self.estimator):
            found = river_adapter.predict_proba(self.estimator, self.calls, river_adapter.to_dicts(self.recipe, rows))
            if found is not None:
                # As River's predict_one.
                most_probable = [max(row, key=row.__getitem__) if row else None for row in found]
                return as_sent(as_json(most_probable), self.known), self._by_label(found)
        values = self.predict(rows)
        return values, self._try_probabilities(rows) if copied is self else probabilities

    def copy_for_probabilities(self) -> "AskedObject | None":
        """Return a copy that can be asked for probabilities; None if it has none or cannot be copied."""
        if not self.is_classifier:
            return None
        if self.calls == "learn_one" and _predicts_most_probable(self.estimator):
            return None
        if self.calls == "partial_fit" and own_classes(self.estimator) is None:
            return None
        name = river_adapter.PREDICT_PROBA.get(self.calls, "predict_proba")
        try:
            if not hasattr(self.estimator, name):
                return None
            return AskedObject(copy.deepcopy(self.estimator), self.recipe, self.columns, self.calls, self.known)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - an object may raise any exception
            return None

    def _try_probabilities(self, rows: Rows) -> Probabilities | None:
        try:
            return self.probabilities(rows)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - an object may raise any exception
            return None


def served(rows: Rows, seed: int) -> list[Asked]:
    """Return the predictions that were served for `rows`; no object is asked, and it learns with the same `seed`."""
    seed_globals(seed)
    found: list[Asked] = []
    for i, one in enumerate(rows.served):
        shares = None if one.probabilities is None else Probabilities(one.classes, [one.probabilities])
        found.append(Asked([i], [one.prediction], shares))
    return found


def seed_globals(seed: int) -> None:
    """Seed ``random`` and ``numpy.random``, so that objects which draw from them are the same in each process."""
    random.seed(seed)
    np.random.seed(seed % SEED_END)


def is_unchanged_by_questions(estimator: Any) -> bool:
    """Return whether `estimator`, and all functions and objects that its answers may call, are of the libraries.

    >>> from sklearn.linear_model import SGDClassifier
    >>> is_unchanged_by_questions(SGDClassifier()), is_unchanged_by_questions(type("Own", (SGDClassifier,), {})())
    (True, False)
    """
    found, seen = [(estimator, True)], set()
    while found:
        one, is_of_estimator = found.pop()
        if isinstance(one, PLAIN) or id(one) in seen:
            continue
        seen.add(id(one))
        defined = one if isinstance(one, type | FunctionType | BuiltinFunctionType) else type(one)
        if (defined.__module__ or "builtins").partition(".")[0] not in UNCHANGED_BY_QUESTIONS:
            return False
        is_estimator = not isinstance(one, type) and any(hasattr(one, name) for name in QUESTIONS)
        found += [(part, is_of_estimator) for part in _contained(one)]
        # The parts of a part, such as the nodes of a tree, are many, and of the classes of the part.
        if is_estimator or (is_of_estimator and not isinstance(one, type)):
            found += [(part, is_estimator) for part in getattr(one, "__dict__", {}).values()]
    return True


def _contained(one: Any) -> Iterable[Any]:
    """Return the items of a collection, and what a function that was made of another calls."""
    if isinstance(one, list | tuple | set | frozenset):
        return one
    if isinstance(one, dict):
        return one.values()
    if isinstance(one, partial):
        return (one.func, *one.args, *one.keywords.values())
    return (one.__self__, one.__func__) if isinstance(one, MethodType) else ()


def _predicts_most_probable(model: Any) -> bool:
    """Return whether River defines ``predict_one`` as the most probable label of ``predict_proba_one``."""
    while type(model).__module__ == RIVER_PIPELINE and getattr(model, "steps", None):
        model = list(model.steps.values())[-1]
    return getattr(getattr(type(model), "predict_one", None), "__module__", "") == RIVER_DEFAULT


def positional(value: Any) -> Any:
    """Return an answer whose keys are positions from 0 as a list, as such targets are sent; any other unchanged.

    >>> positional({0: 1.5, 1: 2.5}), positional({"u": 1.5}), positional({})
    ([1.5, 2.5], {'u': 1.5}, {})
    """
    if isinstance(value, dict) and value and set(value) == set(range(len(value))):
        return [value[i] for i in range(len(value))]
    return value


def own_classes(estimator: Any) -> list[Any] | None:
    """Return ``classes_`` of an object as JSON; None if it has none, or they cannot be read."""
    try:
        classes = as_json(getattr(estimator, "classes_", None))
    except Exception:  # noqa: BLE001 - a property of the object may raise any exception
        return None
    return classes if type(classes) is list else None


def as_sent(values: Sequence[Any], known: Sequence[Any]) -> list[Any]:
    """Return labels in the form of the labels `known`: River's binary classifiers answer True where they learned 1.

    >>> as_sent([True, 2.0, "a", 0.5], [0, 7]), as_sent([1], [False])
    ([1, 2, 'a', 0.5], [True])
    """
    kinds = set(map(type, known))
    integers, booleans = int in kinds and bool not in kinds, bool in kinds and int not in kinds
    labels = []
    for value in values:
        label = value
        if type(label) is float and label.is_integer() and abs(label) < EXACT_INTEGER_MAX:
            label = int(label)
        if (type(label) is bool and integers) or (type(label) is int and booleans and label in (0, 1)):
            label = int(label) if integers else bool(label)
        labels.append(label)
    return labels


def codes_of(values: Sequence[Any], labels: Labels, labels_max: int = ANSWERED_LABELS_MAX) -> Any:
    """Return the codes of answered labels, shape (n,); NO_LABEL of other values.

    New ones are added while there are fewer than `labels_max`.
    """
    codes = []
    # The known labels may be known since the answer: River answers False before it has learned a 0.
    for value in as_sent(values, labels.known):
        code = labels.codes.get(key_of(value), NO_LABEL) if type(value) in LABEL_TYPES else NO_LABEL
        is_new = code == NO_LABEL and type(value) in LABEL_TYPES and label_fault(value) is None
        if is_new and len(labels.known) < labels_max:
            code = int(labels.partial_fit_encode([value])[0])
        codes.append(code)
    return np.array(codes, dtype=np.int64)


def numbers_of(values: Iterable[Any]) -> Any:
    """Return a regressor's answers, shape (n,), with NaN for those that are no number, or too large to be squared."""
    are_numbers = (int, float, bool)
    return np.array([
        float(value) if type(value) in are_numbers and abs(value) <= NUMBER_MAX else math.nan for value in values
    ])  # fmt: skip


def by_code(probabilities: Probabilities, labels: Labels) -> Any:
    """Return probabilities in the order of the labels' codes, shape (n, labels); NaN for rows that hold a NaN."""
    listed = np.array(probabilities.rows, dtype=np.float64).reshape(len(probabilities.rows), -1)
    ordered = np.zeros((len(listed), len(labels.known)))
    for column, label in enumerate(as_sent(probabilities.classes, labels.known)):
        code = labels.codes.get(key_of(label), NO_LABEL) if type(label) in LABEL_TYPES else NO_LABEL
        if code != NO_LABEL:
            ordered[:, code] += listed[:, column]
    ordered[np.isnan(listed).any(axis=1)] = np.nan
    return ordered


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
