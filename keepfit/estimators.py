"""The estimators a recipe may name: those of scikit-learn's register that can learn row by row.

Owns the allow-list and how a name becomes an object. Never imports by a path that came from outside, and scikit-learn
only where something is built: gateways know the list without it. Invariant: every name in :data:`CATALOGUE` has
``partial_fit`` and ``predict`` and can be built from parameters alone.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from keepfit.errors import InvalidError

Kind = Literal["regressor", "classifier", "clusterer", "outlier_detector"]

# What a message repeats of a name, and how long scikit-learn's own may be.
NAME_SHOWN_MAX = 80
MESSAGE_LENGTH_MAX = 500

SCALERS = ("StandardScaler", "MinMaxScaler", "MaxAbsScaler")

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


Family = Literal["cluster", "linear_model", "naive_bayes", "neural_network"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One estimator of the catalogue: the class `name` of the module `family` of scikit-learn."""

    name: str
    family: Family
    kind: Kind
    takes_sample_weight: bool = True

    @property
    def takes_y(self) -> bool:
        """Whether ``partial_fit`` wants a target."""
        return self.kind in ("regressor", "classifier")

    @property
    def cls(self) -> type[Any]:
        """The class itself; the first use imports its module."""
        from sklearn import cluster, linear_model, naive_bayes, neural_network  # noqa: PLC0415 - 130 MB, for builders

        modules = {
            "cluster": cluster,
            "linear_model": linear_model,
            "naive_bayes": naive_bayes,
            "neural_network": neural_network,
        }
        found: type[Any] = getattr(modules[self.family], self.name)
        return found


# Written down, as finding it out imports all of scikit-learn; a test holds it to scikit-learn's own register.
CATALOGUE: Mapping[str, Entry] = {
    "BernoulliNB": Entry("BernoulliNB", "naive_bayes", "classifier"),
    "Birch": Entry("Birch", "cluster", "clusterer", takes_sample_weight=False),
    "CategoricalNB": Entry("CategoricalNB", "naive_bayes", "classifier"),
    "ComplementNB": Entry("ComplementNB", "naive_bayes", "classifier"),
    "GaussianNB": Entry("GaussianNB", "naive_bayes", "classifier"),
    "MLPClassifier": Entry("MLPClassifier", "neural_network", "classifier"),
    "MLPRegressor": Entry("MLPRegressor", "neural_network", "regressor"),
    "MiniBatchKMeans": Entry("MiniBatchKMeans", "cluster", "clusterer"),
    "MultinomialNB": Entry("MultinomialNB", "naive_bayes", "classifier"),
    "PassiveAggressiveClassifier": Entry("SGDClassifier", "linear_model", "classifier"),
    "PassiveAggressiveRegressor": Entry("SGDRegressor", "linear_model", "regressor"),
    "Perceptron": Entry("Perceptron", "linear_model", "classifier"),
    "SGDClassifier": Entry("SGDClassifier", "linear_model", "classifier"),
    "SGDOneClassSVM": Entry("SGDOneClassSVM", "linear_model", "outlier_detector"),
    "SGDRegressor": Entry("SGDRegressor", "linear_model", "regressor"),
}


def entry_of(name: str) -> Entry:
    """Return the catalogue's entry of `name`, or raise InvalidError with the nearest names."""
    entry = CATALOGUE.get(name)
    if entry is None:
        shown = name[:NAME_SHOWN_MAX]
        near = ", ".join(get_close_matches(shown, CATALOGUE, n=3) or CATALOGUE)
        raise InvalidError(f"estimator {shown!r} is not one that has partial_fit and predict; known: {near}.")
    return entry


def build(name: str, params: Mapping[str, Any]) -> Any:
    """Make the estimator `name` with `params`, in scikit-learn's words where they are wrong.

    Names of the PassiveAggressive family build the SGD that scikit-learn names as their successor.

    Raises
    ------
    InvalidError
        For an unknown name, an unknown parameter, or a value that the estimator refuses.
    """
    entry = entry_of(name)
    estimator = entry.cls()
    known = estimator.get_params(deep=False).keys()
    _check_names(name, params, (known - SGD_ONLY) | {"C"} if name in PASSIVE_AGGRESSIVE else known)
    given = _successor_params(name, dict(params)) if name in PASSIVE_AGGRESSIVE else dict(params)
    defaults = {key: value for key, value in STREAM_DEFAULTS.items() if key in known}
    try:
        estimator.set_params(**{**defaults, **given})
        estimator._validate_params()
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidError(f"params of {name}: {_as_asked(name, str(error))}") from None
    _check_learns(name, estimator)
    return estimator


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


def _as_asked(name: str, message: str) -> str:
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
    from sklearn import preprocessing  # noqa: PLC0415 - after the name is known to be one of three

    if name not in SCALERS:
        raise InvalidError(f"scaler {name[:NAME_SHOWN_MAX]!r} is not one of {', '.join(SCALERS)}.")
    return getattr(preprocessing, name)()
