"""Several targets of an object: they have names, and each has scores, and labels, of its own.

Owns the translation between targets by name and the scores of each target. Never learns rows. Invariant: a target keeps
its position in the bundle once it was learned; targets of other names may follow later. A row whose answer lacks a
target counts as a row without a prediction of that target.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keepfit.model import evaluation, scores
from keepfit.model.bundle import Bundle
from keepfit.model.evaluation import Answers
from keepfit.model.labels import Labels
from keepfit.model.object_answers import Asked, as_sent, codes_of, numbers_of
from keepfit.model.outputs import combine_scores
from keepfit.model.prequential import PrequentialScores
from keepfit.rows.rows import Rows

Targets = Mapping[str, Any]


def by_name(value: Any) -> Targets:
    """Return the targets of a row, or an answer, by name; those of a list by position.

    >>> by_name({"u": 1.0}), by_name([1.0, 2.0]), by_name(None)
    ({'u': 1.0}, {'0': 1.0, '1': 2.0}, {})
    """
    if isinstance(value, dict):
        return {str(name): one for name, one in value.items()}
    return {str(i): one for i, one in enumerate(value)} if isinstance(value, list) else {}


def answers_as_sent(values: Sequence[Any], names: Sequence[str], labels: Sequence[Labels]) -> list[Any]:
    """Return a classifier's answers with each label in the form in which its target was sent."""
    known = {name: one.known for name, one in zip(names, labels, strict=False)}
    found: list[Any] = []
    for value in values:
        if isinstance(value, dict):
            found.append({name: as_sent([one], known.get(name, ()))[0] for name, one in value.items()})
        elif isinstance(value, list):
            found.append([as_sent([one], known.get(str(i), ()))[0] for i, one in enumerate(value)])
        else:
            found.append(value)
    return found


def names_of(targets: Sequence[Targets], known: Sequence[str]) -> list[str]:
    """Return the names `known`, then those of `targets` that are not."""
    return list(dict.fromkeys([*known, *[name for row in targets for name in row]]))


def update(
    bundle: Bundle,
    prequential: list[PrequentialScores],
    labels: list[Labels] | None,
    targets: Sequence[Targets],
    asked: Sequence[Asked],
) -> None:
    """Add answers to the scores of each target of a bundle, then let their baselines learn `targets`.

    `labels`, of each target of a classifier, learn the labels. They and `prequential` get an entry for each new name.
    """
    kind, columns, learned, answers = bundle.recipe.entry.kind, [], [], []
    for i, name in enumerate(bundle.targets):
        if i == len(prequential):
            prequential.append(PrequentialScores.of_output(i, bundle.recipe.window))
        if labels is not None and i == len(labels):
            labels.append(Labels())
        rows = [row for row, target in enumerate(targets) if name in target]
        truth = _values([targets[row][name] for row in rows], None if labels is None else labels[i])
        column = np.zeros(len(targets), truth.dtype)
        column[rows] = truth
        columns.append(column)
        learned.append(truth)
        having, of_target = set(rows), list[Answers]()
        for positions, values, _ in asked:
            found = [(row, by_name(value).get(name)) for row, value in zip(positions, values, strict=True)]
            present = [(row, value) for row, value in found if value is not None and row in having]
            answered = [value for _, value in present]
            predicted = numbers_of(answered) if labels is None else codes_of(answered, labels[i])
            of_target.append(Answers([row for row, _ in present], predicted, None))
        answers.append(of_target)
    evaluation.add(prequential, kind, columns, answers, bundle.curve, bundle.rows_seen)
    for scores_of_target, truth in zip(prequential, learned, strict=True):
        if len(truth):
            scores_of_target.learn(kind, truth)


def _values(values: Sequence[Any], labels: Labels | None) -> Any:
    """Return the values of one target, shape (n,): numbers, or codes of labels, which are learned."""
    if labels is None:
        return np.array(values, dtype=np.float64)
    return labels.partial_fit_encode(as_sent(list(values), labels.known))


def score(
    asked: Sequence[Asked], targets: Sequence[Targets], names: Sequence[str], labels: Sequence[Labels] | None
) -> scores.Score:
    """Return the scores combined over the targets; `rows_without_prediction` counts rows that lack a prediction.

    A row lacks one if the object could not be asked about it, or if the answer about one of its targets is None, or no
    number where numbers are learned.
    """
    each, unanswered = list[scores.Score](), set[int]()
    answers = {row: by_name(value) for one in asked for row, value in zip(one.positions, one.values, strict=True)}
    for i, name in enumerate(names):
        having = [row for row, target in enumerate(targets) if name in target]
        values = [answers.get(row, {}).get(name) for row in having]
        if labels is None:
            values = [None if math.isnan(value) else value for value in numbers_of(values).tolist()]
        pairs = [(targets[row][name], value) for row, value in zip(having, values, strict=True) if value is not None]
        unanswered |= {row for row, value in zip(having, values, strict=True) if value is None}
        truth, answered = [value for value, _ in pairs], [answer for _, answer in pairs]
        if labels is None:
            found = scores.score(np.array(truth, dtype=np.float64), np.array(answered, np.float64), labelled=False)
        else:
            # A copy: a score does not learn labels.
            known = Labels(list(labels[i].known), dict(labels[i].codes)) if i < len(labels) else Labels()
            y = _values(truth, known)
            found = scores.score(y, codes_of(answered, known), labelled=True)
        each.append(found)
    combined = combine_scores(each)
    return {**combined, scores.UNANSWERED: len(unanswered)} if unanswered else combined


def matrix_target(rows: Rows) -> Any:
    """Return the target of `rows` as scikit-learn takes it; labels unchanged."""
    if not isinstance(rows.y, list) or len(set(map(type, rows.y))) == 1:
        return rows.target()
    mixed = np.empty(len(rows.y), dtype=object)
    mixed[:] = rows.y
    return mixed
