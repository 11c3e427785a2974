"""Pickling and unpickling: the only module that imports ``pickle`` and cloudpickle.

Never loads unsigned bytes. Invariant: :func:`load` unpickles only after it has checked the signature, the model and the
versions of the libraries. Bundles go to envelopes, and come back from Redis and snapshots; uploaded objects come from
recipes. :func:`with_code_of` copies within this process, and what it unpickles it has pickled itself.
"""

import io
import pickle  # in no other module, which a test checks  # nosec B403
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FunctionType, ModuleType
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
# Functions that create a class, as cloudpickle's pickles name them, and the position of the class's id among their
# arguments.
CLASS_ID_POSITIONS = {
    ("cloudpickle.cloudpickle", "_make_skeleton_class"): 4,
    ("cloudpickle.cloudpickle", "_make_skeleton_enum"): 5,
}


class _Format2Unpickler(pickle.Unpickler):
    """Finds what stands for the classes of format 2; all other names are imported as usual."""

    def find_class(self, module: str, name: str, /) -> Any:
        """Return the class or function `name` of `module`."""
        found = format2.CLASSES.get((module, name))
        return super().find_class(module, name) if found is None else found


class _SeparateUnpickler(pickle.Unpickler):
    """Creates the classes that a pickle includes a second time.

    cloudpickle would take a class that this process has loaded before, if the author's process has changed that class
    and not created another one, and change it for all objects that have it.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._ids: dict[str, str] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        """Return the class or function `name` of `module`."""
        found = super().find_class(module, name)
        position = CLASS_ID_POSITIONS.get((module, name))
        if position is None:
            return found

        def create(*args: Any) -> Any:
            own = self._ids.setdefault(args[position], uuid.uuid4().hex)
            return found(*args[:position], own, *args[position + 1 :])

        return create


def load(
    data: bytes,
    keyring: Keyring,
    form: type[AnyHeader],
    purpose: str,
    check: Callable[[AnyHeader], None],
    *,
    separate: bool = False,
) -> tuple[AnyHeader, Any]:
    """Verify `data`, call `check` with its header, then unpickle it.

    With `separate` the classes that it includes are none that this process has loaded before.

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
            if separate:
                return header, _SeparateUnpickler(io.BytesIO(payload)).load()
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


class _Definitions(cloudpickle.Pickler):  # type: ignore[misc]
    """Finds the classes and functions that a pickle of an object includes, by their module and qualified name."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), protocol=PROTOCOL)
        self.found: dict[tuple[str, str], Any] = {}
        self.counts: Counter[tuple[str, str]] = Counter()

    def reducer_override(self, obj: Any) -> Any:
        """Return how to pickle `obj`."""
        reduced = super().reducer_override(obj)
        if reduced is not NotImplemented and _is_definition(obj):
            name = _name_of(obj)
            self.found[name] = obj
            self.counts[name] += 1
        return reduced


class _Copier(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles a state for this process, in which definitions and `same` objects are references."""

    def __init__(self, file: io.BytesIO, newer: dict[tuple[str, str], Any], same: tuple[Any, Any]) -> None:
        super().__init__(file, protocol=PROTOCOL)
        self._newer = newer
        self._same = same
        self._known: dict[int, int | None] = {}
        self.references: list[Any] = []

    def persistent_id(self, obj: Any) -> int | None:
        """Return the position among the references of what stands for `obj`; None if `obj` is pickled."""
        is_same = obj is self._same[0]
        if not is_same and not _is_definition(obj):
            return None
        if id(obj) not in self._known:
            self._known[id(obj)] = None
            if is_same:
                self._refer(obj, self._same[1])
            elif super().reducer_override(obj) is not NotImplemented:
                self._refer(obj, self._newer.get(_name_of(obj), obj))
        return self._known[id(obj)]

    def _refer(self, obj: Any, to: Any) -> None:
        self._known[id(obj)] = len(self.references)
        self.references.append(to)


class _CopyUnpickler(pickle.Unpickler):
    """Unpickles what :class:`_Copier` has pickled."""

    def __init__(self, file: io.BytesIO, references: Sequence[Any]) -> None:
        super().__init__(file)
        self._references = references

    def persistent_load(self, pid: Any) -> Any:
        """Return the reference at a position."""
        return self._references[pid]


def _is_definition(obj: Any) -> bool:
    return isinstance(obj, type | FunctionType)


def _name_of(definition: Any) -> tuple[str, str]:
    return str(definition.__module__), definition.__qualname__


def with_code_of(new: Any, old: Any, state: Any) -> Any:
    """Return a copy of `state`, that of the object `old`, as one of the object `new`.

    Its references to `old` become references to `new`. Classes and functions that are in no module here, but come with
    the objects, become those of the same name that come with `new`; if there is none, or more than one, they stay.
    A function with variables of its own stays too, because they may have been learned.
    """
    definitions = _Definitions()
    definitions.dump(new)
    newer = {
        name: found
        for name, found in definitions.found.items()
        if definitions.counts[name] == 1 and not getattr(found, "__closure__", None)
    }
    file = io.BytesIO()
    copier = _Copier(file, newer, (old, new))
    copier.dump(state)
    file.seek(0)
    return _CopyUnpickler(file, copier.references).load()
