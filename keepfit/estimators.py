"""The estimators a recipe may name, from scikit-learn's own register.

Owns the allow-list and how a name becomes an object. Never imports by a path that came from outside. Invariant: every
name in :func:`catalogue` has ``partial_fit`` and ``predict`` and can be built from parameters alone.
"""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal

from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor
from sklearn.utils import all_estimators

from keepfit.errors import InvalidError

Kind = Literal["regressor", "classifier", "clusterer", "outlier_detector"]

SCALERS = ("StandardScaler", "MinMaxScaler", "MaxAbsScaler")

# A stream is learned in the order in which it came, and the same stream twice gives the same bundle.
STREAM_DEFAULTS: Mapping[str, Any] = {"shuffle": False, "random_state": 0}

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


@dataclass(frozen=True, slots=True)
class Entry:
    """One estimator of the catalogue."""

    cls: type[Any]
    kind: Kind
    takes_sample_weight: bool

    @property
    def takes_y(self) -> bool:
        """Whether ``partial_fit`` wants a target."""
        return self.kind in ("regressor", "classifier")


@cache
def catalogue() -> Mapping[str, Entry]:
    """All estimators by name that can learn row by row and answer ``predict``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {}
        for name, cls in all_estimators():
            required = [
                p
                for p in inspect.signature(cls).parameters.values()
                if p.default is p.empty and p.kind < p.VAR_POSITIONAL
            ]
            if not (hasattr(cls, "partial_fit") and hasattr(cls, "predict")) or required:
                continue
            kind = _kind_of(cls())
            if kind is not None:
                weighted = "sample_weight" in inspect.signature(cls.partial_fit).parameters
                found[name] = Entry(cls, kind, weighted)
    for old, (new, _, _) in PASSIVE_AGGRESSIVE.items():
        found[old] = found[new]
    return found


def _kind_of(estimator: Any) -> Kind | None:
    if is_classifier(estimator):
        return "classifier"
    if is_regressor(estimator):
        return "regressor"
    if is_clusterer(estimator):
        return "clusterer"
    return "outlier_detector" if is_outlier_detector(estimator) else None


def entry_of(name: str) -> Entry:
    """Return the catalogue's entry of `name`, or raise InvalidError with the nearest names."""
    entry = catalogue().get(name)
    if entry is None:
        near = get_close_matches(name, catalogue(), n=3) or sorted(catalogue())
        raise InvalidError(f"estimator {name!r} is not one that has partial_fit and predict; known: {', '.join(near)}.")
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
    given = _successor_params(name, dict(params)) if name in PASSIVE_AGGRESSIVE else dict(params)
    estimator = entry.cls()
    defaults = {key: value for key, value in STREAM_DEFAULTS.items() if key in estimator.get_params()}
    try:
        estimator.set_params(**{**defaults, **given})
        estimator._validate_params()
    except (ValueError, TypeError) as error:
        raise InvalidError(f"params of {name}: {error}") from None
    return estimator


def _successor_params(name: str, params: dict[str, Any]) -> dict[str, Any]:
    _, loss, rates = PASSIVE_AGGRESSIVE[name]
    asked = params.pop("loss", loss)
    if asked not in rates:
        raise InvalidError(f"params of {name}: loss must be one of {', '.join(rates)}, not {asked!r}.")
    foreign = {"penalty", "learning_rate", "eta0", "alpha", "l1_ratio", "power_t"} & params.keys()
    if foreign:
        raise InvalidError(f"params of {name}: {', '.join(sorted(foreign))} belong to SGD, not to {name}.")
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
        raise InvalidError(f"scaler {name!r} is not one of {', '.join(SCALERS)}.")
    return getattr(preprocessing, name)()
