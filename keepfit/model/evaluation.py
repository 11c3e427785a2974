"""What a model answers to rows that it is about to learn, and how that is added to its prequential scores.

Owns which rows are evaluated: those that the model can predict, in parts if it cannot predict all of them together.
Never learns labels or rows: answers are those that a client would have got just before, or of rows whose target came
late, those that a client did get. The sums are in :mod:`keepfit.model.prequential`; bundles compute the answers.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from keepfit.model import category_check
from keepfit.model.labels import Labels, key_of
from keepfit.model.learning_curve import LearningCurve
from keepfit.model.outputs import Outputs
from keepfit.model.prequential import PrequentialScores
from keepfit.model.sums import NO_LABEL
from keepfit.recipe.catalogue import Kind
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.rows.served import Served

# Takes a matrix, shape (n, width), which it may overwrite; returns predictions and probabilities.
Answer = Callable[[Any], tuple[Any, Any]]
T = TypeVar("T")
# Questions about the rows of one request: enough for each of 128 rows alone, or for some rows among 20,000.
QUESTIONS_MAX = 256


class Answers(NamedTuple):
    """The answers to some rows.

    `rows` are the positions of the rows that have an answer, in order; None if all have one. `predicted` has their
    values or codes, shape (n,) or (n, outputs); `probabilities` those of the known labels, shape (n, labels) or one
    array for each output, or None.
    """

    rows: Any
    predicted: Any
    probabilities: Any


def ask(estimator: Any, answer: Answer, matrix: Callable[[], Any], X: Any = None) -> Answers | None:
    """Return the answers to the rows of `matrix`; None if no row can be predicted.

    `X` is that matrix where the caller has it, and may be overwritten. `answer` asks the `estimator`.
    """
    X = matrix() if X is None else X
    n = len(X)
    try:
        return Answers(None, *answer(X))
    except (ValueError, IndexError):
        # CategoricalNB cannot predict categories that it has not learned. Real faults are raised while learning.
        if n == 1:
            return None
    again = matrix()
    known = category_check.known_rows(estimator, again)
    if known is not None:
        return Answers(np.flatnonzero(known).tolist(), *answer(again[known])) if known.any() else None

    def ask_part(part: slice) -> tuple[Any, Any] | None:
        try:
            return answer(again[part].copy())
        except (ValueError, IndexError):
            return None

    found = ask_halves(n, ask_part, QUESTIONS_MAX - 1)
    if not found:
        return None
    rows = [i for part, _ in found for i in range(part.start, part.stop)]
    predicted, probabilities = zip(*[answered for _, answered in found], strict=True)
    joined: Any = None
    if isinstance(probabilities[0], list):
        joined = [np.concatenate(of_output) for of_output in zip(*probabilities, strict=True)]
    elif probabilities[0] is not None:
        joined = np.concatenate(probabilities)
    return Answers(rows, np.concatenate(predicted), joined)


def ask_in_parts(
    n: int, ask_part: Callable[[slice], T | None], questions_max: int = QUESTIONS_MAX
) -> list[tuple[slice, T]]:
    """Return the answers about `n` rows: about all of them, or if that answer is None, those of :func:`ask_halves`."""
    everything = slice(0, n)
    answered = ask_part(everything)
    return ask_halves(n, ask_part, questions_max - 1) if answered is None else [(everything, answered)]


def ask_halves(n: int, ask_part: Callable[[slice], T | None], questions_max: int) -> list[tuple[slice, T]]:
    """Return the answers about parts of `n` rows, in the order of the rows.

    A part whose answer is None is halved, down to single rows. Larger parts are asked about first, so that the rows
    that are left out after `questions_max` questions are near those that have no answer.

    >>> ask_halves(5, lambda part: None if part.start <= 3 < part.stop else part.stop - part.start, 9)
    [(slice(0, 2, None), 2), (slice(2, 3, None), 1), (slice(4, 5, None), 1)]
    """
    found: list[tuple[slice, T]] = []
    parts = deque(_halves(slice(0, n)))
    for _ in range(questions_max):
        if not parts:
            break
        part = parts.popleft()
        answered = ask_part(part)
        if answered is not None:
            found.append((part, answered))
        else:
            parts.extend(_halves(part))
    return sorted(found, key=lambda one: one[0].start)


def _halves(part: slice) -> list[slice]:
    """Return the halves of a part; none of a single row."""
    if part.stop - part.start < 2:
        return []
    middle = (part.start + part.stop) // 2
    return [slice(part.start, middle), slice(middle, part.stop)]


def served(rows: Rows, labels: Labels | Outputs | None) -> Answers | None:
    """Return the predictions that were served for `rows`; None if there are none, or only for some of them.

    `labels` have learned the target of the rows. A served label that they do not know, because the model was restored
    to a state before it, is a wrong prediction.
    """
    found: list[Served] = rows.served or []
    if len(found) != rows.n:
        return None
    predicted = [each.prediction for each in found]
    if labels is None:
        return Answers(None, _numbers(predicted, outputs=_count_outputs(rows)), None)
    shares = [(each.classes, each.probabilities) for each in found]
    if isinstance(labels, Labels):
        return Answers(None, _codes(labels, predicted), _probabilities(labels, shares))
    columns = [_codes(of_output, [row[i] for row in predicted]) for i, of_output in enumerate(labels.each)]
    by_output = [
        _probabilities(of_output, [(classes and classes[i], share and share[i]) for classes, share in shares])
        for i, of_output in enumerate(labels.each)
    ]
    has_probabilities = all(each is not None for each in by_output)
    return Answers(None, np.column_stack(columns), by_output if has_probabilities else None)


def _count_outputs(rows: Rows) -> int:
    return len(rows.y or b"") // (8 * rows.n)


def _numbers(predicted: list[Any], *, outputs: int) -> Any:
    """Return served numbers, shape (n,) or (n, outputs), NaN where there is none."""
    if any(isinstance(value, list) for value in predicted):
        none = [None] * outputs
        predicted = [value if value is not None and len(value) == outputs else none for value in predicted]
    return np.array(predicted, dtype=np.float64)


def _codes(labels: Labels, predicted: list[Any]) -> Any:
    return np.array([labels.codes.get(key_of(label), NO_LABEL) for label in predicted], dtype=np.int64)


def _probabilities(labels: Labels, found: list[tuple[Any, Any]]) -> Any:
    """Return served probabilities of the known labels, shape (n, labels), NaN in a row without any; None without any.

    Each row has classes and their probabilities, in an order of its own.
    """
    if not any(shares for _, shares in found):
        return None
    values = np.full((len(found), len(labels.known)), np.nan)
    for row, (classes, shares) in zip(values, found, strict=True):
        if shares:
            row[:] = 0.0
            for label, share in zip(classes, shares, strict=True):
                if key_of(label) in labels.codes:
                    row[labels.codes[key_of(label)]] = share
    return values


def update(
    scores: list[PrequentialScores], recipe: Recipe, y: Any, answers: Answers | None, curve: LearningCurve, seen: int
) -> None:
    """Add the answers to the scores of each output; then their baselines learn `y`, the target of all rows.

    Points of the `curve` are taken after their rows, of which the first is number `seen` + 1 of the model.
    """
    kind, multi_output = recipe.entry.kind, recipe.entry.multi_output
    if (
        scores
        and not multi_output
        and answers is not None
        and answers.rows is None
        and not curve.has_point_within(seen, len(y))
    ):
        # Most rows of most streams.
        scores[0].update(kind, y, answers.predicted, answers.probabilities)
        scores[0].learn(kind, y)
        return
    columns = y.T if multi_output else [y]
    if not scores:
        scores += [PrequentialScores.of_output(position, recipe.window) for position in range(len(columns))]
    if multi_output and answers is not None:
        each = [[_of_output(answers, i)] for i in range(len(columns))]
    else:
        each = [[] if answers is None else [answers] for _ in columns]
    add(scores, kind, columns, each, curve, seen)
    for of_output, truth in zip(scores, columns, strict=True):
        of_output.learn(kind, truth)


def add(
    scores: Sequence[PrequentialScores],
    kind: Kind,
    columns: Sequence[Any],
    answers: Sequence[Sequence[Answers]],
    curve: LearningCurve,
    seen: int,
) -> None:
    """Add answers, in parts in the order of the rows, to the scores of each output, and take points of the curve.

    `columns` has the target of each output, of the same n rows, which follow the first `seen` rows of the model. The
    target of a row without an answer is not read.
    """
    n = len(columns[0])
    if not curve.has_point_within(seen, n):
        parts: Iterable[slice] = (slice(0, n),)
    else:
        first = min([_first_answered(kind, one, n) for each in answers for one in each], default=n)
        parts = curve.parts(kind, seen, n, first, scores)
    for part in parts:
        for of_output, y, each in zip(scores, columns, answers, strict=True):
            for one in each:
                _add_part(of_output, kind, y, one, part)


def _add_part(scores: PrequentialScores, kind: Kind, y: Any, answers: Answers, part: slice) -> None:
    rows, predicted, probabilities = answers
    if rows is None:
        truth = y[part]
    else:
        part = slice(bisect_left(rows, part.start), bisect_left(rows, part.stop))
        truth = y[rows[part]]
    if len(truth):
        scores.update(kind, truth, predicted[part], None if probabilities is None else probabilities[part])


def _of_output(answers: Answers, i: int) -> Answers:
    probabilities = None if answers.probabilities is None else answers.probabilities[i]
    return Answers(answers.rows, answers.predicted[:, i], probabilities)


def _first_answered(kind: Kind, answers: Answers, n: int) -> int:
    """Return the position of the first row that has an answer; `n` if none has."""
    # A number that is not finite is no prediction.
    positions = (
        np.flatnonzero(np.isfinite(answers.predicted)) if kind == "regressor" else np.arange(len(answers.predicted))
    )
    if positions.size == 0:
        return n
    return int(positions[0] if answers.rows is None else answers.rows[positions[0]])
