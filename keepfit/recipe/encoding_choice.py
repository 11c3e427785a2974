"""The encoding of category columns that suits an estimator, for recipes that leave it out.

Owns one choice for each estimator of :data:`keepfit.recipe.catalogue.CATALOGUE`. Never imports scikit-learn and never
changes an encoding that a recipe names. Invariant: a choice depends on the recipe alone. The gateway stores it with the
model, so another choice in a later release changes no existing model. docs/reference/recipe.md has the figures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from keepfit.recipe import catalogue
from keepfit.recipe.features import Encoding, Feature, has_categories, onehot_columns

# Columns of a one-hot matrix beyond which categories are hashed: a row of that width takes half a megabyte.
ONEHOT_COLUMNS_MAX = 2**16

# One-hot columns for all that multiply a number with a weight, measure a distance, or count: the code of a label is
# the order in which labels appeared, and no amount. None where no category column is possible.
CHOICES: Mapping[str, Encoding | None] = {
    # Each column is a yes or no: one for each label.
    "BernoulliNB": "onehot",
    # Inputs are probabilities from 0 to 1.
    "BernoulliRBM": "onehot",
    "Birch": "onehot",
    # Its own input form: the code of a category. One-hot columns give the same accuracy at five times the cost.
    "CategoricalNB": "ordinal",
    # Counts of each label. Hashes have a sign, which a count may not have.
    "ComplementNB": "onehot",
    # A normal distribution of codes means nothing; that of a one-hot column tells how frequent its label is.
    "GaussianNB": "onehot",
    "HashingVectorizer": None,
    "IncrementalPCA": "onehot",
    "LatentDirichletAllocation": "onehot",
    "MLPClassifier": "onehot",
    "MLPRegressor": "onehot",
    # What scales a code would scale an amount.
    "MaxAbsScaler": "onehot",
    "MinMaxScaler": "onehot",
    "MiniBatchDictionaryLearning": "onehot",
    "MiniBatchKMeans": "onehot",
    "MiniBatchNMF": "onehot",
    # A wrapper without its inner estimator is refused; with it, the inner one decides.
    "MultiOutputClassifier": "onehot",
    "MultiOutputRegressor": "onehot",
    "MultinomialNB": "onehot",
    "OneVsOneClassifier": "onehot",
    "OneVsRestClassifier": "onehot",
    "PassiveAggressiveClassifier": "onehot",
    "PassiveAggressiveRegressor": "onehot",
    "Perceptron": "onehot",
    "SGDClassifier": "onehot",
    "SGDOneClassSVM": "onehot",
    "SGDRegressor": "onehot",
    "SelectFromModel": "onehot",
    "StandardScaler": "onehot",
}
# Of an uploaded object nothing is known; one-hot columns are correct for amounts, distances and trees alike.
OBJECT_CHOICE: Encoding = "onehot"

# They refuse negative numbers, and a hash may have the sign -.
NONNEGATIVE = frozenset({"CategoricalNB", "ComplementNB", "LatentDirichletAllocation", "MiniBatchNMF", "MultinomialNB"})
# They have no use for the sign -, and a recipe that gives them hashes has a warning.
UNSUITED_TO_HASHES = NONNEGATIVE | {"BernoulliNB", "BernoulliRBM"}


def learners(named_steps: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return the name of the estimator that learns in each step: the inner one of a wrapper.

    >>> learners([("StandardScaler", {}), ("OneVsRestClassifier", {"estimator": {"Perceptron": {}}})])
    ['StandardScaler', 'Perceptron']
    """
    return [
        (catalogue.inner_name(params) if catalogue.entry_of(name).wraps else None) or name
        for name, params in named_steps
    ]


def choose(
    named_steps: Sequence[tuple[str, Mapping[str, Any]]], features: Mapping[str, Feature] | None, max_categories: int
) -> Encoding | None:
    """Return the encoding that suits the estimator of a recipe; None if it has no category column.

    Codes suit a single estimator only: the first of several steps transforms them, and then they are codes no longer.
    """
    if not has_categories(features or {}):
        return None
    if not named_steps:
        return OBJECT_CHOICE
    names = learners(named_steps)
    choice = CHOICES[names[0]] if len(names) == 1 else "onehot"
    is_wide = choice == "onehot" and onehot_columns(features or {}, max_categories) > ONEHOT_COLUMNS_MAX
    return "hash" if is_wide and UNSUITED_TO_HASHES.isdisjoint(names) else choice
