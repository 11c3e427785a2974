"""Predictions with ids: rows that are kept until their labels come, together with what was served for them.

Owns what is stored of an answer. Never changes it: with an id the same rows get the same predictions, and the body has
the bytes of an answer without. Invariant: what is served is what is stored, and was stored before. Probabilities are
stored also if the client did not ask for them, because the log loss of the model needs them.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from keepfit.errors import InvalidError, MalformedError
from keepfit.rows.rows import Rows
from keepfit.rows.served import Served
from keepfit.store import open_rows
from keepfit.store.models import Model
from keepfit.store.open_rows import KeepRequest
from keepfit_gateway.learning.open_rows import OpenRows
from keepfit_gateway.prediction import http_caching
from keepfit_gateway.prediction.http_caching import Reply
from keepfit_gateway.prediction.keys import key_of
from keepfit_gateway.schemas import PredictAnswer
from keepfit_gateway.web.parsed_rows import ParsedRows
from keepfit_gateway.web.responses import encode_json

# Models known to have no probabilities, by hash and generation.
KNOWN_MAX = 10_000

# Returns the JSON of an answer about rows, with or without probabilities.
Ask = Callable[[ParsedRows], Awaitable[bytes]]

_decode = msgspec.json.Decoder(PredictAnswer).decode
_no_probabilities: OrderedDict[tuple[str, int], None] = OrderedDict()


def check_ids(ids: Sequence[str], rows: Sequence[Any]) -> None:
    """Check the ids of a prediction.

    Raises
    ------
    MalformedError
        If there is not one for each row, one occurs twice, or they are too many.
    """
    if len(ids) != len(rows):
        raise MalformedError(f"id has {len(ids)} entries and X has {len(rows)} rows; the numbers must be equal.")
    if len(ids) > open_rows.CALL_ROWS_MAX:
        raise MalformedError(f"{len(ids)} rows have ids; at most {open_rows.CALL_ROWS_MAX} can in one request.")
    if len(set(ids)) != len(ids):
        repeated = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise MalformedError(f"id names {repeated!r} twice; each row needs an id of its own.")


async def predict_and_keep(kept: OpenRows, model: Model, rows: ParsedRows, ids: Sequence[str], ask: Ask) -> Reply:
    """Predict rows, keep them under their ids, and return the answer.

    Raises
    ------
    InvalidError
        If the estimator takes no target.
    KeepfitError
        What `ask` and :meth:`OpenRows.keep` raise.
    """
    if not model.recipe.entry.takes_y:
        raise InvalidError(f"{model.recipe.name} takes no y, so its rows get no labels: leave out id.")
    answer = _decode(await _ask(model, rows, ask))
    predictions = [
        Served(answer.version, answer.rows_seen, prediction, probabilities, classes)
        for prediction, probabilities, classes in zip(
            answer.predictions, *_shares(answer, len(answer.predictions)), strict=True
        )
    ]
    shaped: Rows = rows.shape(model.recipe, learning=False)
    request = KeepRequest(model.hash, model.generation, open_rows.make_rows(ids, shaped, predictions, proba=rows.proba))
    served = await kept.keep(request)
    key = key_of(model.hash, "proba" if rows.proba else "predict", shaped)
    etag = http_caching.etag_of(key, model.generation, served[0].version)
    return Reply(etag, encode_json(_answer(model.hash, served, proba=rows.proba)))


def _shares(answer: PredictAnswer, n: int) -> tuple[list[Any], list[Any]]:
    """Return probabilities and classes of each of `n` rows."""
    if answer.probabilities is msgspec.UNSET:
        return [None] * n, [None] * n
    return answer.probabilities, [answer.classes or []] * n


async def _ask(model: Model, rows: ParsedRows, ask: Ask) -> bytes:
    """Return the answer, with probabilities if they were asked for, or the model of labels has some."""
    known = model.hash, model.generation
    if rows.proba or model.recipe.entry.target != "labels" or known in _no_probabilities:
        return await ask(rows)
    with_probabilities = ParsedRows(rows.size, rows.X, None, None, True, rows.model_hash)
    try:
        return await ask(with_probabilities)
    except InvalidError:
        # It has none, or the rows are invalid: then this raises the same error.
        answer = await ask(rows)
    _no_probabilities[known] = None
    if len(_no_probabilities) > KNOWN_MAX:
        _no_probabilities.popitem(last=False)
    return answer


def _answer(model_hash: str, served: Sequence[Served], *, proba: bool) -> PredictAnswer:
    first = served[0]
    answer = PredictAnswer(
        hash=model_hash,
        version=first.version,
        rows_seen=first.rows_seen,
        predictions=[one.prediction for one in served],
    )
    if proba and first.probabilities is not None:
        answer.probabilities = [one.probabilities or [] for one in served]
        answer.classes = first.classes or []
    return answer
