"""New code for an uploaded object that has learned: another object takes over the learned state.

Owns what is taken over, and the check that it can be used. Never learns rows. Invariants: the new object is unpickled
only if an upload key signed it; its classes are none that a live object has, so that a change that fails alters no
other bundle of the process; what the object answered before it answers after. Changes come from clients with
``PATCH /models/{hash}`` (docs/guides/your-own-objects.md); :mod:`keepfit.recipe.patch` has checked them.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from keepfit.errors import InvalidError, LearningError, UnknownKeyError, describe_error
from keepfit.model import pickling
from keepfit.model.object_answers import seed_globals
from keepfit.recipe import features, uploads
from keepfit.recipe.patch import KEEP, OBJECT
from keepfit.recipe.recipe import Recipe
from keepfit.recipe.uploads import ObjectHeader
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.security import envelope
from keepfit.security.envelope import Keyring

# A row that most objects can answer: by the type of the column.
TRIAL_VALUES: Mapping[str, Any] = {"number": 0, "category": "0", "text": "", "boolean": False, "timestamp": 0}

Question = Callable[[Rows], Any]


class ObjectOwner(Protocol):
    """The bundle of an uploaded object, as far as it is used here."""

    recipe: Recipe
    estimator: Any
    rows_seen: int
    upload_keys: Keyring | None

    @property
    def width(self) -> int | None:
        """Number of values of a row, if it is known."""

    def predict(self, rows: Rows) -> list[Any]:
        """Return predictions."""

    def confidences(self, rows: Rows) -> dict[str, Any]:
        """Return probabilities."""

    def replace_object(self, new: Any, changed: dict[str, Any]) -> None:
        """Put the object `new`, which `changed` describes, in the place of the present one."""


def apply(bundle: ObjectOwner, text: str, state: str = KEEP) -> None:
    """Replace the code of the object in `bundle` by that of the object `text`, which keeps what was learned.

    The object in force again changes nothing. A bundle that learns again (another `state`) must have learned nothing,
    and gets the object as it was sent (:mod:`keepfit.restore.learning_again`).

    Raises
    ------
    InvalidError, EnvelopeError, LearningError
        If the object cannot be loaded, is for other rows, cannot take over the state, or cannot answer what the old one
        can. The bundle is then partly changed and must be discarded.
    Exception
        The errors of the object.
    """
    described = bundle.recipe.object or ""
    keeps = state == KEEP
    if keeps and uploads.is_same(text, described):
        return
    if not keeps and bundle.rows_seen:
        raise InvalidError("object: learns again only from the first row on; this bundle has learned rows.")
    if bundle.upload_keys is None:
        raise UnknownKeyError("The new code is an uploaded object, and this worker has no KEEPFIT_UPLOAD_KEYS.")
    data = uploads.decode(text)
    # As before each request, so that all workers get the same.
    seed_globals(bundle.rows_seen)
    header, new = pickling.load(
        data, bundle.upload_keys, ObjectHeader, envelope.OBJECT, lambda header: None, separate=True
    )
    uploads.check_same_interface(uploads.header_of(described), header)
    changed = {OBJECT: uploads.with_new_code(described, header, text)}
    if not keeps:
        bundle.replace_object(new, changed)
        return
    row = _trial_row(bundle)
    trials = [] if row is None else [(question, row) for question in _questions(bundle)]
    trials = [trial for trial in trials if _fault(*trial) is None]
    take_over(new, bundle.estimator)
    bundle.replace_object(new, changed)
    for trial in trials:
        fault = _fault(*trial)
        if fault is not None:
            raise LearningError(f"the new code of {header.name} cannot answer a row that the old code could: {fault}")
    # Again without the copy that has answered.
    bundle.replace_object(new, changed)


def take_over(new: Any, old: Any) -> None:
    """Give the object `new` the state of `old`, which :mod:`pickle` would store.

    ``__setstate__`` of `new` takes it, if there is one; else the attributes of `old` replace those of `new`, which
    keeps the others.

    Raises
    ------
    InvalidError
        If the class of `old` defines by itself how it is stored.
    """
    function, arguments, *rest = old.__reduce_ex__(pickling.PROTOCOL)
    state = rest[0] if rest else None
    is_usual = (getattr(function, "__name__", ""), arguments) == ("__newobj__", (type(old),))
    if not is_usual or any(each is not None for each in rest[1:]):
        raise InvalidError(
            f"object: the state of {type(old).__name__} cannot be taken over: its class defines how it is pickled "
            "(__reduce__, __getnewargs__), or is a list or a dict. Create a new model."
        )
    if state is None:
        return
    state = pickling.with_code_of(new, old, state)
    if hasattr(new, "__setstate__"):
        new.__setstate__(state)
        return
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    vars(new).update(attributes or {})
    for name, value in (slots or {}).items():
        setattr(new, name, value)


def _questions(bundle: ObjectOwner) -> list[Question]:
    return [bundle.predict, bundle.confidences] if bundle.recipe.entry.kind == "classifier" else [bundle.predict]


def _fault(question: Question, row: Rows) -> str | None:
    """Return why a question about `row` has no answer; None if it has one."""
    try:
        question(row)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - an object may raise any exception
        return str(error) or describe_error(error)
    return None


def _trial_row(bundle: ObjectOwner) -> Rows | None:
    """Return a row that the object may be able to answer; None if nothing is known about its rows."""
    recipe = bundle.recipe
    if recipe.features is None:
        if recipe.takes_dicts or bundle.width is None:
            return None
        return Rows(1, bytes(8 * bundle.width), [])
    row = {
        name: TRIAL_VALUES[features.kind_of(features.options_of(feature))] for name, feature in recipe.features.items()
    }
    return shape(recipe, [row], learning=False)
