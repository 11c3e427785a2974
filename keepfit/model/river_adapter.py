"""Rows and calls in River's form: each row is a dict by column name, and rows are learned one after another.

Owns the translation between :class:`~keepfit.rows.rows.Rows` and River's methods. Never imports River: any object with
these methods works. Invariant: values are not encoded: numbers are floats, booleans are booleans, missing values None,
and labels are as the client sent them.
"""

from typing import Any

from keepfit.recipe.catalogue import Kind
from keepfit.recipe.recipe import Recipe
from keepfit.recipe.uploads import LearnMethod
from keepfit.rows.free_rows import row_of, values_of
from keepfit.rows.rows import Rows

Dicts = list[dict[str | int, Any]]

# The method that predicts, by kind.
PREDICT_ONE: dict[Kind, str] = {
    "regressor": "predict_one",
    "classifier": "predict_one",
    "clusterer": "predict_one",
    "outlier_detector": "score_one",
    "transformer": "transform_one",
}
PREDICT_MANY: dict[Kind, str] = {
    "regressor": "predict_many",
    "classifier": "predict_many",
    "clusterer": "predict_many",
    "outlier_detector": "score_many",
    "transformer": "transform_many",
}
PREDICT_PROBA: dict[LearnMethod, str] = {"learn_one": "predict_proba_one", "learn_many": "predict_proba_many"}


def to_dicts(recipe: Recipe, rows: Rows) -> Dicts:
    """Return rows as dicts: by the names of `recipe.features`, or those of the row, or by position from 0.

    A missing value is None. A column that the client left out is not in the dict.
    """
    layout = recipe.layout
    has_more = len(rows.categories) > len(layout.non_numeric)
    if recipe.features is None and has_more:
        return [row_of(str(text)) for text in rows.categories[0]]
    numbers = [[None if x != x else x for x in column] for column in rows.number_matrix().T.tolist()]  # noqa: PLR0124
    if recipe.features is None:
        return [dict(enumerate(values)) for values in zip(*numbers, strict=True)]
    names: list[str | int] = list(recipe.features)
    columns: list[Any] = [None] * len(names)
    for column in layout.numbers:
        values = numbers[column.rows_index]
        is_boolean = column.kind == "boolean"
        columns[column.row_index] = [x if x is None else bool(x) for x in values] if is_boolean else values
    for column in layout.non_numeric:
        columns[column.row_index] = rows.categories[column.rows_index]
    dicts = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    for row, lacking in zip(dicts, rows.categories[-1] if has_more else (), strict=False):
        for position in values_of(str(lacking)) if lacking else ():
            del row[names[position]]
    return dicts


def target_values(recipe: Recipe, rows: Rows) -> list[Any]:
    """Return the target of `rows`: floats, or labels as the client sent them; several targets as a dict per row."""
    values: list[Any] = rows.y if isinstance(rows.y, list) else rows.target().tolist()
    return [row_of(text) for text in values] if recipe.entry.multi_output else values


def learn(model: Any, method: LearnMethod, rows: Dicts, y: list[Any] | None, weights: Any) -> None:
    """Let `model` learn `rows` in their order; `weights` are River's ``w``."""
    optional: list[dict[str, Any]] = [{}] * len(rows) if weights is None else [{"w": w} for w in weights.tolist()]
    if method == "learn_many":
        model.learn_many(_frame(rows), *([] if y is None else [_series(y)]))
    elif y is None:
        for x, arguments in zip(rows, optional, strict=True):
            model.learn_one(x, **arguments)
    else:
        for x, value, arguments in zip(rows, y, optional, strict=True):
            model.learn_one(x, value, **arguments)


def predict(model: Any, method: LearnMethod, kind: Kind, rows: Dicts) -> list[Any]:
    """Return a prediction for each row; None where `model` has none yet."""
    if method == "learn_many":
        found = getattr(model, PREDICT_MANY[kind])(_frame(rows))
        predictions: list[Any] = found.to_dict("records") if hasattr(found, "columns") else found.tolist()
        return predictions
    predict_one = getattr(model, PREDICT_ONE[kind])
    return [predict_one(x) for x in rows]


def predict_proba(model: Any, method: LearnMethod, rows: Dicts) -> list[dict[Any, Any]] | None:
    """Return the probability of each label that `model` names, one dict for each row; None if `model` has none."""
    call = getattr(model, PREDICT_PROBA[method], None)
    if call is None:
        return None
    try:
        return call(_frame(rows)).to_dict("records") if method == "learn_many" else [call(x) for x in rows]
    except NotImplementedError:
        # River's base class has the method, but some classifiers do not implement it.
        return None


def _frame(rows: Dicts) -> Any:
    import pandas as pd  # noqa: PLC0415 - the extra `frames`, which only learn_many needs

    return pd.DataFrame(rows)


def _series(y: list[Any]) -> Any:
    import pandas as pd  # noqa: PLC0415

    return pd.DataFrame(y) if y and isinstance(y[0], dict) else pd.Series(y)
