"""Uploaded objects: which are accepted, what a signature allows, and what an object can do to its bundle."""

import math
import pickle
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from keepfit.errors import (
    EnvelopeError,
    InvalidError,
    KeepfitError,
    LearningError,
    RuntimeMismatchError,
    SettingsError,
    UnknownKeyError,
    UnstorableError,
    describe_error,
)
from keepfit.model import object_bundle
from keepfit.model.bundle import Bundle
from keepfit.model.serialization import seal, unseal
from keepfit.objects import dump
from keepfit.recipe import uploads
from keepfit.recipe.recipe import Recipe, from_text, parse
from keepfit.recipe.uploads import ObjectHeader
from keepfit.rows.shaping import shape
from keepfit.security import envelope
from keepfit.security.envelope import UPLOAD_KEYS, Header, Keyring
from tests.factories import dump_local

KEYS = "u1:" + "ab" * 32
UPLOADS = Keyring.from_text(KEYS, UPLOAD_KEYS)
RING = Keyring.from_text("test:" + "5e" * 32)
HASH = "0" * 64
X, Y = [[1.0, 2.0], [3.0, 5.0], [2.0, 2.0]], [1.0, 2.0, 3.0]


class Mean(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regressor that predicts the mean of all targets."""

    def __init__(self) -> None:
        self.total, self.rows = 0.0, 0

    def partial_fit(self, X: Any, y: Any) -> "Mean":
        """Add `y` to the total."""
        self.total, self.rows = self.total + float(y.sum()), self.rows + len(y)
        return self

    def predict(self, X: Any) -> Any:
        """Return the mean for each row."""
        return np.full(len(X), self.total / self.rows)


class Majority(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that predicts the most frequent label, and records the labels as it receives them."""

    def __init__(self) -> None:
        self.counts: dict[Any, int] = {}
        self.received: list[Any] = []

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> None:
        """Count labels."""
        self.received += [(type(y).__name__, y.dtype.kind, None if classes is None else classes.tolist())]
        for label in y.tolist():
            self.counts[label] = self.counts.get(label, 0) + 1

    def predict(self, X: Any) -> Any:
        """Return the most frequent label for each row."""
        return [max(self.counts, key=self.counts.__getitem__)] * len(X)


def recipe_of(learner: Any, **more: Any) -> Recipe:
    """Return the recipe of an object."""
    kind = more.pop("kind", None)
    return parse({"object": dump(learner, KEYS, kind=kind, modules=more.pop("modules", ())), **more}, UPLOADS)


def learned(bundle: Bundle, X: Any, y: Any = None, weights: Any = None) -> None:
    """Learn the rows of one request."""
    bundle.partial_fit(shape(bundle.recipe, X, y, weights, learning=True))


def predicted(bundle: Bundle, X: Any) -> list[Any]:
    """Return the predictions of rows."""
    return bundle.predict(shape(bundle.recipe, X, learning=False))


def sealed(bundle: Bundle) -> bytes:
    """Return the envelope of a bundle."""
    return seal(bundle, RING, Header(envelope.BUNDLE, HASH, 1, 1, 1, bundle.rows_seen, "", bundle.runtime))


def stored(bundle: Bundle) -> Bundle:
    """Return the bundle as another worker reads it."""
    return unseal(sealed(bundle), RING, from_text(bundle.recipe.text()), HASH)[1]


def test_an_uploaded_estimator_learns_as_in_a_loop() -> None:
    """The bundle of an object, stored and read after each request, equals a loop over partial_fit."""
    bundle = object_bundle.new_bundle(
        recipe_of(SGDRegressor(shuffle=False), features={"a": "number", "b": "number"}), UPLOADS
    )
    alone = SGDRegressor(shuffle=False)
    for i in range(8):
        rows = [[i / 8 + a, b] for a, b in X]
        learned(bundle, rows, Y)
        bundle = stored(bundle)
        alone.partial_fit(np.array(rows), np.array(Y))
        assert np.array_equal(bundle.estimator.coef_, alone.coef_)
    assert predicted(bundle, X) == alone.predict(np.array(X)).tolist()
    assert bundle.metrics()["rows"] == 21
    assert bundle.rows_seen == 24


def test_a_class_of_a_script_is_pickled_by_value() -> None:
    """An object of a class that no other process can import learns, is stored, and keeps what it learned."""
    source = """class Local:
        def partial_fit(self, X, y): self.y = float(y[-1])
        def predict(self, X): return [self.y] * len(X)
    """
    recipe = parse({"object": dump_local(source, KEYS)}, UPLOADS)
    bundle = object_bundle.new_bundle(recipe, UPLOADS)
    learned(bundle, X, Y)
    again = stored(stored(bundle))
    assert type(again.estimator).__module__ == "notebook"
    assert predicted(again, X) == [3.0, 3.0, 3.0]


def test_columns_scaler_and_weights_work_as_for_every_estimator() -> None:
    """An object with partial_fit gets the matrix that columns, encoding and scaler of the recipe produce."""
    features = {"make": "category", "year": "number"}
    options: dict[str, Any] = {
        "features": features,
        "scaler": "StandardScaler",
        "encoding": "onehot",
        "max_categories": 2,
    }
    bundle = object_bundle.new_bundle(recipe_of(SGDRegressor(shuffle=False, random_state=0), **options), UPLOADS)
    named = Bundle.new(parse({"estimator": "SGDRegressor", **options}))
    for one in (bundle, named):
        learned(one, [["a", 1], ["b", 2]], [1, 2], [1, 2])
        learned(one, [["b", 3]], [3])
    assert np.array_equal(bundle.estimator.coef_, named.estimator.coef_)
    assert predicted(bundle, [["c", 4]]) == predicted(named, [["c", 4]])


@pytest.mark.parametrize("learner", [Mean(), SGDRegressor()], ids=["without n_features_in_", "with"])
def test_an_object_is_stored_with_the_width_of_its_rows(learner: Any) -> None:
    """A bundle tells the width of what its object has learned, also if the object does not: a restore needs it."""
    bundle = object_bundle.new_bundle(recipe_of(learner), UPLOADS)
    assert bundle.width is None
    learned(bundle, [[1, 2, 3]], [2.0])
    learned(bundle, [[4, 5, 6]], [3.0])
    assert (bundle.width, stored(bundle).width) == (3, 3)
    with pytest.raises(InvalidError, match="2 values where the model has learned 3"):
        predicted(stored(bundle), [[1, 2]])


def test_an_object_receives_labels_unencoded() -> None:
    """A classifier object receives strings, integers and booleans, new ones too, and its answers are not encoded."""
    bundle = object_bundle.new_bundle(recipe_of(Majority(), classes=["no", "yes"]), UPLOADS)
    learned(bundle, [[1], [2]], ["yes", "yes"])
    learned(bundle, [[1]], ["yes"])
    assert predicted(stored(bundle), [[1], [2]]) == ["yes", "yes"]
    assert bundle.estimator.received == [("ndarray", "U", ["no", "yes"]), ("ndarray", "U", None)]
    mixed = object_bundle.new_bundle(recipe_of(Majority()), UPLOADS)
    learned(mixed, [[1], [2], [3], [4]], [True, "1", 7, 7])
    learned(mixed, [[1]], [7])
    assert mixed.estimator.received[0] == ("ndarray", "O", None)
    assert predicted(mixed, [[5]]) == [7]
    assert mixed.metrics()["accuracy"] == 1.0
    assert mixed.score(shape(mixed.recipe, [[1], [2]], [7, "never"], learning=True))["accuracy"] == 0.5


def test_probabilities_have_the_classes_of_the_object() -> None:
    """The columns of probabilities follow classes_ of the object; score has their log loss."""
    bundle = object_bundle.new_bundle(recipe_of(SGDClassifier(loss="log_loss"), classes=["c", "a", "b"]), UPLOADS)
    learned(bundle, [[0.0], [1.0], [2.0]], ["c", "a", "b"])
    rows = shape(bundle.recipe, [[1.0]], learning=False)
    assert bundle.classes == ["a", "b", "c"]
    assert bundle.predict_proba(rows) == bundle.estimator.predict_proba([[1.0]]).tolist()
    scored = bundle.score(shape(bundle.recipe, [[1.0], [0.0]], ["a", "c"], learning=True))
    assert scored["log_loss"] is not None
    assert math.isfinite(scored["log_loss"])


def test_objects_without_target_answer_by_their_kind() -> None:
    """Clusterers answer numbers, transformers rows, and neither accepts a target."""
    rng = np.random.default_rng(3).normal(size=(9, 2)).tolist()
    clusters = object_bundle.new_bundle(recipe_of(MiniBatchKMeans(n_clusters=2, random_state=0, n_init=1)), UPLOADS)
    learned(clusters, rng)
    assert predicted(clusters, rng) == clusters.estimator.predict(np.array(rng)).tolist()
    scaled = object_bundle.new_bundle(recipe_of(StandardScaler()), UPLOADS)
    learned(scaled, rng)
    assert predicted(scaled, rng) == scaled.estimator.transform(np.array(rng)).tolist()
    with pytest.raises(InvalidError, match="StandardScaler takes no y"):
        shape(scaled.recipe, rng, [1.0] * 9, learning=True)


class Restless(Mean):
    """A regressor that changes when it predicts."""

    def predict(self, X: Any) -> Any:
        """Count predicted rows as learned rows."""
        self.rows += len(X)
        return np.full(len(X), 1.0)


def test_a_predict_that_changes_the_object_is_not_stored() -> None:
    """Changes that an object makes to itself in predict are in no stored bundle."""
    predicting, quiet = (object_bundle.new_bundle(recipe_of(Restless()), UPLOADS) for _ in range(2))
    for bundle in (predicting, quiet):
        learned(bundle, X, Y)
        if bundle is predicting:
            predicted(bundle, X)
            predicted(bundle, X)
            bundle.score(shape(bundle.recipe, X, Y, learning=True))
        learned(bundle, X, Y)
    assert sealed(predicting) == sealed(quiet)


class Faulty(Mean):
    """A regressor that raises a given error in a given method."""

    where: ClassVar[str] = ""
    error: ClassVar[BaseException] = ValueError()

    def partial_fit(self, X: Any, y: Any) -> "Faulty":
        """Learn, then raise if configured."""
        super().partial_fit(X, y)
        if self.where == "partial_fit":
            raise self.error
        return self

    def predict(self, X: Any) -> Any:
        """Predict, or raise if configured."""
        if self.where == "predict":
            raise self.error
        return super().predict(X)


class UnprintableError(Exception):
    """An error whose str() fails."""

    def __str__(self) -> str:
        raise RuntimeError


ERRORS = [
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    UnprintableError(),
    RecursionError("deep"),
    KeyError("x"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_error_of_an_object_is_an_error_of_the_request(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Any error of an object, also BaseException, becomes an Exception; in predict it names object and error."""
    bundle = object_bundle.new_bundle(recipe_of(Faulty()), UPLOADS)
    learned(bundle, X, Y)
    monkeypatch.setattr(Faulty, "error", error)
    monkeypatch.setattr(Faulty, "where", "predict")
    with pytest.raises(InvalidError, match=f"^Faulty cannot predict these rows: .*{type(error).__name__}"):
        predicted(bundle, X)
    # Evaluation fails, learning does not.
    learned(bundle, X, Y)
    monkeypatch.setattr(Faulty, "where", "partial_fit")
    with pytest.raises((LearningError, UnprintableError, RecursionError, KeyError)) as caught:
        learned(bundle, X, Y)
    assert type(error).__name__ in describe_error(caught.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda X: [1.0], "1 values for 3 rows"),
        (lambda X: None, "NoneType for 3 rows"),
        (lambda X: [object()] * 3, "object, which has no JSON form"),
        (lambda X: [2**70] * 3, "int, which has no JSON form"),
    ],
    ids=["few", "none", "object", "huge"],
)
def test_invalid_answers_of_an_object_are_refused(monkeypatch: pytest.MonkeyPatch, answer: Any, message: str) -> None:
    """An answer that is not one JSON value per row raises InvalidError."""
    bundle = object_bundle.new_bundle(recipe_of(Mean()), UPLOADS)
    learned(bundle, X, Y)
    monkeypatch.setattr(Mean, "predict", lambda self, X: answer(X))
    with pytest.raises(InvalidError, match=message):
        predicted(bundle, X)


def test_a_request_that_makes_the_object_infinite_is_refused() -> None:
    """A request that would make a finite array infinite is refused with the name of the array."""
    bundle = object_bundle.new_bundle(recipe_of(SGDRegressor(eta0=1e280, learning_rate="constant")), UPLOADS)
    learned(bundle, [[0.0]], [0.0])
    with pytest.raises((ArithmeticError, ValueError), match=r"finite|overflow"):
        learned(bundle, [[1e38]], [1.0])


def test_an_object_that_became_unpicklable_is_refused() -> None:
    """An object that holds a lock cannot be stored; the error says so."""
    bundle = object_bundle.new_bundle(recipe_of(Mean()), UPLOADS)
    learned(bundle, X, Y)
    bundle.estimator.lock = threading.Lock()
    with pytest.raises(UnstorableError, match=r"The bundle of 0+ cannot be stored: TypeError: cannot pickle"):
        sealed(bundle)


# Which objects are accepted.


@pytest.mark.parametrize(
    ("learner", "kind", "message"),
    [
        (Mean, None, "Mean is a class"),
        (object(), "regressor", "has none of partial_fit, learn_one, learn_many"),
        (make_pipeline(StandardScaler(), SGDRegressor()), None, "Neither has a Pipeline of scikit-learn"),
        (type("Mute", (), {"partial_fit": lambda self, X, y: None})(), "regressor", "partial_fit but no predict"),
        (type("Odd", (), {"partial_fit": print, "predict": print})(), None, "The kind of Odd is unknown"),
        (Mean(), "prophet", "The kind of Mean is unknown"),
    ],
    ids=["class", "nothing", "pipeline", "mute", "kindless", "kind"],
)
def test_unsupported_objects_are_refused_by_dump(learner: Any, kind: Any, message: str) -> None:
    """An object without the methods, or of unknown kind, is refused with a hint."""
    with pytest.raises(InvalidError, match=message):
        dump(learner, KEYS, kind=kind)


def test_kinds_are_found_by_tags() -> None:
    """The kind of an object comes from scikit-learn's tags; the argument overrides them."""
    kinds = {
        kind: uploads.header_of(dump(learner, KEYS)).kind
        for kind, learner in {
            "regressor": Mean(),
            "classifier": Majority(),
            "clusterer": MiniBatchKMeans(),
            "transformer": StandardScaler(),
        }.items()
    }
    assert kinds == {kind: kind for kind in kinds}
    header = uploads.header_of(dump(Majority(), KEYS, kind="regressor"))
    assert (header.kind, header.name, header.takes_sample_weight) == ("regressor", "Majority", True)
    assert header.runtime == envelope.runtime("cloudpickle")


def test_dump_requires_an_upload_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keys come from the environment or the folder of `keepfit up`; without a key dump raises."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="KEEPFIT_UPLOAD_KEYS is not set; `keepfit key upload` prints"):
        dump(Mean())
    (tmp_path / ".keepfit").mkdir()
    (tmp_path / ".keepfit" / "env").write_text(f"KEEPFIT_UPLOAD_KEYS={KEYS}\n")
    assert uploads.verify(dump(Mean()), UPLOADS).name == "Mean"
    monkeypatch.setenv("KEEPFIT_UPLOAD_KEYS", "other:" + "cd" * 32)
    with pytest.raises(InvalidError, match="KEEPFIT_UPLOAD_KEYS does not hold"):
        uploads.verify(dump(Mean()), UPLOADS)


def test_too_large_objects_are_refused() -> None:
    """An object of more than 1 MiB is refused by dump and by the gateway."""
    heavy = Mean()
    heavy.ballast = bytes(2**20)
    with pytest.raises(InvalidError, match="larger than 1048576 bytes"):
        dump(heavy, KEYS)
    with pytest.raises(InvalidError, match="larger than 1048576 bytes"):
        parse({"object": "A" * 2**21}, UPLOADS)


# What a signature allows.


class Canary:
    """An object that creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def resigned(good: bytes, keyring: Keyring, **changes: Any) -> bytes:
    """Sign the envelope of an object again, with another key or other header fields."""
    header, payload = UPLOADS.open_as(ObjectHeader, good, envelope.OBJECT)
    return keyring.seal(msgspec.structs.replace(header, **changes), payload)


OTHER = Keyring.from_text("u1:" + "cd" * 32, UPLOAD_KEYS)
BUNDLE_HEADER = Header(envelope.BUNDLE, HASH, 1, 1, 1, 0, "", envelope.runtime())
FORGERIES: dict[str, tuple[Callable[[bytes, bytes], bytes], str]] = {
    "pickle": (lambda good, foreign: foreign, "not a keepfit envelope"),
    "other key, our name": (lambda good, foreign: resigned(good, OTHER), "Signature mismatch"),
    "signing key": (lambda good, foreign: resigned(good, RING), "KEEPFIT_UPLOAD_KEYS does not hold"),
    "payload replaced": (lambda good, foreign: good[:-60] + foreign, "Signature mismatch"),
    "pickle behind": (lambda good, foreign: good + foreign, "Signature mismatch"),
    "cut": (lambda good, foreign: good[:-1], "Signature mismatch"),
    "head alone": (lambda good, foreign: good[:40], "Signature mismatch"),
    "bit": (lambda good, foreign: good[:-9] + bytes([good[-9] ^ 1]) + good[-8:], "Signature mismatch"),
    "a bundle": (lambda good, foreign: UPLOADS.seal(BUNDLE_HEADER, foreign), "another purpose"),
    "header of a bundle": (
        lambda good, foreign: UPLOADS.seal(msgspec.structs.replace(BUNDLE_HEADER, purpose=envelope.OBJECT), foreign),
        "header was written by another version of keepfit",
    ),
    "other versions": (
        lambda good, foreign: resigned(good, UPLOADS, runtime={"scikit-learn": "0.24.2"}),
        "written with scikit-learn 0.24.2, this process has",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_object_is_refused_before_unpickling(tmp_path: Path, name: str) -> None:
    """An object without valid signature, purpose or runtime is refused by the gateway and never loaded by a worker."""
    forge, message = FORGERIES[name]
    good = b64decode(dump(Mean(), KEYS))
    text = b64encode(forge(good, pickle.dumps(Canary(tmp_path / "ran")))).decode()
    with pytest.raises(InvalidError, match=message):
        parse({"object": text}, UPLOADS)
    with pytest.raises(KeepfitError):
        object_bundle.new_bundle(Recipe(object=text), UPLOADS)
    assert not (tmp_path / "ran").exists()


def test_the_canary_runs_when_it_is_signed(tmp_path: Path) -> None:
    """The same pickle with a valid signature runs in a worker, so the test above would detect it."""
    header = uploads.header_of(dump(Mean(), KEYS))
    text = b64encode(UPLOADS.seal(header, pickle.dumps(Canary(tmp_path / "ran")))).decode()
    recipe = parse({"object": text}, UPLOADS)
    assert not (tmp_path / "ran").exists()
    object_bundle.new_bundle(recipe, UPLOADS)
    assert (tmp_path / "ran").exists()


def test_an_object_is_not_accepted_as_a_bundle() -> None:
    """The envelope of an object is refused as a bundle, even if one key signs both."""
    same = Keyring.from_text(KEYS)
    with pytest.raises(EnvelopeError, match="another purpose"):
        unseal(b64decode(dump(Mean(), KEYS)), same, recipe_of(Mean()), HASH)


def test_a_worker_without_the_key_or_the_package_reports_it() -> None:
    """The error for an object that this process cannot verify or load names what is missing."""
    with pytest.raises(UnknownKeyError, match="KEEPFIT_UPLOAD_KEYS"):
        object_bundle.new_bundle(recipe_of(Mean()), None)
    header = uploads.header_of(dump(Mean(), KEYS))
    absent = b"cno_such_module\nThing\n."
    text = b64encode(UPLOADS.seal(header, absent)).decode()
    with pytest.raises(RuntimeMismatchError, match="Mean cannot be loaded here: ModuleNotFoundError"):
        object_bundle.new_bundle(parse({"object": text}, UPLOADS), UPLOADS)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "exactly one of estimator .* not none"),
        ({"estimator": "SGDRegressor", "object": True}, "is required, not estimator and object"),
        ({"object": True, "params": {"C": 1}}, "Mean is an object: set its parameters before"),
        ({"object": True, "classes": [1, 2]}, "Mean is not a classifier"),
        ({"object": True, "scaler": "Pickle"}, "scaler 'Pickle' is not one of"),
        ({"object": "%%%"}, "object is not base64"),
        ({"object": ""}, "not a keepfit envelope"),
    ],
    ids=["none", "two", "params", "classes", "scaler", "base64", "empty"],
)
def test_recipes_that_contradict_their_object_are_refused(document: dict[str, Any], message: str) -> None:
    """A recipe has one of estimator, steps and object, and only options that the object supports."""
    given = {**document, "object": dump(Mean(), KEYS)} if document.get("object") is True else document
    with pytest.raises(InvalidError, match=message):
        parse(given, UPLOADS)
    if "object" in given:
        with pytest.raises(InvalidError):
            parse(given)


def test_without_upload_keys_objects_are_refused() -> None:
    """A gateway without upload keys refuses objects and names the setting."""
    with pytest.raises(InvalidError, match="Set KEEPFIT_UPLOAD_KEYS for gateways and workers"):
        parse({"object": dump(Mean(), KEYS)})


def test_the_head_of_an_object_describes_it() -> None:
    """Name, kind and requirements are read from the first bytes; a text without them is refused."""
    recipe = from_text(recipe_of(Majority()).text())
    assert (recipe.name, recipe.entry.kind, recipe.entry.takes_y, recipe.entry.takes_sample_weight) == (
        "Majority",
        "classifier",
        True,
        True,
    )
    for text in ("", "AAAA", b64encode(RING.seal(BUNDLE_HEADER, b"")).decode(), "A" * 99):
        with pytest.raises(InvalidError, match=r"was not written by keepfit\.objects\.dump"):
            uploads.header_of(text)


def test_a_transformer_mixin_needs_no_predict() -> None:
    """A class that only transforms is a transformer, and its predictions are the transformed rows."""

    class Doubler(TransformerMixin, BaseEstimator):  # type: ignore[misc]
        def partial_fit(self, X: Any, y: Any = None) -> None:
            self.rows = getattr(self, "rows", 0) + len(X)

        def transform(self, X: Any) -> Any:
            return X * 2

    bundle = object_bundle.new_bundle(recipe_of(Doubler()), UPLOADS)
    learned(bundle, X)
    assert predicted(stored(bundle), X) == (np.array(X) * 2).tolist()
