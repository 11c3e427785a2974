"""The memory of a worker while it learns one large request."""

import tracemalloc

import numpy as np
import pytest

from keepfit import identity
from keepfit.recipe.recipe import parse
from keepfit.rows.rows import Rows
from keepfit.settings import Settings
from keepfit.store import inbox
from keepfit.store.models import Install, Store
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from tests.factories import accept

METADATA = {"type": "large requests"}
HASH = identity.hash_of(METADATA)
COLUMNS = 31
LARGE_ROWS = 64 * 10**6 // (8 * COLUMNS)
TIMES_ROWS_MAX = 2.5


def random_rows(n: int) -> Rows:
    """Return `n` rows of random numbers with a target."""
    values = np.random.default_rng(n).normal(size=(n, COLUMNS))
    return Rows(n, values.tobytes(), [], values.sum(axis=1).tobytes())


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("recipe", [{}, {"scaler": "StandardScaler"}, {"scaler": "MinMaxScaler"}])
async def test_a_large_request_is_learned_in_a_few_times_its_size(
    store: Store, context: WorkerContext, settings: Settings, recipe: dict[str, str], before: int
) -> None:
    """A request of 64 MB takes less than 2.5 times its rows, from Redis to the commit, also in a first call."""
    wanted = parse({"estimator": "SGDRegressor", "params": {"eta0": 0.001}, **recipe})
    await store.install(Install(HASH, identity.canonical(METADATA).decode(), wanted.text(), generation=1))
    described = await store.describe(HASH)
    assert described is not None
    for _ in range(before):
        await accept(store, described, random_rows(2))
        assert not learn(context, HASH, "lease")
    large = random_rows(LARGE_ROWS)
    assert not large.fits(inbox.CALL_BYTES_MAX)
    await accept(store, described, large)
    tracemalloc.start()
    try:
        assert not learn(context, HASH, "lease")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    after = await store.describe(HASH)
    assert after is not None
    assert (after.rows_seen, after.inbox) == (LARGE_ROWS + 2 * before, 0)
    assert peak < TIMES_ROWS_MAX * len(large.numbers)
