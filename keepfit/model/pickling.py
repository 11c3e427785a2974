"""Pickling and unpickling: the only module that imports ``pickle`` and cloudpickle.

Never loads unsigned bytes. Invariant: :func:`load` unpickles only after it has checked the signature, the model and the
versions of the libraries. Bundles go to envelopes, and come back from Redis and snapshots; uploaded objects come from
recipes.
"""

import io
import pickle  # in no other module, which a test checks  # nosec B403
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import cloudpickle

from keepfit.errors import RuntimeMismatchError, UnstorableError, describe_error
from keepfit.model import format2
from keepfit.security import envelope
from keepfit.security.envelope import AnyHeader, Keyring

# With protocol 5 each small array is read as a view of a view of a buffer: a small bundle takes 4.5 kB, not 2.1 kB.
PROTOCOL = 4
# How the warning of scikit-learn about another version begins, a regular expression.
INCONSISTENT_VERSION = "Trying to unpickle estimator "


class _Format2Unpickler(pickle.Unpickler):
    """Finds what stands for the classes of format 2; all other names are imported as usual."""

    def find_class(self, module: str, name: str, /) -> Any:
        """Return the class or function `name` of `module`."""
        found = format2.CLASSES.get((module, name))
        return super().find_class(module, name) if found is None else found


def load(
    data: bytes, keyring: Keyring, form: type[AnyHeader], purpose: str, check: Callable[[AnyHeader], None]
) -> tuple[AnyHeader, Any]:
    """Verify `data`, call `check` with its header, then unpickle it.

    Raises
    ------
    EnvelopeError
        If it is not signed with a key of `keyring` for this purpose, or what `check` raises; RuntimeMismatchError if
        this process cannot load it.
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
    except BaseException as error:  # noqa: BLE001 - an object may raise any exception
        # The signature proves that the bytes are intact, so this process lacks something.
        raise RuntimeMismatchError(f"{header.subject} cannot be loaded here: {describe_error(error)}") from None


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the warning of scikit-learn about patch releases; the caller logs the difference."""
    with warnings.catch_warnings():
        # By its text, because clients may have no scikit-learn.
        warnings.filterwarnings("ignore", INCONSISTENT_VERSION)
        yield


def dump(state: Any) -> bytes:
    """Return the pickle of a state whose classes every worker can import."""
    return pickle.dumps(state, protocol=PROTOCOL)


def dump_by_value(state: Any, subject: str, modules: Sequence[ModuleType] = ()) -> bytes:
    """Return a pickle that contains the classes and functions that workers cannot import, and all those of `modules`.

    Raises
    ------
    UnstorableError
        If `state` holds something that cannot be pickled: an open file, a lock, a running thread.
    """
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        pickled: bytes = cloudpickle.dumps(state, protocol=PROTOCOL)
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001 - an object may raise any exception
        raise UnstorableError(f"{subject} cannot be stored: {describe_error(error)}") from None
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
    return pickled
