"""Objects of one's own: what may be sent, what a signature lets through, and what an object may do to its bundle."""

import math
import pickle
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
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

KEYS = "u1:" + "ab" * 32
UPLOADS = Keyring.from_text(KEYS, UPLOAD_KEYS)
RING = Keyring.from_text("test:" + "5e" * 32)
HASH = "0" * 64
X, Y = [[1.0, 2.0], [3.0, 5.0], [2.0, 2.0]], [1.0, 2.0, 3.0]


class Mean(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """What predicts the mean of all it was told."""

    def __init__(self) -> None:
        self.total, self.rows = 0.0, 0

    def partial_fit(self, X: Any, y: Any) -> "Mean":
        """Take in `y`."""
        self.total, self.rows = self.total + float(y.sum()), self.rows + len(y)
        return self

    def predict(self, X: Any) -> Any:
        """Return the mean for each row."""
        return np.full(len(X), self.total / self.rows)


class Majority(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What predicts the label it was told most often, and keeps the labels as it got them."""

    def __init__(self) -> None:
        self.counts: dict[Any, int] = {}
        self.received: list[Any] = []

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> None:
        """Count labels."""
        self.received += [(type(y).__name__, y.dtype.kind, None if classes is None else classes.tolist())]
        for label in y.tolist():
            self.counts[label] = self.counts.get(label, 0) + 1

    def predict(self, X: Any) -> Any:
        """Return the commonest label for each row."""
        return [max(self.counts, key=self.counts.__getitem__)] * len(X)


def recipe_of(learner: Any, **more: Any) -> Recipe:
    """Recipe of an object."""
    kind = more.pop("kind", None)
    return parse({"object": dump(learner, KEYS, kind=kind, modules=more.pop("modules", ())), **more}, UPLOADS)


def learned(bundle: Bundle, X: Any, y: Any = None, weights: Any = None) -> None:
    """Have a bundle learn one request's rows."""
    bundle.partial_fit(shape(bundle.recipe, X, y, weights, learning=True))


def predicted(bundle: Bundle, X: Any) -> list[Any]:
    """Predictions of rows."""
    return bundle.predict(shape(bundle.recipe, X, learning=False))


def sealed(bundle: Bundle) -> bytes:
    """A bundle on its way."""
    return seal(bundle, RING, Header(envelope.BUNDLE, HASH, 1, 1, 1, bundle.rows_seen, "", bundle.runtime))


def stored(bundle: Bundle) -> Bundle:
    """The bundle as another worker would read it."""
    return unseal(sealed(bundle), RING, from_text(bundle.recipe.text()), HASH)[1]


def test_an_estimator_of_ones_own_learns_as_in_a_loop() -> None:
    """An object's bundle, stored and read after each request, is the object that a loop over partial_fit gives."""
    bundle = object_bundle.begin(
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


def test_a_class_of_main_goes_along_by_value() -> None:
    """A class that no other process could import is learned and stored, and what it learned comes back."""
    source = """class Local:
        def partial_fit(self, X, y): self.y = float(y[-1])
        def predict(self, X): return [self.y] * len(X)
    """
    script = ModuleType("notebook")
    exec(compile(source, "notebook", "exec"), script.__dict__)
    sys.modules["notebook"] = script
    try:
        recipe = recipe_of(script.Local(), kind="regressor", modules=[script])
    finally:
        del sys.modules["notebook"]
    bundle = object_bundle.begin(recipe, UPLOADS)
    learned(bundle, X, Y)
    again = stored(stored(bundle))
    assert type(again.estimator).__module__ == "notebook"
    assert predicted(again, X) == [3.0, 3.0, 3.0]


def test_columns_scaler_and_weights_are_those_of_every_estimator() -> None:
    """An object with partial_fit gets the matrix that the recipe's columns, encoding and scaler make."""
    features = {"make": "category", "year": "number"}
    options: dict[str, Any] = {
        "features": features,
        "scaler": "StandardScaler",
        "encoding": "onehot",
        "max_categories": 2,
    }
    bundle = object_bundle.begin(recipe_of(SGDRegressor(shuffle=False, random_state=0), **options), UPLOADS)
    named = Bundle.new(parse({"estimator": "SGDRegressor", **options}))
    for one in (bundle, named):
        learned(one, [["a", 1], ["b", 2]], [1, 2], [1, 2])
        learned(one, [["b", 3]], [3])
    assert np.array_equal(bundle.estimator.coef_, named.estimator.coef_)
    assert predicted(bundle, [["c", 4]]) == predicted(named, [["c", 4]])


def test_labels_go_to_an_object_as_they_came() -> None:
    """A classifier object sees strings, integers and booleans, new ones too, and its answers are not encoded."""
    bundle = object_bundle.begin(recipe_of(Majority(), classes=["no", "yes"]), UPLOADS)
    learned(bundle, [[1], [2]], ["yes", "yes"])
    learned(bundle, [[1]], ["yes"])
    assert predicted(stored(bundle), [[1], [2]]) == ["yes", "yes"]
    assert bundle.estimator.received == [("ndarray", "U", ["no", "yes"]), ("ndarray", "U", None)]
    mixed = object_bundle.begin(recipe_of(Majority()), UPLOADS)
    learned(mixed, [[1], [2], [3], [4]], [True, "1", 7, 7])
    learned(mixed, [[1]], [7])
    assert mixed.estimator.received[0] == ("ndarray", "O", None)
    assert predicted(mixed, [[5]]) == [7]
    assert mixed.metrics()["accuracy"] == 1.0
    assert mixed.score(shape(mixed.recipe, [[1], [2]], [7, "never"], learning=True))["accuracy"] == 0.5


def test_probabilities_are_named_by_the_objects_own_classes() -> None:
    """Columns of probabilities are those of the object's classes_; score has their log loss."""
    bundle = object_bundle.begin(recipe_of(SGDClassifier(loss="log_loss"), classes=["c", "a", "b"]), UPLOADS)
    learned(bundle, [[0.0], [1.0], [2.0]], ["c", "a", "b"])
    rows = shape(bundle.recipe, [[1.0]], learning=False)
    assert bundle.classes == ["a", "b", "c"]
    assert bundle.predict_proba(rows) == bundle.estimator.predict_proba([[1.0]]).tolist()
    scored = bundle.score(shape(bundle.recipe, [[1.0], [0.0]], ["a", "c"], learning=True))
    assert scored["log_loss"] is not None
    assert math.isfinite(scored["log_loss"])


def test_what_takes_no_y_answers_by_its_kind() -> None:
    """Clusterers answer numbers, transformers rows, and neither takes a target."""
    rng = np.random.default_rng(3).normal(size=(9, 2)).tolist()
    clusters = object_bundle.begin(recipe_of(MiniBatchKMeans(n_clusters=2, random_state=0, n_init=1)), UPLOADS)
    learned(clusters, rng)
    assert predicted(clusters, rng) == clusters.estimator.predict(np.array(rng)).tolist()
    scaled = object_bundle.begin(recipe_of(StandardScaler()), UPLOADS)
    learned(scaled, rng)
    assert predicted(scaled, rng) == scaled.estimator.transform(np.array(rng)).tolist()
    with pytest.raises(InvalidError, match="StandardScaler takes no y"):
        shape(scaled.recipe, rng, [1.0] * 9, learning=True)


class Restless(Mean):
    """What changes when it is asked."""

    def predict(self, X: Any) -> Any:
        """Count the questions as if they were rows."""
        self.rows += len(X)
        return np.full(len(X), 1.0)


def test_a_predict_that_changes_the_object_changes_nothing_stored() -> None:
    """What an object does to itself when it is asked is in no bundle that is stored."""
    asked, quiet = (object_bundle.begin(recipe_of(Restless()), UPLOADS) for _ in range(2))
    for bundle in (asked, quiet):
        learned(bundle, X, Y)
        if bundle is asked:
            predicted(bundle, X)
            predicted(bundle, X)
            bundle.score(shape(bundle.recipe, X, Y, learning=True))
        learned(bundle, X, Y)
    assert sealed(asked) == sealed(quiet)


class Faulty(Mean):
    """What raises whatever it is told to, wherever it is told to."""

    where: ClassVar[str] = ""
    error: ClassVar[BaseException] = ValueError()

    def partial_fit(self, X: Any, y: Any) -> "Faulty":
        """Learn, or fail half-way."""
        super().partial_fit(X, y)
        if self.where == "partial_fit":
            raise self.error
        return self

    def predict(self, X: Any) -> Any:
        """Predict, or fail."""
        if self.where == "predict":
            raise self.error
        return super().predict(X)


class NoWordsError(Exception):
    """An error that cannot even be told."""

    def __str__(self) -> str:
        raise RuntimeError


ERRORS = [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), NoWordsError(), RecursionError("deep"), KeyError("x")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_an_object_raises_is_an_error_about_the_request(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """No error of an object's code is more than an Exception, and one at predict names the object and the error."""
    bundle = object_bundle.begin(recipe_of(Faulty()), UPLOADS)
    learned(bundle, X, Y)
    monkeypatch.setattr(Faulty, "error", error)
    monkeypatch.setattr(Faulty, "where", "predict")
    with pytest.raises(InvalidError, match=f"^Faulty cannot answer for these rows: .*{type(error).__name__}"):
        predicted(bundle, X)
    # Evaluation fails, learning does not.
    learned(bundle, X, Y)
    monkeypatch.setattr(Faulty, "where", "partial_fit")
    with pytest.raises((LearningError, NoWordsError, RecursionError, KeyError)) as caught:
        learned(bundle, X, Y)
    assert type(error).__name__ in describe_error(caught.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda X: [1.0], "1 answers for 3 rows"),
        (lambda X: None, "NoneType for 3 rows"),
        (lambda X: [object()] * 3, "object, which JSON has no form for"),
        (lambda X: [2**70] * 3, "int, which JSON has no form for"),
    ],
    ids=["few", "none", "object", "huge"],
)
def test_answers_that_are_none_are_told(monkeypatch: pytest.MonkeyPatch, answer: Any, words: str) -> None:
    """What is not one JSON value for each row is no answer."""
    bundle = object_bundle.begin(recipe_of(Mean()), UPLOADS)
    learned(bundle, X, Y)
    monkeypatch.setattr(Mean, "predict", lambda self, X: answer(X))
    with pytest.raises(InvalidError, match=words):
        predicted(bundle, X)


def test_what_turns_infinite_is_refused() -> None:
    """An array that was finite stays so: the request that would end that is refused, naming it."""
    bundle = object_bundle.begin(recipe_of(SGDRegressor(eta0=1e280, learning_rate="constant")), UPLOADS)
    learned(bundle, [[0.0]], [0.0])
    with pytest.raises((ArithmeticError, ValueError), match=r"finite|overflow"):
        learned(bundle, [[1e38]], [1.0])


def test_what_has_no_pickle_any_more_is_told() -> None:
    """An object that has come to hold a lock cannot be stored, and says so."""
    bundle = object_bundle.begin(recipe_of(Mean()), UPLOADS)
    learned(bundle, X, Y)
    bundle.estimator.lock = threading.Lock()
    with pytest.raises(UnstorableError, match=r"The bundle of 0+ cannot be stored: TypeError: cannot pickle"):
        sealed(bundle)


# What may be sent.


@pytest.mark.parametrize(
    ("learner", "kind", "words"),
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
def test_what_cannot_be_an_object_is_told_at_once(learner: Any, kind: Any, words: str) -> None:
    """What lacks methods, or is of no known kind, is refused with what would be right."""
    with pytest.raises(InvalidError, match=words):
        dump(learner, KEYS, kind=kind)


def test_kinds_are_found_by_tags() -> None:
    """scikit-learn's tags tell what an object is; an argument goes before them."""
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


def test_an_object_is_signed_or_not_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keys come from the environment or the folder of `keepfit up`; without one nothing is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="KEEPFIT_UPLOAD_KEYS is not set; `keepfit key upload` prints"):
        dump(Mean())
    (tmp_path / ".keepfit").mkdir()
    (tmp_path / ".keepfit" / "env").write_text(f"KEEPFIT_UPLOAD_KEYS={KEYS}\n")
    assert uploads.verify(dump(Mean()), UPLOADS).name == "Mean"
    monkeypatch.setenv("KEEPFIT_UPLOAD_KEYS", "other:" + "cd" * 32)
    with pytest.raises(InvalidError, match="KEEPFIT_UPLOAD_KEYS does not hold"):
        uploads.verify(dump(Mean()), UPLOADS)


def test_objects_are_small() -> None:
    """One of more than a MiB is refused where it is made, and where it is posted."""
    heavy = Mean()
    heavy.ballast = bytes(2**20)
    with pytest.raises(InvalidError, match="larger than 1048576 bytes"):
        dump(heavy, KEYS)
    with pytest.raises(InvalidError, match="larger than 1048576 bytes"):
        parse({"object": "A" * 2**21}, UPLOADS)


# What a signature lets through.


class Canary:
    """What leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def resigned(good: bytes, ring: Keyring, **changes: Any) -> bytes:
    """Sign an object's envelope again, with another key or other values in its header."""
    header, payload = UPLOADS.open_as(ObjectHeader, good, envelope.OBJECT)
    return ring.seal(msgspec.structs.replace(header, **changes), payload)


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
def test_a_forged_object_is_refused_before_any_of_it_is_unpickled(tmp_path: Path, name: str) -> None:
    """What no upload key signed, as an object, for these versions: 422 at the gateway, and never loaded by a worker."""
    forge, words = FORGERIES[name]
    good = b64decode(dump(Mean(), KEYS))
    text = b64encode(forge(good, pickle.dumps(Canary(tmp_path / "ran")))).decode()
    with pytest.raises(InvalidError, match=words):
        parse({"object": text}, UPLOADS)
    with pytest.raises(KeepfitError):
        object_bundle.begin(Recipe(object=text), UPLOADS)
    assert not (tmp_path / "ran").exists()


def test_the_canary_sings(tmp_path: Path) -> None:
    """The same pickle, signed as an object, does run in a worker: the test above would see it."""
    header = uploads.header_of(dump(Mean(), KEYS))
    text = b64encode(UPLOADS.seal(header, pickle.dumps(Canary(tmp_path / "ran")))).decode()
    recipe = parse({"object": text}, UPLOADS)
    assert not (tmp_path / "ran").exists()
    object_bundle.begin(recipe, UPLOADS)
    assert (tmp_path / "ran").exists()


def test_an_object_is_no_bundle() -> None:
    """An object's envelope in place of a bundle is refused, even where one key were used for both."""
    same = Keyring.from_text(KEYS)
    with pytest.raises(EnvelopeError, match="another purpose"):
        unseal(b64decode(dump(Mean(), KEYS)), same, recipe_of(Mean()), HASH)


def test_a_worker_without_the_key_or_the_package_says_so() -> None:
    """An object that this process cannot verify or load names what is missing."""
    with pytest.raises(UnknownKeyError, match="KEEPFIT_UPLOAD_KEYS"):
        object_bundle.begin(recipe_of(Mean()), None)
    header = uploads.header_of(dump(Mean(), KEYS))
    absent = b"cno_such_module\nThing\n."
    text = b64encode(UPLOADS.seal(header, absent)).decode()
    with pytest.raises(RuntimeMismatchError, match="Mean cannot be loaded here: ModuleNotFoundError"):
        object_bundle.begin(parse({"object": text}, UPLOADS), UPLOADS)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "must name an estimator .* not none"),
        ({"estimator": "SGDRegressor", "object": True}, "one of them alone: not estimator and object"),
        ({"object": True, "params": {"C": 1}}, "Mean is sent whole"),
        ({"object": True, "classes": [1, 2]}, "Mean is no classifier"),
        ({"object": True, "scaler": "Pickle"}, "scaler 'Pickle' is not one of"),
        ({"object": "%%%"}, "object is not base64"),
        ({"object": ""}, "not a keepfit envelope"),
    ],
    ids=["none", "two", "params", "classes", "scaler", "base64", "empty"],
)
def test_recipes_that_have_no_meaning_with_an_object(document: dict[str, Any], words: str) -> None:
    """A recipe has one of the three, and what an object gets must have a meaning for it."""
    given = {**document, "object": dump(Mean(), KEYS)} if document.get("object") is True else document
    with pytest.raises(InvalidError, match=words):
        parse(given, UPLOADS)
    if "object" in given:
        with pytest.raises(InvalidError):
            parse(given)


def test_without_upload_keys_no_object_is_taken() -> None:
    """A gateway without the setting says which it is."""
    with pytest.raises(InvalidError, match="Set KEEPFIT_UPLOAD_KEYS for gateways and workers"):
        parse({"object": dump(Mean(), KEYS)})


def test_a_recipes_object_is_known_by_its_head() -> None:
    """Name, kind and needs are read from the first bytes, whatever follows, and a text without them is refused."""
    recipe = from_text(recipe_of(Majority()).text())
    assert (recipe.name, recipe.entry.kind, recipe.entry.takes_y, recipe.entry.takes_sample_weight) == (
        "Majority",
        "classifier",
        True,
        True,
    )
    for text in ("", "AAAA", b64encode(RING.seal(BUNDLE_HEADER, b"")).decode(), "A" * 99):
        with pytest.raises(InvalidError, match=r"none that keepfit\.objects\.dump wrote|none"):
            uploads.header_of(text)


def test_a_transformer_mixin_needs_no_predict() -> None:
    """A class that only transforms is a transformer, and answers what it makes of rows."""

    class Doubler(TransformerMixin, BaseEstimator):  # type: ignore[misc]
        def partial_fit(self, X: Any, y: Any = None) -> None:
            self.rows = getattr(self, "rows", 0) + len(X)

        def transform(self, X: Any) -> Any:
            return X * 2

    bundle = object_bundle.begin(recipe_of(Doubler()), UPLOADS)
    learned(bundle, X)
    assert predicted(stored(bundle), X) == (np.array(X) * 2).tolist()
