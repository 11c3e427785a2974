"""The estimators that a recipe may name: those of scikit-learn's registry that can learn row by row.

Owns the allow-list and the properties of each name that need no instance. Never imports scikit-learn, which takes
130 MB, because gateways use this; :mod:`keepfit.model.estimators` builds. Invariant: every name in :data:`CATALOGUE`
has ``partial_fit``, and ``predict`` or ``transform``; a wrapper takes an inner estimator of the same list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from keepfit.errors import InvalidError
from keepfit.recipe.other_estimators import KIND_WITHOUT, NAME_SHOWN_MAX, unusable

Kind = Literal["regressor", "classifier", "clusterer", "transformer", "outlier_detector"]
Params = Mapping[str, Any]

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

# The parameter of a wrapper that names its inner estimator: {"estimator": {"SGDRegressor": {"alpha": 0.001}}}.
INNER_PARAM = "estimator"
STEPS_MAX = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """One estimator of the catalogue: the class `name` of the module `family` of scikit-learn.

    `multi_output`: `y` has a list of values for each row. `wraps`: the kinds of estimator that this wrapper takes.
    `inner`: the entry of its inner estimator. `reads_text`: it takes texts instead of numbers. `takes_dicts`: it takes
    rows as dicts by name, unchanged, as River's models do.
    """

    name: str
    family: Family
    kind: Kind
    takes_sample_weight: bool = True
    multi_output: bool = False
    wraps: tuple[Kind, ...] = ()
    inner: "Entry | None" = None
    reads_text: bool = False
    takes_dicts: bool = False

    @property
    def takes_y(self) -> bool:
        """Whether ``partial_fit`` requires a target."""
        return self.target is not None

    @property
    def target(self) -> Literal["numbers", "labels"] | None:
        """The type of the target; of a wrapper, that of its inner estimator."""
        kind = self.kind if self.inner is None else self.inner.kind
        if kind == "regressor":
            return "numbers"
        return "labels" if kind == "classifier" else None


SUPERVISED_KINDS: tuple[Kind, ...] = ("regressor", "classifier")

# Written out, because computing it imports all of scikit-learn. A test compares it with scikit-learn's registry.
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
        "MultiOutputClassifier", "multioutput", "classifier", multi_output=True, wraps=("classifier",)
    ),
    "MultiOutputRegressor": Entry(
        "MultiOutputRegressor", "multioutput", "regressor", multi_output=True, wraps=("regressor",)
    ),
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
    "SelectFromModel": Entry("SelectFromModel", "feature_selection", "transformer", wraps=SUPERVISED_KINDS),
    "StandardScaler": Entry("StandardScaler", "preprocessing", "transformer"),
}

# Estimators that cannot precede another step, because their output columns change, and why.
VARYING_WIDTH: Mapping[str, str] = {
    "Birch": "it has one column per subcluster, and their number grows as it learns",
    "SelectFromModel": "the columns that it selects change as it learns",
}


def entry_of(name: str) -> Entry:
    """Return the catalogue entry of `name`, or raise InvalidError with the estimators that can be used instead."""
    entry = CATALOGUE.get(name)
    if entry is None:
        raise unusable(name, {each: found.kind for each, found in CATALOGUE.items()})
    return entry


@lru_cache
def entry_with_inner(name: str, inner: str | None) -> Entry:
    """Return the entry of the wrapper `name` with the inner estimator `inner`; of others the entry alone."""
    entry = entry_of(name)
    if inner is None or not entry.wraps:
        return entry
    inner_entry = entry_of(inner)
    weights = entry.takes_sample_weight and inner_entry.takes_sample_weight
    return replace(entry, inner=inner_entry, takes_sample_weight=weights)


def inner_name(params: Params) -> str | None:
    """Return the name of the inner estimator in a wrapper's `params`, or None."""
    inner = params.get(INNER_PARAM)
    return next(iter(inner)) if isinstance(inner, dict) and len(inner) == 1 else None


def check_steps(names: Sequence[str]) -> None:
    """Check that the estimators `names` can form a pipeline.

    Raises
    ------
    InvalidError
        With the name of the step and the reason.
    """
    if not 1 <= len(names) <= STEPS_MAX:
        raise InvalidError(f"recipe: steps must name between 1 and {STEPS_MAX} estimators.")
    for position, name in enumerate(names):
        entry = entry_of(name)
        if entry.reads_text and position:
            raise InvalidError(f"steps: {name} reads texts, so it must be the first step.")
        if position == len(names) - 1:
            return
        if entry.name in VARYING_WIDTH:
            raise InvalidError(f"steps: {name} must be the last step: {VARYING_WIDTH[entry.name]}.")
        if entry.kind not in ("transformer", "clusterer"):
            raise InvalidError(f"steps: {name} is a {entry.kind}, which transforms no rows; put it last.")


def check_scaler(name: str) -> None:
    """Raise InvalidError unless `name` is one of :data:`SCALERS`."""
    if name not in SCALERS:
        wrong = "cannot learn row by row; use one of" if name in KIND_WITHOUT else "is not one of"
        raise InvalidError(f"scaler {name[:NAME_SHOWN_MAX]!r} {wrong} {', '.join(SCALERS)}.")
