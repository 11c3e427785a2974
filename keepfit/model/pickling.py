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
from keepfit.model import format2
from keepfit.security import envelope
from keepfit.security.envelope import AnyHeader, Keyring

# With 5, each small array would come back as a view of a view of a buffer: 4.5 kB of memory a small bundle, not 2.1.
PROTOCOL = 4


class _Format2Unpickler(pickle.Unpickler):
    """Finds what stands for the classes of format 2; all other names are imported as usual."""

    def find_class(self, module: str, name: str, /) -> Any:
        """Return the class or function `name` of `module`."""
        found = format2.CLASSES.get((module, name))
        return super().find_class(module, name) if found is None else found


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
            if format2.names_classes(payload):
                return header, _Format2Unpickler(io.BytesIO(payload)).load()
            return header, pickle.loads(payload)  # noqa: S301 - the signature is verified above # nosec B301
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
