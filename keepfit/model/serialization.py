"""Bundles as signed bytes: how one is sealed, and how it is read back and tried.

Owns the form of what is pickled. Never unpickles by itself (:mod:`keepfit.model.pickling` does, behind the check of the
signature) and never talks to a store. Invariant: a bundle that is sealed and unsealed goes on as if it had never
stopped. Bundles come from workers, and go to Redis, snapshots and back.
"""

from typing import Any

import numpy as np
from sklearn.exceptions import NotFittedError

from keepfit.errors import EnvelopeError
from keepfit.model import pickling, pipeline
from keepfit.model.bundle import Bundle
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.rows.values import NonNumeric
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring

# Of what is pickled; another one was written by another keepfit.
FORMAT = 2
NO_JOINTS: tuple[list[Any], list[int]] = ([], [])


def seal(bundle: Bundle, keyring: Keyring, header: Header) -> bytes:
    """Pickle `bundle` and sign it under `header`.

    Raises
    ------
    UnstorableError
        If its estimator is an object that has no pickle.
    """
    foreign = bundle.recipe.object is not None
    joints = NO_JOINTS if foreign else pipeline.take_apart(bundle.estimator)
    try:
        learned = (bundle.columns, bundle.labels, bundle.estimator, bundle.running, bundle.rows_seen, bundle.waiting)
        state = (FORMAT, type(bundle), joints, *learned, bundle.changed)
        return keyring.seal(header, pickling.dump_foreign(state, header.subject) if foreign else pickling.dump(state))
    finally:
        if not foreign:
            pipeline.put_together(bundle.estimator, joints)


def unseal(data: bytes, keyring: Keyring, recipe: Recipe, model_hash: str) -> tuple[Header, Bundle]:
    """Verify `data`, then unpickle it.

    Raises
    ------
    EnvelopeError
        If it is not a bundle of this model that we signed; RuntimeMismatchError if this process cannot load it.
    """

    def check(header: Header) -> None:
        if header.hash != model_hash:
            raise EnvelopeError(f"The bundle belongs to the model {header.hash[:12]}, not to {model_hash[:12]}.")

    header, state = pickling.load(data, keyring, Header, envelope.BUNDLE, check)
    if state[0] != FORMAT:
        raise EnvelopeError("The bundle was written by another keepfit, in a form that this one does not read.")
    _, kind, joints, *learned = state
    bundle = kind(recipe, *learned)
    if recipe.object is None:
        pipeline.put_together(bundle.estimator, joints)
    return header, bundle


def try_predict(bundle: Bundle) -> None:
    """Encode one row and predict, as a last check of a bundle that comes from storage.

    Raises
    ------
    EnvelopeError
        If the bundle cannot predict although it has learned.
    """
    # What an object takes is its own business.
    if not bundle.begun or bundle.recipe.object is not None:
        return
    words: list[list[NonNumeric]] = [[""] for _ in bundle.recipe.layout.words]
    numbers = len(bundle.recipe.numbers)
    if bundle.recipe.features is None:
        numbers = bundle.width or 0
    try:
        X = bundle.columns.transform(bundle.recipe, Rows(1, bytes(8 * numbers), words))
        # Of zeros: an unknown label's -1, or a zero after scaling, is more than some estimators take.
        bundle._answer(X if bundle.recipe.takes_text else np.zeros_like(X))
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        if isinstance(error, NotFittedError) and hasattr(pipeline.last(bundle.estimator), "estimators_"):
            # One of several estimators in it, whose classes have not come.
            return
        raise EnvelopeError(f"The bundle loads but cannot predict: {error}") from error
