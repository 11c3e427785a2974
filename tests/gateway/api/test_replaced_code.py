"""Replacing the code of an uploaded object over HTTP, with real workers."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keepfit.recipe import uploads
from keepfit.security.envelope import UPLOAD_KEYS
from tests.conftest import Stack
from tests.factories import dump_local
from tests.gateway.api_client import REGRESSOR, WAIT, Api

TOTAL = """class Total:
    def __init__(self): self.total = 0.0
    def partial_fit(self, X, y): self.total += float(y.sum())
    def predict(self, X): return [self.total] * len(X)
"""
TENFOLD = TOTAL.replace("[self.total]", "[self.total * 10]")


@pytest.fixture(scope="session")
def keys(stack: Stack) -> str:
    """Return the upload keys of the stack."""
    return stack.environment()[UPLOAD_KEYS]


async def made(api: Api, metadata: dict[str, Any], text: str) -> str:
    """Create a model of an object that has learned the target 4; return its path."""
    path = await api.make(metadata, {"object": text})
    await api.learn(path, [[1.0], [2.0]], [1.0, 3.0])
    return path


def large(document: dict[str, Any]) -> io.BytesIO:
    """Return the JSON of a document that may be larger than the client sends as bytes."""
    return io.BytesIO(json.dumps(document).encode())


async def predicted(api: Api, path: str) -> Any:
    """Return the prediction of one row."""
    return (await api.predict(path, [[0.0]]))["predictions"]


async def test_new_code_goes_on_with_what_was_learned(
    api: Api, stack: Stack, metadata: dict[str, Any], keys: str
) -> None:
    """After a change the model predicts with the new code, shows its digest, and its recipe can be posted again."""
    old, new = dump_local(TOTAL, keys), dump_local(TENFOLD, keys)
    path = await made(api, metadata, old)
    assert await predicted(api, path) == [4.0]
    before = await api.model(path)
    headers = {**WAIT, "Idempotency-Key": "once"}
    for _ in range(2):
        changed = (await api.call("PATCH", path, {"object": new, "state": "keep"}, headers=headers)).of(200)
        sha256 = uploads.digest_of(new)
        assert changed == {
            **before,
            "version": before["version"] + 1,
            "recipe": {**before["recipe"], "object": f"sha256:{sha256}"},
            "object": {"name": "Total", "size_bytes": len(uploads.decode(new)), "sha256": sha256},
        }
    assert await predicted(api, path) == [40.0]
    await api.learn(path, [[1.0]], [1.0])
    assert await predicted(api, path) == [50.0]
    for text in (old, new):
        again = (await api.post("/v1/models", {"metadata": metadata, "recipe": {"object": text}})).of(200)
        assert again["object"]["sha256"] == sha256
    other = {"metadata": metadata, "recipe": {"object": dump_local(TOTAL.replace("0.0", "1.0"), keys)}}
    (await api.post("/v1/models", other)).problem(409)
    (listed,) = (await api.get("/v1/models", **{"metadata[session]": metadata["session"]})).of(200)["models"]
    assert listed["object"]["sha256"] == sha256
    assert sha256 in stack.log("gateway")
    assert "code_replaced" in stack.log("workers")


async def test_versions_bring_their_own_code(api: Api, metadata: dict[str, Any], keys: str) -> None:
    """A restore to a version before the change brings the old code and its digest back, and one after it the new."""
    old, new = dump_local(TOTAL, keys), dump_local(TENFOLD, keys)
    path = await made(api, metadata, old)
    versions = [(await api.call("POST", f"{path}/snapshot")).of(201)["version"]]
    (await api.call("PATCH", path, {"object": new}, headers=WAIT)).of(200)
    versions.append((await api.call("POST", f"{path}/snapshot")).of(201)["version"])
    for version, text, value in ((versions[0], old, 4.0), (versions[1], new, 40.0)):
        (await api.post(f"{path}/restore", {"version": version})).of(200)
        assert (await api.model(path))["object"]["sha256"] == uploads.digest_of(text)
        assert await predicted(api, path) == [value]


async def test_code_that_fails_is_put_aside(api: Api, metadata: dict[str, Any], keys: str) -> None:
    """The client gets the reason, the dead letter shows the digest, and the model goes on with the old code."""
    path = await made(api, metadata, dump_local(TOTAL, keys))
    before = await api.model(path)
    broken = dump_local(TOTAL.replace("[self.total]", "[self.sum]"), keys)
    problem = (await api.call("PATCH", path, {"object": broken}, headers=WAIT)).problem(422)
    assert problem["type"].endswith(":learning")
    assert "cannot answer a row that the old code could" in problem["detail"]
    assert "'Total' object has no attribute 'sum'" in problem["detail"]
    (entry,) = (await api.get(f"{path}/dead")).of(200)["dead"]
    assert entry["params"] == {"object": f"sha256:{uploads.digest_of(broken)}", "state": "keep"}
    after = await api.model(path)
    assert {**after, "version": 0} == {**before, "version": 0}
    assert await predicted(api, path) == [4.0]


async def test_code_that_is_refused(api: Api, metadata: dict[str, Any], keys: str) -> None:
    """Code that is not signed, for other rows, or for a model without an object, answers 422 and changes nothing."""
    text = dump_local(TOTAL, keys)
    path = await made(api, metadata, text)
    plain = await api.make({**metadata, "object": False}, REGRESSOR)
    before = await api.model(path)
    foreign, weighted = dump_local(TOTAL, "u9:" + "ab" * 32), TOTAL.replace("X, y)", "X, y, sample_weight=None)")
    for where, document, message in (
        (plain, {"object": text}, "made of SGDRegressor, not of an uploaded object"),
        (path, {"object": foreign}, "KEEPFIT_UPLOAD_KEYS does not hold"),
        (path, {"object": "A" * (2**21 - 100)}, "object is larger than 1048576 bytes"),
        (path, {"object": text, "state": "new"}, 'write "keep"'),
        (path, {"object": dump_local(TOTAL, keys, "clusterer")}, 'the kind of Total is "clusterer"'),
        (path, {"object": dump_local(weighted, keys)}, "the takes_sample_weight of Total is true"),
        (path, {"params": {"alpha": 1}}, "the parameters of an object cannot be changed"),
    ):
        reply = await api.call("PATCH", where, data=large(document), headers=WAIT)
        assert message in reply.problem(422)["detail"]
    for document in ({}, {"params": {"a": 1}, "object": text}, {"params": {"a": 1}, "state": "new"}, {"state": "keep"}):
        (await api.call("PATCH", path, document)).problem(400)
    (await api.call("PATCH", path, data=large({"object": "A" * 2**21}))).problem(413)
    (await api.call("PATCH", plain, {"params": {"alpha": "1" * 2**18}})).problem(413)
    assert await api.model(path) == before


async def test_the_largest_object_is_new_code(api: Api, metadata: dict[str, Any], keys: str) -> None:
    """What can be uploaded can replace what was uploaded."""
    source = TOTAL.replace("def predict", "ballast = bytes({size})\n    def predict")
    path = await made(api, metadata, dump_local(TOTAL, keys))
    size = uploads.BYTES_MAX - len(uploads.decode(dump_local(source.format(size=10**5), keys))) + 10**5
    text = dump_local(source.format(size=size), keys)
    assert len(uploads.decode(text)) == uploads.BYTES_MAX
    changed = (await api.call("PATCH", path, data=large({"object": text}), headers=WAIT)).of(200)
    assert changed["object"]["size_bytes"] == uploads.BYTES_MAX
    assert await predicted(api, path) == [4.0]


async def test_a_model_without_rows_gets_new_code(api: Api, metadata: dict[str, Any], keys: str) -> None:
    """Before its first row an object may be replaced, too, also one that cannot predict yet."""
    path = await api.make(metadata, {"object": dump_local(TOTAL.replace("[self.total]", "self.unknown"), keys)})
    (await api.call("PATCH", path, {"object": dump_local(TENFOLD, keys)}, headers=WAIT)).of(200)
    assert (await api.learn(path, [[1.0]], [2.0]))["rows_seen"] == 1
    assert await predicted(api, path) == [20.0]


async def test_learning_again_needs_a_row_log(api: Api, metadata: dict[str, Any], keys: str) -> None:
    """Without a row log the rows are not there to learn again: 409 says so, and nothing changes."""
    path = await made(api, metadata, dump_local(TOTAL, keys))
    before = await api.model(path)
    reply = await api.call("PATCH", path, {"object": dump_local(TENFOLD, keys), "state": "learn_again"}, headers=WAIT)
    assert "KEEPFIT_ROW_LOG_URL" in reply.problem(409)["detail"]
    assert await api.model(path) == before


async def test_learning_again_with_new_code(up: Callable[..., Stack], tmp_path: Path, metadata: dict[str, Any]) -> None:
    """All rows are learned again at their places, also a dead letter, and rows that come meanwhile after them."""
    stack = up(ROW_LOG_URL=(tmp_path / "rows").as_uri())
    keys = stack.environment()[UPLOAD_KEYS]
    cautious = TOTAL.replace("self.total += float(y.sum())", "self.total += float(y.sum()); assert min(y) > 0")
    async with aiohttp.ClientSession(stack.url) as session:
        api = Api(session)
        path = await made(api, metadata, dump_local(cautious, keys))
        (await api.post(f"{path}/partial_fit", {"X": [[1.0]], "y": [-7.0]}, headers=WAIT)).problem(422)
        await api.learn(path, [[1.0]], [5.0])
        assert await predicted(api, path) == [9.0]
        text = dump_local(TENFOLD, keys)
        change = {"object": text, "state": "learn_again"}
        key = {"Idempotency-Key": "once"}
        changed = (await api.call("PATCH", path, change, headers={**WAIT, **key})).of(200)
        assert (changed["rows_seen"], changed["object"]["sha256"]) == (4, uploads.digest_of(text))
        repeated = (await api.call("PATCH", path, change, headers={"Prefer": "wait=0", **key})).of(202)
        assert (repeated["sequence"], repeated["version"]) == (4, changed["version"])
        assert await predicted(api, path) == [20.0]
        assert (await api.get(f"{path}/dead")).of(200)["dead"] == []
        await api.learn(path, [[1.0]], [1.0])
        assert await predicted(api, path) == [30.0]
    assert "learned_again" in stack.log("workers")
