"""Lost models come back with every logged row; live ones go to any moment; nothing is learned twice or out of order."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from keepfit.backends import redis_keys
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import IdempotencyError, UnavailableError
from keepfit.history.lineage import Link, Span, learned_spans
from keepfit.model import fit_loop, serialization
from keepfit.model.bundle import Bundle
from keepfit.model.fit_loop import Fitted
from keepfit.recipe import recipe
from keepfit.restore.bulk import Meant, restore_many
from keepfit.restore.replay import select
from keepfit.restore.replay_child import Payload
from keepfit.restore.restorer import Restorer, RestoreRequest, RestoreResult
from keepfit.rowlog.row_log import Call, RowLog
from keepfit.rows import shaping
from keepfit.settings import Settings
from keepfit.snapshots import save as saving
from keepfit.store import commit, inbox
from keepfit.store.inbox import Accepted
from tests.factories import Workshop, workshop
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
    """Open a workshop on servers of the test's own."""
    async with workshop(settings) as opened:
        yield opened


@pytest.fixture
def restorer(shop: Workshop) -> Iterator[Restorer]:
    """Return a restorer with the row log."""
    made = restorer_of(shop)
    yield made
    made.close()


def restorer_of(shop: Workshop) -> Restorer:
    """Make a restorer as a worker does."""
    return Restorer(shop.resources, shop.settings)


def log_of(shop: Workshop) -> RowLog:
    """Return the row log."""
    assert shop.resources.row_log is not None
    return shop.resources.row_log


Asked = tuple[list[Any], list[Any] | None] | dict[str, Any]


async def send(shop: Workshop, model_hash: str, *asked: Asked, key: str | None = None) -> list[int]:
    """Accept requests in one call and log them, as a gateway does; return their sequences."""
    model, line = await shop.model(model_hash), ScriptConnection(shop.store.client)
    learns = []
    for one in asked:
        if isinstance(one, dict):
            learns.append(inbox.change(model_hash, model.generation, one, key))
        else:
            shaped = shaping.shape(model.recipe, *one, learning=True)
            learns.append(
                await inbox.request(shop.store.client, model_hash, model.generation, shaped, key, logged=True)
            )
    outcomes, _, logged = await inbox.put_to_log(line, shop.settings, learns)
    await line.close()
    if logged:
        log_of(shop).write([call for call, _ in logged])
    sequences = []
    for outcome in outcomes:
        if not isinstance(outcome, Accepted):
            raise outcome
        sequences.append(outcome.sequence)
    return sequences


def some_rows(name: str, number: int) -> tuple[list[Any], list[Any] | None]:
    """Rows for a recipe, others for each number."""
    drawn = random.Random(number)
    if name in ("bayes", "clusters"):
        X = [[drawn.gauss(i % 2, 1.0), drawn.random()] for i in range(4)]
        return X, None if name == "clusters" else [drawn.choice("ab") for _ in X]
    return [[drawn.choice(["nike", "puma", "vans"]), drawn.randrange(1990, 2020)] for _ in range(2)], [
        drawn.random() for _ in range(2)
    ]


def row(number: float) -> tuple[list[Any], list[Any]]:
    """One row, told by its target."""
    return [["nike", 2000]], [float(number)]


async def save(shop: Workshop, model_hash: str) -> dict[str, Any]:
    """Save a model as it is."""
    document = await saving.save(shop.resources, model_hash)
    assert document is not None
    return document


def bundle_of(shop: Workshop, model_hash: str, wanted: recipe.Recipe) -> Bundle:
    """Return the live bundle."""
    return serialization.unseal(shop.data(model_hash), shop.keyring, wanted, model_hash)[1]


def learn_waiting(shop: Workshop, model_hash: str) -> None:
    """Learn all that waits and commit it, as a worker does, merged requests too."""
    taken = shop.ledger.take(model_hash, "token", "")
    assert taken is not None

    def fresh() -> Bundle:
        return shop._unsealed(model_hash, taken.recipe_text, taken.data)

    def keep(bundle: Bundle, fitted: Fitted) -> int:
        return shop.ledger.commit(taken, bundle, fitted.count, "token").version

    assert fit_loop.learn(fresh(), fresh, taken.entries, keep, 60.0) == taken.version + 1
    shop.ledger.unlock(model_hash, "token", force=True)


async def bring_back(restorer: Restorer, model_hash: str, wanted: RestoreRequest | None = None) -> RestoreResult:
    """Bring one model back."""
    registered = await restorer.resources.registry.find(model_hash)
    assert registered is not None
    return await restorer.bring_back(registered, wanted or RestoreRequest())


async def lose_and_bring_back(shop: Workshop, restorer: Restorer, model_hash: str) -> RestoreResult:
    """Lose all that Redis holds, and bring one model back."""
    shop.redis.flushall()
    return await bring_back(restorer, model_hash)


def taught(*numbers: float) -> Bundle:
    """Bundle that has learned these rows, one call each."""
    wanted = recipe.parse(SGD)
    bundle = Bundle.new(wanted)
    for number in numbers:
        bundle.partial_fit(shaping.shape(wanted, *row(number), learning=True))
    return bundle


def check(shop: Workshop, model_hash: str, *numbers: float) -> None:
    """Check that a model has learned these rows, in this order, to the bit."""
    found, expected = bundle_of(shop, model_hash, recipe.parse(SGD)), taught(*numbers)
    assert found.rows_seen == len(numbers)
    assert differences(found, expected) == []


@pytest.mark.parametrize("name", RECIPES)
async def test_a_model_comes_back_as_if_it_had_never_stopped(
    shop: Workshop, restorer: Restorer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Snapshot and log give the model that learned it all, to the bit: changes between, a call cut by the snapshot."""
    model_hash = await shop.make(RECIPES[name])
    await send(shop, model_hash, some_rows(name, 0))
    learn_waiting(shop, model_hash)
    await send(shop, model_hash, *(some_rows(name, number) for number in range(1, 5)))
    with monkeypatch.context() as patch:
        patch.setattr(commit, "ENTRIES_MAX", 2)
        learn_waiting(shop, model_hash)
    await save(shop, model_hash)
    if "SGD" in RECIPES[name]["estimator"]:
        await send(shop, model_hash, {"alpha": 0.01})
    await send(shop, model_hash, *(some_rows(name, number) for number in range(5, 9)))
    learn_waiting(shop, model_hash)
    before, expected = await shop.model(model_hash), bundle_of(shop, model_hash, recipe.parse(RECIPES[name]))
    restored = await lose_and_bring_back(shop, restorer, model_hash)
    assert restored.replayed == len(some_rows(name, 0)[0]) * 6
    after, found = await shop.model(model_hash), bundle_of(shop, model_hash, before.recipe)
    assert differences(found, expected) == []
    assert (after.rows_seen, after.learned, after.metrics, after.changed) == (
        before.rows_seen, before.learned, before.metrics, before.changed
    )  # fmt: skip
    assert (after.generation, after.origin, after.inbox) == (2, 2, 0)
    assert restored.saved
    newest = await shop.registry.newest(model_hash, 1)
    assert newest is not None
    assert (newest["generation"], newest["sequence"]) == (2, after.learned)
    assert await send(shop, model_hash, some_rows(name, 9)) == [before.learned + 1]


async def test_one_that_was_never_saved_begins_anew_with_all_its_rows(shop: Workshop, restorer: Restorer) -> None:
    """A model without a snapshot learns all its logged rows; lost again before it is saved, it does so again."""
    model_hash = await shop.make(SGD)
    await send(shop, model_hash, row(1), row(2))
    restored = await lose_and_bring_back(shop, restorer, model_hash)
    assert (restored.document, restored.replayed, (await shop.model(model_hash)).version) == (None, 2, 1)
    check(shop, model_hash, 1, 2)
    assert await send(shop, model_hash, row(3)) == [3]
    shop.work(model_hash)
    check(shop, model_hash, 1, 2, 3)


async def test_two_losses_in_a_row_without_a_snapshot_between(
    shop: Workshop, restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was learned in each life since the snapshot is learned again, once and in order, repeats among it."""
    model_hash = await shop.make(SGD)
    await send(shop, model_hash, row(1))
    shop.work(model_hash)
    await save(shop, model_hash)

    async def away(*_: Any) -> None:
        raise UnavailableError("The storage is away.")

    assert await send(shop, model_hash, row(2), key="two") == [2]
    with monkeypatch.context() as patch:
        patch.setattr("keepfit.restore.restorer.save", away)
        for loss in range(1, 4):
            restored = await lose_and_bring_back(shop, restorer, model_hash)
            assert (restored.saved, restored.replayed) == (False, loss)
            # Logged once more, with another origin and the sequence of the first.
            assert await send(shop, model_hash, row(2), key="two") == [2]
            assert await send(shop, model_hash, row(2 + loss)) == [2 + loss]
    await lose_and_bring_back(shop, restorer, model_hash)
    check(shop, model_hash, 1, 2, 3, 4, 5)
    assert (await shop.model(model_hash)).learned == 5


async def test_a_call_that_no_restore_saw_was_promised_to_nobody(shop: Workshop, restorer: Restorer) -> None:
    """Written after the look of the restore, it is not learned, and its key is not known: its client sends it again."""
    model_hash = await shop.make(SGD)
    await send(shop, model_hash, row(1))
    model, line = await shop.model(model_hash), ScriptConnection(shop.store.client)
    shaped = shaping.shape(model.recipe, *row(2), learning=True)
    learn = await inbox.request(shop.store.client, model_hash, 1, shaped, "late", logged=True)
    _, _, logged = await inbox.put_to_log(line, shop.settings, [learn])
    await line.close()
    assert (await lose_and_bring_back(shop, restorer, model_hash)).replayed == 1
    log_of(shop).write([call for call, _ in logged])
    assert await send(shop, model_hash, row(3)) == [2]
    await lose_and_bring_back(shop, restorer, model_hash)
    check(shop, model_hash, 1, 3)
    assert await send(shop, model_hash, row(2), key="late") == [3]


async def test_calls_are_known_again_by_their_keys(shop: Workshop, restorer: Restorer) -> None:
    """A repeat is answered with its first sequence and not learned twice; another body under its key is refused."""
    model_hash = await shop.make(SGD)
    assert await send(shop, model_hash, row(1), key="covered") == [1]
    shop.work(model_hash)
    await save(shop, model_hash)
    assert await send(shop, model_hash, row(2), key="logged") == [2]
    for _ in range(2):
        await lose_and_bring_back(shop, restorer, model_hash)
        assert await send(shop, model_hash, row(2), key="logged") == [2]
        assert await send(shop, model_hash, row(1), key="covered") == [1]
        with pytest.raises(IdempotencyError):
            await send(shop, model_hash, row(9), key="logged")
    left: Any = shop.redis.pttl(redis_keys.idempotency(model_hash, "c:logged"))
    assert 0 < left < shop.settings.idempotency_ttl_s * 1000
    assert (await shop.model(model_hash)).inbox == 0
    check(shop, model_hash, 1, 2)


async def test_several_restorers_at_once_make_one_model(shop: Workshop) -> None:
    """Whoever is first, each row is learned once, and each key is known by the model that is live."""
    made = [restorer_of(shop) for _ in range(4)]
    model_hash = await shop.make(SGD)
    for number in range(1, 4):
        await send(shop, model_hash, row(number), key=f"key-{number}")
    shop.redis.flushall()
    restored = await asyncio.gather(*(bring_back(one, model_hash) for one in made))
    assert [one.live for one in restored].count(False) == 1
    check(shop, model_hash, 1, 2, 3)
    for number in range(1, 4):
        assert await send(shop, model_hash, row(number), key=f"key-{number}") == [number]
    assert (await shop.model(model_hash)).inbox == 0
    for one in made:
        one.close()


async def test_rows_that_redis_had_lost_once_are_there_too(shop: Workshop, restorer: Restorer) -> None:
    """Two calls with the same sequence, of before and after a lost tail, are both learned, by their time."""
    model_hash = await shop.make(SGD)
    await send(shop, model_hash, row(1))
    held = {key: shop.redis.dump(key) for key in (redis_keys.state(model_hash), redis_keys.inbox(model_hash))}
    assert await send(shop, model_hash, row(2)) == [2]
    for key, dumped in held.items():
        shop.redis.restore(key, 0, dumped, replace=True)
    assert await send(shop, model_hash, row(3)) == [2]
    await lose_and_bring_back(shop, restorer, model_hash)
    check(shop, model_hash, 1, 2, 3)
    assert (await shop.model(model_hash)).learned == 2


async def test_rows_that_fail_or_kill_are_put_aside_by_the_usual_way(
    shop: Workshop, restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are learned, in order; those wait in the inbox then, for workers to put them aside with the reason."""
    model_hash = await shop.make(SGD)
    wrong, killing = {"nonsense": 1}, ([["kill", 2000]], [0.0])
    await send(shop, model_hash, row(1), wrong)
    await send(shop, model_hash, row(2), killing, row(3))
    Killing.kills(restorer, monkeypatch)
    restored = await lose_and_bring_back(shop, restorer, model_hash)
    assert restored.replayed == 3
    check(shop, model_hash, 1, 2, 3)
    model = await shop.model(model_hash)
    assert (model.learned, model.inbox) == (5, 2)
    taken = shop.ledger.take(model_hash, "token", "")
    assert taken is not None
    assert [entry.change or entry.rows().categories for entry in taken.entries] == [wrong, [["kill"]]]


class Killing:
    """Has the child die of rows of the make "kill"; in place of an estimator that would."""

    @staticmethod
    def kills(restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Kill the child, which is then started anew, whenever it is given such a row."""
        learner = restorer.replayer._learner
        learn = type(learner).learn

        def deadly(self: Any, task: Any) -> Any:
            if any(
                payload.change is None and "kill" in payload.rows().categories[0]
                for payload in map(Payload, task.payloads)
            ):
                if self._child is None:
                    self._start_for_test()
                os.kill(self._child.pid, signal.SIGKILL)
                self._child.join()
            return learn(self, task)

        def start(self: Any) -> None:
            self._line = self._start()

        monkeypatch.setattr(type(learner), "_start_for_test", start, raising=False)
        monkeypatch.setattr(type(learner), "learn", deadly)


# Points in time, and damage.


async def three_saved_two_logged(shop: Workshop) -> tuple[str, list[dict[str, Any]], list[float]]:
    """Make a model with rows 1, 2, 3 each in a snapshot and 4, 5 after them; its documents, and the time after each."""
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
    """Spoil the blobs of snapshots."""
    for document in documents:
        (tmp_path / "snapshots" / saving.path_of(document)).write_bytes(b"damaged")


@pytest.mark.parametrize("damaged", [1, 2])
async def test_behind_a_damaged_snapshot_more_is_learned_again(
    shop: Workshop, restorer: Restorer, tmp_path: Path, damaged: int
) -> None:
    """The one before will do: what the damaged ones had comes from the log, as what came after them."""
    model_hash, documents, _ = await three_saved_two_logged(shop)
    damage(tmp_path, *documents[-damaged:])
    restored = await lose_and_bring_back(shop, restorer, model_hash)
    assert (restored.corrupt, restored.replayed) == (damaged, 2 + damaged)
    check(shop, model_hash, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "live"])
async def test_a_model_goes_to_any_moment(shop: Workshop, restorer: Restorer, lost: bool) -> None:
    """As of a time it has learned just what was accepted by then; that is what it is after another loss, and on."""
    model_hash, _, times = await three_saved_two_logged(shop)
    at = times[3]
    if lost:
        shop.redis.flushall()
    (planned,) = await restore_many(shop.settings, Meant(hash=model_hash), RestoreRequest(at), dry_run=True)
    assert (planned.replayed, planned.rows_forgotten) == (1, 0 if lost else 1)
    (outcome,) = await restore_many(
        shop.settings, Meant(hash=model_hash), RestoreRequest(at), agreed=lambda plans: True
    )
    assert (outcome.failed, outcome.replayed) == (False, 1), outcome
    check(shop, model_hash, 1, 2, 3, 4)
    again = await restorer.put_back(model_hash, RestoreRequest(at))
    assert (again.restored, (await shop.model(model_hash)).version) == (False, 4)
    assert await send(shop, model_hash, row(6)) == [5 if lost else 6]
    shop.work(model_hash)
    check(shop, model_hash, 1, 2, 3, 4, 6)
    await lose_and_bring_back(shop, restorer, model_hash)
    check(shop, model_hash, 1, 2, 3, 4, 6)


async def test_what_waits_is_not_learned_twice_by_going_to_a_moment(shop: Workshop, restorer: Restorer) -> None:
    """Rows that were accepted by then and wait still are learned from the inbox, once."""
    model_hash, _, _ = await three_saved_two_logged(shop)
    await send(shop, model_hash, row(6))
    seconds, micros = shop.redis.time()  # type: ignore[misc]
    await send(shop, model_hash, row(7))
    await restorer.put_back(model_hash, RestoreRequest(seconds + micros / 1e6))
    shop.work(model_hash)
    check(shop, model_hash, 1, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "live"])
async def test_what_was_forgotten_does_not_come_back_from_the_log(
    shop: Workshop, restorer: Restorer, tmp_path: Path, lost: bool
) -> None:
    """A model went back to its first version, and all it saved since is damaged: from there on what came since."""
    model_hash, _, _ = await three_saved_two_logged(shop)
    if lost:
        shop.redis.flushall()
    await restorer.put_back(model_hash, RestoreRequest(version=1))
    check(shop, model_hash, 1)
    await send(shop, model_hash, row(6))
    shop.work(model_hash)
    await save(shop, model_hash)
    await send(shop, model_hash, row(7))
    damage(tmp_path, *[one async for one in shop.registry.snapshots(model_hash) if one["generation"] > 1])
    restored = await lose_and_bring_back(shop, restorer, model_hash)
    assert (restored.corrupt, restored.replayed) == (2, 2)
    check(shop, model_hash, 1, 6, 7)


async def test_a_log_that_is_damaged_or_away_keeps_a_model_from_coming_back_without_its_rows(
    shop: Workshop, restorer: Restorer, tmp_path: Path
) -> None:
    """Nothing is restored by halves: the error says what is missing, and nothing is live."""
    model_hash, _, _ = await three_saved_two_logged(shop)
    (newest, *_) = sorted((tmp_path / "rows").glob("n*/*"), key=lambda path: path.stat().st_mtime, reverse=True)
    data = newest.read_bytes()
    newest.write_bytes(data[:-1])
    with pytest.raises(UnavailableError, match="damaged"):
        await lose_and_bring_back(shop, restorer, model_hash)
    assert await shop.store.describe(model_hash) is None
    newest.write_bytes(data)
    await bring_back(restorer_of(shop), model_hash)
    check(shop, model_hash, 1, 2, 3, 4, 5)


# What is learned again, and in which order.

calls_of_lives = st.lists(
    st.tuples(
        st.sampled_from(["accept", "accept", "accept", "repeat", "unseen", "lose", "back", "save"]), st.integers(1, 3)
    ),
    max_size=25,
)


@hypothesis_settings(max_examples=150, deadline=None, derandomize=True)
@given(calls_of_lives, st.randoms(use_true_random=False))
def test_places_tell_what_a_model_has_learned(events: Sequence[tuple[str, int]], drawn: random.Random) -> None:
    """Whatever became of a model, its log and the register's links give the requests it has learned, in their order."""
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
        elif event == "back":
            base, until, learned = drawn.choice(saved)
            generation = max([generation, *links]) + 1
            links[generation] = Link(origin, sequence, base, until)
    drawn.shuffle(calls)
    assert [(one.sequence, one.payload) for one in select(calls, learned_spans(links, generation))] == learned


def test_the_span_of_a_generation_ends_where_the_next_begins() -> None:
    """A snapshot's place cuts the line: what is before it is not learned again."""
    links = {2: Link(2, 3, 1, 3), 3: Link(2, 7, 1, 2)}
    assert learned_spans(links, 3) == [Span(1, 1, 0, 2), Span(3, 2, 7)]
