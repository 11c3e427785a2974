"""Replay of the row log: lost models keep every row, live ones go to any time, nothing is learned twice."""

import asyncio
import os
import random
import signal
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from keepfit.backends import redis_keys
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import IdempotencyError, UnavailableError
from keepfit.history.registry.lineage import Link, Span, learned_spans
from keepfit.model import fit_loop, serialization
from keepfit.model.bundle import Bundle
from keepfit.model.fit_loop import Fitted
from keepfit.observability import request_id
from keepfit.recipe import recipe
from keepfit.restore.bulk import ModelFilter, restore_many
from keepfit.restore.repair import repair
from keepfit.restore.replay_child import Payload
from keepfit.restore.replay_source import select
from keepfit.restore.requests import RestoreRequest, RestoreResult
from keepfit.restore.restorer import Restorer
from keepfit.rowlog.row_log import Call, RowLog
from keepfit.rows import acceptance, shaping
from keepfit.rows.train_score_predict import ToPredict, TrainScorePredict
from keepfit.settings import Settings
from keepfit.snapshots import save as saving
from keepfit.snapshots.idle import IdleRules, Unloaded, unload_idle
from keepfit.store import commit, inbox
from keepfit.store.inbox import Accepted
from tests.factories import Workshop, commit_bundle, workshop
from tests.faults.check import differences

SGD = {"estimator": "SGDRegressor", "features": {"make": "category", "year": "number"}, "scaler": "StandardScaler"}
RECIPES: dict[str, dict[str, Any]] = {
    "exact": SGD,
    "merged": {**SGD, "updates": "merged"},
    "network": {**SGD, "estimator": "MLPRegressor", "params": {"hidden_layer_sizes": [4]}},
    "bayes": {"estimator": "GaussianNB", "scaler": "StandardScaler"},
    "clusters": {"estimator": "MiniBatchKMeans", "params": {"n_clusters": 2}, "scaler": "MinMaxScaler"},
}


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a row log."""
    return settings.model_copy(update={"row_log_url": (tmp_path / "rows").as_uri()})


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of this test only."""
    async with workshop(settings) as opened:
        yield opened


@pytest.fixture
def restorer(shop: Workshop) -> Iterator[Restorer]:
    """Return a restorer with the row log."""
    made = restorer_of(shop)
    yield made
    made.close()


def restorer_of(shop: Workshop) -> Restorer:
    """Create a restorer as a worker does."""
    return Restorer(shop.resources, shop.settings)


def log_of(shop: Workshop) -> RowLog:
    """Return the row log."""
    assert shop.resources.row_log is not None
    return shop.resources.row_log


Request = tuple[list[Any], list[Any] | None] | dict[str, Any] | TrainScorePredict


async def send(shop: Workshop, model_hash: str, *requests: Request, key: str | None = None) -> list[int]:
    """Accept requests in one call and log them, as a gateway does; return their sequences."""
    model, connection = await shop.model(model_hash), ScriptConnection(shop.store.client)
    learns = []
    for request in requests:
        if isinstance(request, dict):
            learns.append(inbox.make_change(model_hash, model.generation, request, key))
        else:
            is_shaped = isinstance(request, TrainScorePredict)
            shaped = request if is_shaped else shaping.shape(model.recipe, *request, learning=True)
            learns.append(
                await inbox.make_request(shop.store.client, model_hash, model.generation, shaped, key, logged=True)
            )
    outcomes, _, logged = await inbox.accept_logged(connection, shop.settings, learns)
    await connection.close()
    if logged:
        log_of(shop).write([call for call, _ in logged])
    sequences = []
    for outcome in outcomes:
        if not isinstance(outcome, Accepted):
            raise outcome
        sequences.append(outcome.sequence)
    return sequences


def some_rows(name: str, number: int) -> tuple[list[Any], list[Any] | None]:
    """Return rows for a recipe, different for each number."""
    drawn = random.Random(number)
    if name in ("bayes", "clusters"):
        X = [[drawn.gauss(i % 2, 1.0), drawn.random()] for i in range(4)]
        return X, None if name == "clusters" else [drawn.choice("ab") for _ in X]
    return [[drawn.choice(["nike", "puma", "vans"]), drawn.randrange(1990, 2020)] for _ in range(2)], [
        drawn.random() for _ in range(2)
    ]


def row(number: float) -> tuple[list[Any], list[Any]]:
    """Return one row, identified by its target."""
    return [["nike", 2000]], [float(number)]


async def save(shop: Workshop, model_hash: str) -> dict[str, Any]:
    """Save a model."""
    document = await saving.save(shop.resources, model_hash)
    assert document is not None
    return document


def bundle_of(shop: Workshop, model_hash: str, wanted: recipe.Recipe) -> Bundle:
    """Return the live bundle."""
    return serialization.unseal(shop.data(model_hash), shop.keyring, wanted, model_hash)[1]


def learn_pending(shop: Workshop, model_hash: str) -> None:
    """Learn all pending requests and commit, as a worker does, merged requests too."""
    taken = shop.consumer.claim(model_hash, "token", "")
    assert taken is not None

    def fresh() -> Bundle:
        return shop._unsealed(model_hash, taken.recipe_text, taken.data)

    def keep(bundle: Bundle, fitted: Fitted) -> int:
        return commit_bundle(shop.consumer, shop.keyring, taken, bundle, fitted.count, "token").version

    assert fit_loop.fit_requests(fresh(), fresh, taken.entries, keep, 60.0) == taken.version + 1
    shop.consumer.unlock(model_hash, "token", force=True)


async def restore(restorer: Restorer, model_hash: str, wanted: RestoreRequest | None = None) -> RestoreResult:
    """Restore one model."""
    registered = await restorer.resources.registry.find(model_hash)
    assert registered is not None
    return await restorer.restore(registered, wanted or RestoreRequest())


async def lose_and_restore(shop: Workshop, restorer: Restorer, model_hash: str) -> RestoreResult:
    """Delete everything in Redis, and restore one model."""
    shop.redis.flushall()
    return await restore(restorer, model_hash)


def expected_bundle(*numbers: float) -> Bundle:
    """Return a bundle that has learned these rows, one call each."""
    wanted = recipe.parse(SGD)
    bundle = Bundle.new(wanted)
    for number in numbers:
        bundle.partial_fit(shaping.shape(wanted, *row(number), learning=True))
    return bundle


def check(shop: Workshop, model_hash: str, *numbers: float) -> None:
    """Check that a model has learned these rows, in this order, to the bit."""
    found, expected = bundle_of(shop, model_hash, recipe.parse(SGD)), expected_bundle(*numbers)
    assert found.rows_seen == len(numbers)
    assert differences(found, expected) == []


@pytest.mark.parametrize("name", RECIPES)
async def test_a_restored_model_equals_one_that_was_never_lost(
    shop: Workshop, restorer: Restorer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Snapshot and row log give the same model to the bit: with changes, and a call half in the snapshot."""
    model_hash = await shop.make(RECIPES[name])
    await send(shop, model_hash, some_rows(name, 0))
    learn_pending(shop, model_hash)
    await send(shop, model_hash, *(some_rows(name, number) for number in range(1, 5)))
    with monkeypatch.context() as patch:
        patch.setattr(commit, "ENTRIES_MAX", 2)
        learn_pending(shop, model_hash)
    await save(shop, model_hash)
    if "SGD" in RECIPES[name]["estimator"]:
        await send(shop, model_hash, {"alpha": 0.01})
    await send(shop, model_hash, *(some_rows(name, number) for number in range(5, 9)))
    learn_pending(shop, model_hash)
    before, expected = await shop.model(model_hash), bundle_of(shop, model_hash, recipe.parse(RECIPES[name]))
    restored = await lose_and_restore(shop, restorer, model_hash)
    assert restored.replayed == len(some_rows(name, 0)[0]) * 6
    after, found = await shop.model(model_hash), bundle_of(shop, model_hash, before.recipe)
    assert differences(found, expected) == []
    # The times of its points, too.
    assert found.curve == expected.curve
    times = [point["time"] for point in found.curve.points()]
    assert all(times)
    assert bool(times) is (name != "clusters")
    assert (after.rows_seen, after.learned, after.metrics, after.changed) == (
        before.rows_seen, before.learned, before.metrics, before.changed
    )  # fmt: skip
    assert (after.generation, after.origin, after.inbox) == (2, 2, 0)
    assert restored.saved
    newest = await shop.registry.newest(model_hash, 1)
    assert newest is not None
    assert (newest["generation"], newest["sequence"]) == (2, after.learned)
    assert await send(shop, model_hash, some_rows(name, 9)) == [before.learned + 1]


@pytest.mark.parametrize("is_lost", [False, True])
async def test_requests_of_release_0_1_have_no_time(
    shop: Workshop, restorer: Restorer, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    """Bare rows, and rows that end in an id, give the same bundle and digest whether they are learned or replayed."""
    model_hash = await shop.make({"estimator": "SGDRegressor", "scaler": "StandardScaler"})
    # Its bytes before the id look like those of a time.
    (number,) = struct.unpack("<d", bytes.fromhex("00000000cb41e03f"))
    sent = [(0.0, "", 1.0), (0.0, "abc", number), (5.0, "abc", number), (6.0, "", 2.0)]
    for seconds, name, y in sent:
        monkeypatch.setattr(acceptance, "now_s", lambda seconds=seconds: seconds)
        token = request_id.sent.set(name)
        await send(shop, model_hash, ([[1.0]], [y]))
        request_id.sent.reset(token)
        learn_pending(shop, model_hash)
    wanted = (await shop.model(model_hash)).recipe
    expected = bundle_of(shop, model_hash, wanted)
    assert [point["time"] for point in expected.curve.points()] == [None, 5.0, 6.0]
    rows = [shaping.shape(wanted, [[1.0]], [y], learning=True).encode() for _, _, y in sent[:2]]
    stored: Any = shop.redis.xrange(redis_keys.inbox(model_hash))
    assert [fields[b"rows"] for _, fields in stored[:2]] == [rows[0], b"\x96" + rows[1][1:] + b"\xa3abc"]
    chain = shop.redis.hget(redis_keys.state(model_hash), "chain")
    if is_lost:
        await lose_and_restore(shop, restorer, model_hash)
    else:
        shop.redis.delete(redis_keys.bundle(model_hash))
        assert await repair(restorer, model_hash) is not None
    found = bundle_of(shop, model_hash, wanted)
    assert (differences(found, expected), found.curve) == ([], expected.curve)
    assert shop.redis.hget(redis_keys.state(model_hash), "chain") == chain


@pytest.mark.parametrize("name", ["exact", "bayes", "clusters"])
async def test_calls_of_train_score_predict_are_replayed_in_their_parts(
    shop: Workshop, restorer: Restorer, name: str
) -> None:
    """Rows that were learned in two parts, with others before and after, are replayed in two parts."""
    model_hash, wanted = await shop.make(RECIPES[name]), recipe.parse(RECIPES[name])
    rows = [shaping.shape(wanted, *some_rows(name, number), learning=True) for number in range(3)]
    asked = ToPredict(False, shaping.shape(wanted, some_rows(name, 9)[0], learning=False))
    calls = [TrainScorePredict.of(each, 1, asked) for each in rows]
    await send(shop, model_hash, some_rows(name, 3), calls[0], some_rows(name, 4), calls[1], calls[2])
    while (await shop.model(model_hash)).inbox:
        learn_pending(shop, model_hash)
    assert (await shop.model(model_hash)).version == 3
    expected = bundle_of(shop, model_hash, wanted)
    restored = await lose_and_restore(shop, restorer, model_hash)
    assert restored.replayed == expected.rows_seen
    found = bundle_of(shop, model_hash, wanted)
    assert differences(found, expected) == []
    assert found.curve == expected.curve


async def test_a_model_without_a_snapshot_learns_all_its_logged_rows(shop: Workshop, restorer: Restorer) -> None:
    """An unsaved model is recreated from its recipe and replays all rows, also if it is lost again before a save."""
    model_hash = await shop.make(SGD)
    await send(shop, model_hash, row(1), row(2))
    restored = await lose_and_restore(shop, restorer, model_hash)
    assert (restored.document, restored.replayed, (await shop.model(model_hash)).version) == (None, 2, 1)
    check(shop, model_hash, 1, 2)
    assert await send(shop, model_hash, row(3)) == [3]
    shop.work(model_hash)
    check(shop, model_hash, 1, 2, 3)


async def test_losses_in_a_row_without_a_snapshot_in_between(
    shop: Workshop, restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of each generation since the snapshot are replayed once and in order, with repeats among them."""
    model_hash = await shop.make(SGD)
    await send(shop, model_hash, row(1))
    shop.work(model_hash)
    await save(shop, model_hash)

    async def unavailable(*_: Any) -> None:
        raise UnavailableError("The storage is unavailable.")

    assert await send(shop, model_hash, row(2), key="two") == [2]
    with monkeypatch.context() as patch:
        patch.setattr("keepfit.restore.restorer.save", unavailable)
        for loss in range(1, 4):
            restored = await lose_and_restore(shop, restorer, model_hash)
            assert (restored.saved, restored.replayed) == (False, loss)
            # Logged again, with another origin and the sequence of the first call.
            assert await send(shop, model_hash, row(2), key="two") == [2]
            assert await send(shop, model_hash, row(2 + loss)) == [2 + loss]
    await lose_and_restore(shop, restorer, model_hash)
    check(shop, model_hash, 1, 2, 3, 4, 5)
    assert (await shop.model(model_hash)).learned == 5


async def test_a_call_logged_after_the_restore_listed_the_log_is_not_learned(
    shop: Workshop, restorer: Restorer
) -> None:
    """Its client got no answer and repeats it: the call is not replayed, and its key is not known."""
    model_hash = await shop.make(SGD)
    await send(shop, model_hash, row(1))
    model, connection = await shop.model(model_hash), ScriptConnection(shop.store.client)
    shaped = shaping.shape(model.recipe, *row(2), learning=True)
    learn = await inbox.make_request(shop.store.client, model_hash, 1, shaped, "late", logged=True)
    _, _, logged = await inbox.accept_logged(connection, shop.settings, [learn])
    await connection.close()
    assert (await lose_and_restore(shop, restorer, model_hash)).replayed == 1
    log_of(shop).write([call for call, _ in logged])
    assert await send(shop, model_hash, row(3)) == [2]
    await lose_and_restore(shop, restorer, model_hash)
    check(shop, model_hash, 1, 3)
    assert await send(shop, model_hash, row(2), key="late") == [3]


async def test_idempotency_keys_survive_a_restore(shop: Workshop, restorer: Restorer) -> None:
    """A repeat gets its first sequence and is not learned twice; another body under its key is refused."""
    model_hash = await shop.make(SGD)
    assert await send(shop, model_hash, row(1), key="covered") == [1]
    shop.work(model_hash)
    await save(shop, model_hash)
    assert await send(shop, model_hash, row(2), key="logged") == [2]
    for _ in range(2):
        await lose_and_restore(shop, restorer, model_hash)
        assert await send(shop, model_hash, row(2), key="logged") == [2]
        assert await send(shop, model_hash, row(1), key="covered") == [1]
        with pytest.raises(IdempotencyError):
            await send(shop, model_hash, row(9), key="logged")
    left: Any = shop.redis.pttl(redis_keys.new_answers(model_hash, ""))
    assert 0 < left < shop.settings.idempotency_ttl_s * 1000
    assert (await shop.model(model_hash)).inbox == 0
    check(shop, model_hash, 1, 2)


@pytest.mark.parametrize("saved_again", [False, True], ids=["lost", "saved, idle again, lost"])
async def test_an_idle_model_continues_its_sequences(shop: Workshop, restorer: Restorer, saved_again: bool) -> None:
    """A model that left Redis comes back with its sequences; later rows are in the row log under them."""
    model_hash = await shop.make(SGD)
    assert await send(shop, model_hash, row(1), key="first") == [1]
    shop.work(model_hash)
    await save(shop, model_hash)
    for number in range(2, 4):
        assert await unload_idle(shop.resources, IdleRules(1), await aged(shop, model_hash)) == Unloaded(1)
        await restore(restorer, model_hash)
        assert await send(shop, model_hash, row(1), key="first") == [1]
        assert await send(shop, model_hash, row(number), key=f"key-{number}") == [number]
        shop.work(model_hash)
        if not saved_again:
            break
        await save(shop, model_hash)
    learned = range(1, number + 1)
    await lose_and_restore(shop, restorer, model_hash)
    check(shop, model_hash, *learned)
    assert await send(shop, model_hash, row(number), key=f"key-{number}") == [number]
    assert await send(shop, model_hash, row(9)) == [number + 1]
    await lose_and_restore(shop, restorer, model_hash)
    check(shop, model_hash, *learned, 9)


async def aged(shop: Workshop, model_hash: str) -> int:
    """Make the last use of a model lie in the past; return the cursor from which all models are looked at."""
    name: Any = redis_keys.bundle(model_hash)
    client: Any = shop.redis
    client.execute_command("RESTORE", name, 0, client.dump(name), "REPLACE", "IDLETIME", 100)
    return 0


async def test_concurrent_restores_install_one_model(shop: Workshop) -> None:
    """Whichever restore wins, each row is learned once, and the live model knows each key."""
    made = [restorer_of(shop) for _ in range(4)]
    model_hash = await shop.make(SGD)
    for number in range(1, 4):
        await send(shop, model_hash, row(number), key=f"key-{number}")
    shop.redis.flushall()
    restored = await asyncio.gather(*(restore(each, model_hash) for each in made))
    assert [one.live for one in restored].count(False) == 1
    check(shop, model_hash, 1, 2, 3)
    for number in range(1, 4):
        assert await send(shop, model_hash, row(number), key=f"key-{number}") == [number]
    assert (await shop.model(model_hash)).inbox == 0
    for one in made:
        one.close()


async def test_rows_that_redis_lost_are_replayed_too(shop: Workshop, restorer: Restorer) -> None:
    """Two calls with the same sequence, from before and after Redis lost its last writes, are both learned."""
    model_hash = await shop.make(SGD)
    await send(shop, model_hash, row(1))
    held = {key: shop.redis.dump(key) for key in (redis_keys.state(model_hash), redis_keys.inbox(model_hash))}
    assert await send(shop, model_hash, row(2)) == [2]
    for key, dumped in held.items():
        shop.redis.restore(key, 0, dumped, replace=True)
    assert await send(shop, model_hash, row(3)) == [2]
    await lose_and_restore(shop, restorer, model_hash)
    check(shop, model_hash, 1, 2, 3)
    assert (await shop.model(model_hash)).learned == 2


async def test_requests_that_fail_or_kill_go_to_the_inbox(
    shop: Workshop, restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other requests are learned in order; these become pending, and workers put them aside with the reason."""
    model_hash = await shop.make(SGD)
    wrong, killing = {"nonsense": 1}, ([["kill", 2000]], [0.0])
    await send(shop, model_hash, row(1), wrong)
    await send(shop, model_hash, row(2), killing, row(3))
    Killing.kills(restorer, monkeypatch)
    restored = await lose_and_restore(shop, restorer, model_hash)
    assert restored.replayed == 3
    check(shop, model_hash, 1, 2, 3)
    model = await shop.model(model_hash)
    assert (model.learned, model.inbox) == (5, 2)
    taken = shop.consumer.claim(model_hash, "token", "")
    assert taken is not None
    assert [entry.change or entry.rows().categories for entry in taken.entries] == [wrong, [["kill"]]]


async def test_a_retried_dead_letter_is_learned_at_the_place_of_its_last_retry(
    shop: Workshop, restorer: Restorer
) -> None:
    """What was put aside, and learned after a retry, is neither learned nor pending at its first place after a loss."""
    model_hash = await shop.make(SGD)
    for number in range(1, 4):
        await send(shop, model_hash, row(number))
    view = log_of(shop).view()
    (second,) = [call for call in view.calls(model_hash, 0.0) if call.sequence == 2]
    # A gateway logs a retry so; Redis, where rows 2 were put aside twice, is lost.
    log_of(shop).write([replace(second, sequence=4, at=second.at + 1, digest="d4", name="r:2")])
    log_of(shop).write([replace(second, sequence=5, at=second.at + 2, digest="d5", name="r:4")])
    restored = await lose_and_restore(shop, restorer, model_hash)
    assert restored.replayed == 3
    check(shop, model_hash, 1, 3, 2)
    model = await shop.model(model_hash)
    assert (model.learned, model.inbox) == (5, 0)


async def test_a_request_is_learned_at_its_first_place_if_its_retry_is_not_restored(
    shop: Workshop, restorer: Restorer
) -> None:
    """A restore to a time before the retry knows nothing of it."""
    model_hash = await shop.make(SGD)
    await send(shop, model_hash, row(1))
    shop.work(model_hash)
    await save(shop, model_hash)
    await send(shop, model_hash, row(2))
    (second,) = [call for call in log_of(shop).view().calls(model_hash, 0.0) if call.sequence == 2]
    log_of(shop).write([replace(second, sequence=3, at=second.at + 60, digest="d3", name="r:2")])
    shop.redis.flushall()
    await restore(restorer, model_hash, RestoreRequest(at=second.at + 1))
    check(shop, model_hash, 1, 2)


async def test_a_retry_of_other_rows_under_the_same_sequence_takes_the_place_of_none(
    shop: Workshop, restorer: Restorer
) -> None:
    """After a crash Redis may give a sequence twice: the retry has the rows of the one that was put aside."""
    model_hash = await shop.make(SGD)
    await send(shop, model_hash, row(1), row(2))
    (both,) = log_of(shop).view().calls(model_hash, 0.0)
    log_of(shop).write([replace(both, sequence=3, payloads=both.payloads[:1], digest="d3", name="r:2")])
    await lose_and_restore(shop, restorer, model_hash)
    check(shop, model_hash, 1, 2, 1)


async def test_a_retry_that_redis_lost_takes_the_place_of_what_it_retried(shop: Workshop, restorer: Restorer) -> None:
    """Its sequence was given to another row: both are learned there, and not at its first place."""
    model_hash = await shop.make(SGD)
    await send(shop, model_hash, row(1), row(2), row(3))
    (call,) = log_of(shop).view().calls(model_hash, 0.0)
    log_of(shop).write([replace(call, sequence=3, at=call.at - 1, payloads=call.payloads[:1], digest="d3", name="r:1")])
    await lose_and_restore(shop, restorer, model_hash)
    check(shop, model_hash, 2, 1, 3)


class Killing:
    """Kills the replay process for rows of the make "kill", in place of an estimator that would."""

    @staticmethod
    def kills(restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Kill the child, which is then started again, whenever it gets such a row."""
        process = restorer.replayer._process
        learn = type(process).learn

        def deadly(self: Any, task: Any) -> Any:
            if any(
                payload.change is None and "kill" in payload.rows().categories[0]
                for payload in map(Payload, task.payloads)
            ):
                child, _ = self._started or self._start()
                os.kill(child.pid, signal.SIGKILL)
                child.join()
            return learn(self, task)

        monkeypatch.setattr(type(process), "learn", deadly)


# Restores to a time, and damage.


async def three_saved_two_logged(shop: Workshop) -> tuple[str, list[dict[str, Any]], list[float]]:
    """Create a model with rows 1, 2, 3 in a snapshot each and 4, 5 after them; return documents and times."""
    model_hash = await shop.make(SGD)
    documents, times = [], []
    for number in range(1, 6):
        await send(shop, model_hash, row(number))
        shop.work(model_hash)
        seconds, micros = shop.redis.time()  # type: ignore[misc]
        times.append(seconds + micros / 1e6)
        if number <= 3:
            documents.append(await save(shop, model_hash))
    return model_hash, documents, times


def damage(tmp_path: Path, *documents: dict[str, Any]) -> None:
    """Damage the blobs of snapshots."""
    for document in documents:
        (tmp_path / "snapshots" / saving.path_of(document)).write_bytes(b"damaged")


@pytest.mark.parametrize("damaged", [1, 2])
async def test_after_a_damaged_snapshot_more_is_replayed(
    shop: Workshop, restorer: Restorer, tmp_path: Path, damaged: int
) -> None:
    """The snapshot before is used, and the rows of the damaged ones are replayed from the row log."""
    model_hash, documents, _ = await three_saved_two_logged(shop)
    damage(tmp_path, *documents[-damaged:])
    restored = await lose_and_restore(shop, restorer, model_hash)
    assert (restored.corrupt, restored.replayed) == (damaged, 2 + damaged)
    check(shop, model_hash, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "live"])
async def test_a_model_is_restored_to_any_time(shop: Workshop, restorer: Restorer, lost: bool) -> None:
    """It has learned exactly the requests accepted by then, also after another loss and with rows learned later."""
    model_hash, _, times = await three_saved_two_logged(shop)
    at = times[3]
    if lost:
        shop.redis.flushall()
    (planned,) = await restore_many(shop.settings, ModelFilter(hash=model_hash), RestoreRequest(at), dry_run=True)
    assert (planned.replayed, planned.rows_forgotten) == (1, 0 if lost else 1)
    (outcome,) = await restore_many(
        shop.settings, ModelFilter(hash=model_hash), RestoreRequest(at), confirm=lambda plans: True
    )
    assert (outcome.failed, outcome.replayed) == (False, 1), outcome
    check(shop, model_hash, 1, 2, 3, 4)
    again = await restorer.restore_or_rewind(model_hash, RestoreRequest(at))
    assert (again.restored, (await shop.model(model_hash)).version) == (False, 4)
    assert await send(shop, model_hash, row(6)) == [5 if lost else 6]
    shop.work(model_hash)
    check(shop, model_hash, 1, 2, 3, 4, 6)
    await lose_and_restore(shop, restorer, model_hash)
    check(shop, model_hash, 1, 2, 3, 4, 6)


async def test_pending_requests_are_not_learned_twice_by_a_restore_to_a_time(
    shop: Workshop, restorer: Restorer
) -> None:
    """Rows that were accepted by then and are still pending are learned from the inbox, once."""
    model_hash, _, _ = await three_saved_two_logged(shop)
    await send(shop, model_hash, row(6))
    seconds, micros = shop.redis.time()  # type: ignore[misc]
    await send(shop, model_hash, row(7))
    await restorer.restore_or_rewind(model_hash, RestoreRequest(seconds + micros / 1e6))
    shop.work(model_hash)
    check(shop, model_hash, 1, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "live"])
async def test_forgotten_requests_are_not_replayed(
    shop: Workshop, restorer: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """A model was rewound to version 1 and all later snapshots are damaged: only requests since then are replayed."""
    model_hash, _, _ = await three_saved_two_logged(shop)
    if lost:
        shop.redis.flushall()
    with monkeypatch.context() as patch:
        # A version is restored as it is: the row log is not listed.
        patch.setattr(type(shop.resources.row_log), "view", None)
        await restorer.restore_or_rewind(model_hash, RestoreRequest(version=1))
    check(shop, model_hash, 1)
    await send(shop, model_hash, row(6))
    shop.work(model_hash)
    await save(shop, model_hash)
    await send(shop, model_hash, row(7))
    damage(tmp_path, *[one async for one in shop.registry.snapshots(model_hash) if one["generation"] > 1])
    restored = await lose_and_restore(shop, restorer, model_hash)
    assert (restored.corrupt, restored.replayed) == (2, 2)
    check(shop, model_hash, 1, 6, 7)


async def test_a_damaged_row_log_prevents_a_restore(shop: Workshop, restorer: Restorer, tmp_path: Path) -> None:
    """No model is restored without its rows: the error says what is missing, and nothing is live."""
    model_hash, _, _ = await three_saved_two_logged(shop)
    (newest, *_) = sorted((tmp_path / "rows").glob("n*/*"), key=lambda path: path.stat().st_mtime, reverse=True)
    data = newest.read_bytes()
    newest.write_bytes(data[:-1])
    with pytest.raises(UnavailableError, match="damaged"):
        await lose_and_restore(shop, restorer, model_hash)
    assert await shop.store.describe(model_hash) is None
    newest.write_bytes(data)
    await restore(restorer_of(shop), model_hash)
    check(shop, model_hash, 1, 2, 3, 4, 5)


# Which requests are replayed, and in which order.

event_lists = st.lists(
    st.tuples(
        st.sampled_from(["accept", "accept", "accept", "repeat", "unseen", "lose", "rewind", "save"]), st.integers(1, 3)
    ),
    max_size=25,
)


@hypothesis_settings(max_examples=150, deadline=None, derandomize=True)
@given(event_lists, st.randoms(use_true_random=False))
def test_links_determine_what_a_model_has_learned(events: Sequence[tuple[str, int]], drawn: random.Random) -> None:
    """After any events, the row log and the registry's links give the requests a model has learned, in order."""
    generation, origin, sequence = 1, 1, 0
    learned: list[tuple[int, bytes]] = []
    calls: list[Call] = []
    links: dict[int, Link] = {}
    saved: list[tuple[int, int, list[tuple[int, bytes]]]] = [(1, 0, [])]
    for number, (event, size) in enumerate(events, start=1):
        payloads = tuple(b"%d-%d" % (number, i) for i in range(size))
        call = Call("h", origin, sequence + 1, float(number), f"{number:x}", "", payloads)
        if event in ("accept", "unseen"):
            calls.append(call)
        if event == "accept":
            learned = [*learned, *enumerate(payloads, sequence + 1)]
            sequence += size
        elif event == "repeat" and calls:
            again = drawn.choice(calls)
            calls.append(Call("h", again.origin, again.sequence, float(number), again.digest, "", again.payloads))
        elif event == "save":
            saved.append((generation, sequence, learned))
        elif event == "lose" or (event == "unseen" and calls):
            before, generation = generation, max([generation, *links]) + 1
            origin, links[generation] = generation, Link(generation, sequence, before, sequence)
        elif event == "rewind":
            base, until, learned = drawn.choice(saved)
            generation = max([generation, *links]) + 1
            links[generation] = Link(origin, sequence, base, until)
    drawn.shuffle(calls)
    assert [(one.sequence, one.payload) for one in select(calls, learned_spans(links, generation))] == learned


def test_a_span_ends_where_the_next_generation_begins() -> None:
    """A generation that was rewound keeps only the requests up to the snapshot that it was rewound to."""
    links = {2: Link(2, 3, 1, 3), 3: Link(2, 7, 1, 2)}
    assert learned_spans(links, 3) == [Span(1, 1, 0, 2), Span(3, 2, 7)]
