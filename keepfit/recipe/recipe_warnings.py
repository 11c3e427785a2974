"""Warnings about a model: a recipe that is valid and known to learn badly, and errors above those of the baseline.

Owns the texts under `warnings` in a model's document. Never refuses a recipe and never reads a row: what a recipe does
not say, such as the size of numbers, is judged by the running metrics. Invariant: a text says what is wrong, where in
the recipe, and what to write instead.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from keepfit.recipe.catalogue import SCALERS
from keepfit.recipe.encoding_choice import NONNEGATIVE, UNSUITED_TO_HASHES, learners
from keepfit.recipe.features import TextOptions, TimestampOptions
from keepfit.recipe.recipe import Recipe

# Rows with a prediction that make the running metrics reliable.
ROWS_JUDGED_MIN = 100
# Share of the baseline's error by which a model may be worse: from random rows, models learn to be slightly worse.
ERROR_TOLERANCE, ACCURACY_TOLERANCE = 0.05, 0.02
COLUMNS_SHOWN, NAME_SHOWN_MAX = 3, 40

# They multiply numbers with weights, or compare distances: the largest column decides.
SCALE_SENSITIVE = frozenset(
    {
        "BernoulliRBM",
        "Birch",
        "IncrementalPCA",
        "MLPClassifier",
        "MLPRegressor",
        "MiniBatchDictionaryLearning",
        "MiniBatchKMeans",
        "PassiveAggressiveClassifier",
        "PassiveAggressiveRegressor",
        "Perceptron",
        "SGDClassifier",
        "SGDOneClassSVM",
        "SGDRegressor",
    }
)
# What estimators do with negative numbers that are no amounts, such as hashes.
OF_NEGATIVES: Mapping[str, str] = dict.fromkeys(NONNEGATIVE, "refuses rows with negative numbers") | {
    "BernoulliNB": "reads negative numbers as absent",
    "BernoulliRBM": "expects numbers from 0 to 1",
}
# Steps whose output has both signs, and steps whose output is never negative, whatever they receive.
SIGNED_OUTPUT = ("IncrementalPCA", "MiniBatchDictionaryLearning", "StandardScaler")
UNSIGNED_OUTPUT = ("BernoulliRBM", "LatentDirichletAllocation", "MiniBatchKMeans", "MiniBatchNMF", "MinMaxScaler")
SIGNED_COUNTS = 'makes some counts negative: give it "alternate_sign": false'


class Negatives(NamedTuple):
    """The part of a recipe that makes numbers negative, and what to write instead; centred: those below the mean."""

    source: str
    reason: str
    centred: bool = False


def warnings_of(recipe: Recipe, metrics: Mapping[str, Any]) -> list[str]:
    """Return the warnings about a model with this recipe, in force, and these running metrics.

    >>> warnings_of(Recipe("SGDRegressor", features={"make": "category"}, encoding="onehot"), {})
    []
    >>> warnings_of(Recipe("SGDRegressor", features={"make": "category"}, encoding="ordinal"), {})
    ['encoding: SGDRegressor reads the codes of \\'make\\' as amounts; create the model with "onehot" or "hash".']
    """
    found: list[str] = []
    comparison = _comparison(recipe, metrics)
    if recipe.object is None:
        found += [*_unused_encoding(recipe), *_ordinal(recipe), *_negatives(recipe), *_not_codes(recipe)]
        # Numbers may be small already, which a recipe does not say; metrics better than the baseline's show it.
        if comparison is None or comparison:
            found += _unscaled(recipe)
    return [*found, *([comparison] if comparison else [])]


def _unused_encoding(recipe: Recipe) -> Iterator[str]:
    if recipe.encoding is not None and not recipe.categories:
        yield f'encoding: "{recipe.encoding}" has no effect, because features names no column of type "category".'


def _ordinal(recipe: Recipe) -> Iterator[str]:
    names = learners(recipe.named_steps)
    if recipe.encoding != "ordinal" or not recipe.categories or names == ["CategoricalNB"]:
        return
    instead = '"onehot"' if not UNSUITED_TO_HASHES.isdisjoint(names) else '"onehot" or "hash"'
    reader = names[0]
    yield (
        f"encoding: {reader} reads the codes of {_listed(recipe.categories)} as amounts; "
        f"create the model with {instead}."
    )


def _negatives(recipe: Recipe) -> Iterator[str]:
    """Yield a text for each estimator that has no use for the negative numbers that it receives, and their source."""
    sources = list(_signed_columns(recipe))
    for name, (_, params) in zip(learners(recipe.named_steps), recipe.named_steps, strict=True):
        for source, reason, centred in sources:
            # Numbers around their mean are a sensible yes or no.
            if name in OF_NEGATIVES and not (name == "BernoulliNB" and centred):
                yield f"{source}: {name} {OF_NEGATIVES[name]}, and this {reason}."
        if name in SIGNED_OUTPUT:
            reason = "makes some: use MinMaxScaler, or another estimator"
            sources = [Negatives(f"steps: {name}", reason, centred=name == "StandardScaler")]
        elif name in UNSIGNED_OUTPUT:
            sources = []
        elif name == "HashingVectorizer" and params.get("alternate_sign", True):
            sources = [Negatives(f"steps: {name}", SIGNED_COUNTS)]


def _signed_columns(recipe: Recipe) -> Iterator[Negatives]:
    """Yield what the columns of a recipe make negative."""
    if recipe.scaler == "StandardScaler":
        yield Negatives("scaler: StandardScaler", 'makes some: use "MinMaxScaler"', centred=True)
    if recipe.encoding == "hash" and recipe.categories:
        yield Negatives(f"encoding: the hash of {_listed(recipe.categories)}", 'may be negative: use "onehot"')
    for column in recipe.layout.non_numeric:
        if isinstance(column.options, TextOptions) and column.options.alternate_sign and not recipe.reads_text:
            yield Negatives(f"features: the text {_listed([column.name])}", SIGNED_COUNTS)


def _not_codes(recipe: Recipe) -> Iterator[str]:
    """Yield texts about CategoricalNB, which reads every number as the code of a category."""
    names = learners(recipe.named_steps)
    if "CategoricalNB" not in names:
        return
    reads = "CategoricalNB reads numbers as codes of categories, cut to whole numbers"
    if names[0] != "CategoricalNB":
        yield f"steps: {reads}: leave out {names[0]}."
        return
    if recipe.scaler in ("MinMaxScaler", "MaxAbsScaler"):
        yield f"scaler: {reads}, and those scaled to 1 become 0: leave it out."
    for column in recipe.layout.columns:
        if column.kind == "text":
            yield f"features: {reads}: {_listed([column.name])} is a text; use MultinomialNB."
        elif isinstance(column.options, TimestampOptions) and "seconds" in column.time_parts:
            yield f"features: {reads}: expand the timestamp {_listed([column.name])} to hour, weekday or month."


def _unscaled(recipe: Recipe) -> Iterator[str]:
    """Yield a text if an estimator receives number columns as they were sent."""
    first = learners(recipe.named_steps)[0]
    numbers = [column.name for column in recipe.layout.numbers if column.kind in ("number", "timestamp")]
    if numbers and recipe.scaler is None and first in SCALE_SENSITIVE:
        scaler = "MinMaxScaler" if first == "BernoulliRBM" else "StandardScaler"
        yield (
            f"scaler: {first} learns badly from numbers of different sizes; unless {_listed(numbers)} "
            f'{"is" if len(numbers) == 1 else "are"} between -1 and 1, create the model with "{scaler}".'
        )


def _comparison(recipe: Recipe, metrics: Mapping[str, Any]) -> str | None:
    """Return a text if the answers to the last rows are worse than the baseline's, '' if not, None if unknown."""
    # A window may be smaller than what is reliable; then all rows are judged.
    last = next((part for part in (metrics.get("window", {}), metrics) if part.get("rows", 0) >= ROWS_JUDGED_MIN), {})
    for metric in ("mean_absolute_error", "accuracy"):
        value, baseline = last.get(metric), last.get(f"baseline_{metric}")
        if value is None or baseline is None:
            continue
        is_error = metric == "mean_absolute_error"
        worse = value > baseline * (1 + ERROR_TOLERANCE) if is_error else value < baseline - ACCURACY_TOLERANCE
        # Weights of classes give up accuracy for the rare ones.
        if not worse or any(params.get("class_weight") for _, params in recipe.named_steps):
            return ""
        constant = "mean" if is_error else "most frequent label"
        return (
            f"metrics: over the last {last['rows']} rows {metric} is {value:.4g}, and that of always answering the "
            f"{constant} {baseline:.4g}; {_advice(recipe)}."
        )
    return None


def _advice(recipe: Recipe) -> str:
    """Return what to change in a recipe that is worse than its baseline."""
    if recipe.object is not None:
        return "check the parameters of the object"
    names = learners(recipe.named_steps)
    if names[0] in SCALE_SENSITIVE and recipe.scaler is None:
        return f'create the model with "scaler": "{SCALERS[0]}", or scale the numbers that you send'
    return "try smaller steps (eta0, learning_rate_init, C) or other columns"


def _listed(columns: list[str]) -> str:
    shown = ", ".join(repr(name[:NAME_SHOWN_MAX]) for name in columns[:COLUMNS_SHOWN])
    return shown if len(columns) <= COLUMNS_SHOWN else f"{shown} and {len(columns) - COLUMNS_SHOWN} more"
