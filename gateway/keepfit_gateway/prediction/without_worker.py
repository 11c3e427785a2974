"""Predictions that this gateway computes itself with a scorer, and those that it sends instead of an error.

Owns the bound on what is computed in the event loop, and the counts of predictions by source. Never asks a worker and
never stores. Invariant: what is computed here has the bytes and the ETag of the worker's answer for the same version.
"""

import time
from dataclasses import dataclass
from typing import NamedTuple

from keepfit.errors import KeepfitError
from keepfit.jobs.messages import Operation
from keepfit.jobs.traffic import STALE
from keepfit.rows.rows import Rows
from keepfit.scoring.scorer import Scorer
from keepfit.store.models import Model
from keepfit_gateway.prediction import http_caching
from keepfit_gateway.prediction.cache import Cache, WatchedModel
from keepfit_gateway.prediction.http_caching import Reply
from keepfit_gateway.prediction.scorers import Scorers
from keepfit_gateway.web.offload import compute_in_thread

# Multiplications and additions of a prediction that is computed in the event loop, which waits for it 0.3 ms at most:
# measured are 1 ns each in large matrices and 6 ns in many short rows.
INLINE_COST_MAX = 50_000


@dataclass(slots=True)
class Counts:
    """Predictions by source, except for those from the cache."""

    scored: int = 0
    worker: int = 0
    stale: int = 0


class Question(NamedTuple):
    """Rows to predict, the key of their answer, and how many numbers and labels that has at most."""

    model: Model
    operation: Operation
    rows: Rows
    key: bytes
    values: int

    @property
    def proba(self) -> bool:
        """Whether probabilities are requested."""
        return self.operation == "proba"

    def body(self, version: int, rows_seen: int, result: bytes) -> bytes:
        """Return a :class:`~keepfit_gateway.schemas.PredictAnswer` as JSON, around the JSON of a worker or scorer."""
        if not self.proba:
            return predictions_body(self.model.hash, version, rows_seen, result)
        # An object with the other fields.
        return b'{"hash":"%b","version":%d,"rows_seen":%d,%b' % (
            self.model.hash.encode(), version, rows_seen, result[1:],
        )  # fmt: skip

    def body_of(self, scorer: Scorer) -> bytes | None:
        """Return the body that a scorer computes; None where only a worker can answer."""
        result = scorer.answer(self.model.recipe, self.rows, proba=self.proba)
        return None if result is None else self.body(scorer.version, scorer.rows_seen, result)


def predictions_body(model_hash: str, version: int, rows_seen: int, predictions: bytes) -> bytes:
    """Return a :class:`~keepfit_gateway.schemas.PredictAnswer` without probabilities, around a list as JSON."""
    return b'{"hash":"%b","version":%d,"rows_seen":%d,"predictions":%b}' % (
        model_hash.encode(), version, rows_seen, predictions,
    )  # fmt: skip


def score(scorers: Scorers, question: Question) -> tuple[bytes, Scorer, WatchedModel] | None:
    """Return the answer of the newest version, computed here; None where a worker must be asked."""
    found = scorers.find(question.model)
    if found is None:
        return None
    scorer, watched = found
    if scorer.cost(question.rows, proba=question.proba) > INLINE_COST_MAX:
        return None
    body = question.body_of(scorer)
    return None if body is None else (body, scorer, watched)


async def find_stale(
    cache: Cache, scorers: Scorers, question: Question, stale_s_max: float, error: KeepfitError, *, forwarded: bool
) -> Reply | None:
    """Return an answer that may be stale for `stale_s_max` seconds, to be sent instead of `error`; None without one."""
    now_s = time.monotonic()
    scored, kept = scorers.find_stale(question.model), cache.find_stale(question.key, question.model.generation)
    # A kept answer is of the newest version that was observed while its model was watched.
    kept_version = (-1, 0) if kept is None or kept[0].watched.newest is None else kept[0].watched.newest
    if scored is not None and kept_version < (scored[0].generation, scored[0].version):
        scorer, stale_since_s = scored
        stale_s = now_s - stale_since_s
        if stale_s <= stale_s_max:
            body: bytes | None
            if scorer.cost(question.rows, proba=question.proba) <= INLINE_COST_MAX:
                body = question.body_of(scorer)
            else:
                body = await compute_in_thread(len(question.rows.numbers), question.body_of, scorer)
            if body is not None:
                etag = http_caching.etag_of(question.key, scorer.generation, scorer.version)
                status = http_caching.cache_status(stale_s, error, forwarded=forwarded)
                return Reply(etag, body, max(stale_s, 0), status, STALE, question.rows.n)
    if kept is not None:
        answer, stale_since_s = kept
        stale_s = now_s - stale_since_s
        if stale_s <= stale_s_max:
            status = http_caching.cache_status(stale_s, error, forwarded=forwarded)
            return Reply(answer.etag, answer.body, cache.age_s(answer), status, STALE, answer.rows)
    return None
