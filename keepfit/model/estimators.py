"""Estimators: how a name and parameters of a recipe become an object of scikit-learn.

Owns the checks of parameters: scikit-learn's own, and a few rules for learning row by row. Never imports by a path that
came from outside: names are looked up in :data:`keepfit.recipe.catalogue.CATALOGUE`. Invariant: an estimator that
:func:`build` returns has only parameters that its own class accepts.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

from sklearn import (
    cluster,
    decomposition,
    feature_selection,
    linear_model,
    multiclass,
    multioutput,
    naive_bayes,
    neural_network,
    preprocessing,
)
from sklearn.feature_extraction import text

from keepfit.errors import InvalidError
from keepfit.recipe.catalogue import (
    CATALOGUE,
    INNER_PARAM,
    Entry,
    Family,
    Params,
    check_scaler,
    entry_of,
    inner_name,
)
from keepfit.recipe.other_estimators import NAME_SHOWN_MAX

MESSAGE_LENGTH_MAX = 500

# Rows are learned in their order, and the same rows give the same bundle.
STREAM_DEFAULTS: Mapping[str, Any] = {"shuffle": False, "random_state": 0}

# Parameters of SGD that the estimators below fix.
SGD_ONLY = frozenset({"penalty", "learning_rate", "eta0", "alpha", "l1_ratio", "power_t"})

# scikit-learn 1.8 deprecated these in favour of SGD with the same update rule, and 1.10 drops them. Each loss of the
# old class is a learning rate of the new one (Crammer et al., JMLR 2006: PA-I and PA-II); C becomes eta0.
PASSIVE_AGGRESSIVE: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "PassiveAggressiveRegressor": (
        "SGDRegressor",
        "epsilon_insensitive",
        {"epsilon_insensitive": "pa1", "squared_epsilon_insensitive": "pa2"},
    ),
    "PassiveAggressiveClassifier": (
        "SGDClassifier",
        "hinge",
        {"hinge": "pa1", "squared_hinge": "pa2"},
    ),
}

# Values to which parameters are restricted, and why.
RESTRICTED: Mapping[str, tuple[Sequence[Any], str]] = {
    "n_jobs": ((None, 1), "a worker is one process; leave out n_jobs"),
    "verbose": ((None, 0, False), "the output of a worker is not read"),
    "prefit": ((False,), "its inner estimator is not fitted beforehand"),
    "importance_getter": (("auto",), "only 'auto' is supported"),
    "input": (("content",), "texts are sent in the rows; no file is read"),
    "token_pattern": ((r"(?u)\b\w\w+\b",), "the time of a pattern is unbounded; use analyzer and ngram_range"),
}

# Tuples in scikit-learn, lists in JSON.
PAIRS = frozenset({"feature_range", "ngram_range"})

# With scikit-learn's default of 1,048,576 columns a dense row takes 8 MB.
HASHED_COLUMNS_DEFAULT = 1024

MODULES: Mapping[Family, Any] = {
    "cluster": cluster,
    "decomposition": decomposition,
    "feature_extraction.text": text,
    "feature_selection": feature_selection,
    "linear_model": linear_model,
    "multiclass": multiclass,
    "multioutput": multioutput,
    "naive_bayes": naive_bayes,
    "neural_network": neural_network,
    "preprocessing": preprocessing,
}


def class_of(entry: Entry) -> type[Any]:
    """Return the class of scikit-learn that `entry` describes."""
    found: type[Any] = getattr(MODULES[entry.family], entry.name)
    return found


def build(name: str, params: Params) -> Any:
    """Build the estimator `name` with `params`.

    Names of the PassiveAggressive family build the SGD estimator that scikit-learn documents as their successor. The
    parameter `estimator` of a wrapper is an object with one key, the name of the inner estimator; its value has the
    parameters of that.

    Raises
    ------
    InvalidError
        For an unknown name, an unknown parameter, or a value that the estimator rejects, in scikit-learn's words.
    """
    entry = entry_of(name)
    if entry.wraps:
        inner, inner_params = _inner_estimator(name, entry, params)
        estimator = class_of(entry)(build(inner, inner_params))
        params = {key: value for key, value in params.items() if key != INNER_PARAM}
    else:
        estimator = class_of(entry)()
    known = estimator.get_params(deep=False).keys()
    _check_names(name, params, (known - SGD_ONLY) | {"C"} if name in PASSIVE_AGGRESSIVE else known - {INNER_PARAM})
    values = _successor_params(name, dict(params)) if name in PASSIVE_AGGRESSIVE else _with_tuples(params)
    _check_restricted(name, values)
    defaults = {key: value for key, value in STREAM_DEFAULTS.items() if key in known}
    if entry.reads_text:
        defaults["n_features"] = HASHED_COLUMNS_DEFAULT
    try:
        estimator.set_params(**{**defaults, **values})
        estimator._validate_params()
        if entry.family == "linear_model":
            estimator._more_validate_params(for_partial_fit=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidError(f"params of {name}: {in_recipe_terms(name, str(error))}") from None
    _check_learns(name, estimator)
    return estimator


def _inner_estimator(name: str, entry: Entry, params: Params) -> tuple[str, Params]:
    """Return name and parameters of the inner estimator of the wrapper `name`, if it is of a kind that fits."""
    value = params.get(INNER_PARAM)
    inner = inner_name(params)
    if inner is None or not isinstance(value, dict) or not isinstance(value[inner], dict):
        raise InvalidError(
            f"params of {name}: {INNER_PARAM} must be an object with one key, the name of the inner estimator, "
            'and its params as the value: {"estimator": {"SGDClassifier": {}}}.'
        )
    inner_entry = entry_of(inner)
    if inner_entry.wraps:
        raise InvalidError(f"params of {name}: {inner} is a wrapper itself; wrappers cannot be nested.")
    if inner_entry.kind not in entry.wraps:
        kinds = " or ".join(entry.wraps)
        raise InvalidError(f"params of {name}: {inner} is a {inner_entry.kind}, and {name} needs a {kinds}.")
    if name == "SelectFromModel" and inner_entry.family != "linear_model":
        raise InvalidError(f"params of {name}: {inner} has no weight for each column; use a linear model.")
    if value[inner].get("class_weight") is not None:
        raise InvalidError(f"params of {name}: its {inner} cannot have a class_weight; use sample_weight.")
    return inner, value[inner]


def _with_tuples(params: Params) -> dict[str, Any]:
    return {key: tuple(value) if key in PAIRS and isinstance(value, list) else value for key, value in params.items()}


def _check_restricted(name: str, params: Params) -> None:
    for key, value in params.items():
        allowed, reason = RESTRICTED.get(key, ((), ""))
        if reason and not any(type(value) is type(one) and value == one for one in allowed):
            raise InvalidError(f"params of {name}: {key}: {reason}.")


def _check_names(name: str, params: Mapping[str, Any], known: Set[str]) -> None:
    unknown = sorted(params.keys() - known)
    if unknown:
        shown = unknown[0][:NAME_SHOWN_MAX]
        raise InvalidError(f"params of {name}: there is no {shown!r}; known: {', '.join(sorted(known))}.")


def _check_learns(name: str, estimator: Any) -> None:
    """Raise InvalidError for values that scikit-learn rejects only at the first rows."""
    if getattr(estimator, "solver", None) == "lbfgs":
        # MLPRegressor accepts it, but forgets what it learned with each call.
        raise InvalidError(f"params of {name}: this solver cannot learn row by row; use 'sgd' or 'adam'.")
    if getattr(estimator, "early_stopping", False):
        raise InvalidError(f"params of {name}: early_stopping must be false with partial_fit.")
    if getattr(estimator, "class_weight", None) == "balanced":
        raise InvalidError(f"params of {name}: class_weight 'balanced' needs all rows at once; list the weights.")
    entry = CATALOGUE[name]
    if entry.name == "Birch" and estimator.n_clusters == 1:
        raise InvalidError(f"params of {name}: n_clusters 1 fails with a single subcluster; use 2 or more, or null.")
    if entry.name == "MiniBatchKMeans" and estimator.reassignment_ratio > 1:
        raise InvalidError(
            f"params of {name}: reassignment_ratio must be 1 or less, or all clusters would be reassigned."
        )
    smoothing = getattr(estimator, "alpha", None) if getattr(estimator, "force_alpha", False) else None
    if smoothing is not None and not isinstance(smoothing, list) and smoothing == 0:
        raise InvalidError(f"params of {name}: alpha 0 gives unseen classes no probability; use for example 1e-10.")


def in_recipe_terms(name: str, message: str) -> str:
    """Return scikit-learn's `message` with the names of the recipe, cut to :data:`MESSAGE_LENGTH_MAX`."""
    if name in PASSIVE_AGGRESSIVE:
        message = message.replace("'eta0'", "'C'").replace(PASSIVE_AGGRESSIVE[name][0], name)
    return message if len(message) <= MESSAGE_LENGTH_MAX else f"{message[:MESSAGE_LENGTH_MAX]}…"


def _successor_params(name: str, params: dict[str, Any]) -> dict[str, Any]:
    _, loss, rates = PASSIVE_AGGRESSIVE[name]
    asked_loss = params.pop("loss", loss)
    if not isinstance(asked_loss, str) or asked_loss not in rates:
        raise InvalidError(f"params of {name}: loss must be one of {', '.join(rates)}.")
    return {
        "penalty": None,
        "learning_rate": rates[asked_loss],
        "eta0": params.pop("C", 1.0),
        "loss": loss,
        **params,
    }


def build_scaler(name: str) -> Any:
    """Build the scaler `name` (one of :data:`SCALERS`)."""
    check_scaler(name)
    return getattr(preprocessing, name)()
