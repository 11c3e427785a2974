"""Rows and calls as River has them: each row a dict by column name, learned one after the other.

Owns the translation between :class:`~keepfit.rows.rows.Rows` and River's methods. Never imports River: whatever has the
methods is taken. Invariant: values come as they came in, numbers as floats and labels as they were sent, without any
encoding of ours.
"""

from collections.abc import Sequence
from typing import Any

from keepfit.recipe.catalogue import Kind
from keepfit.recipe.recipe import Label, Recipe
from keepfit.recipe.uploads import Calls
from keepfit.rows.rows import Rows

Dicts = list[dict[str | int, Any]]

# What each kind answers by.
ONE: dict[Kind, str] = {
    "regressor": "predict_one",
    "classifier": "predict_one",
    "clusterer": "predict_one",
    "outlier_detector": "score_one",
    "transformer": "transform_one",
}
MANY: dict[Kind, str] = {
    "regressor": "predict_many",
    "classifier": "predict_many",
    "clusterer": "predict_many",
    "outlier_detector": "score_many",
    "transformer": "transform_many",
}


def dicts(recipe: Recipe, rows: Rows) -> Dicts:
    """Rows as dicts: by the names of `recipe.features`, or by position from 0."""
    numbers = rows.number_matrix().T.tolist()
    if recipe.features is None:
        return [dict(enumerate(values)) for values in zip(*numbers, strict=True)]
    names: list[str | int] = list(recipe.features)
    layout = recipe.layout
    columns: list[Any] = [None] * len(names)
    for column in layout.numbers:
        columns[column.index] = numbers[column.wire]
    for column in layout.words:
        columns[column.index] = rows.categories[column.wire]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def target(rows: Rows) -> list[Any]:
    """Target of `rows`: floats, or labels as they came in."""
    values: list[Any] = rows.y if isinstance(rows.y, list) else rows.target().tolist()
    return values


def learn(model: Any, calls: Calls, rows: Dicts, y: list[Any] | None, weights: Any) -> None:
    """Have `model` learn `rows` in their order; `weights` are River's ``w``."""
    more: list[dict[str, Any]] = [{}] * len(rows) if weights is None else [{"w": w} for w in weights.tolist()]
    if calls == "learn_many":
        model.learn_many(_frame(rows), *([] if y is None else [_series(y)]))
    elif y is None:
        for x, optional in zip(rows, more, strict=True):
            model.learn_one(x, **optional)
    else:
        for x, value, optional in zip(rows, y, more, strict=True):
            model.learn_one(x, value, **optional)


def predict(model: Any, calls: Calls, kind: Kind, rows: Dicts, known: Sequence[Label]) -> list[Any]:
    """Answers of `model`, one for each row; None where it has none yet. `known` are the labels learned."""
    if calls == "learn_many":
        found = getattr(model, MANY[kind])(_frame(rows))
        answers = found.to_dict("records") if hasattr(found, "columns") else found.tolist()
    else:
        answer = getattr(model, ONE[kind])
        answers = [answer(x) for x in rows]
    return [_label(value, known) for value in answers] if kind == "classifier" else answers


def chances(model: Any, calls: Calls, rows: Dicts, known: Sequence[Label]) -> list[list[float]] | None:
    """Probabilities of the labels `known`, one list for each row; None where `model` gives none."""
    name = "predict_proba_many" if calls == "learn_many" else "predict_proba_one"
    give = getattr(model, name, None)
    if give is None:
        return None
    try:
        found = give(_frame(rows)).to_dict("records") if calls == "learn_many" else [give(x) for x in rows]
    except NotImplementedError:
        # River's base class has the method, and many a classifier only the labels.
        return None
    listed = []
    for row in found:
        named = {(type(label), label): chance for label, chance in _labelled(row, known)}
        listed.append([float(named.get((type(label), label), 0.0)) for label in known])
    return listed


def _labelled(row: dict[Any, Any], known: Sequence[Label]) -> list[tuple[Any, Any]]:
    return [(_label(label, known), chance) for label, chance in row.items()]


def _label(value: Any, known: Sequence[Label]) -> Any:
    """`value` as it came in: River's binary classifiers answer True where they were told 1."""
    if type(value) is bool and int(value) in known and bool not in set(map(type, known)):
        return int(value)
    return value


def _frame(rows: Dicts) -> Any:
    import pandas as pd  # noqa: PLC0415 - the extra `frames`; only what learns by learn_many needs it

    return pd.DataFrame(rows)


def _series(y: list[Any]) -> Any:
    import pandas as pd  # noqa: PLC0415

    return pd.Series(y)
