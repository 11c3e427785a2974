"""Trained objects over HTTP with real workers: uploaded, answering at once, learning on; and files that are refused."""

import hashlib
import io
import json
import warnings
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from river import compose, linear_model, preprocessing
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier, SGDRegressor
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from keepfit.objects import dump_trained, load_trained
from keepfit.recipe.features import COLUMNS_MAX
from keepfit.security.envelope import UPLOAD_KEYS, new_signing_key
from tests.conftest import Stack
from tests.gateway.api_client import REGRESSOR, Api, Reply

TRAINED, LEARNED = 700, 200


@pytest.fixture(scope="session")
def keys(stack: Stack) -> str:
    """Return the upload keys of the stack."""
    return stack.environment()[UPLOAD_KEYS]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute by hand as workers do: several threads sum the products of matrices in another order."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    """Return rows and labels of digits."""
    X, y = load_digits(return_X_y=True)
    return X, y


async def upload(api: Api, metadata: dict[str, Any], data: Any, **headers: str) -> Reply:
    """Send a file as the model of `metadata`."""
    headers = {"Content-Type": "application/octet-stream", **headers}
    params = {"metadata": json.dumps(metadata)}
    return await api.call("POST", "/v1/estimator", data=io.BytesIO(data), headers=headers, params=params)


def path_of(reply: Reply) -> str:
    """Return the path of a model that was created."""
    return f"/v1/models/{reply.of(201)['hash']}"


def pipeline(digits: tuple[Any, Any]) -> Any:
    """Train a scaler and a linear classifier offline."""
    return make_pipeline(StandardScaler(), SGDClassifier(random_state=0)).fit(digits[0][:TRAINED], digits[1][:TRAINED])


def network(digits: tuple[Any, Any]) -> Any:
    """Train a network offline."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner = MLPClassifier((300, 100), random_state=0, max_iter=3)
        return learner.fit(digits[0][:TRAINED], digits[1][:TRAINED])


def learn_by_hand(learner: Any, X: Any, y: Any) -> None:
    """Learn rows as a user of scikit-learn does who has no keepfit."""
    *transformers, final = [step for _, step in learner.steps] if hasattr(learner, "steps") else [learner]
    for step in transformers:
        step.partial_fit(X)
        X = step.transform(X)
    final.partial_fit(X, y)


@pytest.mark.parametrize("train", [pipeline, network])
@pytest.mark.parametrize("form", ["skops", "pickle"])
async def test_a_trained_object_answers_and_learns_as_by_hand(
    api: Api, metadata: dict[str, Any], digits: tuple[Any, Any], keys: str, train: Any, form: str
) -> None:
    """What was trained offline answers at once as scikit-learn does, to the bit, and so it does after it learned on."""
    X, y = digits
    learner = train(digits)
    data = skops.io.dumps(learner) if form == "skops" else dump_trained(learner, keys)
    path = path_of(await upload(api, metadata, data))
    described = await api.model(path)
    seen = TRAINED if train is pipeline else 0
    assert (described["version"], described["rows_seen"], described["metrics"]) == (1, seen, {})
    assert described["snapshot"]["version"] == 1
    assert described["object"]["format"] == form
    assert described["object"]["size_bytes"] == len(data)
    asked = X[-50:].tolist()

    async def check() -> None:
        assert (await api.predict(path, asked))["predictions"] == learner.predict(X[-50:]).tolist()
        if train is network:
            sent = await api.predict(path, asked, proba=True)
            assert sent["probabilities"] == learner.predict_proba(X[-50:]).tolist()
            assert sent["classes"] == learner.classes_.tolist()

    await check()
    for begin in range(TRAINED, TRAINED + LEARNED, 50):
        part = slice(begin, begin + 50)
        await api.learn(path, X[part].tolist(), y[part].tolist())
        learn_by_hand(learner, X[part], y[part])
    await check()
    described = await api.model(path)
    assert (described["version"], described["rows_seen"]) == (1 + LEARNED // 50, seen + LEARNED)
    assert described["metrics"]["rows"] == LEARNED


async def test_the_same_file_again_is_the_same_model(
    api: Api, metadata: dict[str, Any], digits: tuple[Any, Any]
) -> None:
    """The same file answers 200 and changes nothing; another file, and metadata of a recipe, answer 409."""
    data = skops.io.dumps(pipeline(digits))
    path = path_of(await upload(api, metadata, data))
    await api.learn(path, digits[0][:5].tolist(), digits[1][:5].tolist())
    again = (await upload(api, metadata, data)).of(200)
    assert (again["version"], again["rows_seen"]) == (2, TRAINED + 5)
    other = skops.io.dumps(SGDRegressor().partial_fit([[1.0]], [1.0]))
    assert "another file" in (await upload(api, metadata, other)).problem(409)["detail"]
    named = {**metadata, "made": "by a recipe"}
    await api.make(named, REGRESSOR)
    assert "with a recipe" in (await upload(api, named, data)).problem(409)["detail"]
    (await api.post("/v1/models", {"metadata": metadata, "recipe": REGRESSOR})).problem(409)


async def test_an_impossible_number_of_rows_is_not_believed(api: Api, metadata: dict[str, Any]) -> None:
    """A model whose file claims to have seen more rows than there can be begins with none, and learns on."""
    scaler = StandardScaler().fit([[1.0, 2.0]])
    scaler.n_samples_seen_ = np.int64(2**62)
    path = path_of(await upload(api, metadata, skops.io.dumps(make_pipeline(scaler, SGDRegressor().fit(X2, Y2)))))
    assert (await api.model(path))["rows_seen"] == 0
    assert (await api.learn(path, X2, Y2))["rows_seen"] == 2


async def test_a_deleted_model_can_be_uploaded_again(api: Api, metadata: dict[str, Any]) -> None:
    """After a deletion another file becomes the model, and nothing of the first one is left."""
    first, second = (SGDRegressor().partial_fit([[1.0] * width], [1.0]) for width in (1, 2))
    path = path_of(await upload(api, metadata, skops.io.dumps(first)))
    await api.call("DELETE", path)
    assert path_of(await upload(api, metadata, skops.io.dumps(second))) == path
    assert (await api.predict(path, [[1.0, 2.0]]))["predictions"] == second.predict([[1.0, 2.0]]).tolist()
    (await api.post(f"{path}/predict", {"X": [[1.0]]})).problem(422)


async def test_columns_of_a_data_frame_have_names(api: Api, metadata: dict[str, Any]) -> None:
    """An object that learned a data frame takes rows by name, in any order, without another scaler or encoding."""
    frame = pd.DataFrame({"b": [1.0, 2.0, 4.0], "a": [10.0, 30.0, 20.0]})
    learner = make_pipeline(StandardScaler(), SGDRegressor(random_state=0)).fit(frame, [1.0, 2.0, 3.0])
    path = path_of(await upload(api, metadata, skops.io.dumps(learner)))
    assert (await api.model(path))["recipe"]["features"] == {"b": "number", "a": "number"}
    answer = await api.predict(path, [{"a": 15.0, "b": 3.0}])
    assert answer["predictions"] == learner.predict(pd.DataFrame({"b": [3.0], "a": [15.0]})).tolist()
    await api.learn(path, [{"a": 12.0, "b": 2.5}], [2.0])
    problem = (await api.post(f"{path}/predict", {"X": [{"a": 15.0, "c": 3.0}]})).problem(422)
    assert "c" in problem["detail"]


@pytest.mark.parametrize("form", ["skops", "pickle"])
async def test_a_trained_river_model_learns_on(api: Api, metadata: dict[str, Any], keys: str, form: str) -> None:
    """A model of River that learned offline answers as there, and after it learned on too."""
    model = compose.Pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())
    rows = [{"a": float(i % 7), "b": float(i % 3)} for i in range(60)]
    for row in rows[:50]:
        model.learn_one(row, row["a"] > 3)
    data = skops.io.dumps(model) if form == "skops" else dump_trained(model, keys)
    path = path_of(await upload(api, metadata, data))
    assert (await api.predict(path, rows[:7]))["predictions"] == [model.predict_one(row) for row in rows[:7]]
    await api.learn(path, rows[50:], [row["a"] > 3 for row in rows[50:]])
    for row in rows[50:]:
        model.learn_one(row, row["a"] > 3)
    sent = await api.predict(path, rows[:7], proba=True)
    expected = [model.predict_proba_one(row) for row in rows[:7]]
    assert sent["probabilities"] == [[row[label] for label in sent["classes"]] for row in expected]


async def download(api: Api, path: str, **query: str) -> Reply:
    """Download a model; check the header fields of the file."""
    reply = await api.get(f"{path}/estimator", **query)
    if reply.status == 200:
        digest = b64encode(hashlib.sha256(reply.body).digest()).decode()
        assert reply.headers["Repr-Digest"] == f"sha-256=:{digest}:"
        assert int(reply.headers["Content-Length"]) == len(reply.body)
    return reply


def loaded(data: bytes) -> Any:
    """Load a file of skops."""
    return skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))


@pytest.mark.parametrize("train", [pipeline, network])
async def test_an_uploaded_model_comes_out_as_it_learned(
    api: Api, metadata: dict[str, Any], digits: tuple[Any, Any], keys: str, train: Any
) -> None:
    """What was uploaded and learned on comes out, in both formats, equal to the same steps done by hand."""
    X, y = digits
    learner = train(digits)
    path = path_of(await upload(api, metadata, skops.io.dumps(learner)))
    part = slice(TRAINED, TRAINED + LEARNED)
    await api.learn(path, X[part].tolist(), y[part].tolist())
    learn_by_hand(learner, X[part], y[part])
    final = learner[-1] if train is pipeline else learner
    expected = [*final.coefs_, *final.intercepts_] if train is network else [final.coef_, learner[0].mean_]
    reply = await download(api, path)
    signed = await download(api, path, format="pickle")
    assert (reply.headers["Model-Version"], signed.headers["Model-Version"]) == ("2", "2")
    assert reply.headers["Content-Disposition"].endswith('-2.skops"')
    for found in (loaded(reply.body), load_trained(signed.body, keys)):
        last = found[-1] if train is pipeline else found
        arrays = [*last.coefs_, *last.intercepts_] if train is network else [last.coef_, found[0].mean_]
        assert all(np.array_equal(a, b) for a, b in zip(arrays, expected, strict=True))
        assert np.array_equal(found.predict(X[-50:]), learner.predict(X[-50:]))
    copied = path_of(await upload(api, {**metadata, "copy": True}, signed.body))
    assert (await api.predict(copied, X[-50:].tolist()))["predictions"] == learner.predict(X[-50:]).tolist()


RECIPES: dict[str, dict[str, Any]] = {
    "SGDClassifier": {"scaler": "StandardScaler", "features": {"b": "number", "a": "number"}},
    "GaussianNB": {},
    "MLPClassifier": {"params": {"random_state": 0, "hidden_layer_sizes": [5]}},
    "MLPRegressor": {"scaler": "MinMaxScaler", "params": {"random_state": 0}},
    "MiniBatchKMeans": {"params": {"random_state": 0, "n_clusters": 2}},
    "IncrementalPCA": {"params": {"n_components": 1}},
    "OneVsRestClassifier": {"params": {"estimator": {"SGDClassifier": {"random_state": 0}}}},
}


@pytest.mark.parametrize("name", RECIPES)
async def test_a_model_of_a_recipe_comes_out_as_a_plain_object(api: Api, metadata: dict[str, Any], name: str) -> None:
    """The object takes the model's rows, gives its labels in whichever order they came, and learns on as it does."""
    generator = np.random.default_rng(3)
    X = generator.normal(size=(60, 2)).round(3)
    labels = np.where(X.sum(axis=1) > 0.5, "b", np.where(X[:, 0] > 0, "c", "a"))
    target: Any = labels if name.endswith(("Classifier", "NB")) else X[:, 0]
    has_target = name not in ("MiniBatchKMeans", "IncrementalPCA")
    path = await api.make(metadata, {"estimator": name, **RECIPES[name]})
    # The labels do not come in the order of the alphabet.
    first = np.argsort(labels[:40])[::-1]
    for rows in (first, np.arange(40, 60)):
        await api.learn(path, X[rows].tolist(), target[rows].tolist() if has_target else None)
        found = loaded((await download(api, path)).body)
        answers = (await api.predict(path, X.tolist()))["predictions"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            answer = found.transform if name == "IncrementalPCA" else found.predict
            assert answers == answer(X).tolist()
    if name in ("SGDClassifier", "GaussianNB", "MLPClassifier", "MLPRegressor"):
        await api.learn(path, X[:10].tolist(), target[:10].tolist())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            learn_by_hand(found, X[:10], target[:10])
            assert (await api.predict(path, X.tolist()))["predictions"] == found.predict(X).tolist()


async def test_a_river_model_comes_out(api: Api, metadata: dict[str, Any], keys: str) -> None:
    """A model of River that was uploaded comes out as River's own object."""
    model = linear_model.LogisticRegression()
    model.learn_one({"a": 1.0}, True)
    path = path_of(await upload(api, metadata, dump_trained(model, keys)))
    await api.learn(path, [{"a": 2.0}], [False])
    model.learn_one({"a": 2.0}, False)
    found = load_trained((await download(api, path, format="pickle")).body, keys)
    assert found.predict_proba_one({"a": 1.0}) == model.predict_proba_one({"a": 1.0})


async def test_downloads_that_are_refused(api: Api, metadata: dict[str, Any]) -> None:
    """Without learned rows: 409. Without an equal in scikit-learn: 422, but the estimator alone. Other choices: 400."""
    path = await api.make(metadata, {"estimator": "SGDRegressor", "features": {"make": "category", "x": "number"}})
    (await download(api, path)).problem(409)
    await api.learn(path, [["nike", 1.0], ["puma", 2.0]], [1.0, 2.0])
    assert "part=estimator" in (await download(api, path)).problem(422)["detail"]
    bare = loaded((await download(api, path, part="estimator")).body)
    assert bare.coef_.shape == (bare.n_features_in_,)
    (await download(api, path, format="onnx")).problem(400)
    (await download(api, path, part="scaler")).problem(400)
    (await download(api, f"/v1/models/{'0' * 64}")).problem(404)


async def test_a_download_can_be_revalidated(api: Api, metadata: dict[str, Any]) -> None:
    """A client that has the version gets 304, and the file of the next version after the model has learned."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, [[1.0]], [1.0])
    etag = (await download(api, path)).headers["ETag"]
    assert (await api.call("GET", f"{path}/estimator", headers={"If-None-Match": etag})).status == 304
    head = await api.call("HEAD", f"{path}/estimator")
    assert (head.status, head.headers["ETag"], head.body) == (200, etag, b"")
    await api.learn(path, [[2.0]], [1.0])
    changed = await api.call("GET", f"{path}/estimator", headers={"If-None-Match": etag})
    assert (changed.status, changed.headers["Model-Version"]) == (200, "2")
    named = await api.get("/v1/estimator", metadata=json.dumps(metadata))
    assert named.headers["ETag"] == changed.headers["ETag"]


def zip_bomb() -> bytes:
    """Write a small file that says that a gigabyte comes out of it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("schema.json", b"{}")
        members.writestr("1.npy", bytes(1 << 20))
        members.infolist()[1].file_size = 1 << 30
    return file.getvalue()


def with_schema(data: bytes, change: Any) -> bytes:
    """Change the JSON that describes the object in a file of skops."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as read, zipfile.ZipFile(file, "w") as written:
        for name in read.namelist():
            content = read.read(name)
            written.writestr(name, json.dumps(change(json.loads(content))) if name == "schema.json" else content)
    return file.getvalue()


def regressor_file(**changed: Any) -> bytes:
    """Write a trained regressor, some of whose attributes are changed."""
    learner = SGDRegressor().partial_fit([[1.0, 2.0]], [1.0])
    vars(learner).update(changed)
    return skops.io.dumps(learner)


def deep(schema: dict[str, Any]) -> dict[str, Any]:
    """Nest an object in itself."""
    for _ in range(250):
        schema = {**schema, "content": schema}
    return schema


def of_old_version(schema: dict[str, Any]) -> dict[str, Any]:
    """Change the version of scikit-learn that wrote an object."""
    schema["content"]["content"]["_sklearn_version"]["content"] = '"0.24.2"'
    return schema


X2, Y2 = [[1.0, 2.0], [2.0, 1.0]], [0, 1]
REFUSED = {
    "no file": (b"hello", "neither one of skops"),
    "foreign pickle": (b"\x80\x04\x95\x0b\x00", "never loaded"),
    "damaged zip": (regressor_file()[:-40], "cannot be read by skops"),
    "damaged array": (regressor_file().replace(b"NUMPY", b"NUMPI"), "cannot be read by skops"),
    "another zip": (zip_bomb().replace(b"schema", b"sch3ma"), "bytes when it is unpacked"),
    "zip bomb": (zip_bomb(), "bytes when it is unpacked"),
    "deep": (with_schema(regressor_file(), deep), "nested more than"),
    "function": (skops.io.dumps(print), "builtins.print"),
    "forest": (skops.io.dumps(LogisticRegression), "types that are not loaded"),
    "not fitted": (skops.io.dumps(SGDRegressor()), "not fitted"),
    "unfitted step": (skops.io.dumps(make_pipeline(StandardScaler(), SGDClassifier())), "not fitted"),
    "no partial_fit": (skops.io.dumps(LinearRegression().fit(X2, Y2)), "cannot learn on"),
    "last step": (skops.io.dumps(make_pipeline(StandardScaler(), LogisticRegression()).fit(X2, Y2)), "no partial_fit"),
    "another version": (with_schema(regressor_file(), of_old_version), "scikit-learn 0.24.2"),
    "cannot answer": (regressor_file(coef_=np.ones(5)), "cannot predict"),
    "negative width": (regressor_file(n_features_in_=-5), "rows of -5 values"),
    "too wide": (regressor_file(n_features_in_=COLUMNS_MAX + 1), "1 to 10000"),
    "equal names": (regressor_file(feature_names_in_=np.array(["a", "a"], dtype=object)), "names of 1 columns"),
    "too many names": (regressor_file(feature_names_in_=np.array(["a", "b", "c"], dtype=object)), "names of 3"),
    "several targets": (skops.io.dumps(MultiOutputRegressor(SGDRegressor()).fit(X2, [[0, 1], [1, 0]])), "targets"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_files_leave_nothing(api: Api, metadata: dict[str, Any], name: str) -> None:
    """A file that cannot become a model answers 422 with the reason, and the metadata stays free."""
    data, reason = REFUSED[name]
    problem = (await upload(api, metadata, data)).problem(422)
    assert reason in problem["detail"]
    listed = (await api.get("/v1/models", session=metadata["session"])).of(200)
    assert metadata not in [model["metadata"] for model in listed["models"]]
    await api.make(metadata, REGRESSOR)


async def test_pickles_need_a_signature(api: Api, metadata: dict[str, Any], digits: tuple[Any, Any]) -> None:
    """A pickle that another key signed answers 422."""
    data = dump_trained(pipeline(digits), new_signing_key("u"))
    assert "KEEPFIT_UPLOAD_KEYS" in (await upload(api, metadata, data)).problem(422)["detail"]


async def test_bad_requests(api: Api, metadata: dict[str, Any]) -> None:
    """Missing or invalid metadata, encodings and other media types are refused before the body is read."""
    data = regressor_file()
    headers = {"Content-Type": "application/octet-stream"}
    assert "metadata" in (await api.call("POST", "/v1/estimator", data=data, headers=headers)).problem(400)["detail"]
    for text, status in (("{", 400), ("[1]", 422), ('{"type": ""}', 422)):
        reply = await api.call("POST", "/v1/estimator", data=data, headers=headers, params={"metadata": text})
        reply.problem(status)
    (await upload(api, metadata, data, **{"Content-Encoding": "gzip"})).problem(415)
    (await upload(api, metadata, data, **{"Content-Type": "application/json"})).problem(415)
    (await upload(api, metadata, b"")).problem(422)
