"""Predictions that the gateway computes itself: a worker's answers, with the newest version, without asking one."""

import itertools
import json
import re
from collections import Counter
from typing import Any

import pytest

from keepfit_gateway.prediction import scorers, without_worker
from tests.conftest import SHOES_RECIPE, Stack
from tests.gateway.api_client import CLASSIFIER, REGRESSOR, Api, Reply, eventually
from tests.gateway.prediction.test_http_caching import beside

LINEAR = {"estimator": "SGDRegressor"}
LABELLED = {"X": [[1.0, 2.0], [3.0, 5.0]], "y": [1.0, 2.0]}
SHOES = {"X": [["nike", 2001], ["adidas", 2010], ["puma", 2005]], "y": [0.5, -0.5, 0.1]}
VOTES = {"X": [[1.0, 2.0], [3.0, 5.0], [2.0, 2.0]], "y": ["no", "yes", "no"]}
# Each request has rows that no other one has.
FRESH = itertools.count(1)


def fresh_row(like: list[Any]) -> list[Any]:
    """Return a row like another one, with a number that no other request has."""
    return [*like[:-1], like[-1] + next(FRESH) / 1024]


async def ask(api: Api, path: str, row: list[Any], *, proba: bool = False, **headers: str) -> Reply:
    """Predict a row."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = json.dumps({"X": [row], "proba": proba} if proba else {"X": [row]}).encode()
    reply = await api.call("POST", f"{path}/predict", data=body, headers=named)
    reply.of(200)
    return reply


async def sources(api: Api) -> Counter[str]:
    """Return the numbers of predictions of the gateway by source."""
    text = (await api.get("/metrics")).body.decode()
    found = re.findall(r'^keepfit_predictions_total\{source="(\w+)"\} ([\d.e+]+)$', text, re.MULTILINE)
    return Counter({source: int(float(count)) for source, count in found})


async def is_scored(api: Api, path: str, row: list[Any], **headers: str) -> bool:
    """Predict a new row, and return whether the gateway computed it."""
    before = await sources(api)
    await ask(api, path, fresh_row(row), **headers)
    return (await sources(api) - before)["scored"] > 0


async def until_scored(api: Api, path: str, row: list[Any]) -> None:
    """Predict new rows until the gateway computes them."""
    await eventually(lambda: is_scored(api, path, row), "the scorer")


@pytest.mark.parametrize(
    ("recipe", "labelled", "proba"),
    [
        (LINEAR, LABELLED, False),
        (REGRESSOR, LABELLED, False),
        ({**SHOES_RECIPE, "encoding": "onehot", "estimator": "SGDRegressor", "params": {}}, SHOES, False),
        (CLASSIFIER, VOTES, False),
        ({**CLASSIFIER, "params": {"loss": "log_loss"}}, VOTES, True),
    ],
    ids=["plain", "default", "columns", "labels", "probabilities"],
)
async def test_scored_answers_equal_those_of_workers(
    stack: Stack, metadata: dict[str, Any], recipe: dict[str, Any], labelled: dict[str, Any], proba: bool
) -> None:
    """Body, ETag and all other fields are those of a worker's answer, on the fast and on the regular path."""
    async with beside(stack) as (scoring, _), beside(stack, scorer_bytes_max=0) as (asking, _):
        path = await scoring.make(metadata, recipe)
        await scoring.learn(path, **labelled)
        row = labelled["X"][0]
        await until_scored(scoring, path, row)
        for content_type in ("application/json", "application/json; charset=utf-8"):
            one, before = fresh_row(row), await sources(scoring)
            by_scorer = await ask(scoring, path, one, proba=proba, Content_Type=content_type)
            assert (await sources(scoring) - before) == Counter(scored=1)
            by_worker = await ask(asking, path, one, proba=proba)
            assert by_scorer.body == by_worker.body
            assert fields(by_scorer) == fields(by_worker)
            # The second request for it stores the answer.
            for kept in (False, True):
                again = await ask(scoring, path, one, proba=proba)
                assert (again.body, "Age" in again.headers) == (by_worker.body, kept)
        assert (await sources(asking))["scored"] == 0


def fields(reply: Reply) -> dict[str, str]:
    """Return the header fields except those of each single answer."""
    return {name: value for name, value in reply.headers.items() if name not in ("Date", "X-Request-ID")}


async def test_a_client_reads_what_it_has_written(api: Api, metadata: dict[str, Any]) -> None:
    """After a wait for its rows a client gets a prediction of that version or a newer one, also from a scorer."""
    path = await api.make(metadata, LINEAR)
    for turn in range(20):
        learned = await api.learn(path, **LABELLED)
        for _ in range(turn % 4 + 1):
            reply = await ask(api, path, fresh_row([1.0, 2.0]))
            assert (reply.json()["version"], reply.json()["rows_seen"]) == (learned["version"], learned["rows_seen"])


async def test_scorers_of_a_model_that_keeps_learning_are_published(api: Api, metadata: dict[str, Any]) -> None:
    """While a model learns between any two predictions, its new scorers come by themselves and no worker is asked."""
    path = await api.make(metadata, LINEAR)
    await api.learn(path, **LABELLED)
    await until_scored(api, path, [1.0, 2.0])

    async def first_is_scored() -> bool:
        learned, before = await api.learn(path, **LABELLED), await sources(api)
        reply = await ask(api, path, fresh_row([1.0, 2.0]))
        assert reply.json()["version"] == learned["version"]
        if (await sources(api) - before)["worker"]:
            # The scorer that is used is what is followed.
            await ask(api, path, fresh_row([1.0, 2.0]))
            await ask(api, path, fresh_row([1.0, 2.0]))
            return False
        return True

    await eventually(first_is_scored, "a published scorer")


async def test_no_cache_asks_a_worker(stack: Stack, metadata: dict[str, Any]) -> None:
    """With no-cache a worker computes the answer; with no-store, and without a cache, the gateway does."""
    async with beside(stack, predict_cache_bytes_max=0) as (api, _):
        path = await api.make(metadata, LINEAR)
        await api.learn(path, **LABELLED)
        await until_scored(api, path, [1.0, 2.0])
        assert await is_scored(api, path, [1.0, 2.0], Cache_Control="no-store")
        assert await is_scored(api, path, [1.0, 2.0], Cache_Control="max-age=0")
        assert not await is_scored(api, path, [1.0, 2.0], Cache_Control="no-cache")


async def test_large_answers_are_computed_by_workers(
    stack: Stack, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would hold the event loop is computed by a worker."""
    async with beside(stack) as (api, _):
        path = await api.make(metadata, LINEAR)
        await api.learn(path, **LABELLED)
        await until_scored(api, path, [1.0, 2.0])
        monkeypatch.setattr(without_worker, "INLINE_COST_MAX", 1)
        before = await sources(api)
        (await api.post(f"{path}/predict", {"X": [fresh_row([1.0, 2.0]), fresh_row([1.0, 2.0])]})).of(200)
        assert await sources(api) - before == Counter(worker=1)


async def test_errors_are_those_of_workers(api: Api, metadata: dict[str, Any]) -> None:
    """Rows that do not fit the model get the same problem with a scorer and without."""
    path = await api.make(metadata, LINEAR)
    await api.learn(path, **LABELLED)
    wide = {"X": [[1.0, 2.0, 3.0]]}
    before = (await api.post(f"{path}/predict", wide)).problem(422)
    await until_scored(api, path, [1.0, 2.0])
    assert (await api.post(f"{path}/predict", wide)).problem(422) == before


async def test_large_scorers_are_decoded_in_a_thread(
    stack: Stack, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scorer that takes long to decode is decoded outside of the event loop, and then used as any other."""
    monkeypatch.setattr(scorers, "INLINE_BYTES_MAX", 1)
    decoded: list[bool] = []
    once = scorers.Scorers.decode_large

    async def noted(self: Any, data: bytes, recipe: Any) -> Any:
        scorer = await once(self, data, recipe)
        decoded.append(scorer is not None)
        return scorer

    monkeypatch.setattr(scorers.Scorers, "decode_large", noted)
    async with beside(stack) as (api, _):
        path = await api.make(metadata, LINEAR)
        await api.learn(path, **LABELLED)
        await until_scored(api, path, [1.0, 2.0])
    assert decoded == [True]
