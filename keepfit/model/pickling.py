"""Pickles: the one place where bytes become objects, and where objects become bytes.

Owns ``pickle`` and cloudpickle; no other module imports either. Never loads what is not signed. Invariant: the only
``Unpickler`` of the project stands behind the check of the signature, of whom it is for, and of the versions, in
:func:`load`. What learned goes to envelopes, and comes back from Redis, snapshots and recipes.
"""

import io
import pickle  # the only module that may; a test sees to that  # nosec B403
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import cloudpickle
from sklearn.exceptions import InconsistentVersionWarning

from keepfit.errors import RuntimeMismatchError, UnstorableError, describe_error
from keepfit.security import envelope
from keepfit.security.envelope import AnyHeader, Keyring

# With 5, each small array would come back as a view of a view of a buffer: 4.5 kB of memory a small bundle, not 2.1.
PROTOCOL = 4

# Modules whose classes stand in stored pickles under the module's old name.
MOVED = {
    "keepfit.bundle": "keepfit.model.bundle",
    "keepfit.chain": "keepfit.model.pipeline",
    "keepfit.columns": "keepfit.model.columns",
    "keepfit.features": "keepfit.recipe.features",
    "keepfit.foreign": "keepfit.model.object_bundle",
    "keepfit.labels": "keepfit.model.labels",
    "keepfit.outputs": "keepfit.model.outputs",
    "keepfit.prequential": "keepfit.model.prequential",
    "keepfit.recipe": "keepfit.recipe.recipe",
    "keepfit.river": "keepfit.model.river_adapter",
    "keepfit.rows": "keepfit.rows.rows",
}


# Classes that have another name today, by the module's name of today.
RENAMED = {
    ("keepfit.model.pipeline", "Chain"): "Pipeline",
    ("keepfit.model.prequential", "Running"): "PrequentialScores",
}


class _Stored(pickle.Unpickler):
    """Reads what was stored before its classes moved, too."""

    def find_class(self, module: str, name: str, /) -> Any:
        """Find a class under the name that its module has today."""
        module = MOVED.get(module, module)
        return super().find_class(module, RENAMED.get((module, name), name))


def load(
    data: bytes, keyring: Keyring, form: type[AnyHeader], purpose: str, check: Callable[[AnyHeader], None]
) -> tuple[AnyHeader, Any]:
    """Verify `data`, have `check` look at its header, then unpickle it.

    Raises
    ------
    EnvelopeError
        If it is not what one of our keys signed for this purpose, or what `check` raises; RuntimeMismatchError if this
        process cannot load it.
    """
    header, payload = keyring.open_as(form, data, purpose)
    check(header)
    envelope.check_runtime(header)
    try:
        with _silence() if envelope.differences(header) else nullcontext():
            return header, _Stored(io.BytesIO(payload)).load()  # signed by us, see the lines above
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001 - an object may raise anything
        # What was signed is whole, so it is this process that lacks something.
        raise RuntimeMismatchError(f"{header.subject} cannot be loaded here: {describe_error(error)}") from None


@contextmanager
def _silence() -> Iterator[None]:
    """Let scikit-learn not warn of patch releases as of all others; who loads says it in the log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InconsistentVersionWarning)
        yield


def dump(learned: Any) -> bytes:
    """Pickle what consists of classes that every worker can import."""
    return pickle.dumps(learned, protocol=PROTOCOL)


def dump_foreign(learned: Any, subject: str, modules: Sequence[ModuleType] = ()) -> bytes:
    """Pickle with classes and functions that no worker can import, those of `modules` too: these go along by value.

    Raises
    ------
    UnstorableError
        If `learned` holds what has no pickle: an open file, a lock, a running thread.
    """
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        pickled: bytes = cloudpickle.dumps(learned, protocol=PROTOCOL)
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001 - an object may raise anything
        raise UnstorableError(f"{subject} cannot be stored: {describe_error(error)}") from None
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
    return pickled
