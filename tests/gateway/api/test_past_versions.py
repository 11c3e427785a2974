"""Predictions of versions that snapshots hold, beside the live model."""

import uuid
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

from keepfit import identity
from keepfit.security.api_keys import SCOPES, new_key
from keepfit.settings import Settings
from keepfit.times import format_time
from tests.conftest import Stack
from tests.gateway.api_client import CLASSIFIER, Api, serving

RECIPE = {**CLASSIFIER, "params": {"loss": "log_loss", "random_state": 1}}
X, LABELS, OTHERS = [[1.0, 2.0], [-1.0, 0.5]], ["yes", "no"], ["no", "yes"]
SAVED = (1, 3)
LIVE = 4


class Past:
    """A model with snapshots of the versions 1 and 3, live at version 4, and what it answered while each was live."""

    def __init__(self, api: Api, path: str) -> None:
        self.api, self.path = api, path
        self.answers: dict[int, dict[str, Any]] = {}
        self.times: dict[int, float] = {}

    async def build(self) -> "Past":
        """Let the model learn four requests."""
        for version, labels in enumerate((LABELS, OTHERS, OTHERS, OTHERS), 1):
            await self.api.learn(self.path, X, labels)
            self.answers[version] = await self.api.predict(self.path, X, proba=True)
            assert self.answers[version]["version"] == version
            if version in SAVED:
                saved = (await self.api.call("POST", f"{self.path}/snapshot")).of(201)
                self.times[version] = saved["timestamp"]
        return self

    async def predict(self, query: str, **more: Any) -> dict[str, Any]:
        """Predict with the version that a query names."""
        found: dict[str, Any] = (await self.api.post(f"{self.path}/predict?{query}", {"X": X, **more})).of(200)
        return found

    async def refused(self, query: str, status: int, **more: Any) -> str:
        """Return why a query is refused."""
        reply = await self.api.post(f"{self.path}/predict?{query}", {"X": X, **more})
        return str(reply.problem(status)["detail"])


@pytest.fixture
async def past(api: Api, metadata: dict[str, Any]) -> Past:
    """Return a model with a past."""
    return await Past(api, await api.make(metadata, RECIPE)).build()


async def test_each_version_answers_as_it_did(past: Past, metadata: dict[str, Any]) -> None:
    """By number, by time and by metadata, a version answers what it answered while it was live."""
    before = await past.api.model(past.path)
    text = quote(format_time(past.times[3]))
    for version, query in (
        (1, "version=1"),
        (3, "version=3"),
        (3, f"at={past.times[3]!r}"),
        (3, f"at={text}"),
        (1, f"at={past.times[3] - 1e-5!r}"),
        (3, "at=now"),
        (1, f"at={past.times[3]!r}&version=1"),
        (LIVE, f"version={LIVE}"),
    ):
        assert await past.predict(query, proba=True) == past.answers[version]
        plain = await past.predict(query)
        assert plain.items() <= past.answers[version].items()
        assert "probabilities" not in plain
        named = await past.api.post(f"/v1/predict?{query}", {"metadata": metadata, "X": X, "proba": True})
        assert named.of(200) == past.answers[version]
    in_query = quote(identity.canonical(metadata).decode())
    table = await past.api.call(
        "POST", f"/v1/predict?metadata={in_query}&version=1&proba=true", data=b"a,b\n1,2\n-1,0.5\n",
        headers={"Content-Type": "text/csv"},
    )  # fmt: skip
    assert table.of(200) == past.answers[1]
    assert past.answers[1]["probabilities"] != past.answers[3]["probabilities"] != past.answers[4]["probabilities"]
    assert await past.api.model(past.path) == before
    assert await past.api.predict(past.path, X, proba=True) == past.answers[LIVE]


async def test_a_version_without_a_snapshot_is_not_found(past: Past) -> None:
    """Without a snapshot of the version or time: 404, which names the nearest ones; never the answer of another."""
    for query, hint in (
        ("version=2", "has no snapshot of version 2: the nearest saved versions are 1 and 3. The live version is 4."),
        ("version=999", "the nearest saved version is 3. The live version is 4."),
        ("version=0", "the nearest saved version is 1."),
        (f"at={past.times[1] - 60!r}", f"the first is that of version 1, taken at {format_time(past.times[1])}."),
        (f"version=3&at={past.times[3] - 1e-5!r}", "the nearest saved version is 3."),
    ):
        assert hint in await past.refused(query, 404)
    unknown = await past.api.post(f"/v1/models/{'0' * 64}/predict?version=1", {"X": X})
    assert "POST /v1/models" in unknown.problem(404)["detail"]


async def test_invalid_versions_and_times(past: Past) -> None:
    """What is no version or no past time, rows that do not fit, and ids are refused."""
    for query, word in (
        ("version=x", "version"), ("version=-1", "version"), ("version=1&version=3", "once"), ("version=", "version"),
        ("at=0&at=1", "once"), ("at=", "time"), ("at=noon-ish", "time"),
    ):  # fmt: skip
        assert word in await past.refused(query, 400)
    assert "future" in await past.refused("at=99999999999", 422)
    assert "leave out id" in await past.refused("version=1", 400, id=["a", "b"])
    assert "leave out id" in await past.refused("at=now", 400, id=["a", "b"])
    (await past.api.post(f"{past.path}/predict?version=1", {"X": [[1.0]]})).problem(422)


async def test_an_answer_keeps_its_tag(past: Past) -> None:
    """The tag of an answer stays valid while the model learns; it is that of the answer while the version was live."""
    reply = await past.api.post(f"{past.path}/predict?version=1", {"X": X})
    live = await past.api.post(f"{past.path}/predict?version={LIVE}", {"X": X})
    assert live.headers["ETag"] == (await past.api.post(f"{past.path}/predict", {"X": X})).headers["ETag"]
    await past.api.learn(past.path, X, LABELS)
    assert "The live version is 5" in await past.refused(f"version={LIVE}", 404)
    tag = {"If-None-Match": reply.headers["ETag"]}
    assert (await past.api.post(f"{past.path}/predict?version=1", {"X": X}, tag)).status == 304
    other = await past.api.post(f"{past.path}/predict?version=3", {"X": X}, tag)
    assert other.of(200)["predictions"] == past.answers[3]["predictions"]
    # A kept answer, or a scorer, of the live version is never the answer for another.
    for _ in range(3):
        await past.api.predict(past.path, X)
    assert (await past.predict("version=1"))["version"] == 1


async def test_versions_of_a_deleted_model_are_gone(past: Past, metadata: dict[str, Any]) -> None:
    """A model that was deleted has no past, and one that was created again has its own only."""
    assert (await past.api.call("DELETE", past.path)).status == 204
    await past.refused("version=1", 404)
    assert await past.api.make(metadata, RECIPE) == past.path
    assert "it has no snapshots" in await past.refused("version=1", 404)
    await past.api.learn(past.path, X, OTHERS)
    own = await past.api.predict(past.path, X, proba=True)
    assert own["probabilities"] != past.answers[1]["probabilities"]
    assert "it has no snapshots" in await past.refused("at=now", 404)
    (await past.api.call("POST", f"{past.path}/snapshot")).of(201)
    assert await past.predict("at=now", proba=True) == own
    await past.refused("version=3", 404)


async def test_a_forgotten_version_is_found(past: Past) -> None:
    """After a rewind, the versions that the model has forgotten still answer, as they can still be restored."""
    (await past.api.post(f"{past.path}/restore", {"version": 1})).of(200)
    assert await past.predict("version=3", proba=True) == past.answers[3]
    assert await past.predict("version=1", proba=True) == past.answers[1]


@pytest.fixture
async def bound(stack: Stack) -> AsyncIterator[tuple[Api, dict[str, str], dict[str, str]]]:
    """Run a gateway with a key that is bound to a type, and one of an operator."""
    kind = f"shoes-{uuid.uuid4().hex}"
    (bound_token, bound_line), (token, line) = new_key("bound", SCOPES, where=[f"type={kind}"]), new_key("all", SCOPES)
    settings = Settings(**{**stack.settings().model_dump(), "port": 0, "api_keys": f"{bound_line},{line}"})
    async with serving(settings) as api:
        yield api, {"Authorization": f"Bearer {bound_token}"}, {"Authorization": f"Bearer {token}"}


async def test_a_bound_key_has_the_past_of_its_models(bound: tuple[Api, dict[str, str], dict[str, str]]) -> None:
    """For a key that is bound to metadata, the versions of other models do not exist, by hash and by metadata."""
    api, key, operator = bound
    foreign = {"type": uuid.uuid4().hex}
    path = f"/v1/models/{identity.hash_of(foreign)}"
    created = {"metadata": foreign, "recipe": RECIPE}
    (await api.call("POST", "/v1/models", created, headers=operator)).of(201)
    rows = {"X": X, "y": LABELS}
    (await api.call("POST", f"{path}/partial_fit", rows, headers={**operator, "Prefer": "wait=10"})).of(200)
    (await api.call("POST", f"{path}/snapshot", headers=operator)).of(201)
    for query in ("version=1", "at=now", "version=7"):
        refused = await api.call("POST", f"{path}/predict?{query}", {"X": X}, headers=key)
        missing = await api.call("POST", f"/v1/models/{'0' * 64}/predict?{query}", {"X": X}, headers=key)
        assert refused.problem(404)["detail"].replace(path[-64:], "0" * 64) == missing.problem(404)["detail"]
        named = {"metadata": foreign, "X": X}
        (await api.call("POST", f"/v1/predict?{query}", named, headers=key)).problem(403)
    assert (await api.call("POST", f"{path}/predict?at=now", {"X": X}, headers=operator)).of(200)["version"] == 1


async def test_damaged_and_missing_snapshots(past: Past, stack: Stack) -> None:
    """A damaged snapshot is an error, before and after a restore found it so; while its storage is away it is a 503."""
    folder = stack.data / "snapshots" / past.path.rpartition("/")[2]
    (first,) = folder.glob("*/1-*")
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    for query in ("version=1", f"at={past.times[1]!r}", "version=1"):
        why = await past.refused(query, 500)
        assert "The snapshot of version 1 of the model" in why
        assert "is damaged: the blob is not the one that was saved." in why
    assert await past.predict("version=3", proba=True) == past.answers[3]
    # The restore marks it.
    assert (await past.api.post(f"{past.path}/restore", {"version": 1})).status >= 500
    assert "missing or changed" in await past.refused("version=1", 500)
    assert "missing or changed" in await past.refused(f"at={past.times[1]!r}", 500)
    assert await past.api.predict(past.path, X, proba=True) == past.answers[LIVE]

    (await past.api.call("POST", f"{past.path}/snapshot")).of(201)
    await past.api.learn(past.path, X, LABELS)
    elsewhere = folder.with_name(f"{folder.name}-away")
    folder.rename(elsewhere)
    folder.write_text("no folder")
    await past.refused(f"version={LIVE}", 503)
    assert (await past.api.predict(past.path, X))["version"] == LIVE + 1
    folder.unlink()
    elsewhere.rename(folder)
    assert await past.predict(f"version={LIVE}", proba=True) == past.answers[LIVE]
