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
    INNER,
    NAME_SHOWN_MAX,
    Entry,
    Family,
    Params,
    check_scaler,
    entry_of,
    inner_of,
)

MESSAGE_LENGTH_MAX = 500

# A stream is learned in the order in which it came, and the same stream twice gives the same bundle.
STREAM_DEFAULTS: Mapping[str, Any] = {"shuffle": False, "random_state": 0}

# Parameters of SGD that the names below decide.
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

# What the parameters of an estimator may not say here, and why.
FIXED: Mapping[str, tuple[Sequence[Any], str]] = {
    "n_jobs": ((None, 1), "a worker is one process; leave n_jobs out"),
    "verbose": ((None, 0, False), "nobody reads what a worker prints"),
    "prefit": ((False,), "what it would select by has not been learned elsewhere"),
    "importance_getter": (("auto",), "only 'auto' is known here"),
    "input": (("content",), "texts come in the rows; nothing is read from files"),
    "token_pattern": ((r"(?u)\b\w\w+\b",), "a pattern may take for ever; choose analyzer and ngram_range"),
}

# A pair in scikit-learn, for which JSON has a list.
PAIRS = frozenset({"feature_range", "ngram_range"})

# Dense rows of scikit-learn's 1,048,576 columns would have 8 MB each.
HASHED_COLUMNS = 1024

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
    """Make the estimator `name` with `params`, in scikit-learn's words where they are wrong.

    Names of the PassiveAggressive family build the SGD that scikit-learn names as their successor. A wrapper's
    parameter `estimator` is an object whose one key names the estimator in it and whose value has its parameters.

    Raises
    ------
    InvalidError
        For an unknown name, an unknown parameter, or a value that the estimator refuses.
    """
    entry = entry_of(name)
    if entry.wraps:
        inner, inner_params = _inner(name, entry, params)
        estimator = class_of(entry)(build(inner, inner_params))
        params = {key: value for key, value in params.items() if key != INNER}
    else:
        estimator = class_of(entry)()
    known = estimator.get_params(deep=False).keys()
    _check_names(name, params, (known - SGD_ONLY) | {"C"} if name in PASSIVE_AGGRESSIVE else known - {INNER})
    given = _successor_params(name, dict(params)) if name in PASSIVE_AGGRESSIVE else _converted(params)
    _check_fixed(name, given)
    defaults = {key: value for key, value in STREAM_DEFAULTS.items() if key in known}
    if entry.reads_text:
        defaults["n_features"] = HASHED_COLUMNS
    try:
        estimator.set_params(**{**defaults, **given})
        estimator._validate_params()
        if entry.family == "linear_model":
            estimator._more_validate_params(for_partial_fit=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidError(f"params of {name}: {as_asked(name, str(error))}") from None
    _check_learns(name, estimator)
    return estimator


def _inner(name: str, entry: Entry, params: Params) -> tuple[str, Params]:
    """Name and parameters of the estimator in the wrapper `name`, checked to be one that suits it."""
    asked = params.get(INNER)
    inner = inner_of(params)
    if inner is None or not isinstance(asked, dict) or not isinstance(asked[inner], dict):
        raise InvalidError(
            f"params of {name}: {INNER} must be an object with one key, the name of the estimator in it, "
            'and its params as the value: {"estimator": {"SGDClassifier": {}}}.'
        )
    within = entry_of(inner)
    if within.wraps:
        raise InvalidError(f"params of {name}: {inner} stands around another estimator itself; one may, not two.")
    if within.kind not in entry.wraps:
        wanted = " or ".join(entry.wraps)
        raise InvalidError(f"params of {name}: {inner} is a {within.kind}, and {name} needs a {wanted}.")
    if name == "SelectFromModel" and within.family != "linear_model":
        raise InvalidError(f"params of {name}: {inner} does not say how much each column counts; a linear model does.")
    if asked[inner].get("class_weight") is not None:
        raise InvalidError(f"params of {name}: the {inner} in it cannot have a class_weight; use sample_weight.")
    return inner, asked[inner]


def _converted(params: Params) -> dict[str, Any]:
    return {key: tuple(value) if key in PAIRS and isinstance(value, list) else value for key, value in params.items()}


def _check_fixed(name: str, params: Params) -> None:
    for key, value in params.items():
        allowed, reason = FIXED.get(key, ((), ""))
        if reason and not any(type(value) is type(one) and value == one for one in allowed):
            raise InvalidError(f"params of {name}: {key}: {reason}.")


def _check_names(name: str, params: Mapping[str, Any], known: Set[str]) -> None:
    unknown = sorted(params.keys() - known)
    if unknown:
        shown = unknown[0][:NAME_SHOWN_MAX]
        raise InvalidError(f"params of {name}: there is no {shown!r}; there are {', '.join(sorted(known))}.")


def _check_learns(name: str, estimator: Any) -> None:
    """Refuse what scikit-learn refuses only when the first rows come."""
    if getattr(estimator, "solver", None) == "lbfgs":
        # MLPRegressor would take it, and forget with each call what it had learned before.
        raise InvalidError(f"params of {name}: this solver cannot learn row by row; use 'sgd' or 'adam'.")
    if getattr(estimator, "early_stopping", False):
        raise InvalidError(f"params of {name}: early_stopping must be false where rows come one after the other.")
    if getattr(estimator, "class_weight", None) == "balanced":
        raise InvalidError(f"params of {name}: class_weight 'balanced' needs all rows at once; name the weights.")
    entry = CATALOGUE[name]
    if entry.name == "Birch" and estimator.n_clusters == 1:
        raise InvalidError(
            f"params of {name}: n_clusters 1 fails while there is one subcluster; use 2 or more, or null."
        )
    if entry.name == "MiniBatchKMeans" and estimator.reassignment_ratio > 1:
        raise InvalidError(
            f"params of {name}: reassignment_ratio must be 1 or less, or no cluster would be left alone."
        )
    smoothing = getattr(estimator, "alpha", None) if getattr(estimator, "force_alpha", False) else None
    if smoothing is not None and not isinstance(smoothing, list) and smoothing == 0:
        raise InvalidError(f"params of {name}: alpha 0 makes nothing of a class that has not come; use 1e-10, say.")


def as_asked(name: str, message: str) -> str:
    """Put scikit-learn's words in those of the recipe, and no longer than helps."""
    if name in PASSIVE_AGGRESSIVE:
        message = message.replace("'eta0'", "'C'").replace(PASSIVE_AGGRESSIVE[name][0], name)
    return message if len(message) <= MESSAGE_LENGTH_MAX else f"{message[:MESSAGE_LENGTH_MAX]}…"


def _successor_params(name: str, params: dict[str, Any]) -> dict[str, Any]:
    _, loss, rates = PASSIVE_AGGRESSIVE[name]
    asked = params.pop("loss", loss)
    if not isinstance(asked, str) or asked not in rates:
        raise InvalidError(f"params of {name}: loss must be one of {', '.join(rates)}.")
    return {
        "penalty": None,
        "learning_rate": rates[asked],
        "eta0": params.pop("C", 1.0),
        "loss": loss,
        **params,
    }


def build_scaler(name: str) -> Any:
    """Make the scaler `name` (one of :data:`SCALERS`)."""
    check_scaler(name)
    return getattr(preprocessing, name)()
