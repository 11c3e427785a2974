"""What an object of scikit-learn or River is: its kind, the method with which it learns, and whether it takes weights.

Owns the description of an object that a recipe or an upload names: :func:`describe`. Never calls a method that learns
or answers, and imports neither library. Objects come from Python clients (:mod:`keepfit.objects`) and from uploaded
files (:mod:`keepfit.model.trained`).
"""

import inspect
import sys
from collections.abc import Sequence
from typing import Any, get_args

from keepfit.errors import InvalidError
from keepfit.model.river_adapter import PREDICT_MANY, PREDICT_ONE
from keepfit.recipe.catalogue import SUPERVISED_KINDS, Kind
from keepfit.recipe.uploads import NAME_LENGTH_MAX, LearnMethod, ObjectHeader
from keepfit.security import envelope

KINDS: tuple[Kind, ...] = get_args(Kind)
# In order of preference: a River model with both methods learns row by row, as its documentation shows.
CALLS: tuple[LearnMethod, ...] = get_args(LearnMethod)
# River's base classes. A class may have several of them as ancestors; the first in this table decides.
RIVER_KINDS: dict[str, Kind] = {
    "Classifier": "classifier",
    "Regressor": "regressor",
    "Clusterer": "clusterer",
    "AnomalyDetector": "outlier_detector",
    "BaseTransformer": "transformer",
    "Transformer": "transformer",
}
# River's classes that take several targets.
RIVER_MULTI_OUTPUT: dict[str, Kind] = {"MultiLabelClassifier": "classifier", "MultiTargetRegressor": "regressor"}
# River's classes that take a target where keepfit's kind takes none.
UNSUPPORTED = {
    "SupervisedAnomalyDetector",
    "SupervisedTransformer",
    "MiniBatchSupervisedTransformer",
}


def describe(
    learner: Any,
    *,
    kind: Kind | None = None,
    multi_output: bool | None = None,
    packages: Sequence[str] = (),
    is_pickled: bool = True,
    is_trained: bool = False,
) -> ObjectHeader:
    """Return the header that describes `learner`.

    Parameters
    ----------
    kind : kind of the object, required if scikit-learn's tags or River's base classes do not name it
    multi_output : whether a model with ``learn_one`` takes several targets; None: River's base classes decide
    packages : distribution names of packages, beside scikit-learn, NumPy and River, whose versions it depends on
    is_pickled : whether its pickle depends on the version of cloudpickle
    is_trained : whether it has learned; then it may be a Pipeline of scikit-learn

    Raises
    ------
    InvalidError
        If required methods are missing, or the kind is unknown.
    """
    name = type(learner).__name__[:NAME_LENGTH_MAX]
    calls = learn_method(name, learner, is_trained=is_trained)
    found = kind or (_sklearn_kind(learner) if calls == "partial_fit" else _river_kind(learner))
    if found not in KINDS:
        raise InvalidError(f"The kind of {name} is unknown: pass dump(..., kind=...) with one of {', '.join(KINDS)}.")
    if multi_output is None:
        multi_output = calls != "partial_fit" and bool(
            _river_ancestors(_last_step(learner)) & RIVER_MULTI_OUTPUT.keys()
        )
    if multi_output and (calls == "partial_fit" or found not in SUPERVISED_KINDS):
        raise InvalidError(f"{name} cannot have several targets: that takes a regressor or classifier with learn_one.")
    _check_methods(name, learner, calls, found)
    cloudpickle = ["cloudpickle"] if is_pickled else []
    river = ["river"] if type(learner).__module__.partition(".")[0] == "river" else []
    return ObjectHeader(
        purpose=envelope.OBJECT,
        name=name,
        kind=found,
        calls=calls,
        takes_sample_weight=_takes_weights(final_step(learner), calls),
        runtime=_runtime(*cloudpickle, *river, *packages),
        multi_output=multi_output,
    )


def final_step(learner: Any) -> Any:
    """Return the last step of a Pipeline of scikit-learn; any other object unchanged."""
    while _is_sklearn_pipeline(learner):
        learner = learner.steps[-1][1]
    return learner


def _is_sklearn_pipeline(learner: Any) -> bool:
    # Clients need no scikit-learn; without its module there is no Pipeline.
    module = sys.modules.get("sklearn.pipeline")
    return module is not None and type(learner) is module.Pipeline


def learn_method(name: str, learner: Any, *, is_trained: bool = False) -> LearnMethod:
    """Return the name of the method that `learner` learns with; InvalidError if it has none."""
    if isinstance(learner, type):
        raise InvalidError(f"{learner.__name__} is a class: create an instance and dump that.")
    for calls in CALLS:
        if callable(getattr(learner, calls, None)):
            return calls
    if is_trained and _is_sklearn_pipeline(learner):
        if callable(getattr(final_step(learner), "partial_fit", None)):
            return "partial_fit"
        last = type(final_step(learner)).__name__
        raise InvalidError(f"{last}, the last step of the Pipeline, has no partial_fit, so it cannot learn on.")
    if is_trained:
        raise InvalidError(f"{name} has none of {', '.join(CALLS)}, so it cannot learn on.")
    raise InvalidError(
        f"{name} has none of {', '.join(CALLS)}, so it cannot learn row by row. Neither has a Pipeline of "
        "scikit-learn: name its steps in the recipe instead."
    )


def _runtime(*packages: str) -> dict[str, str]:
    """Return the versions that an object depends on: what is not installed here is in no object that is made here."""
    return {name: version for name, version in envelope.runtime(*packages).items() if version != envelope.NOT_INSTALLED}


def _check_methods(name: str, learner: Any, calls: LearnMethod, kind: Kind) -> None:
    """Raise InvalidError if `learner` has no method to answer with."""
    if calls == "partial_fit":
        required = "transform" if kind == "transformer" else "predict"
    else:
        required = (PREDICT_ONE if calls == "learn_one" else PREDICT_MANY)[kind]
    if not callable(getattr(learner, required, None)):
        raise InvalidError(f"{name} has {calls} but no {required}, which a {kind.replace('_', ' ')} needs.")


def _takes_weights(learner: Any, calls: LearnMethod) -> bool:
    """Return whether the learn method takes weights of rows."""
    parameter = {"partial_fit": "sample_weight", "learn_one": "w"}.get(calls)
    return parameter in inspect.signature(getattr(learner, calls)).parameters


def _sklearn_kind(learner: Any) -> str | None:
    """Return the kind by scikit-learn's tags, or by the attribute that older versions used."""
    tags = getattr(learner, "__sklearn_tags__", None)
    found = tags().estimator_type if tags is not None else getattr(learner, "_estimator_type", None)
    if found is None and hasattr(learner, "transform") and not hasattr(learner, "predict"):
        return "transformer"
    return found if found is None else str(found)


def _last_step(learner: Any) -> Any:
    """Return the last step of River's pipelines; `learner` itself if it is none."""
    steps = getattr(learner, "steps", None)
    return _last_step(list(steps.values())[-1]) if isinstance(steps, dict) and steps else learner


def _river_ancestors(learner: Any) -> set[str]:
    return {cls.__name__ for cls in type(learner).__mro__ if cls.__module__.partition(".")[0] == "river"}


def _river_kind(learner: Any) -> str | None:
    """Return the kind by River's base classes; of a pipeline the kind of its last step. Wrappers have the base classes
    of what they wrap."""
    last = _last_step(learner)
    ancestors = _river_ancestors(last)
    unsupported = sorted(ancestors & UNSUPPORTED)
    if unsupported:
        raise InvalidError(
            f"{type(last).__name__} is River's {unsupported[0]}, which is not supported: "
            "it takes a target where keepfit's kind takes none."
        )
    found = [kind for name, kind in {**RIVER_MULTI_OUTPUT, **RIVER_KINDS}.items() if name in ancestors]
    return found[0] if found else None
