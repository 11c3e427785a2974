"""Published answers of scikit-learn: docstrings whose estimator learns with ``partial_fit``, or in one pass of ``fit``.

Each docstring is run as it stands. The published answer is the text below the statement named here, the plain answer is
what that statement gives.
"""

import contextlib
import doctest
import importlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

NUMBER = re.compile(r"-?\d+\.?\d*")


@dataclass(frozen=True, slots=True)
class SklearnFigure:
    """One statement of a docstring: the recipe of its estimator, the batches to learn, and the rows to predict."""

    source: str
    statement: str
    recipe: dict[str, Any]
    batches: tuple[tuple[Any, Any], ...]
    rows: Any
    published: list[float]
    plain: list[float]

    @property
    def id(self) -> str:
        """The class and the statement."""
        return f"{self.source} {self.statement}"


# Module, recipe, the batches that it learns (rows, targets), and the statement that shows the answer.
_NAIVE_BAYES = "sklearn.naive_bayes"
_CLAIMS: list[tuple[str, dict[str, Any], str, str]] = [
    (_NAIVE_BAYES, {"estimator": "BernoulliNB"}, "X, Y", "print(clf.predict(X[2:3]))"),
    (_NAIVE_BAYES, {"estimator": "CategoricalNB"}, "X, y", "print(clf.predict(X[2:3]))"),
    (_NAIVE_BAYES, {"estimator": "ComplementNB"}, "X, y", "print(clf.predict(X[2:3]))"),
    (_NAIVE_BAYES, {"estimator": "GaussianNB"}, "X, Y", "print(clf.predict([[-0.8, -1]]))"),
    (_NAIVE_BAYES, {"estimator": "GaussianNB"}, "X, Y", "print(clf_pf.predict([[-0.8, -1]]))"),
    (_NAIVE_BAYES, {"estimator": "MultinomialNB"}, "X, y", "print(clf.predict(X[2:3]))"),
    (
        "sklearn.cluster",
        {"estimator": "MiniBatchKMeans", "params": {"n_clusters": 2, "random_state": 0, "batch_size": 6}},
        "X[0:6,:], None; X[6:12,:], None",
        "kmeans.predict([[0, 0], [4, 4]])",
    ),
    ("sklearn.cluster", {"estimator": "Birch", "params": {"n_clusters": None}}, "X, None", "brc.predict(X)"),
    ("sklearn.preprocessing", {"estimator": "MaxAbsScaler"}, "X, None", "transformer.transform(X)"),
    ("sklearn.preprocessing", {"estimator": "MinMaxScaler"}, "data, None", "print(scaler.transform(data))"),
    ("sklearn.preprocessing", {"estimator": "MinMaxScaler"}, "data, None", "print(scaler.transform([[2, 2]]))"),
    ("sklearn.preprocessing", {"estimator": "StandardScaler"}, "data, None", "print(scaler.transform(data))"),
    ("sklearn.preprocessing", {"estimator": "StandardScaler"}, "data, None", "print(scaler.transform([[2, 2]]))"),
]


def figures() -> list[SklearnFigure]:
    """Return the published answers, with the plain ones."""
    return [_figure(*claim) for claim in _CLAIMS]


def _figure(module: str, recipe: dict[str, Any], batches: str, statement: str) -> SklearnFigure:
    """Run a docstring up to and with `statement`."""
    name = recipe["estimator"]
    examples = doctest.DocTestParser().get_examples(getattr(importlib.import_module(module), name).__doc__)
    namespace: dict[str, Any] = {}
    for example in examples:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(example.source, name, "single"), namespace)
        if example.source.strip() == statement:
            break
    else:
        raise LookupError(f"the docstring of {name} has no statement {statement}")
    asked = re.search(r"(?:predict|transform)\((.*?)\)+$", statement)
    assert asked is not None
    return SklearnFigure(
        source=f"{module}.{name}",
        statement=statement,
        recipe=recipe,
        batches=tuple(_batches(batches, namespace)),
        rows=np.asarray(eval(asked[1], namespace)).tolist(),
        published=numbers(example.want),
        plain=numbers(output.getvalue()),
    )


def _batches(text: str, namespace: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    for batch in text.split("; "):
        X, y = eval(f"({batch})", namespace)
        yield np.asarray(X).tolist(), None if y is None else np.asarray(y).tolist()


def numbers(text: str) -> list[float]:
    """Return the numbers of an array's text, in order.

    >>> numbers("array([[3.375, 3.  ], [0.75 , -1 ]], dtype=int32)")
    [3.375, 3.0, 0.75, -1.0]
    """
    return [float(number) for number in NUMBER.findall(re.sub(r"dtype=\w+", "", text))]
