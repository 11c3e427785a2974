"""The state of a scorer: records, label lists and means, and whether they fit a recipe.

Owns which models can have a scorer (:func:`is_eligible`), and every check that needs the recipe. Never reads bytes and
never computes a prediction. Invariant: a state that was checked has the widths, the labels and the kinds of estimator
that its recipe has, so that computing with it reads no array beyond its end and names no label that does not exist.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from keepfit.errors import ScorerError
from keepfit.recipe import catalogue
from keepfit.recipe.recipe import CLASSES_MAX, Label, Recipe
from keepfit.rows.values import Floats, NonNumeric
from keepfit.scoring import bayes, category_codes, clusters, linear, network, scalers, wrappers
from keepfit.scoring.class_labels import CLASSES_MIN
from keepfit.scoring.functions import is_finite
from keepfit.scoring.records import Estimator, Record
from keepfit.scoring.scalers import Scaler

# The record of each class of scikit-learn that predicts (docs/reference/scorers.md).
FINALS: Mapping[str, type[Estimator]] = {
    "BernoulliNB": bayes.BernoulliBayes,
    "ComplementNB": bayes.ComplementBayes,
    "GaussianNB": bayes.GaussianBayes,
    "MLPClassifier": network.NetworkClassifier,
    "MLPRegressor": network.NetworkRegressor,
    "MiniBatchKMeans": clusters.Clusters,
    "MultiOutputClassifier": wrappers.MultiOutput,
    "MultiOutputRegressor": wrappers.MultiOutput,
    "MultinomialNB": bayes.MultinomialBayes,
    "OneVsRestClassifier": wrappers.OneVsRest,
    "Perceptron": linear.LinearClassifier,
    "SGDClassifier": linear.LinearClassifier,
    "SGDOneClassSVM": linear.InlierDetector,
    "SGDRegressor": linear.LinearRegressor,
}
SCALERS: Mapping[str, type[Record]] = {
    "StandardScaler": scalers.StandardScaler,
    "MinMaxScaler": scalers.MinMaxScaler,
    "MaxAbsScaler": scalers.MaxAbsScaler,
}
Final = wrappers.Member | linear.InlierDetector | clusters.Clusters | wrappers.OneVsRest | wrappers.MultiOutput
Count = Annotated[int, msgspec.Meta(ge=0)]


class State(msgspec.Struct, array_like=True, frozen=True):
    """Everything that a scorer has.

    `label_lists` has the labels of each category column, in the order of their codes. `means` replace missing numbers.
    `rule` is that of the codes (:mod:`keepfit.scoring.category_codes`). `steps` are the scalers before the `final`
    estimator. `labels` has those of each output, in the order of their codes; none unless this is a classifier.
    """

    generation: Count
    version: Count
    rows_seen: Count
    scaler: Scaler | None
    label_lists: list[list[NonNumeric]]
    means: Floats | None
    rule: int
    steps: list[Scaler]
    final: Final
    labels: list[list[Label]]

    @property
    def array_bytes(self) -> int:
        """Bytes of all arrays."""
        found = [one for one in (self.scaler, *self.steps, self.final) if one is not None]
        return sum(array.nbytes for record in found for array in record.arrays)

    def check(self, recipe: Recipe) -> None:
        """Check that this can be the state of a model with `recipe`.

        Raises
        ------
        ScorerError
            With what does not fit.
        """
        if not is_eligible(recipe):
            raise ScorerError(f"Models of {recipe.name} with this recipe have no scorer.")
        _check_kinds(self, recipe)
        for record in (*([self.scaler] if self.scaler is not None else []), *self.steps, self.final):
            record.check()
        _check_widths(self, recipe)
        _check_categories(self, recipe)
        _check_labels(self, recipe)


def is_eligible(recipe: Recipe) -> bool:
    """Return whether models with `recipe` can have scorers."""
    if recipe.object is not None or recipe.takes_dicts or recipe.reads_text:
        return False
    if any(column.kind == "text" for column in recipe.layout.columns):
        return False
    steps = [catalogue.entry_of(name).name for name, _ in recipe.named_steps[:-1]]
    entry = recipe.entry
    names = [entry.name] if entry.inner is None else [entry.name, entry.inner.name]
    return all(name in SCALERS for name in steps) and all(name in FINALS for name in names)


def _check_kinds(state: State, recipe: Recipe) -> None:
    expected = [SCALERS[recipe.scaler]] if recipe.scaler is not None else []
    found = [type(state.scaler)] if state.scaler is not None else []
    if found != expected or [type(step) for step in state.steps] != [
        SCALERS[catalogue.entry_of(name).name] for name, _ in recipe.named_steps[:-1]
    ]:
        raise ScorerError("The scalers are not those of the recipe.")
    if type(state.final) is not FINALS[recipe.entry.name]:
        raise ScorerError(f"{type(state.final).__name__} is not the estimator of the recipe.")
    inner = recipe.entry.inner
    members = state.final.estimators_ if isinstance(state.final, wrappers.OneVsRest | wrappers.MultiOutput) else []
    if inner is not None and {type(member) for member in members} != {FINALS[inner.name]}:
        raise ScorerError("The members are not the inner estimators of the recipe.")


def _check_widths(state: State, recipe: Recipe) -> None:
    layout = recipe.layout
    width = state.final.n_features_in_
    numbers = width if recipe.features is None else len(layout.number_places)
    if recipe.features is not None and width != layout.width:
        raise ScorerError(f"The estimator takes {width} columns where the recipe has {layout.width}.")
    if any(step.n_features_in_ != width for step in state.steps):
        raise ScorerError("A scaler takes another number of columns than the estimator.")
    if state.scaler is not None and state.scaler.n_features_in_ != numbers:
        raise ScorerError("The scaler takes another number of columns than the recipe has numbers.")
    averaged = len(layout.with_mean)
    if (0 if state.means is None else state.means.shape) != ((averaged,) if averaged else 0):
        raise ScorerError("The means are not those of the recipe's columns.")
    if state.means is not None and not is_finite(state.means):
        raise ScorerError("A mean is not finite.")


def _check_categories(state: State, recipe: Recipe) -> None:
    columns = [column for column in recipe.layout.non_numeric if column.kind == "category"]
    if recipe.encoding == "hash":
        columns = []
    if not category_codes.RULE_TEXT <= state.rule <= category_codes.RULE:
        raise ScorerError(f"Rule {state.rule} of category codes is not known.")
    if len(state.label_lists) != len(columns):
        raise ScorerError("There is not one label list for each category column.")
    for column, known in zip(columns, state.label_lists, strict=True):
        fits = len(known) <= category_codes.labels_max(column, state.rule)
        if not fits or len(set(known)) < len(known) or (None in known and not category_codes.is_label(None, column)):
            raise ScorerError(f"The label list of the column {column.name!r} is not valid.")
    if sum(map(category_codes.size, state.label_lists)) > category_codes.SIZE_MAX:
        raise ScorerError("The label lists are too large.")


def _check_labels(state: State, recipe: Recipe) -> None:
    if recipe.entry.kind != "classifier":
        if state.labels:
            raise ScorerError("Only classifiers have labels.")
        return
    counts = tuple(max(CLASSES_MIN, len(known)) for known in state.labels)
    if counts != state.final.outputs:
        raise ScorerError(f"The labels are of {counts} classes where the estimator has {state.final.outputs}.")
    for known in state.labels:
        # Python takes True for 1.
        if not 0 < len(known) <= CLASSES_MAX or len({(type(one) is bool, one) for one in known}) < len(known):
            raise ScorerError("The labels are not valid.")


def positions(known: Sequence[NonNumeric]) -> category_codes.Known:
    """Return the position of each label.

    >>> positions(["a", 7, None])
    {'a': 0, 7: 1, None: 2}
    """
    return {each: position for position, each in enumerate(known)}
