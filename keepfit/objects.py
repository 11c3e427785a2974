"""Sending an object of one's own: an estimator or a River model becomes the text that a recipe takes.

Owns what Python users call, :func:`dump`, and how it finds out what an object is. Never sends anything. Invariant: what
it returns is signed with an upload key; without one it returns nothing. The text goes into a recipe, through a gateway
that verifies it (:mod:`keepfit.recipe.uploads`), to workers that verify it again and load it
(:mod:`keepfit.model.object_bundle`).
"""

import inspect
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from keepfit import settings
from keepfit.errors import InvalidError
from keepfit.model import pickling
from keepfit.model.river_adapter import MANY, ONE
from keepfit.recipe import uploads
from keepfit.recipe.catalogue import Kind
from keepfit.recipe.uploads import Calls, ObjectHeader
from keepfit.security import envelope
from keepfit.security.envelope import UPLOAD_KEYS, Keyring

KINDS: tuple[Kind, ...] = get_args(Kind)
# In this order: a River model that has both learns row by row, which is what its documentation shows.
CALLS: tuple[Calls, ...] = get_args(Calls)
# River's base classes; more than one may be an ancestor, and the first here says what it is.
RIVER_KINDS: dict[str, Kind] = {
    "Classifier": "classifier",
    "Regressor": "regressor",
    "Clusterer": "clusterer",
    "AnomalyDetector": "outlier_detector",
    "BaseTransformer": "transformer",
    "Transformer": "transformer",
}
# Those that take several targets, or one where ours take none.
UNFIT = {
    "MultiLabelClassifier",
    "MultiTargetRegressor",
    "SupervisedAnomalyDetector",
    "SupervisedTransformer",
    "MiniBatchSupervisedTransformer",
}


def dump(
    learner: Any,
    keys: str | None = None,
    *,
    kind: Kind | None = None,
    modules: Sequence[ModuleType] = (),
    packages: Sequence[str] = (),
) -> str:
    """Pickle and sign an object; the text is what a recipe has under `object`.

    Parameters
    ----------
    learner : what has ``partial_fit`` and ``predict`` (or ``transform``), or River's ``learn_one`` and ``predict_one``
    keys : upload keys, ``id:hex,…``; by default KEEPFIT_UPLOAD_KEYS, or those of a `keepfit up` in this folder
    kind : what it is, where scikit-learn's tags or River's classes do not tell
    modules : modules of your own whose classes go along by value; those of ``__main__`` and of functions always do
    packages : further packages, by the names under which they are installed, whose versions workers must have

    Raises
    ------
    InvalidError
        If it has not the methods, its kind is not known, or it is too large.
    SettingsError
        If there is no upload key.
    UnstorableError
        If it holds what has no pickle.
    """
    name = type(learner).__name__[: uploads.NAME_LENGTH_MAX]
    calls = _calls(name, learner)
    found = kind or (_kind(learner) if calls == "partial_fit" else _river_kind(learner))
    if found not in KINDS:
        raise InvalidError(f"Say what {name} is: dump(..., kind=...) with one of {', '.join(KINDS)}.")
    _check_methods(name, learner, calls, found)
    river = ["river"] if type(learner).__module__.partition(".")[0] == "river" else []
    header = ObjectHeader(
        purpose=envelope.OBJECT,
        name=name,
        kind=found,
        calls=calls,
        takes_sample_weight=_takes(learner, calls),
        runtime=envelope.runtime("cloudpickle", *river, *packages),
    )
    payload = pickling.dump_foreign(learner, header.subject, modules)
    text = b64encode(_keyring(keys).seal(header, payload)).decode()
    uploads.signed(text)
    return text


def _keyring(keys: str | None) -> Keyring:
    if keys is None:
        keys = settings.load(Path(".keepfit") / "env").upload_keys.get_secret_value()
    return Keyring.from_text(keys, UPLOAD_KEYS)


def _calls(name: str, learner: Any) -> Calls:
    """Find the method that it learns by."""
    if isinstance(learner, type):
        raise InvalidError(f"{learner.__name__} is a class: make one of it, and dump that.")
    for calls in CALLS:
        if callable(getattr(learner, calls, None)):
            return calls
    raise InvalidError(
        f"{name} has none of {', '.join(CALLS)}, so it cannot learn row by row. A Pipeline of scikit-learn has none "
        "either: name its steps in the recipe instead."
    )


def _check_methods(name: str, learner: Any, calls: Calls, kind: Kind) -> None:
    """Refuse what learns and cannot answer."""
    if calls == "partial_fit":
        wanted = "transform" if kind == "transformer" else "predict"
    else:
        wanted = (ONE if calls == "learn_one" else MANY)[kind]
    if not callable(getattr(learner, wanted, None)):
        raise InvalidError(f"{name} has {calls} and no {wanted}, which a {kind.replace('_', ' ')} answers by.")


def _takes(learner: Any, calls: Calls) -> bool:
    """Whether it takes weights of rows."""
    wanted = {"partial_fit": "sample_weight", "learn_one": "w"}.get(calls)
    return wanted in inspect.signature(getattr(learner, calls)).parameters


def _kind(learner: Any) -> str | None:
    """What scikit-learn's tags say that it is, or the attribute that came before them."""
    tags = getattr(learner, "__sklearn_tags__", None)
    found = tags().estimator_type if tags is not None else getattr(learner, "_estimator_type", None)
    if found is None and hasattr(learner, "transform") and not hasattr(learner, "predict"):
        return "transformer"
    return found if found is None else str(found)


def _river_kind(learner: Any) -> str | None:
    """What it is by River's base classes; of a pipeline its last step is asked, of a wrapper what it wraps."""
    steps = getattr(learner, "steps", None)
    if isinstance(steps, dict) and steps:
        return _river_kind(list(steps.values())[-1])
    ancestors = {cls.__name__ for cls in type(learner).__mro__ if cls.__module__.partition(".")[0] == "river"}
    unfit = sorted(ancestors & UNFIT)
    if unfit:
        raise InvalidError(f"{type(learner).__name__} is River's {unfit[0]}, whose rows have no single target here.")
    found = [kind for name, kind in RIVER_KINDS.items() if name in ancestors]
    return found[0] if found else None
