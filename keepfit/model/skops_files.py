"""Files of skops: fitted objects as data, which run no code when they are loaded.

Owns the check of a file before skops reads it, and the allow-list. Never loads a type that is not on it: those of
scikit-learn that learn row by row with their usual steps, of NumPy, and River's models. Invariants: a file takes no
more memory than its limit permits, whatever it says about itself; a file that is refused was not loaded.
Only this module imports skops, and when it is first needed, because that takes seconds: it imports all of scikit-learn
(https://skops.readthedocs.io/en/stable/persistence.html).
"""

import json
import re
import sys
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from typing import Any

from sklearn.exceptions import InconsistentVersionWarning

from keepfit.errors import InvalidError, describe_error

MAGIC = b"PK"
SCHEMA = "schema.json"
# The JSON takes about ten times as much memory when it is parsed.
SCHEMA_BYTES_MAX = 16 * 2**20
MEMBERS_MAX = 100_000
DEPTH_MAX = 200
TYPES_SHOWN_MAX = 20
# The names of types in an error of skops.
TYPE_NAME = re.compile(r"'([^']+)'")
# Modules of scikit-learn whose classes are loaded. Those of trees and neighbours hold structures in C, which trust
# what a file says about them; none of them learns row by row.
SKLEARN_PACKAGES = frozenset({
    "_loss", "cluster", "compose", "decomposition", "feature_extraction", "feature_selection", "frozen", "impute",
    "kernel_approximation", "linear_model", "multiclass", "multioutput", "naive_bayes", "neural_network", "pipeline",
    "preprocessing", "random_projection", "utils",
})  # fmt: skip
# What parts of models of these packages consist of.
PARTS = frozenset({
    "builtins.bool", "builtins.bytearray", "builtins.bytes", "builtins.dict", "builtins.float", "builtins.frozenset",
    "builtins.int", "builtins.list", "builtins.set", "builtins.slice", "builtins.str", "builtins.tuple",
    "collections.Counter", "collections.OrderedDict", "collections.defaultdict", "random.Random",
    "river._river_rust.vectordict.VectorDict", "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
})  # fmt: skip
# How skops stores functions of NumPy, types, and objects. What is missing calls methods or functions by name, or reads
# compressed files inside the file.
LOADERS = frozenset({
    "BytearrayNode", "BytesNode", "CachedNode", "ConstructorFromReduceNode", "DTypeNode", "DefaultDictNode", "DictNode",
    "FunctionNode", "JsonNode", "ListNode", "LossNode", "NdArrayNode", "ObjectNode", "RandomGeneratorNode",
    "RandomStateNode", "SetNode", "SliceNode", "TupleNode", "TypeNode",
})  # fmt: skip


def load(data: bytes, bytes_max: int) -> Any:
    """Return the object in a file of skops that takes at most `bytes_max` bytes when it is unpacked.

    Raises
    ------
    InvalidError
        If it is damaged or too large, names types that are not loaded, or was written with another minor version of
        scikit-learn.
    """
    try:
        schema, sizes = _read_schema(data, bytes_max)
        names = _check(schema, sizes, bytes_max)
        trusted = [name for name in names if name in PARTS or _is_of_river(name)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", InconsistentVersionWarning)
            learner = _skops().loads(data, trusted=trusted)
        for each in caught:
            _check_version(each.message)
    except (InvalidError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file may raise any exception
        if type(error).__name__ == "UntrustedTypesFoundException":
            raise refused_types(TYPE_NAME.findall(str(error).partition("\n")[0])) from None
        raise InvalidError(f"The file cannot be read by skops: {describe_error(error)}.") from None
    else:
        return learner


def dump(learner: Any) -> bytes:
    """Return the file of skops that holds `learner`; raise InvalidError if skops cannot write it."""
    try:
        data: bytes = _skops().dumps(learner)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - an object may raise any exception
        raise InvalidError(
            f"skops cannot write {type(learner).__name__} ({describe_error(error)}): download it as format=pickle."
        ) from None
    return data


def _skops() -> Any:
    import skops.io  # noqa: PLC0415 - when it is first needed

    return skops.io


def refused_types(names: Iterable[str]) -> InvalidError:
    """Return the error that names types which are not loaded."""
    listed = sorted(names)
    more = f" and {len(listed) - TYPES_SHOWN_MAX} more" if len(listed) > TYPES_SHOWN_MAX else ""
    return InvalidError(
        f"The file has types that are not loaded from skops: {', '.join(listed[:TYPES_SHOWN_MAX])}{more}. Upload it as "
        "a signed pickle instead (keepfit.objects.dump_trained)."
    )


def _check_version(warning: Any) -> None:
    """Raise InvalidError if scikit-learn warns of another minor version than its own."""
    theirs, here = str(warning.original_sklearn_version), str(warning.current_sklearn_version)
    if theirs.split(".")[:2] != here.split(".")[:2]:
        raise InvalidError(
            f"{warning.estimator_name} was fitted with scikit-learn {theirs}, and the workers have {here}: what one "
            "version has learned, another may compute differently. Fit it with the version of the workers."
        )


def _read_schema(data: bytes, bytes_max: int) -> tuple[Any, Mapping[str, int]]:
    """Return the JSON that describes the object, and the unpacked sizes of the members of the file."""
    with zipfile.ZipFile(BytesIO(data)) as file:
        # Reading a member ends after the size that is declared here.
        members = file.infolist()
        sizes = {member.filename: member.file_size for member in members}
        if len(sizes) != len(members) or len(members) > MEMBERS_MAX:
            raise InvalidError("The file is not one that skops writes: its members are too many, or have equal names.")
        total = sum(sizes.values())
        if total > bytes_max:
            raise InvalidError(f"The file has {total} bytes when it is unpacked, more than {bytes_max}.")
        if SCHEMA not in sizes:
            raise InvalidError("The file is a zip file that skops did not write: it has no schema.json.")
        if sizes[SCHEMA] > SCHEMA_BYTES_MAX:
            raise InvalidError(f"The file describes its object with more than {SCHEMA_BYTES_MAX} bytes of JSON.")
        return json.loads(file.read(SCHEMA)), sizes


def _check(schema: Any, sizes: Mapping[str, int], bytes_max: int) -> set[str]:
    """Check how each part of the object is stored; return the names of all types."""
    names, refused, total = set(), set(), 0
    for node in _nodes(schema):
        name = f"{node['__module__']}.{node['__class__']}"
        loader = node["__loader__"]
        names.add(name)
        if loader not in LOADERS or not _is_allowed(str(node["__module__"]), name, loader):
            refused.add(name)
        if type(node.get("file")) is str:
            # Each part that names a member reads it again.
            total += sizes.get(node["file"], 0)
    if refused:
        raise refused_types(refused)
    if total > bytes_max:
        raise InvalidError(f"The object in the file takes {total} bytes, more than {bytes_max}.")
    return names


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every part of an object that the schema describes."""
    found = [(schema, 0)]
    while found:
        one, depth = found.pop()
        if depth > DEPTH_MAX:
            raise InvalidError(f"The object in the file is nested more than {DEPTH_MAX} deep.")
        if isinstance(one, dict):
            if "__loader__" in one:
                yield one
            found += [(part, depth + 1) for part in one.values()]
        elif isinstance(one, list):
            found += [(part, depth + 1) for part in one]


def _is_allowed(module: str, name: str, loader: str) -> bool:
    """Return whether a type may occur; skops compares it with its own list besides."""
    package, _, rest = module.partition(".")
    if package == "sklearn":
        return rest.partition(".")[0] in SKLEARN_PACKAGES
    if package == "numpy":
        return True
    if package == "scipy":
        return loader == "FunctionNode"
    return name in PARTS or (package == "river" and loader in ("ObjectNode", "TypeNode") and _is_of_river(name))


def _is_of_river(name: str) -> bool:
    """Return whether a name is that of a class of River's models and their parts."""
    module, _, attribute = name.rpartition(".")
    if module.partition(".")[0] != "river" or module.startswith("river.datasets"):
        return False
    try:
        import river.api  # noqa: PLC0415 - an extra, which imports all of its modules
    except ImportError:
        return False
    # No module is imported by a name in the file.
    found = getattr(sys.modules.get(module), attribute, None)
    return isinstance(found, type) and issubclass(found, river.base.Base)
