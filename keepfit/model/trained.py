"""Objects that had learned before they were uploaded: from the bytes of a file to the first bundle of a model.

Owns what such an object must be, and the recipe that describes it. Never learns. Invariants: a file of skops is loaded
only as far as :mod:`keepfit.model.skops_files` permits, any other file only if an upload key signed it; a bundle that
:func:`new_bundle` returns has answered a row. Files come from clients through gateways; a worker loads them.
"""

import hashlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from keepfit.errors import ConflictError, EnvelopeError, InvalidError, KeepfitError, describe_error
from keepfit.model import object_kinds, pickling, sklearn_pipeline, skops_files
from keepfit.model.columns import Columns
from keepfit.model.labels import Labels
from keepfit.model.learning_curve import LearningCurve
from keepfit.model.object_bundle import ObjectBundle
from keepfit.model.object_calls import only_exceptions
from keepfit.model.outputs import Outputs
from keepfit.recipe import uploads
from keepfit.recipe.features import COLUMNS_MAX
from keepfit.recipe.recipe import Recipe, check_fields
from keepfit.recipe.uploads import ObjectHeader, TrainedFile
from keepfit.rows.rows import Rows
from keepfit.security import envelope
from keepfit.security.envelope import Keyring

# Up to this number floats, which all clients have, count in ones.
ROWS_SEEN_MAX = 2**53


@dataclass(frozen=True, slots=True)
class Keys:
    """The signing keys, and the upload keys (None: no pickle is accepted)."""

    signing: Keyring
    upload: Keyring | None


def new_bundle(data: bytes, keys: Keys, bytes_max: int) -> ObjectBundle:
    """Load the object in the file `data`, which takes at most `bytes_max` bytes, and return its bundle.

    Raises
    ------
    InvalidError
        If the file is damaged or not signed, or the object is not fitted, cannot learn on or cannot answer.
    """
    is_skops = data.startswith(skops_files.MAGIC)
    if not is_skops and not data.startswith(envelope.MAGIC):
        raise InvalidError(
            "The file is neither one of skops (skops.io.dumps) nor a signed pickle (keepfit.objects.dump_trained); "
            "other pickles are code of unknown origin and are never loaded."
        )
    file = TrainedFile("skops" if is_skops else "pickle", hashlib.sha256(data).hexdigest(), len(data))
    header, learner = _from_skops(data, bytes_max) if is_skops else _from_pickle(data, keys.upload)
    try:
        with only_exceptions(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width = _check_fitted(header, learner)
            recipe = _recipe(header, learner, width, uploads.trained_text(header, file, keys.signing))
    except (KeepfitError, MemoryError):
        raise
    except NotFittedError as error:
        raise InvalidError(str(error)) from None
    except Exception as error:  # noqa: BLE001 - an object may raise any exception
        raise InvalidError(f"{header.name} cannot be used: {describe_error(error)}.") from None
    labels: Labels | Outputs | None = None
    if header.kind == "classifier":
        labels = Outputs() if header.multi_output else Labels.from_classes(None)
    rows_seen = _rows_seen(learner)
    curve = LearningCurve(rows_seen)
    bundle = ObjectBundle(recipe, Columns.new(recipe), labels, learner, [], rows_seen, learned_width=width, curve=curve)
    _try_row(bundle)
    return bundle


def _from_skops(data: bytes, bytes_max: int) -> tuple[ObjectHeader, Any]:
    learner = skops_files.load(data, bytes_max)
    return object_kinds.describe(learner, is_pickled=False, is_trained=True), learner


def _from_pickle(data: bytes, keyring: Keyring | None) -> tuple[ObjectHeader, Any]:
    if keyring is None:
        raise InvalidError(
            "Pickles are not accepted: set KEEPFIT_UPLOAD_KEYS for the workers (`keepfit key upload` prints a key), or "
            "upload a file of skops."
        )
    try:
        return pickling.load(data, keyring, ObjectHeader, envelope.OBJECT, lambda header: None)
    except EnvelopeError as error:
        raise InvalidError(str(error)) from None


def _check_fitted(header: ObjectHeader, learner: Any) -> int | None:
    """Check that `learner` can learn on from where it is; return the width of its rows, None if it has none."""
    if object_kinds.learn_method(header.name, learner, is_trained=True) != "partial_fit":
        return None
    if hasattr(learner, "get_params"):
        for step in sklearn_pipeline.steps_of(learner):
            if hasattr(step, "fit"):
                check_is_fitted(step, msg=f"{type(step).__name__} is not fitted: upload it after it has learned.")
    width = getattr(learner, "n_features_in_", None)
    if not isinstance(width, int | np.integer):
        return None
    if not 1 <= width <= COLUMNS_MAX:
        raise InvalidError(f"{header.name} has learned rows of {width} values; rows may have 1 to {COLUMNS_MAX} here.")
    return int(width)


def _recipe(header: ObjectHeader, learner: Any, width: int | None, text: str) -> Recipe:
    """Return the recipe of a trained object; columns have names if those of a data frame were learned."""
    names = getattr(learner, "feature_names_in_", None) if header.calls == "partial_fit" else None
    features: Any = None if names is None else {str(name): "number" for name in names}
    if features is not None and len(features) != width:
        raise InvalidError(f"{header.name} has names of {len(features)} columns, and learned rows of {width} values.")
    recipe = Recipe(object=text, features=features)
    check_fields(recipe)
    return recipe


def _rows_seen(learner: Any) -> int:
    """Return the number of rows that `learner` says it has seen; 0 if it says nothing that can be true.

    >>> from sklearn.preprocessing import StandardScaler
    >>> _rows_seen(StandardScaler().fit([[1.0], [2.0]]))
    2
    """
    for step in sklearn_pipeline.steps_of(learner):
        attributes = getattr(step, "__dict__", {})
        for name in ("n_samples_seen_", "class_count_"):
            try:
                values = np.asarray(attributes[name], dtype=np.float64)
                seen = float(values.max() if name == "n_samples_seen_" else values.sum())
            except (KeyError, TypeError, ValueError):
                continue
            if 0 <= seen <= ROWS_SEEN_MAX and seen.is_integer():
                return int(seen)
    return 0


def _try_row(bundle: ObjectBundle) -> None:
    """Predict a row of zeros where the width of rows is known, with a copy; raise InvalidError if that fails."""
    if bundle.learned_width is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (predicted,) = bundle.predict(Rows(1, bytes(8 * bundle.learned_width), []))
    except ConflictError as error:
        raise InvalidError(str(error)) from None
    if bundle.recipe.entry.takes_y and isinstance(predicted, list):
        raise InvalidError(
            f"{bundle.recipe.name} has {len(predicted)} targets: a trained estimator of scikit-learn must have one."
        )
