"""Warnings about a model: each combination that learns badly has one, and a combination that learns has none."""

from typing import Any

import pytest

from keepfit.recipe.catalogue import CATALOGUE
from keepfit.recipe.recipe import parse
from keepfit.recipe.recipe_warnings import SCALE_SENSITIVE, warnings_of

CATEGORIES = {"make": "category", "shop": "category"}
NUMBERS = {"year": "number", "sold": "timestamp"}
TEXT = {"note": "text"}
SCALED = {"scaler": "StandardScaler"}


def found(metrics: dict[str, Any] | None = None, **document: Any) -> list[str]:
    """Return the warnings about a recipe."""
    return warnings_of(parse(document), metrics or {})


@pytest.mark.parametrize(
    "document",
    [
        {"estimator": "SGDRegressor", "features": {**CATEGORIES, **NUMBERS}, **SCALED},
        {"estimator": "SGDRegressor", "features": {**CATEGORIES, **NUMBERS}, **SCALED, "encoding": "hash"},
        {"estimator": "SGDRegressor", "features": {**CATEGORIES, **TEXT}},
        {"estimator": "SGDRegressor"},
        {"estimator": "CategoricalNB", "features": CATEGORIES},
        {"estimator": "CategoricalNB", "features": CATEGORIES, "encoding": "onehot"},
        {"estimator": "CategoricalNB", "features": {**CATEGORIES, "sold": {"type": "timestamp", "expand": ["hour"]}}},
        {"estimator": "OneVsRestClassifier", "params": {"estimator": {"CategoricalNB": {}}}, "features": CATEGORIES},
        {"estimator": "GaussianNB", "features": NUMBERS},
        {"estimator": "MultinomialNB", "features": {**CATEGORIES, **NUMBERS}, "scaler": "MinMaxScaler"},
        {"estimator": "MultinomialNB", "features": {"note": {"type": "text", "alternate_sign": False}}},
        {"estimator": "BernoulliNB", "features": {**CATEGORIES, **NUMBERS}, **SCALED},
        {"estimator": "MiniBatchKMeans", "features": {**CATEGORIES, **NUMBERS}, **SCALED},
        {"steps": [{"StandardScaler": {}}, {"SGDRegressor": {}}], "features": {**CATEGORIES, **NUMBERS}},
        {"steps": [{"MinMaxScaler": {}}, {"MiniBatchNMF": {}}, {"MultinomialNB": {}}], "features": NUMBERS},
        {"steps": [{"MiniBatchKMeans": {}}, {"MultinomialNB": {}}], "features": NUMBERS, **SCALED},
        {
            "steps": [{"HashingVectorizer": {"alternate_sign": False}}, {"MultinomialNB": {}}],
            "features": TEXT,
        },
        {"steps": [{"HashingVectorizer": {}}, {"SGDClassifier": {}}], "features": TEXT},
    ],
    ids=str,
)
def test_a_recipe_that_learns_has_no_warning(document: dict[str, Any]) -> None:
    """A recipe without a known fault has no warning."""
    assert found(**document) == []


@pytest.mark.parametrize(
    ("document", "warning"),
    [
        (
            {"estimator": "GaussianNB", "features": CATEGORIES, "encoding": "ordinal"},
            (
                "encoding: GaussianNB reads the codes of 'make', 'shop' as amounts; "
                'create the model with "onehot" or "hash".'
            ),
        ),
        (
            {"estimator": "MultinomialNB", "features": CATEGORIES, "encoding": "ordinal"},
            "encoding: MultinomialNB reads the codes of 'make', 'shop' as amounts; create the model with \"onehot\".",
        ),
        (
            {
                "estimator": "MultiOutputRegressor",
                "params": {"estimator": {"SGDRegressor": {}}},
                "features": {f"c{i}": "category" for i in range(5)},
                "encoding": "ordinal",
            },
            (
                "encoding: SGDRegressor reads the codes of 'c0', 'c1', 'c2' and 2 more as amounts; "
                'create the model with "onehot" or "hash".'
            ),
        ),
        (
            {"estimator": "SGDRegressor", "features": NUMBERS},
            (
                "scaler: SGDRegressor learns badly from numbers of different sizes; unless 'year', 'sold' are "
                "between -1 "
                'and 1, create the model with "StandardScaler".'
            ),
        ),
        (
            {"steps": [{"BernoulliRBM": {}}, {"SGDClassifier": {}}], "features": {"year": "number"}},
            (
                "scaler: BernoulliRBM learns badly from numbers of different sizes; unless 'year' is between -1 and 1, "
                'create the model with "MinMaxScaler".'
            ),
        ),
        (
            {"estimator": "MultinomialNB", "features": NUMBERS, **SCALED},
            (
                "scaler: StandardScaler: MultinomialNB refuses rows with negative numbers, and this makes some: "
                'use "MinMaxScaler".'
            ),
        ),
        (
            {"estimator": "MultinomialNB", **SCALED},
            (
                "scaler: StandardScaler: MultinomialNB refuses rows with negative numbers, and this makes some: "
                'use "MinMaxScaler".'
            ),
        ),
        (
            {"steps": [{"StandardScaler": {}}, {"MaxAbsScaler": {}}, {"ComplementNB": {}}]},
            (
                "steps: StandardScaler: ComplementNB refuses rows with negative numbers, and this makes some: "
                "use MinMaxScaler, or another estimator."
            ),
        ),
        (
            {"steps": [{"IncrementalPCA": {}}, {"MiniBatchNMF": {}}]},
            (
                "steps: IncrementalPCA: MiniBatchNMF refuses rows with negative numbers, and this makes some: "
                "use MinMaxScaler, or another estimator."
            ),
        ),
        (
            {"estimator": "LatentDirichletAllocation", "features": CATEGORIES, "encoding": "hash"},
            (
                "encoding: the hash of 'make', 'shop': LatentDirichletAllocation refuses rows with negative "
                "numbers, and "
                'this may be negative: use "onehot".'
            ),
        ),
        (
            {"estimator": "BernoulliNB", "features": TEXT},
            (
                "features: the text 'note': BernoulliNB reads negative numbers as absent, and this makes some counts "
                'negative: give it "alternate_sign": false.'
            ),
        ),
        (
            {"steps": [{"HashingVectorizer": {}}, {"MultinomialNB": {}}], "features": TEXT},
            (
                "steps: HashingVectorizer: MultinomialNB refuses rows with negative numbers, and this makes "
                "some counts "
                'negative: give it "alternate_sign": false.'
            ),
        ),
        (
            {"estimator": "CategoricalNB", "features": {**CATEGORIES, "year": "number"}, "scaler": "MinMaxScaler"},
            (
                "scaler: CategoricalNB reads numbers as codes of categories, cut to whole numbers, and those "
                "scaled to 1 "
                "become 0: leave it out."
            ),
        ),
        (
            {"estimator": "CategoricalNB", "features": {**CATEGORIES, "sold": "timestamp"}},
            (
                "features: CategoricalNB reads numbers as codes of categories, cut to whole numbers: expand the "
                "timestamp "
                "'sold' to hour, weekday or month."
            ),
        ),
        (
            {"estimator": "SGDRegressor", "encoding": "onehot"},
            'encoding: "onehot" has no effect, because features names no column of type "category".',
        ),
    ],
    ids=str,
)
def test_a_recipe_that_learns_badly_has_a_warning(document: dict[str, Any], warning: str) -> None:
    """The warning says what is wrong, where, and what to write instead."""
    assert found(**document) == [warning]


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_codes_are_an_amount_for_all_but_one(name: str) -> None:
    """An explicit "ordinal" has a warning with each estimator but CategoricalNB, which takes codes as categories."""
    if not CATALOGUE[name].reads_text:
        is_warned = bool(found(estimator=name, features=CATEGORIES, encoding="ordinal"))
        assert is_warned == (name != "CategoricalNB")


def test_the_estimators_that_need_a_scaler_are_of_the_catalogue() -> None:
    """Each name in the list of estimators that need scaled numbers is one that a recipe may name."""
    assert CATALOGUE.keys() >= SCALE_SENSITIVE


def judged(metric: str, value: float, baseline: float, rows: int = 100) -> dict[str, Any]:
    """Return running metrics whose last rows have these values."""
    return {"window": {metric: value, f"baseline_{metric}": baseline, "rows": rows}}


def test_an_error_above_the_baselines_has_a_warning() -> None:
    """A model whose last answers are worse than a constant says so, with both figures and what to change."""
    assert found(judged("mean_absolute_error", 2e11, 0.6), estimator="SGDRegressor") == [
        (
            "metrics: over the last 100 rows mean_absolute_error is 2e+11, and that of always answering the mean 0.6; "
            'create the model with "scaler": "StandardScaler", or scale the numbers that you send.'
        )
    ]
    assert found(judged("accuracy", 0.4, 0.51), estimator="SGDClassifier", **SCALED) == [
        (
            "metrics: over the last 100 rows accuracy is 0.4, and that of always answering the most frequent "
            "label 0.51; "
            "try smaller steps (eta0, learning_rate_init, C) or other columns."
        )
    ]


@pytest.mark.parametrize(
    ("metrics", "params"),
    [
        ({}, {}),
        (judged("accuracy", 0.4, 0.9, rows=99), {}),
        (judged("accuracy", 0.52, 0.51), {}),
        (judged("accuracy", 0.5, 0.51), {}),
        # Recall of a rare class is paid with accuracy.
        (judged("accuracy", 0.9, 0.99), {"class_weight": {"a": 5}}),
        # Metrics of models of 0.1 have no baseline yet.
        ({"window": {"accuracy": 0.4, "rows": 1000}}, {}),
    ],
    ids=str,
)
def test_few_rows_or_better_answers_have_none(metrics: dict[str, Any], params: dict[str, Any]) -> None:
    """A model that is not worse than the baseline, or was evaluated on few rows only, has no warning."""
    assert found(metrics, estimator="SGDClassifier", params=params, classes=["a", "b"], **SCALED) == []


def test_a_small_window_leaves_all_rows_to_judge() -> None:
    """With a window of fewer rows than a judgement needs, the metrics of all rows are judged."""
    metrics = {"rows": 500, "accuracy": 0.4, "baseline_accuracy": 0.6, "window": {"rows": 10, "accuracy": 0.9}}
    (text,) = found(metrics, estimator="SGDClassifier", **SCALED)
    assert text.startswith("metrics: over the last 500 rows accuracy is 0.4")


def test_good_metrics_withdraw_the_warning_about_sizes() -> None:
    """Whether numbers are small already is not in the recipe: a model that beats its baseline has no such warning."""
    document = {"estimator": "SGDRegressor", "features": {"year": "number"}}
    assert len(found(**document)) == 1
    assert found(judged("mean_absolute_error", 0.4, 0.6), **document) == []
    assert len(found(judged("mean_absolute_error", 0.9, 0.6), **document)) == 2
