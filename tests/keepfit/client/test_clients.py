"""The blocking and the asyncio client against a running stack: every call, the same results, the errors of each."""

import asyncio
import inspect
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import keepfit
from keepfit import AsyncClient, Client
from keepfit.client.clients import AsyncModel, Model
from keepfit.errors import ConflictError, InvalidError, MalformedError, NotFoundError
from keepfit.identity import hash_of
from tests.conftest import SHOES_RECIPE, Stack

ROWS = [{"make": make, "year": year} for year in range(2000, 2010) for make in ("nike", "puma")]
SIZES = [0.5 * (row["make"] == "nike") + 0.1 * (row["year"] - 2000) for row in ROWS]  # type: ignore[operator]


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    """Open a blocking client."""
    with Client(stack.url) as opened:
        yield opened


@pytest.fixture
def model(client: Client, metadata: dict[str, Any]) -> Model:
    """Create a model that has learned the rows."""
    made = client.create(metadata, SHOES_RECIPE)
    made.partial_fit(ROWS, SIZES, wait=True)
    return made


def test_the_package_resolves_the_clients() -> None:
    """`keepfit.Client` is imported when it is asked for, and other names are none."""
    assert keepfit.Client is Client
    assert {"Client", "AsyncClient"} <= set(dir(keepfit))
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        _ = keepfit.Clint


def test_both_clients_have_the_same_calls() -> None:
    """Each public method of one is a method of the other, with the same parameters."""
    for blocking, awaited in ((Client, AsyncClient), (Model, AsyncModel)):
        names = {name for name in dir(blocking) if not name.startswith("_")}
        assert names == {name for name in dir(awaited) if not name.startswith("_")}
        for name in names:
            first, second = (inspect.signature(getattr(of, name)) for of in (blocking, awaited))
            assert list(first.parameters) == list(second.parameters)


def test_documents_are_added_and_deleted(stack: Stack, client: Client) -> None:
    """Documents are stored in as many requests as they need, once for each key of a call, and deleted by filter."""
    type_ = f"vote {uuid.uuid4().hex}"
    made = [{"type": type_, "timestamp": 1_795_176_000 + n, "n": n, "brand": np.str_("nike")} for n in range(1_500)]
    assert client.add_history(iter(made)) == client.add_history(made) == 1_500
    points = client.history(type=type_, every="1d", stat="count")
    assert sum(point["value"] for point in points) == 1_500
    nameless = [{"type": f"{type_} 2"}] * 3
    for _ in range(2):
        assert client.add_history(nameless, idempotency_key=type_.replace(" ", "-")) == 3
    assert len(client.history(type=f"{type_} 2")) == 3

    async def replaced() -> list[dict[str, Any]]:
        async with AsyncClient(stack.url) as opened:
            for n in range(2):
                assert await opened.add_history({"type": f"{type_} 3", "device": "a", "n": n}, ["device"]) == 1
            return await opened.history(type=f"{type_} 3")

    assert [one["n"] for one in asyncio.run(replaced())] == [1]
    assert [one["n"] for one in client.stream_history(type=type_)] == list(range(1_499, -1, -1))
    assert list(client.stream_history(type=type_, every="1d", stat="count")) == points
    assert next(client.stream_history(type=type_))["n"] == 1_499
    with pytest.raises(MalformedError, match="stat must be"):
        list(client.stream_history(type=type_, every="1d", stat="none"))

    async def streamed() -> list[int]:
        async with AsyncClient(stack.url) as opened:
            return [one["n"] async for one in opened.stream_history(type=type_, limit=1_200)]

    assert asyncio.run(streamed()) == list(range(1_499, 299, -1))
    wrong = [*made[:1_200], {"type": type_, "a.b": 1}]
    with pytest.raises(InvalidError, match=r"'a.b'.*1,000 documents of the call before that are stored") as refused:
        client.add_history(wrong)
    assert [fault.row for fault in refused.value.faults] == [1_200]
    with pytest.raises(InvalidError):
        client.add_history(made, "device")
    with pytest.raises(InvalidError):
        client.delete_history(before="now")
    assert client.delete_history(type=type_, before=1_795_176_100) == 100
    assert client.delete_history(type=type_) == 1_400
    assert client.add_history([]) == 0


def test_a_model_learns_predicts_and_scores(client: Client, model: Model, metadata: dict[str, Any]) -> None:
    """A model is named by its metadata or its hash, and answers with the version that computed the answer."""
    assert model.hash == hash_of(metadata)
    learned = model.partial_fit({"make": "nike", "year": 2011}, [1.5], wait=30)
    assert (learned["accepted"], learned["rows_seen"]) == (1, 21)
    by_hash = client.model(model.hash)
    answer = by_hash.predict([["nike", 2005], ["puma", 2005]])
    assert (len(answer), answer.version, answer.rows_seen) == (2, learned["version"], 21)
    assert list(answer) == model.predict([{"year": 2005, "make": "nike"}, {"year": 2005, "make": "puma"}])
    assert np.asarray(answer).tolist() == answer.predictions
    assert model.score(ROWS, SIZES)["mean_absolute_error"] < 2
    document = model.describe()
    assert (document["metadata"], document["rows_seen"]) == (metadata, 21)
    curve = model.curve()
    assert (curve["rows_seen"], curve["points"][-1]["rows_seen"]) == (21, 21)
    assert (model.traffic()["hash"], model.traffic()["window_s"]) == (model.hash, 60)


def test_a_call_without_waiting_is_accepted(model: Model) -> None:
    """Without `wait` the answer is that the rows are accepted; the same key again learns nothing twice."""
    first = model.partial_fit(ROWS, SIZES, idempotency_key="once")
    again = model.partial_fit(ROWS, SIZES, idempotency_key="once", wait=True)
    assert first["sequence"] == again["sequence"]
    assert again["rows_seen"] == 40


def test_every_other_call(client: Client, model: Model, metadata: dict[str, Any]) -> None:
    """Snapshots, history, parameters, labels, jobs, dead letters: each call answers what the API answers."""
    saved = model.snapshot()
    assert [one["version"] for one in model.snapshots()] == [saved["version"]]
    assert model.history(limit=1)[0]["hash"] == client.history(hash=model.hash)[0]["hash"] == model.hash
    assert model.patch({"C": 0.25})["recipe"]["params"] == {"C": 0.25}
    assert model.predict([["nike", 2001]], version=saved["version"]).version == saved["version"]
    assert model.restore(version=saved["version"])["version"] >= saved["version"]
    predicted = model.predict([["nike", 2001]], id="pair-7")
    assert model.label({"pair-7": 0.5}, wait=True)["accepted"] == 1
    assert model.label([{"id": "pair-8", "y": 0.5}])["errors"][0]["reason"] == "unknown"
    step = model.train_score_predict(ROWS, SIZES, [["puma", 2003]], test_size=4, wait=30)
    assert (step["test_rows"], len(step["predictions"])) == (4, len(predicted))
    assert model.dead_letters() == []
    assert model.retry()["accepted"] == 0
    assert model.discard(["1-7"])["discarded"] == 0
    job = model.pull("s3://data/daily/shoes.parquet", target="size")["job"]
    assert client.job(job)["hash"] == client.jobs(hash=model.hash)[0]["hash"] == model.hash
    assert client.cancel(job)["state"] == "cancelled"
    assert [one["hash"] for one in client.models(session=metadata["session"])] == [model.hash]
    assert client.workers()
    assert client.ready()["workers"] > 0
    assert model.download(part="estimator")
    assert client.find(model.hash[:12]).hash == client.find(model.hash).hash == model.hash
    status, document = client.request("GET", f"/v1/models/{model.hash}")
    assert (status, document["hash"]) == (200, model.hash)
    model.delete()
    with pytest.raises(NotFoundError):
        model.describe()


def test_estimators_name_their_recipes(client: Client, metadata: dict[str, Any]) -> None:
    """A name, an unfitted object of scikit-learn or a pipeline is a recipe; another object is never pickled."""
    named = client.create(metadata, estimator="SGDRegressor", scaler="StandardScaler")
    assert named.describe()["recipe"]["scaler"] == "StandardScaler"
    same = client.create(metadata, estimator=SGDRegressor(), scaler="StandardScaler")
    assert same.hash == named.hash
    with pytest.raises(ConflictError):
        client.create(metadata, estimator=SGDRegressor(alpha=np.float64(0.5)))
    steps = make_pipeline(StandardScaler(with_mean=False), SGDClassifier(loss="log_loss"))
    piped = client.create({**metadata, "of": "steps"}, estimator=steps)
    assert piped.describe()["recipe"]["steps"] == [
        {"StandardScaler": {"with_mean": False}},
        {"SGDClassifier": {"loss": "log_loss"}},
    ]
    piped.partial_fit([[0.0], [1.0]], ["no", "yes"], wait=True)
    answer = piped.predict([[0.0], [1.0]], proba=True)
    assert answer.classes == ["no", "yes"]
    assert np.asarray(answer.probabilities).shape == (2, 2)
    with pytest.raises(InvalidError, match=r"keepfit\.objects\.dump"):
        client.create(metadata, estimator=object())


def test_errors_name_the_value(client: Client, model: Model) -> None:
    """The errors of the gateway arrive with row and column; wrong names are refused before anything is sent."""
    with pytest.raises(InvalidError) as error:
        model.predict([["nike", 2001], ["nike", "new"]])
    assert [(one.row, one.column) for one in error.value.faults] == [(1, "year")]
    with pytest.raises(InvalidError, match="beginning of a hash"):
        client.model("5f0c")
    with pytest.raises(MalformedError):
        client.model("shoes")
    with pytest.raises(NotFoundError, match="begins with 0000000000"):
        client.find("0" * 40)
    with pytest.raises(NotFoundError):
        client.model({"type": "never made"}).predict([[1]])
    for url in ("127.0.0.1:8000", "http://", "http://u:p@host", "http://host:x", "ftp://host", "http://[::1"):
        with pytest.raises(MalformedError):
            Client(url)


def test_threads_share_a_client(model: Model) -> None:
    """Calls of several threads do not mix their answers."""
    found: dict[int, list[Any]] = {}
    expected = {year: model.predict([["nike", year]])[0] for year in range(2000, 2008)}

    def ask(year: int) -> None:
        found[year] = [model.predict([["nike", year]])[0] for _ in range(20)]

    threads = [threading.Thread(target=ask, args=(year,)) for year in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {year: [one] * 20 for year, one in expected.items()}


async def test_the_asyncio_client_makes_the_same_calls(stack: Stack, model: Model) -> None:
    """Awaited calls have the answers of the blocking ones."""
    async with AsyncClient(stack.url) as client:
        same = client.model(model.hash)
        learned = await same.partial_fit(ROWS, SIZES, wait=True)
        assert learned["rows_seen"] == 40
        assert list(await same.predict(ROWS)) == model.predict(ROWS)
        assert await same.score(ROWS, SIZES) == model.score(ROWS, SIZES)
        assert (await client.create({**(model.metadata or {})}, SHOES_RECIPE)).hash == model.hash
        with pytest.raises(InvalidError):
            await same.predict([["nike", "new"]])


async def test_concurrent_predictions_share_requests(stack: Stack, model: Model) -> None:
    """Each of many questions gets its own answer or error, whatever it was joined with; few requests are sent."""
    years = range(1900, 2100)
    expected = model.predict([["nike", year] for year in years])
    model.partial_fit([["nike", 1]], [1.0])
    model.partial_fit([["nike", 1]], [1.0], wait=True)
    expected = model.predict([["nike", year] for year in years])
    async with AsyncClient(stack.url) as client:
        same = client.model(model.hash)
        sent = 0
        send = client._performer.connections.send

        async def counted(step: Any) -> Any:
            nonlocal sent
            sent += 1
            return await send(step)

        client._performer.connections.send = counted  # type: ignore[method-assign]
        as_rows = [same.predict([["nike", year]]) for year in years]
        assert [one[0] for one in await asyncio.gather(*as_rows)] == expected
        assert sent < 10
        mixed = await asyncio.gather(
            same.predict([["nike", "new"]]),
            same.predict({"make": "nike", "year": 1950}),
            same.predict([["nike", 1951], ["nike", 1952]]),
            client.model({"type": "never made"}).predict([[1]]),
            same.predict([["puma"]]),
            same.predict([["nike", 1953]], proba=True),
            same.predict([["nike", 1954]]),
            return_exceptions=True,
        )
    assert [type(one).__name__ for one in mixed] == [
        "InvalidError", "Predictions", "Predictions", "NotFoundError", "InvalidError", "InvalidError", "Predictions",
    ]  # fmt: skip
    assert mixed[1] == expected[50:51]
    assert mixed[2] == expected[51:53]
    assert mixed[6] == expected[54:55]
    assert mixed[0].faults[0].row == 0


async def test_a_cancelled_question_takes_no_other_with_it(stack: Stack, model: Model) -> None:
    """The questions that were joined with a cancelled one are answered, the first of a turn included."""
    async with AsyncClient(stack.url) as client:
        same = client.model(model.hash)
        for cancelled in range(4):
            tasks = [asyncio.create_task(same.predict([["nike", 2000 + number]])) for number in range(4)]
            await asyncio.sleep(0)
            tasks[cancelled].cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(one, asyncio.CancelledError) for one in answers] == [
                number == cancelled for number in range(4)
            ]


async def test_events_arrive(stack: Stack, model: Model) -> None:
    """Both clients yield the events of a model, and go on behind an event when they connect again."""
    async with AsyncClient(stack.url) as client:
        events = client.model(model.hash).events("model_patched")
        first = asyncio.ensure_future(anext(events))  # type: ignore[arg-type]
        version = 0
        while not first.done():
            version = (await asyncio.to_thread(model.patch, {"C": 0.1 + version / 100}))["version"]
            await asyncio.wait([first], timeout=0.2)
        event = await first
        assert (event["kind"], event["hash"]) == ("model_patched", model.hash)
        changed = await asyncio.to_thread(model.patch, {"C": 0.9})
        with Client(stack.url) as blocking:
            later = blocking.model(model.hash).events("model_patched", after=event["id"])
            versions = [(await asyncio.to_thread(next, later))["version"]]
            while versions[-1] < changed["version"]:
                versions.append((await asyncio.to_thread(next, later))["version"])
            await asyncio.to_thread(later.close)  # type: ignore[attr-defined]
        assert versions[0] > event["version"]
        await events.aclose()  # type: ignore[attr-defined]
