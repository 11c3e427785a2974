"""Changes of an estimator's parameters during the life of a model: which can change, the check, and the change itself.

Owns the table of parameters that cannot change. Never learns rows and never changes the posted recipe. Invariants:
:func:`check` rejects with the estimator's own words what the estimator would reject in a recipe; after :func:`apply`
the next ``partial_fit`` uses the new values, as after ``set_params`` in a plain loop; a change without effect is
rejected and never stored. Changes come from clients through the inbox (docs/guides/changing-parameters.md).
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sklearn.base import is_classifier, is_regressor

from keepfit.errors import InvalidError
from keepfit.identity import canonical, parse_json
from keepfit.model import estimators, pipeline
from keepfit.model.labels import Labels
from keepfit.recipe.patch import locate, with_changes
from keepfit.recipe.recipe import Recipe

FIRST_ONLY = "it is read at the first rows only; create a new model"
UNREAD = "partial_fit never reads it"
FIT_ONLY = "only fit reads it, which is never called"
COMPUTATION = "it concerns the computation, not what is learned"
WIDTH = "it would change the columns of the rows already learned"

_SGD = {
    FIRST_ONLY: "average",
    UNREAD: "early_stopping max_iter n_iter_no_change tol validation_fraction",
    FIT_ONLY: "warm_start",
    COMPUTATION: "n_jobs verbose",
}
_MLP = {
    FIRST_ONLY: "hidden_layer_sizes loss solver",
    UNREAD: "early_stopping max_fun max_iter validation_fraction",
    FIT_ONLY: "warm_start",
    COMPUTATION: "verbose",
}
_SCALER = {COMPUTATION: "copy"}
_WRAPPER = {COMPUTATION: "n_jobs verbose"}

# By class, from the source of scikit-learn 1.9.1: parameters that it reads in the first ``partial_fit`` only, or never.
# All others take effect with the next rows.
IMMUTABLE: Mapping[str, Mapping[str, str]] = {
    "BernoulliNB": {},
    "BernoulliRBM": {
        FIRST_ONLY: "batch_size n_components random_state",
        UNREAD: "n_iter",
        COMPUTATION: "verbose",
    },
    "Birch": {FIRST_ONLY: "branching_factor threshold"},
    "CategoricalNB": {},
    "ComplementNB": {},
    "GaussianNB": {FIRST_ONLY: "priors"},
    "HashingVectorizer": {
        WIDTH: "alternate_sign analyzer binary decode_error dtype encoding input lowercase n_features ngram_range norm"
        " preprocessor stop_words strip_accents token_pattern tokenizer"
    },
    "IncrementalPCA": {FIRST_ONLY: "n_components", UNREAD: "batch_size", COMPUTATION: "copy"},
    "LatentDirichletAllocation": {
        FIRST_ONLY: "doc_topic_prior n_components random_state topic_word_prior",
        UNREAD: "evaluate_every learning_method max_iter perp_tol",
        COMPUTATION: "n_jobs verbose",
    },
    "MLPClassifier": _MLP,
    "MLPRegressor": _MLP,
    "MaxAbsScaler": _SCALER,
    "MinMaxScaler": _SCALER,
    "MiniBatchDictionaryLearning": {
        FIRST_ONLY: "batch_size dict_init fit_algorithm n_components positive_code random_state",
        UNREAD: "callback max_iter max_no_improvement shuffle tol",
        COMPUTATION: "n_jobs verbose",
        WIDTH: "split_sign",
    },
    "MiniBatchKMeans": {
        FIRST_ONLY: "batch_size init init_size n_clusters n_init random_state",
        UNREAD: "max_iter max_no_improvement tol",
        COMPUTATION: "verbose",
    },
    "MiniBatchNMF": {
        FIRST_ONLY: "batch_size beta_loss forget_factor init max_iter n_components random_state transform_max_iter",
        UNREAD: "fresh_restarts max_no_improvement",
        COMPUTATION: "verbose",
    },
    "MultiOutputClassifier": _WRAPPER,
    "MultiOutputRegressor": _WRAPPER,
    "MultinomialNB": {},
    "OneVsOneClassifier": _WRAPPER,
    "OneVsRestClassifier": _WRAPPER,
    "Perceptron": _SGD,
    "SGDClassifier": _SGD,
    "SGDOneClassSVM": _SGD,
    "SGDRegressor": _SGD,
    "SelectFromModel": {
        FIRST_ONLY: "prefit",
        WIDTH: "importance_getter max_features norm_order threshold",
    },
    "StandardScaler": {FIRST_ONLY: "with_mean with_std", COMPUTATION: "copy"},
}

# An MLP copies parameters to its optimizer at the first rows: the attribute there that each parameter sets.
OPTIMIZER_ATTRIBUTES: Mapping[str, Mapping[str, str]] = {
    "sgd": {
        "learning_rate": "lr_schedule",
        "learning_rate_init": "learning_rate_init",
        "momentum": "momentum",
        "nesterovs_momentum": "nesterov",
        "power_t": "power_t",
    },
    "adam": {
        "beta_1": "beta_1",
        "beta_2": "beta_2",
        "epsilon": "epsilon",
        "learning_rate_init": "learning_rate_init",
    },
}


def check(recipe: Recipe, changed: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Check a change of `params` for a model of `recipe` with the earlier changes `changed`; return it as it is stored.

    Raises
    ------
    InvalidError
        With what is wrong and what would be right.
    """
    if not params:
        raise InvalidError('params is empty: name the parameters to change, such as {"alpha": 0.001}.')
    # Converted twice, like a recipe: what is stored must have canonical JSON again.
    stored: dict[str, Any] = parse_json(canonical(params))
    canonical(stored)
    _changes(recipe, changed, stored)
    return stored


def apply(recipe: Recipe, changed: Mapping[str, Any], params: Mapping[str, Any], estimator: Any, labels: Any) -> None:
    """Change `params` of `estimator`, which belongs to `recipe` with the earlier changes `changed`.

    `labels` are those of the bundle.

    Raises
    ------
    InvalidError, ValueError
        If it cannot be changed, or could not learn any more. It may then be partly changed.
    """
    for (position, *path), values in _changes(recipe, changed, params).items():
        if isinstance(labels, Labels) and not path and "class_weight" in values:
            values["class_weight"] = _weights(labels, values["class_weight"])
        for live in _estimators_at(pipeline.steps_of(estimator)[position], path):
            _check_learns(live, values)
            _set(live, values)


def _weights(labels: Labels, class_weight: Any) -> Any:
    try:
        return labels.class_weight_by_code(class_weight)
    except KeyError as error:
        raise ValueError(f"class_weight names {error.args[0][:40]!r}, a label that was not learned yet") from None


def _changes(recipe: Recipe, changed: Mapping[str, Any], params: Mapping[str, Any]) -> dict[tuple[Any, ...], Any]:
    """Return new values of parameters, by the position of the step and the path to the estimator within it.

    This compares estimators built from the recipe before and after the change, so that the names of keepfit (`C` of the
    PassiveAggressive estimators) become those of scikit-learn.
    """
    if recipe.object is not None:
        raise InvalidError(
            "params: the parameters of an object cannot be changed; create a new model with a new object."
        )
    before = with_changes(recipe, changed)
    after = with_changes(before, params)
    changes: dict[tuple[Any, ...], Any] = {}
    for name in params:
        position, inner_name = locate(recipe, name)
        *path, leaf = inner_name.split("__")
        cls = recipe.named_steps[position][0]
        (was,), (now,) = (
            _estimators_at(_build(*each.named_steps[position]), path, fitted=False) for each in (before, after)
        )
        reason = immutable_reason(now, leaf)
        if reason is not None:
            raise InvalidError(f"params of {cls}: {inner_name!r} cannot be changed: {reason}.")
        old, new = was.get_params(deep=False), now.get_params(deep=False)
        changes[position, *path] = {
            key: new[key] for key in new if not _is_estimator(new[key]) and new[key] != old[key]
        }
    return changes


def _build(name: str, params: Mapping[str, Any]) -> Any:
    built = estimators.build(name, params)
    for owner in _nested(built):
        _check_weights(name, getattr(owner, "class_weight", None))
    return built


def _check_weights(name: str, weights: Any) -> None:
    for label, weight in weights.items() if isinstance(weights, dict) else ():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight < 0:
            raise InvalidError(f"params of {name}: the class_weight of {str(label)[:40]!r} must be 0 or more.")


def immutable_reason(owner: Any, name: str) -> str | None:
    """Return why the parameter `name` of the estimator `owner` cannot be changed, or None."""
    if _is_estimator(owner.get_params(deep=False).get(name)):
        return f"it is an estimator itself; its parameters are {name}__…"
    for reason, names in IMMUTABLE.get(type(owner).__name__, {}).items():
        if name in names.split():
            return reason
    if type(owner).__name__.startswith("MLP"):
        of_other_solvers = {
            key for solver, names in OPTIMIZER_ATTRIBUTES.items() if solver != owner.solver for key in names
        }
        if name in of_other_solvers - OPTIMIZER_ATTRIBUTES[owner.solver].keys():
            return f"the solver {owner.solver!r} never reads it"
    return None


def _is_estimator(value: Any) -> bool:
    return hasattr(value, "get_params")


def _nested(estimator: Any) -> Iterator[Any]:
    """Yield the estimator and those nested in it."""
    yield estimator
    for value in estimator.get_params(deep=False).values():
        if _is_estimator(value):
            yield from _nested(value)


def _estimators_at(estimator: Any, path: Sequence[str], *, fitted: bool = True) -> list[Any]:
    """Return the estimators at `path`; with `fitted` also the copies that a wrapper has fitted."""
    found = [estimator]
    for head in path:
        found = [inner for outer in found for inner in _children(outer, head, fitted=fitted)]
    return found


def _children(outer: Any, head: str, *, fitted: bool) -> list[Any]:
    template = outer.get_params(deep=False)[head]
    if not fitted:
        return [template]
    single = [outer.estimator_] if hasattr(outer, "estimator_") else []
    return [template, *getattr(outer, "estimators_", ()), *single]


def _set(live: Any, values: Mapping[str, Any]) -> None:
    live.set_params(**values)
    optimizer = getattr(live, "_optimizer", None)
    if optimizer is not None:
        for name, attribute in OPTIMIZER_ATTRIBUTES[live.solver].items():
            if name in values:
                setattr(optimizer, attribute, values[name])
        if values.keys() & {"learning_rate", "learning_rate_init", "power_t"}:
            # The rate starts at its initial value; a schedule over time continues at the current time.
            optimizer.learning_rate = float(live.learning_rate_init)
            optimizer.iteration_ends(live.t_)
    # A cache of the old values, which scikit-learn computes again at the next rows.
    vars(live).pop("_loss_function_", None)


def _check_learns(live: Any, values: Mapping[str, Any]) -> None:
    """Let a copy learn one row with the new values, so that no change is made after which no row could be learned."""
    width = getattr(live, "n_features_in_", None)
    if width is None or not (is_classifier(live) or is_regressor(live)):
        return
    trial = copy.deepcopy(live)
    _set(trial, values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial.partial_fit([[0.0] * width], [live.classes_[0]] if is_classifier(live) else [0.0])
