"""A worker is killed around the commit of a call of train_score_predict: the client gets its answer, and no other."""

from collections.abc import Callable

import aiohttp
import pytest

from tests.conftest import Stack
from tests.gateway.api.test_train_score_predict import ASKED, BODY, X, Y
from tests.gateway.api_client import REGRESSOR, Api, Twin


@pytest.mark.parametrize("point", ["worker.fitted", "commit.done"])
async def test_a_killed_worker_gives_no_wrong_answer(up: Callable[..., Stack], point: str) -> None:
    """Before the commit another worker learns the rows and answers; after it the commit has the answer."""
    stack = up(FAULT_POINT=f"{point}:2:kill")
    twin = Twin(REGRESSOR)
    for begin, end in ((0, 10), (0, 7), (7, 10)):
        twin.learn(X[begin:end], Y[begin:end])
    async with aiohttp.ClientSession(stack.url) as http:
        api = Api(http)
        path = await api.make({"type": "killed"}, REGRESSOR)
        await api.learn(path, X, Y)
        headers = {"Idempotency-Key": "killed", "Prefer": "wait=60"}
        answer = (await api.post(f"{path}/train_score_predict", BODY, headers)).of(200)
        assert (answer["version"], answer["rows_seen"], answer["predictions"]) == (2, 20, twin.predict(ASKED))
        await api.learn(path, X, Y)
        assert (await api.post(f"{path}/train_score_predict", BODY, headers)).of(200) == answer
        assert (await api.model(path))["rows_seen"] == 30
    assert "failpoint_fired" in stack.log("workers")
