"""Uploaded objects, client side: turn an estimator or a River model into what can be sent to a gateway.

Owns :func:`dump`, whose text a recipe holds, :func:`dump_trained`, whose bytes are a file to upload, and
:func:`load_trained`, for a file that was downloaded. Never sends anything. Invariant: what they return or load is
signed with an upload key; without a key they raise. Gateways verify the text
of a recipe (:mod:`keepfit.recipe.uploads`); workers verify and load both (:mod:`keepfit.model.object_bundle`,
:mod:`keepfit.model.trained`).
"""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from keepfit import client_settings
from keepfit.model import object_kinds, pickling
from keepfit.recipe import uploads
from keepfit.recipe.catalogue import Kind
from keepfit.recipe.uploads import ObjectHeader
from keepfit.security import envelope
from keepfit.security.envelope import UPLOAD_KEYS, Keyring


def dump(
    learner: Any,
    keys: str | None = None,
    *,
    kind: Kind | None = None,
    multi_output: bool | None = None,
    modules: Sequence[ModuleType] = (),
    packages: Sequence[str] = (),
) -> str:
    """Pickle and sign an object. Return the text for the field `object` of a recipe.

    Parameters
    ----------
    learner : an object with ``partial_fit`` and ``predict`` or ``transform``, or a River model with ``learn_one``
    keys : upload keys, ``id:hex,…``; by default KEEPFIT_UPLOAD_KEYS, or the keys of `keepfit up` in this folder
    kind : kind of the object, required if scikit-learn's tags or River's base classes do not name it
    multi_output : whether a model with ``learn_one`` takes several targets, as a dict per row; None: River's base
        classes decide
    modules : your own modules whose classes are pickled by value; those of ``__main__`` and of functions always are
    packages : distribution names of further packages whose versions workers must have

    Raises
    ------
    InvalidError
        If required methods are missing, the kind is unknown, or the object is too large.
    SettingsError
        If there is no upload key.
    UnstorableError
        If it holds a value that cannot be pickled.
    """
    header = object_kinds.describe(learner, kind=kind, multi_output=multi_output, packages=packages)
    payload = pickling.dump_by_value(learner, header.subject, modules)
    text = b64encode(_keyring(keys).seal(header, payload)).decode()
    uploads.decode(text)
    return text


def dump_trained(
    learner: Any,
    keys: str | None = None,
    *,
    kind: Kind | None = None,
    multi_output: bool | None = None,
    modules: Sequence[ModuleType] = (),
    packages: Sequence[str] = (),
) -> bytes:
    """Pickle and sign an object that has learned. Return the bytes of a file for ``POST /v1/estimator``.

    Parameters and errors are those of :func:`dump`. Its size is not limited here, and a fitted ``Pipeline`` of
    scikit-learn is accepted if its last step has ``partial_fit``. What consists of scikit-learn alone can be uploaded
    without a key, as ``skops.io.dumps`` writes it.
    """
    header = object_kinds.describe(learner, kind=kind, multi_output=multi_output, packages=packages, is_trained=True)
    return _keyring(keys).seal(header, pickling.dump_by_value(learner, header.subject, modules))


def load_trained(data: bytes, keys: str | None = None) -> Any:
    """Return the object in a signed pickle that :func:`dump_trained` or a download of a model gave.

    `keys` are upload keys as of :func:`dump`. A file of skops is loaded with ``skops.io.loads``.

    Raises
    ------
    EnvelopeError
        If none of the keys signed it; RuntimeMismatchError if it was written with other versions of the libraries.
    """
    return pickling.load(data, _keyring(keys), ObjectHeader, envelope.OBJECT, lambda header: None)[1]


def _keyring(keys: str | None) -> Keyring:
    if keys is None:
        keys = client_settings.load(Path(".keepfit") / "env").upload_keys
    return Keyring.from_text(keys, UPLOAD_KEYS)
