"""Changes of an estimator's parameters while its model lives: which may change, how a change is checked and made.

Owns the table of what cannot change, and the recipe in force. Never learns rows, never changes a recipe as it was
posted. Invariants: :func:`check` refuses with the estimator's own words what it would refuse in a recipe; after
:func:`make` the next ``partial_fit`` goes by the new values, as it does after ``set_params`` in a plain loop; what
cannot take effect is refused and never kept. Changes come from clients by way of the inbox
(docs/guides/changing-parameters.md).
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
from keepfit.recipe.patch import address, in_force
from keepfit.recipe.recipe import Recipe

FIRST = "it counts at the first rows only, so it needs a new model"
IDLE = "learning row by row never looks at it"
FIT = "it is about calls of fit, which is never called"
EFFORT = "it says how something is computed, not what is learned"
WIDTH = "its columns would no longer be those that were learned from"

_SGD = {
    FIRST: "average",
    IDLE: "early_stopping max_iter n_iter_no_change tol validation_fraction",
    FIT: "warm_start",
    EFFORT: "n_jobs verbose",
}
_MLP = {
    FIRST: "hidden_layer_sizes loss solver",
    IDLE: "early_stopping max_fun max_iter validation_fraction",
    FIT: "warm_start",
    EFFORT: "verbose",
}
_SCALER = {EFFORT: "copy"}
_WRAPPER = {EFFORT: "n_jobs verbose"}

# By class, as read in scikit-learn 1.9.1: parameters that it looks at in the first ``partial_fit`` only, or never. What
# is not named here takes effect with the next rows.
FIXED: Mapping[str, Mapping[str, str]] = {
    "BernoulliNB": {},
    "BernoulliRBM": {FIRST: "batch_size n_components random_state", IDLE: "n_iter", EFFORT: "verbose"},
    "Birch": {FIRST: "branching_factor threshold"},
    "CategoricalNB": {},
    "ComplementNB": {},
    "GaussianNB": {FIRST: "priors"},
    "HashingVectorizer": {
        WIDTH: "alternate_sign analyzer binary decode_error dtype encoding input lowercase n_features ngram_range norm"
        " preprocessor stop_words strip_accents token_pattern tokenizer"
    },
    "IncrementalPCA": {FIRST: "n_components", IDLE: "batch_size", EFFORT: "copy"},
    "LatentDirichletAllocation": {
        FIRST: "doc_topic_prior n_components random_state topic_word_prior",
        IDLE: "evaluate_every learning_method max_iter perp_tol",
        EFFORT: "n_jobs verbose",
    },
    "MLPClassifier": _MLP,
    "MLPRegressor": _MLP,
    "MaxAbsScaler": _SCALER,
    "MinMaxScaler": _SCALER,
    "MiniBatchDictionaryLearning": {
        FIRST: "batch_size dict_init fit_algorithm n_components positive_code random_state",
        IDLE: "callback max_iter max_no_improvement shuffle tol",
        EFFORT: "n_jobs verbose",
        WIDTH: "split_sign",
    },
    "MiniBatchKMeans": {
        FIRST: "batch_size init init_size n_clusters n_init random_state",
        IDLE: "max_iter max_no_improvement tol",
        EFFORT: "verbose",
    },
    "MiniBatchNMF": {
        FIRST: "batch_size beta_loss forget_factor init max_iter n_components random_state transform_max_iter",
        IDLE: "fresh_restarts max_no_improvement",
        EFFORT: "verbose",
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
    "SelectFromModel": {FIRST: "prefit", WIDTH: "importance_getter max_features norm_order threshold"},
    "StandardScaler": {FIRST: "with_mean with_std", EFFORT: "copy"},
}

# An MLP asks its optimizer, which it makes at the first rows: the attribute there that each parameter sets.
OPTIMIZER: Mapping[str, Mapping[str, str]] = {
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
    """Check the change of `params` for a model of `recipe` and what was `changed` before; return it as it is kept.

    Raises
    ------
    InvalidError
        With what is wrong and what would be right.
    """
    if not params:
        raise InvalidError('params names no parameter: name those to change, such as {"alpha": 0.001}.')
    # Twice, as a recipe's: what is kept must have a text again.
    asked: dict[str, Any] = parse_json(canonical(params))
    canonical(asked)
    _told(recipe, changed, asked)
    return asked


def make(recipe: Recipe, changed: Mapping[str, Any], params: Mapping[str, Any], estimator: Any, labels: Any) -> None:
    """Change `params` of `estimator`, the live one of `recipe` and what was `changed` before.

    `labels` are the bundle's, of whatever kind.

    Raises
    ------
    InvalidError, ValueError
        If it cannot be changed, or could not learn any more; it may be half changed then.
    """
    for (position, *path), values in _told(recipe, changed, params).items():
        if isinstance(labels, Labels) and not path and "class_weight" in values:
            values["class_weight"] = _weights(labels, values["class_weight"])
        for live in _found(pipeline.parts(estimator)[position], path):
            _try(live, values)
            _set(live, values)


def _weights(labels: Labels, class_weight: Any) -> Any:
    try:
        return labels.class_weight_by_code(class_weight)
    except KeyError as error:
        raise ValueError(f"class_weight names {error.args[0][:40]!r}, a label that has not come yet") from None


def _told(recipe: Recipe, changed: Mapping[str, Any], params: Mapping[str, Any]) -> dict[tuple[Any, ...], Any]:
    """Find what `params` change: by position of a step and path within it, the new values of an estimator's parameters.

    Compared are estimators that are built anew of the recipe before and after, so that names which are keepfit's own
    (`C` of the PassiveAggressive ones) become scikit-learn's.
    """
    if recipe.object is not None:
        raise InvalidError("params: the parameters of an object cannot be changed; make a new model of a new object.")
    before = in_force(recipe, changed)
    after = in_force(before, params)
    told: dict[tuple[Any, ...], Any] = {}
    for name in params:
        position, inside = address(recipe, name)
        *path, leaf = inside.split("__")
        cls = recipe.parts[position][0]
        (was,), (now,) = (_found(_built(*each.parts[position]), path, made=False) for each in (before, after))
        reason = why_not(now, leaf)
        if reason is not None:
            raise InvalidError(f"params of {cls}: {inside!r} cannot be changed: {reason}.")
        had, has = was.get_params(deep=False), now.get_params(deep=False)
        told[position, *path] = {key: has[key] for key in has if not _inner(has[key]) and has[key] != had[key]}
    return told


def _built(name: str, params: Mapping[str, Any]) -> Any:
    built = estimators.build(name, params)
    for owner in _all(built):
        _check_weights(name, getattr(owner, "class_weight", None))
    return built


def _check_weights(name: str, weights: Any) -> None:
    for label, weight in weights.items() if isinstance(weights, dict) else ():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight < 0:
            raise InvalidError(f"params of {name}: the class_weight of {str(label)[:40]!r} must be 0 or more.")


def why_not(owner: Any, name: str) -> str | None:
    """Tell why the parameter `name` of the estimator `owner` cannot be changed; None where it can."""
    if _inner(owner.get_params(deep=False).get(name)):
        return f"it is an estimator itself, whose parameters are {name}__…"
    for reason, names in FIXED.get(type(owner).__name__, {}).items():
        if name in names.split():
            return reason
    if type(owner).__name__.startswith("MLP"):
        of_others = {key for solver, names in OPTIMIZER.items() if solver != owner.solver for key in names}
        if name in of_others - OPTIMIZER[owner.solver].keys():
            return f"the solver {owner.solver!r} never looks at it"
    return None


def _inner(value: Any) -> bool:
    return hasattr(value, "get_params")


def _all(estimator: Any) -> Iterator[Any]:
    """The estimator and those in it."""
    yield estimator
    for value in estimator.get_params(deep=False).values():
        if _inner(value):
            yield from _all(value)


def _found(estimator: Any, path: Sequence[str], *, made: bool = True) -> list[Any]:
    """Estimators at `path`; `made`: with those that a wrapper has made of the one it was given."""
    found = [estimator]
    for head in path:
        found = [inner for outer in found for inner in _inside(outer, head, made=made)]
    return found


def _inside(outer: Any, head: str, *, made: bool) -> list[Any]:
    given = outer.get_params(deep=False)[head]
    if not made:
        return [given]
    single = [outer.estimator_] if hasattr(outer, "estimator_") else []
    return [given, *getattr(outer, "estimators_", ()), *single]


def _set(live: Any, values: Mapping[str, Any]) -> None:
    live.set_params(**values)
    optimizer = getattr(live, "_optimizer", None)
    if optimizer is not None:
        for name, attribute in OPTIMIZER[live.solver].items():
            if name in values:
                setattr(optimizer, attribute, values[name])
        if values.keys() & {"learning_rate", "learning_rate_init", "power_t"}:
            # The rate begins anew, and where its schedule is one of time, at the time that it is.
            optimizer.learning_rate = float(live.learning_rate_init)
            optimizer.iteration_ends(live.t_)
    # What it made of the old values; scikit-learn makes it anew at the next rows.
    vars(live).pop("_loss_function_", None)


def _try(live: Any, values: Mapping[str, Any]) -> None:
    """Have a copy learn one row by the new values, so that no change is made which no row could be learned after."""
    width = getattr(live, "n_features_in_", None)
    if width is None or not (is_classifier(live) or is_regressor(live)):
        return
    tried = copy.deepcopy(live)
    _set(tried, values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried.partial_fit([[0.0] * width], [live.classes_[0]] if is_classifier(live) else [0.0])
