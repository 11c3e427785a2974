"""One request that trains on a part of its rows, scores on the rest, learns that too, and then predicts.

Owns the order of the four steps and the answer. Never stores a bundle, and an answer never changes one. Invariants: the
rows are learned by two calls of ``partial_fit``, also by a replay, which therefore gives the same bundle; a score
or a prediction that fails is reported in the answer and never makes the rows a dead letter.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import msgspec
import structlog

from keepfit.errors import KeepfitError, describe_error
from keepfit.model.bundle import Bundle
from keepfit.rows.rows import Rows
from keepfit.rows.train_score_predict import TrainScorePredict

log = structlog.get_logger(__name__)

T = TypeVar("T")
# Size of an answer, which is stored with the commit: some 40,000 numbers.
ANSWER_BYTES_MAX = 1 << 20
TOO_LARGE = f"predictions: they have more than {ANSWER_BYTES_MAX >> 20} MiB; send fewer rows in X_pred."

_encode = msgspec.json.Encoder().encode


def learn(bundle: Bundle, rows: TrainScorePredict, fit: Callable[[Rows], None]) -> bytes:
    """Learn the rows with `fit`, a method of the bundle, and return the answer as JSON.

    Its fields: `train_rows` and `test_rows` (their numbers), `score` and `predictions` (null if there are none), those
    of :meth:`Bundle.confidences` if probabilities are requested, and `warnings`, which say why something is null.
    Raises what `fit` raises.
    """
    warnings: list[str] = []
    train, test = rows.parts()
    if train is not None:
        fit(train)
    score = _attempt("score", partial(bundle.score, test), warnings)
    fit(test)
    asked = rows.to_predict
    counts = {"train_rows": rows.n - test.n, "test_rows": test.n, "score": score}
    answers = {"predictions": _attempt("predictions", partial(bundle.predict, asked.rows), warnings)}
    if asked.proba and answers["predictions"] is not None:
        answers |= _attempt("probabilities", partial(bundle.confidences, asked.rows), warnings) or {}
    encoded = _attempt("predictions", partial(_encode, {**counts, **answers, "warnings": warnings}), warnings)
    if encoded is None or len(encoded) > ANSWER_BYTES_MAX:
        warnings += [] if encoded is None else [TOO_LARGE]
        encoded = _encode({**counts, "predictions": None, "warnings": warnings})
    return encoded


def _attempt(what: str, ask: Callable[[], T], warnings: list[str]) -> T | None:
    """Return what `ask` returns; None after an error, which is added to the warnings."""
    try:
        return ask()
    except KeepfitError as error:
        reason = str(error)
    except MemoryError:
        reason = "the worker has too little memory for them; send fewer rows at once."
    except (ValueError, TypeError, ArithmeticError, IndexError, RecursionError) as error:
        reason = describe_error(error)
    except Exception as error:
        # A defect of keepfit, or an estimator's own exception: neither says anything about the rows.
        log.exception("score_predict_failed", step=what)
        reason = describe_error(error)
    warnings.append(f"{what}: {reason}")
    return None
