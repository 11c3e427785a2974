"""Rows and calls in River's form: each row is a dict by column name, and rows are learned one after another.

Owns the translation between :class:`~keepfit.rows.rows.Rows` and River's methods. Never imports River: any object with
these methods works. Invariant: values are not encoded: numbers are floats, and labels are as the client sent them.
"""

from collections.abc import Sequence
from typing import Any

from keepfit.recipe.catalogue import Kind
from keepfit.recipe.recipe import Label, Recipe
from keepfit.recipe.uploads import LearnMethod
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


def to_dicts(recipe: Recipe, rows: Rows) -> Dicts:
    """Return rows as dicts: by the names of `recipe.features`, or by position from 0."""
    numbers = rows.number_matrix().T.tolist()
    if recipe.features is None:
        return [dict(enumerate(values)) for values in zip(*numbers, strict=True)]
    names: list[str | int] = list(recipe.features)
    layout = recipe.layout
    columns: list[Any] = [None] * len(names)
    for column in layout.numbers:
        columns[column.row_index] = numbers[column.rows_index]
    for column in layout.non_numeric:
        columns[column.row_index] = rows.categories[column.rows_index]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def target_values(rows: Rows) -> list[Any]:
    """Return the target of `rows`: floats, or labels as the client sent them."""
    values: list[Any] = rows.y if isinstance(rows.y, list) else rows.target().tolist()
    return values


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


def predict(model: Any, method: LearnMethod, kind: Kind, rows: Dicts, known: Sequence[Label]) -> list[Any]:
    """Return a prediction for each row; None where `model` has none yet. `known` are the labels learned."""
    if method == "learn_many":
        found = getattr(model, PREDICT_MANY[kind])(_frame(rows))
        predictions = found.to_dict("records") if hasattr(found, "columns") else found.tolist()
    else:
        predict_one = getattr(model, PREDICT_ONE[kind])
        predictions = [predict_one(x) for x in rows]
    return [_label(value, known) for value in predictions] if kind == "classifier" else predictions


def predict_proba(model: Any, method: LearnMethod, rows: Dicts, known: Sequence[Label]) -> list[list[float]] | None:
    """Return the probabilities of the labels `known`, one list for each row; None if `model` has none."""
    name = "predict_proba_many" if method == "learn_many" else "predict_proba_one"
    call = getattr(model, name, None)
    if call is None:
        return None
    try:
        found = call(_frame(rows)).to_dict("records") if method == "learn_many" else [call(x) for x in rows]
    except NotImplementedError:
        # River's base class has the method, but some classifiers do not implement it.
        return None
    listed = []
    for row in found:
        by_label = {(type(label), label): value for label, value in _labelled(row, known)}
        listed.append([float(by_label.get((type(label), label), 0.0)) for label in known])
    return listed


def _labelled(row: dict[Any, Any], known: Sequence[Label]) -> list[tuple[Any, Any]]:
    return [(_label(label, known), value) for label, value in row.items()]


def _label(value: Any, known: Sequence[Label]) -> Any:
    """Return a label as the client sent it: River's binary classifiers predict True where they learned 1."""
    if type(value) is bool and int(value) in known and bool not in set(map(type, known)):
        return int(value)
    return value


def _frame(rows: Dicts) -> Any:
    import pandas as pd  # noqa: PLC0415 - the extra `frames`, which only learn_many needs

    return pd.DataFrame(rows)


def _series(y: list[Any]) -> Any:
    import pandas as pd  # noqa: PLC0415

    return pd.Series(y)
