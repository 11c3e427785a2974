"""Models as plain objects of scikit-learn, which answer as the model does without keepfit.

Owns which models have such an object, and how it is put together. Never changes a bundle: what is changed is a copy.
Invariant: an object that :func:`plain_estimator` returns for a recipe has answered rows as the model does. Workers call
this, for clients that download a model.
"""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.naive_bayes import CategoricalNB, GaussianNB
from sklearn.pipeline import Pipeline

from keepfit.errors import ConflictError, InvalidError, KeepfitError, describe_error
from keepfit.model import object_answers, pipeline
from keepfit.model.bundle import Bundle
from keepfit.model.labels import Labels
from keepfit.model.object_bundle import ObjectBundle
from keepfit.recipe.catalogue import Entry
from keepfit.rows.rows import Rows

COMPARED_ROWS, SEED = 8, 7
# By class, in this order.
GAUSSIAN_ARRAYS = ("theta_", "var_", "class_count_", "class_prior_")
BARE = "; download its estimator alone with part=estimator, which takes the rows as the model encodes them"


def bare_estimator(bundle: Bundle) -> Any:
    """Return the estimator of a model as it is, behind the model's scaler and encoding, with codes in place of labels.

    Raises
    ------
    ConflictError
        If the model has not learned.
    """
    _check_learned(bundle)
    if isinstance(bundle, ObjectBundle):
        return bundle.estimator
    return _joined(pipeline.steps_of(bundle.estimator))


def plain_estimator(bundle: Bundle) -> Any:
    """Return an object that takes the rows of a model and answers as it does.

    Raises
    ------
    ConflictError
        If the model has not learned.
    InvalidError
        If scikit-learn has no such object for this recipe.
    """
    _check_learned(bundle)
    reason = _obstacle(bundle)
    if reason:
        raise InvalidError(f"{bundle.recipe.name} has no equal in scikit-learn, because {reason}{BARE}.")
    if isinstance(bundle, ObjectBundle) and bundle.columns.scaler is None:
        return bundle.estimator
    try:
        steps = copy.deepcopy([bundle.columns.scaler, *_own_steps(bundle)])
    except RecursionError:
        raise InvalidError(f"{bundle.recipe.name} is nested too deep to be copied{BARE}.") from None
    steps = [step for step in steps if step is not None]
    if isinstance(bundle.labels, Labels) and not isinstance(bundle, ObjectBundle):
        _name_labels(steps[-1], bundle.labels.known)
    if bundle.recipe.features is not None:
        steps[0].feature_names_in_ = np.array(list(bundle.recipe.features), dtype=object)
    found = _joined(steps)
    _compare(bundle, found)
    return found


def _own_steps(bundle: Bundle) -> list[Any]:
    if isinstance(bundle, ObjectBundle):
        return [bundle.estimator]
    return pipeline.steps_of(bundle.estimator)


def _check_learned(bundle: Bundle) -> None:
    has_learned = bundle.has_learned if isinstance(bundle, ObjectBundle) else bundle.is_fitted
    if not has_learned:
        raise ConflictError("The model has not learned enough rows yet; send partial_fit first.")


def _obstacle(bundle: Bundle) -> str:
    """Return why a model has no plain object; "" if nothing is known to be in the way."""
    recipe = bundle.recipe
    entry: Entry = recipe.entry
    if recipe.takes_dicts:
        return ""
    if recipe.reads_text or not recipe.layout.numbers_only:
        return "columns other than numbers are encoded here as they grow, or may be missing"
    if isinstance(bundle, ObjectBundle) or entry.target != "labels":
        return ""
    if not isinstance(bundle.labels, Labels) or entry.kind != "classifier":
        return "its labels are codes inside it"
    known = bundle.labels.known
    if len(known) < 2 or len(set(map(type, known))) > 1:
        return "it knows fewer than two labels, or labels of several types"
    return ""


def _joined(steps: Sequence[Any]) -> Any:
    """Return a pipeline of scikit-learn, or the only step."""
    if len(steps) == 1:
        return steps[0]
    return Pipeline([(f"{position}-{type(step).__name__.lower()}", step) for position, step in enumerate(steps, 1)])


def _name_labels(final: Any, known: Sequence[Any]) -> None:
    """Replace the codes in a classifier by the labels that they stand for."""
    labels = np.array(known)
    attributes = vars(final)
    for name in ("label_binarizer_", "_label_binarizer"):
        if name in attributes:
            attributes[name].classes_ = labels
    if "classes_" in attributes:
        final.classes_ = labels
    weights = attributes.get("class_weight")
    if isinstance(weights, dict):
        final.class_weight = {known[code]: weight for code, weight in weights.items()}
    if isinstance(final, GaussianNB):
        # It looks labels up in sorted order when it learns on.
        order = np.argsort(labels, kind="stable")
        final.classes_ = labels[order]
        for name in GAUSSIAN_ARRAYS:
            if isinstance(attributes.get(name), np.ndarray):
                setattr(final, name, attributes[name][order])


def _compare(bundle: Bundle, found: Any) -> None:
    """Raise InvalidError unless `found` answers rows as the model does."""
    width = bundle.width or 0
    X = np.vstack([np.zeros(width), np.ones(width)])
    if not isinstance(pipeline.final_of(bundle.estimator), CategoricalNB):
        X = np.vstack([X, np.random.default_rng(SEED).exponential(size=(COMPARED_ROWS, width))])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            ours = bundle.predict(Rows(len(X), X.tobytes(), []))
            theirs = object_answers.as_json(
                found.transform(X) if bundle.recipe.entry.kind == "transformer" else found.predict(X)
            )
        except KeepfitError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the object raises
            raise InvalidError(f"{bundle.recipe.name} cannot be put together{BARE}: {describe_error(error)}.") from None
    if ours != theirs:
        raise InvalidError(f"{bundle.recipe.name} would answer otherwise in scikit-learn alone{BARE}.")
