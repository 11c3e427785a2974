"""New code for an object that has learned: what is taken over, and what is refused and changes nothing."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from sklearn.linear_model import SGDRegressor

from keepfit.errors import ConflictError, EnvelopeError, InvalidError, UnknownKeyError
from keepfit.model.columns import Columns
from keepfit.model.fit_loop import Fitted, fit_requests
from keepfit.model.object_bundle import ObjectBundle, new_bundle
from keepfit.model.serialization import seal, unseal
from keepfit.objects import dump
from keepfit.recipe import patch, uploads
from keepfit.recipe.recipe import Recipe, from_text, parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.security import envelope
from keepfit.security.envelope import UPLOAD_KEYS, Header, Keyring
from tests.factories import dump_local

KEYS, OTHER = "u1:" + "ab" * 32, "u2:" + "cd" * 32
UPLOADS = Keyring.from_text(KEYS, UPLOAD_KEYS)
RING = Keyring.from_text("test:" + "5e" * 32)
HASH = "0" * 64

# A class with a class and a function of its own inside, and what is wrong with it.
OLD = """
class Cell:
    def __init__(self, value): self.value = value
    def shown(self): return self.value

def weigh(value): return value

class Model:
    def __init__(self): self.cells, self.by, self.weigh, self.me = [], Cell, weigh, self
    def partial_fit(self, X, y): self.cells += [self.by(float(each)) for each in y]
    def predict(self, X): return [sum(self.weigh(cell.shown()) for cell in self.me.cells)] * len(X)
learner = Model()
"""
NEW = OLD.replace("return self.value", "return self.value * 10").replace("return value", "return value + 0.5")


def recipe_of(text: str, **more: Any) -> Recipe:
    """Return the recipe of an object."""
    return parse({"object": text, **more}, UPLOADS)


def bundle_of(source: str, kind: Any = "regressor", **more: Any) -> Any:
    """Return the bundle of what a source has as `learner`."""
    return new_bundle(recipe_of(dump_local(source, KEYS, kind), **more), UPLOADS)


def change(source: str, kind: Any = "regressor") -> dict[str, Any]:
    """Return the change to the code of a source."""
    return {"object": dump_local(source, KEYS, kind), "state": "keep"}


def learn(bundle: Any, X: Any, y: Any = None) -> None:
    """Learn rows."""
    bundle.partial_fit(shape(bundle.recipe, X, y, learning=True))


def predict(bundle: Any, X: Any) -> Any:
    """Predict rows."""
    return bundle.predict(shape(bundle.recipe, X, learning=False))


def sealed(bundle: Any) -> bytes:
    """Return the bundle as it is stored."""
    return seal(bundle, RING, Header(envelope.BUNDLE, HASH, 1, 1, 1, bundle.rows_seen, "", bundle.runtime))


def stored(bundle: Any, recipe: Recipe) -> Any:
    """Return the bundle as another worker reads it."""
    return unseal(sealed(bundle), RING, from_text(recipe.text()), HASH, UPLOADS)[1]


def test_new_code_computes_with_what_was_learned() -> None:
    """The classes and functions of the new object act on the state of the old one, also those that are nested."""
    bundle = bundle_of(OLD)
    learn(bundle, [[1.0], [2.0]], [1.0, 2.0])
    metrics = bundle.metrics()
    assert predict(bundle, [[0.0]]) == [3.0]
    bundle.change(change(NEW))
    assert predict(bundle, [[0.0]]) == [31.0]
    assert (bundle.rows_seen, bundle.metrics()) == (2, metrics)
    learn(bundle, [[3.0]], [3.0])
    assert predict(bundle, [[0.0]]) == [61.5]
    assert bundle.estimator.me is bundle.estimator
    assert {type(cell) for cell in bundle.estimator.cells} == {bundle.estimator.by}


@pytest.mark.parametrize("kept", [False, True])
def test_changed_code_is_stored_with_the_bundle(*, kept: bool) -> None:
    """A bundle with new code that is stored and read goes on with it; it can be changed again, and back."""
    old = dump_local(OLD, KEYS)
    recipe = recipe_of(old)
    bundle: Any = new_bundle(recipe, UPLOADS)
    learn(bundle, [[1.0]], [1.0])
    for text, predicted in ((dump_local(NEW, KEYS), 10.5), (old, 1.0), (dump_local(NEW, KEYS), 10.5)):
        bundle.change({"object": text, "state": "keep"})
        if kept:
            bundle = stored(bundle, recipe)
        assert predict(bundle, [[0.0]]) == [predicted]
        assert uploads.digest_of(patch.with_changes(recipe, bundle.changed).object or "") == uploads.digest_of(text)
    assert len(str(bundle.changed)) < 1000


CONVERTS = """
    def __setstate__(self, state):
        self.__dict__ = {"last": state["last"], "total": state.get("total", 0.0) + state["last"] * 2}
"""


def test_attributes_of_the_old_object_replace_those_of_the_new_one() -> None:
    """Without __setstate__ new attributes are those of the new object; __setstate__ decides for itself."""
    source = """
class Model:
    def __init__(self): self.last = {last}
    def partial_fit(self, X, y): self.last = float(y[-1])
    def predict(self, X): return [self.last] * len(X)
learner = Model()
"""
    bundle = bundle_of(source.format(last=1))
    learn(bundle, [[1.0]], [7.0])
    bundle.change(change(source.format(last="2; self.more = 5")))
    assert (bundle.estimator.last, bundle.estimator.more) == (7.0, 5)
    migrating = change(source.format(last=3).replace("learner", CONVERTS + "learner"))
    bundle.change(migrating)
    assert vars(bundle.estimator) == {"last": 7.0, "total": 14.0}
    # Repeated, as by a client that has lost the answer, it is not taken over a second time.
    bundle.change(migrating)
    assert vars(bundle.estimator) == {"last": 7.0, "total": 14.0}


def test_the_uploaded_object_again_changes_nothing() -> None:
    """The object of the recipe, of which a bundle holds the beginning only, is recognized; another one is not."""
    source = """
class Model:
    ballast, taken = bytes(20_000), 0
    def partial_fit(self, X, y): self.last = float(y[-1])
    def predict(self, X): return [self.last] * len(X)
    def __setstate__(self, state): self.__dict__ = {**state, "taken": state.get("taken", 0) + 1}
learner = Model()
"""
    uploaded = change(source)
    bundle: Any = new_bundle(recipe_of(uploaded["object"]), UPLOADS)
    learn(bundle, [[1.0]], [7.0])
    for text, taken in ((uploaded, 0), (change(source), 1), (uploaded, 2)):
        for _ in range(2):
            bundle.change(text)
            assert bundle.estimator.taken == taken


def test_slots_are_taken_over() -> None:
    """An object whose class has slots keeps what is in them."""
    source = """
class Model:
    __slots__ = ("last", "__weakref__")
    def __init__(self): self.last = 0.0
    def partial_fit(self, X, y): self.last = float(y[-1])
    def predict(self, X): return [self.last + {more}] * len(X)
learner = Model()
"""
    bundle = bundle_of(source.format(more=0))
    learn(bundle, [[1.0]], [7.0])
    bundle.change(change(source.format(more=1)))
    assert predict(bundle, [[1.0]]) == [8.0]


LOCK = """
import threading
class Locked(Model):
    def __setstate__(self, state):
        vars(self).update(state)
        self.lock = threading.Lock()
learner = Locked()
"""
GONE = """
class Gone:
    def __getstate__(self): return 1
    def __setstate__(self, state): raise ImportError("no module of the author")
learner.gone = Gone()
"""
EXITS = """    def __setstate__(self, state):
        vars(self).update(state)
        if self.cells: raise SystemExit("bye")
    def predict"""
LEARN_ONE = NEW.replace("partial_fit", "learn_one").replace("predict(", "predict_one(")
FAULTS = {
    "state": (OLD.replace("class Model", "class Model(dict)"), NEW, "the state of Model cannot be taken over"),
    "setstate": (OLD, NEW.replace("    def predict", EXITS), "it raised SystemExit: bye"),
    "answer": (OLD, NEW.replace("self.me.cells", "self.rows"), "cannot answer a row that the old code could"),
    "count": (OLD, NEW.replace("* len(X)", "* 7"), "predict returned 7 values for 1 rows"),
    "loading": (OLD, NEW + GONE, "cannot be loaded here: ImportError: no module of the author"),
    "calls": (OLD, LEARN_ONE, "the calls of Model is"),
    "weights": (OLD, NEW.replace("X, y)", "X, y, sample_weight=None)"), "the takes_sample_weight of Model is"),
    "lock": (OLD, NEW + LOCK, "cannot pickle"),
}


@dataclass(frozen=True, slots=True)
class Request:
    """A pending request: rows by their values, or a change."""

    value: float = 0.0
    change: dict[str, Any] | None = None
    wants_answer: bool = False
    accepted_s: float = 0.0

    def rows(self) -> Rows:
        """Return one row with its target."""
        return Rows(1, struct.pack("<d", self.value), [], struct.pack("<d", self.value))


def run(recipe: Recipe, requests: Sequence[Request]) -> tuple[Any, list[str]]:
    """Learn requests as a worker does; return the bundle and the reasons of those that were put aside."""
    data, reasons = b"", []

    def read() -> Any:
        return unseal(data, RING, recipe, HASH, UPLOADS)[1] if data else new_bundle(recipe, UPLOADS)

    def commit(bundle: Any, fitted: Fitted) -> tuple[bytes, Fitted]:
        return sealed(bundle), fitted

    while requests:
        data, fitted = fit_requests(read(), read, requests, commit, 60.0)
        reasons += [] if fitted.count else [fitted.reason]
        requests = requests[fitted.count or 1 :]
    return read(), reasons


@pytest.mark.parametrize("updates", ["exact", "merged"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_change_that_fails_leaves_the_bundle_as_it_was(name: str, updates: str) -> None:
    """What cannot be loaded, take over the state or answer is put aside, and the rows around it are learned."""
    old, new, message = FAULTS[name]
    recipe = recipe_of(dump_local(old, KEYS), updates=updates)
    rows = [Request(1.0), Request(2.0), Request(4.0)]
    found, (reason,) = run(recipe, [*rows[:2], Request(change=change(new)), *rows[2:]])
    expected, _ = run(recipe, rows)
    assert message in reason
    assert (predict(found, [[0.0]]), found.changed) == (predict(expected, [[0.0]]), {}) == ([7.0], {})
    assert found.rows_seen == 3


@pytest.mark.parametrize("updates", ["exact", "merged"])
def test_rows_around_a_change_have_their_code(updates: str) -> None:
    """Rows before a change are learned with the old code, rows after it with the new one."""
    counting = OLD.replace("self.by(float(each))", "self.by(float(each) * FACTOR)")
    old, new = ("FACTOR = 1" + counting, "FACTOR = 100" + counting)
    requests = [Request(1.0), Request(2.0), Request(change=change(new)), Request(4.0), Request(8.0)]
    bundle, reasons = run(recipe_of(dump_local(old, KEYS), updates=updates), requests)
    assert (predict(bundle, [[0.0]]), reasons) == ([1203.0], [])


def test_new_code_must_be_signed_by_an_upload_key() -> None:
    """A worker loads no unsigned code, whatever is in the inbox, and none without an upload key."""
    bundle = bundle_of(OLD)
    foreign = {"object": dump_local(NEW, OTHER), "state": "keep"}
    with pytest.raises(EnvelopeError, match="KEEPFIT_UPLOAD_KEYS does not hold"):
        bundle.change(foreign)
    bundle.upload_keys = None
    with pytest.raises(UnknownKeyError, match="this worker has no KEEPFIT_UPLOAD_KEYS"):
        bundle.change(change(NEW))
    with pytest.raises(InvalidError, match="the parameters of an object cannot be changed"):
        bundle.change({"alpha": 1})


def test_a_class_that_its_author_changed_in_place_is_not_changed_here() -> None:
    """Code that fails is in no other bundle, also if it is of the very class that was uploaded before."""

    class Last:
        value = 0.0

        def partial_fit(self, X: Any, y: Any) -> None:
            self.value = float(y[-1])

        def predict(self, X: Any) -> Any:
            return [self.value] * len(X)

    def broken(self: Any, X: Any) -> Any:
        return self.gone

    recipe, good = recipe_of(dump(Last(), KEYS, kind="regressor")), Last.predict
    setattr(Last, "predict", broken)  # noqa: B010 - an author does the same in a notebook
    bad = dump(Last(), KEYS, kind="regressor")
    setattr(Last, "predict", good)  # noqa: B010
    live, _ = run(recipe, [Request(3.0)])
    other, (reason,) = run(recipe, [Request(3.0), Request(change={"object": bad, "state": "keep"})])
    assert "'Last' object has no attribute 'gone'" in reason
    assert predict(live, [[0.0]]) == predict(other, [[0.0]]) == [3.0]


def test_a_pipeline_of_river_keeps_what_its_steps_have_learned() -> None:
    """A step of one's own in a pipeline gets its new code, and River's steps keep their weights."""
    source = """
from river import base, compose, linear_model
class Scale(base.Transformer):
    def transform_one(self, x): return {name: value * FACTOR for name, value in x.items()}
learner = compose.Pipeline(Scale(), linear_model.LinearRegression())
"""
    recipe = recipe_of(dump_local("FACTOR = 1.0" + source, KEYS), features={"a": "number"})
    bundle: Any = new_bundle(recipe, UPLOADS)
    for value in (1.0, 2.0, 3.0):
        learn(bundle, [{"a": value}], [2 * value])
    (before,) = predict(bundle, [{"a": 1.0}])
    (zero,) = predict(bundle, [{"a": 0.0}])
    bundle.change(change("FACTOR = 10.0" + source))
    (after,) = predict(bundle, [{"a": 1.0}])
    assert after - zero == pytest.approx(10 * (before - zero))


def test_a_trained_object_gets_new_code() -> None:
    """An object that learned before it was uploaded keeps that, and still says so."""
    recipe = recipe_of(dump(SGDRegressor(), KEYS))
    header = uploads.header_of(recipe.object or "")
    file = uploads.TrainedFile("skops", "0" * 64, 10)
    trained = msgspec.structs.replace(recipe, object=uploads.trained_text(header, file, RING))
    with pytest.raises(ConflictError, match="had learned before it was uploaded"):
        patch.new_code(trained, {}, recipe.object or "", "learn_again", UPLOADS)
    learner = SGDRegressor(shuffle=False).partial_fit([[1.0], [2.0]], [1.0, 2.0])
    bundle = ObjectBundle(trained, Columns.new(trained), None, learner, [], learned_width=1)
    bundle.upload_keys = UPLOADS
    expected = predict(bundle, [[3.0]])
    source = """
from sklearn.linear_model import SGDRegressor
class Doubled(SGDRegressor):
    def predict(self, X): return SGDRegressor.predict(self, X) * 2
learner = Doubled()
"""
    bundle.change(change(source))
    assert predict(bundle, [[3.0]]) == [2 * expected[0]]
    assert (bundle.has_learned, bundle.recipe.name) == (True, "Doubled")
    assert not bundle.predicts_rows_independently


def test_only_objects_get_new_code() -> None:
    """The gateway's check names what is wrong with a change of code."""
    recipe, text = recipe_of(dump_local(OLD, KEYS)), dump_local(NEW, KEYS)
    assert patch.new_code(recipe, {}, text, "keep", UPLOADS) == {"object": text, "state": "keep"}
    cases: list[tuple[Recipe, tuple[str, str, Keyring | None], str]] = [
        (Recipe("SGDRegressor"), (text, "keep", UPLOADS), "made of SGDRegressor, not of an uploaded object"),
        (recipe, (text, "new", UPLOADS), 'write "keep"'),
        (recipe, (text, "keep", None), "this gateway accepts no objects"),
        (recipe, ("QQ==", "keep", UPLOADS), "not a keepfit envelope"),
        (recipe, (dump_local(NEW, KEYS, "clusterer"), "keep", UPLOADS), "the kind of Model is"),
    ]
    for model, (new, state, keyring), message in cases:
        with pytest.raises(InvalidError, match=message):
            patch.new_code(model, {}, new, state, keyring)


def test_learning_again_begins_with_the_object_as_it_was_sent() -> None:
    """It takes over nothing, is made again with the object in force, and only by a bundle that has learned nothing."""
    text = dump_local(NEW, KEYS)
    change = {"object": text, "state": "learn_again"}
    bundle = bundle_of(OLD)
    bundle.change(change)
    bundle.change(change)
    assert (bundle.rows_seen, uploads.header_of(bundle.changed["object"]).code is not None) == (0, True)
    bundle.rows_seen = 1
    with pytest.raises(InvalidError, match="from the first row on"):
        bundle.change(change)


def test_the_recipe_in_force_can_be_posted_again() -> None:
    """A recipe with the object in force is that of the model; with another object, or other columns, it is not."""
    old, new = dump_local(OLD, KEYS), dump_local(NEW, KEYS)
    recipe, bundle = recipe_of(old), bundle_of(OLD)
    bundle.change({"object": new, "state": "keep"})
    for posted, same in (
        (recipe_of(new), True),
        (recipe_of(old), False),
        (recipe_of(new, window=100), False),
        (Recipe("SGDRegressor"), False),
    ):
        assert patch.is_in_force(recipe, bundle.changed, posted) is same
    shown = patch.shown({"object": new, "state": "keep"})
    assert shown == {"object": f"sha256:{uploads.digest_of(new)}", "state": "keep"}
