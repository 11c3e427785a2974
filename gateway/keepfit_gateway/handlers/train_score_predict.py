"""Handler of train_score_predict: accept rows to learn with rows to predict, and wait for the answer of their version.

Owns the translation between HTTP and the library, and nothing else: a worker computes the answer while it learns the
rows, and the commit stores it. Invariants: a 200 is the answer to the rows of this call and to no others, also when the
call is repeated; whatever delays it or drops it, the rows are accepted, and the answer is a 202.
"""

import math
from functools import partial

from aiohttp import web

from keepfit.errors import InvalidError, TooLargeError
from keepfit.recipe.recipe import Recipe
from keepfit.rows import shaping
from keepfit.rows.train_score_predict import ToPredict, TrainScorePredict
from keepfit.store import stored_answers
from keepfit.store.inbox import Accepted
from keepfit.store.models import Model
from keepfit.store.stored_answers import StoredAnswer
from keepfit_gateway import schemas
from keepfit_gateway.handlers.inputs import idempotency_key, preferred_wait_s, read_form
from keepfit_gateway.service import SERVICE, Service
from keepfit_gateway.web.bodies import BODY_MEMORY
from keepfit_gateway.web.offload import compute
from keepfit_gateway.web.responses import encode_json, json_response
from keepfit_gateway.web.rows_body import STRICT_BYTES_MAX, check_width

# Numbers and labels of the answer, which is stored: as JSON less than keepfit.model.train_score_predict may store.
ANSWER_VALUES_MAX = 32_768
WAIT_S = 10


def test_rows_of(test_size: float, n: int) -> int:
    """Return how many of `n` rows are scored, as scikit-learn's ``train_test_split`` counts them.

    Raises
    ------
    InvalidError
        If it is neither a share above 0 and below 1 nor a number of rows from 1 to `n`.

    >>> test_rows_of(0.25, 10), test_rows_of(4, 10), test_rows_of(0.25, 1)
    (3, 4, 1)
    """
    if isinstance(test_size, float) and 0 < test_size < 1:
        return math.ceil(test_size * n)
    if isinstance(test_size, int) and 1 <= test_size <= n:
        return test_size
    raise InvalidError(
        f"test_size must be a share of the rows, above 0 and below 1, or a number of rows from 1 to {n}; "
        f"not {test_size}."
    )


def shape(recipe: Recipe, form: schemas.TrainScorePredict) -> TrainScorePredict:
    """Check a call against the recipe of its model.

    Raises
    ------
    InvalidError
        If rows do not fit the recipe, or `X_pred` has another width than `X`, or `test_size` is none.
    TooLargeError
        If the answer would have too many values.
    """
    rows = shaping.shape(recipe, form.X, form.y, form.sample_weight, learning=True)
    test_rows = test_rows_of(form.test_size, rows.n)
    try:
        asked = shaping.shape(recipe, form.X_pred, learning=False)
    except InvalidError as error:
        raise InvalidError(f"X_pred: {error}", error.faults) from None
    if recipe.features is None and not recipe.takes_dicts and asked.width != rows.width:
        raise InvalidError(f"X_pred: the rows have {asked.width} values where those of X have {rows.width}.")
    values = 1
    if form.proba:
        values += sum([len(one) if isinstance(one, list) else 1 for one in recipe.classes or []])
    if asked.n * values > ANSWER_VALUES_MAX:
        raise TooLargeError(
            f"The answer would have {asked.n * values:,} values, and {ANSWER_VALUES_MAX:,} are the most; send at most "
            f"{ANSWER_VALUES_MAX // values:,} rows in X_pred."
        )
    return TrainScorePredict.of(rows, test_rows, ToPredict(form.proba, asked))


async def accept(
    service: Service, model: Model, form: schemas.TrainScorePredict, size: int, key: str | None
) -> tuple[int, int, Accepted]:
    """Check and accept a call; return the number of its rows, the generation, and the place in the inbox."""
    shaped = await compute(size, shape, model.recipe, form)
    accepted = await service.acceptor.accept(model, shaped, key)
    service.traffic.accepted(model.hash, shaped.n)
    service.cache.observe_version(model.hash, model.generation, accepted.version)
    return shaped.n, model.generation, accepted


async def train_score_predict(request: web.Request) -> web.Response:
    """POST …/train_score_predict: learn rows, and answer with the score and the predictions of their version."""
    service = request.app[SERVICE]
    key, preferred_s = idempotency_key(request), preferred_wait_s(request)
    wait_s = WAIT_S if preferred_s is None else preferred_s
    model_hash, form = await read_form(request, schemas.TrainScorePredict, STRICT_BYTES_MAX)
    check_width(max(map(len, (*form.X, *form.X_pred)), default=0))
    size = request.content_length or STRICT_BYTES_MAX

    # Watch the model before the rows are accepted, or their commit may be missed.
    with service.commit_feed.watch(model_hash) as watch:
        run = partial(accept, service, form=form, size=size, key=key)
        n, generation, accepted = await service.models.run(model_hash, run)
        # Release the rows before the wait: they may be many, and the wait long.
        del form, run
        request.app[BODY_MEMORY].release(request)
        find = partial(stored_answers.find, service.store.client, model_hash, accepted.origin, accepted.sequence)
        # A call that repeats an earlier one gets the answer to that one, however long ago it was learned.
        found = await find() if key is not None else None
        if found is None and wait_s:
            await service.commit_feed.wait(
                watch, model_hash, generation, accepted.sequence, wait_s, repeated=key is not None
            )
            found = await find()
    if found is None:
        return json_response(_pending(model_hash, n, generation, accepted), 202)
    service.cache.observe_version(model_hash, generation, found.version)
    headers = {"Preference-Applied": f"wait={wait_s}"} if preferred_s else None
    return web.Response(
        body=_answer(model_hash, n, accepted.sequence, found), content_type="application/json", headers=headers
    )


def _pending(model_hash: str, n: int, generation: int, accepted: Accepted) -> schemas.AcceptedAnswer:
    return schemas.AcceptedAnswer(
        hash=model_hash, accepted=n, sequence=accepted.sequence, generation=generation, version=accepted.version
    )


def _answer(model_hash: str, n: int, sequence: int, found: StoredAnswer) -> bytes:
    """Return the fields of the gateway, and then those of the worker, which are not read here."""
    of_gateway = schemas.LearnedAnswer(
        hash=model_hash, accepted=n, sequence=sequence, version=found.version, rows_seen=found.rows_seen
    )
    return encode_json(of_gateway)[:-1] + b"," + found.text[1:]
