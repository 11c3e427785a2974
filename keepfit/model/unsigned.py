"""Pickles without a signature, for their owner: what `keepfit upload --trust` loads before it signs it.

Owns the only place where such bytes are loaded. Loading them runs the code in them, so no service imports this module
(a contract in `pyproject.toml`), and its only caller asks for `--trust` first. joblib reads the pickles of its own, of
scikit-learn's users and of MLflow, and those of dill as chantilly writes them. Invariant: nothing is loaded by an
import of this module or before :func:`load` is called.
"""

import warnings
from io import BytesIO
from typing import Any

from keepfit.errors import InvalidError, describe_error
from keepfit.model.pickling import INCONSISTENT_VERSION


def load(data: bytes, name: str) -> tuple[Any, list[str]]:
    """Load a pickle, which runs the code in it; return the object, and scikit-learn's warnings about its versions.

    `name` stands for the pickle in errors.

    Raises
    ------
    InvalidError
        If it is no pickle, is damaged, or needs a package that is not installed here, or another version of one.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            import joblib  # noqa: PLC0415 - a light client has none

            loaded = joblib.load(BytesIO(data))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a pickle may raise any exception
            raise InvalidError(f"{name} cannot be loaded here: {describe_error(error)}.") from None
    messages = (str(one.message) for one in caught)
    # One for each step; the address of a page at the end says nothing about the file.
    found = [one.partition(". ")[0] for one in messages if one.startswith(INCONSISTENT_VERSION)]
    return loaded, list(dict.fromkeys(f"{name}: {one}." for one in found))
