"""The estimators a recipe may name: those of scikit-learn's register that can learn row by row.

Owns the allow-list and what is known of each name without building it. Never imports scikit-learn, which takes 130 MB
that gateways do without; :mod:`keepfit.model.estimators` builds. Invariant: every name in :data:`CATALOGUE` has
``partial_fit``, and ``predict`` or ``transform``; what stands around another estimator takes one of the same list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Literal

from keepfit.errors import InvalidError

Kind = Literal["regressor", "classifier", "clusterer", "transformer", "outlier_detector"]
Params = Mapping[str, Any]

# What a message repeats of a name.
NAME_SHOWN_MAX = 80

SCALERS = ("StandardScaler", "MinMaxScaler", "MaxAbsScaler")

Family = Literal[
    "cluster",
    "decomposition",
    "feature_extraction.text",
    "feature_selection",
    "linear_model",
    "multiclass",
    "multioutput",
    "naive_bayes",
    "neural_network",
    "object",
    "preprocessing",
]

# One parameter of a wrapper names the estimator in it: {"estimator": {"SGDRegressor": {"alpha": 0.001}}}.
INNER = "estimator"
STEPS_MAX = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """One estimator of the catalogue: the class `name` of the module `family` of scikit-learn.

    `many` is whether `y` has a list of values for each row; `wraps` names the kinds of estimator that it stands around,
    and `inner` is the one that it does; `reads_text` is whether it takes texts in place of numbers.
    """

    name: str
    family: Family
    kind: Kind
    takes_sample_weight: bool = True
    many: bool = False
    wraps: tuple[Kind, ...] = ()
    inner: "Entry | None" = None
    reads_text: bool = False

    @property
    def takes_y(self) -> bool:
        """Whether ``partial_fit`` wants a target."""
        return self.target is not None

    @property
    def target(self) -> Literal["numbers", "labels"] | None:
        """What the target is made of; of a wrapper, what the estimator in it learns from."""
        kind = self.kind if self.inner is None else self.inner.kind
        if kind == "regressor":
            return "numbers"
        return "labels" if kind == "classifier" else None


LEARNERS: tuple[Kind, ...] = ("regressor", "classifier")

# Written down, as finding it out imports all of scikit-learn; a test holds it to scikit-learn's own register.
CATALOGUE: Mapping[str, Entry] = {
    "BernoulliNB": Entry("BernoulliNB", "naive_bayes", "classifier"),
    "BernoulliRBM": Entry("BernoulliRBM", "neural_network", "transformer", takes_sample_weight=False),
    "Birch": Entry("Birch", "cluster", "clusterer", takes_sample_weight=False),
    "CategoricalNB": Entry("CategoricalNB", "naive_bayes", "classifier"),
    "ComplementNB": Entry("ComplementNB", "naive_bayes", "classifier"),
    "GaussianNB": Entry("GaussianNB", "naive_bayes", "classifier"),
    "HashingVectorizer": Entry(
        "HashingVectorizer", "feature_extraction.text", "transformer", takes_sample_weight=False, reads_text=True
    ),
    "IncrementalPCA": Entry("IncrementalPCA", "decomposition", "transformer", takes_sample_weight=False),
    "LatentDirichletAllocation": Entry(
        "LatentDirichletAllocation", "decomposition", "transformer", takes_sample_weight=False
    ),
    "MLPClassifier": Entry("MLPClassifier", "neural_network", "classifier"),
    "MLPRegressor": Entry("MLPRegressor", "neural_network", "regressor"),
    "MaxAbsScaler": Entry("MaxAbsScaler", "preprocessing", "transformer", takes_sample_weight=False),
    "MinMaxScaler": Entry("MinMaxScaler", "preprocessing", "transformer", takes_sample_weight=False),
    "MiniBatchDictionaryLearning": Entry(
        "MiniBatchDictionaryLearning", "decomposition", "transformer", takes_sample_weight=False
    ),
    "MiniBatchKMeans": Entry("MiniBatchKMeans", "cluster", "clusterer"),
    "MiniBatchNMF": Entry("MiniBatchNMF", "decomposition", "transformer", takes_sample_weight=False),
    "MultiOutputClassifier": Entry(
        "MultiOutputClassifier", "multioutput", "classifier", many=True, wraps=("classifier",)
    ),
    "MultiOutputRegressor": Entry("MultiOutputRegressor", "multioutput", "regressor", many=True, wraps=("regressor",)),
    "MultinomialNB": Entry("MultinomialNB", "naive_bayes", "classifier"),
    "OneVsOneClassifier": Entry(
        "OneVsOneClassifier", "multiclass", "classifier", takes_sample_weight=False, wraps=("classifier",)
    ),
    "OneVsRestClassifier": Entry(
        "OneVsRestClassifier", "multiclass", "classifier", takes_sample_weight=False, wraps=("classifier",)
    ),
    "PassiveAggressiveClassifier": Entry("SGDClassifier", "linear_model", "classifier"),
    "PassiveAggressiveRegressor": Entry("SGDRegressor", "linear_model", "regressor"),
    "Perceptron": Entry("Perceptron", "linear_model", "classifier"),
    "SGDClassifier": Entry("SGDClassifier", "linear_model", "classifier"),
    "SGDOneClassSVM": Entry("SGDOneClassSVM", "linear_model", "outlier_detector"),
    "SGDRegressor": Entry("SGDRegressor", "linear_model", "regressor"),
    "SelectFromModel": Entry("SelectFromModel", "feature_selection", "transformer", wraps=LEARNERS),
    "StandardScaler": Entry("StandardScaler", "preprocessing", "transformer"),
}

# Before another step these would change what its columns are, for the reason given.
UNSTEADY: Mapping[str, str] = {
    "Birch": "it has a column for each of its subclusters, and those become more as it learns",
    "SelectFromModel": "which columns it keeps, and how many, changes as it learns",
}


def entry_of(name: str) -> Entry:
    """Return the catalogue's entry of `name`, or raise InvalidError with the nearest names."""
    entry = CATALOGUE.get(name)
    if entry is None:
        shown = name[:NAME_SHOWN_MAX]
        near = ", ".join(get_close_matches(shown, CATALOGUE, n=3) or CATALOGUE)
        raise InvalidError(f"estimator {shown!r} is not one that has partial_fit; known: {near}.")
    return entry


@lru_cache
def entry_around(name: str, inner: str | None) -> Entry:
    """Entry of the estimator `name` as it stands around `inner`; without one, the catalogue's own."""
    entry = entry_of(name)
    if inner is None or not entry.wraps:
        return entry
    within = entry_of(inner)
    weights = entry.takes_sample_weight and within.takes_sample_weight
    return replace(entry, inner=within, takes_sample_weight=weights)


def inner_of(params: Params) -> str | None:
    """Name of the estimator that a wrapper's `params` ask for; None where they do not."""
    inner = params.get(INNER)
    return next(iter(inner)) if isinstance(inner, dict) and len(inner) == 1 else None


def check_steps(names: Sequence[str]) -> None:
    """Refuse estimators that cannot stand one after the other.

    Raises
    ------
    InvalidError
        With the reason.
    """
    if not 1 <= len(names) <= STEPS_MAX:
        raise InvalidError(f"recipe: steps must name between 1 and {STEPS_MAX} estimators.")
    for position, name in enumerate(names):
        entry = entry_of(name)
        if entry.reads_text and position:
            raise InvalidError(f"steps: {name} reads texts, so it can only be the first.")
        if position == len(names) - 1:
            return
        if entry.name in UNSTEADY:
            raise InvalidError(f"steps: {name} can only be the last: {UNSTEADY[entry.name]}.")
        if entry.kind not in ("transformer", "clusterer"):
            raise InvalidError(f"steps: {name} is a {entry.kind}, which gives no rows for a next step; put it last.")


def check_scaler(name: str) -> None:
    """Raise InvalidError unless `name` is one of :data:`SCALERS`."""
    if name not in SCALERS:
        raise InvalidError(f"scaler {name[:NAME_SHOWN_MAX]!r} is not one of {', '.join(SCALERS)}.")
