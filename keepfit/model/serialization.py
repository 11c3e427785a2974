"""Bundles as signed bytes: how a bundle is sealed, and how it is read back and checked.

Owns bundle format 3, the plain tuple that is pickled. It holds objects of numpy and scikit-learn, or of the user, and
no class of keepfit, so that no change of the code makes stored bundles unreadable::

    (3, links, (scaler, label codes of each column, None or (totals, counts) of the means, rule of the labels),
     None or the label codes of each output, estimators of the pipeline,
     (window, total, parts, first, baseline, scored rows) of the prequential scores of each output, rows seen,
     fields of the rows that wait for the first call, changed parameters, names of targets,
     width of the rows that an object has learned,
     (rows before, spacing, time, names of metrics, first point, times, metrics) of the learning curve)

Never unpickles by itself (:mod:`keepfit.model.pickling` does, behind the check of the signature) and never talks to a
store. Invariant: a bundle that is sealed and unsealed goes on bit for bit as if it had never been stored.
Bundles come from workers and go to Redis, to snapshots and back. :mod:`keepfit.model.format2` reads older ones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec.structs import astuple
from sklearn.exceptions import NotFittedError

from keepfit.errors import EnvelopeError
from keepfit.model import format2, pickling, pipeline
from keepfit.model.bundle import Bundle
from keepfit.model.columns import Columns, Means
from keepfit.model.labels import Labels
from keepfit.model.learning_curve import LearningCurve
from keepfit.model.object_bundle import ObjectBundle
from keepfit.model.outputs import Outputs
from keepfit.model.prequential import PrequentialScores
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.rows.values import NonNumeric
from keepfit.scoring import category_codes
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring

FORMAT = 3
NO_LINKS: tuple[list[Any], list[int]] = ([], [])


def seal(bundle: Bundle, keyring: Keyring, header: Header) -> bytes:
    """Pickle `bundle` and sign it under `header`.

    Raises
    ------
    UnstorableError
        If its estimator is an uploaded object that cannot be pickled.
    """
    if bundle.recipe.object is not None:
        return keyring.seal(header, pickling.dump_by_value(_state(bundle, NO_LINKS), header.subject))
    links = pipeline.detach_links(bundle.estimator)
    try:
        return keyring.seal(header, pickling.dump(_state(bundle, links)))
    finally:
        pipeline.attach_links(bundle.estimator, links)


def _state(bundle: Bundle, links: tuple[list[Any], list[int]]) -> tuple[Any, ...]:
    """Return the tuple of format 3."""
    columns, means = bundle.columns, bundle.columns.means
    return (
        FORMAT,
        links,
        (
            columns.scaler,
            columns.labels,
            None if means is None else (means.totals, means.counts),
            columns.rule,
        ),
        None if bundle.labels is None else [labels.codes for labels in bundle.label_lists],
        pipeline.steps_of(bundle.estimator),
        [scores.stored() for scores in bundle.prequential],
        bundle.rows_seen,
        [astuple(rows) for rows in bundle.waiting],
        bundle.changed,
        bundle.targets,
        bundle.learned_width,
        bundle.curve.stored(),
    )


def unseal(
    data: bytes, keyring: Keyring, recipe: Recipe, model_hash: str, upload_keys: Keyring | None = None
) -> tuple[Header, Bundle]:
    """Verify `data`, then unpickle it; `upload_keys` are for changes of an uploaded object's code.

    Raises
    ------
    EnvelopeError
        If `data` is not a bundle of this model signed with a key of `keyring`, or of an unknown format;
        RuntimeMismatchError if this process cannot load it.
    """

    def check(header: Header) -> None:
        if header.hash != model_hash:
            raise EnvelopeError(f"The bundle belongs to the model {header.hash[:12]}, not to {model_hash[:12]}.")

    header, state = pickling.load(data, keyring, Header, envelope.BUNDLE, check)
    if state[0] not in (FORMAT, format2.FORMAT):
        # Format 1 had no number.
        number = state[0] if type(state[0]) is int else 1
        raise EnvelopeError(
            f"The bundle has format {number}; this version of keepfit reads formats {format2.FORMAT} and {FORMAT}."
        )
    bundle = _bundle(recipe, *(state[1:] if state[0] == FORMAT else format2.converted(state)))
    if isinstance(bundle, ObjectBundle):
        bundle.upload_keys = upload_keys
    return header, bundle


def _bundle(
    recipe: Recipe,
    links: tuple[list[Any], list[int]],
    columns: tuple[Any, ...],
    labels: list[Any] | None,
    estimators: list[Any],
    scores: list[tuple[Any, ...]],
    rows_seen: int,
    waiting: list[tuple[Any, ...]],
    changed: dict[str, Any],
    targets: Sequence[str] = (),
    learned_width: int | None = None,
    curve: tuple[Any, ...] = (),
) -> Bundle:
    """Return the bundle of `recipe` and a state of format 3, whose objects it takes over.

    The state of an earlier release has no curve, which begins with the next rows.
    """
    scaler, known, means, rule = columns
    if rule > category_codes.RULE:
        raise EnvelopeError(f"The bundle is of a later version of keepfit: its labels have codes by rule {rule}.")
    each = [Labels.of_codes(codes) for codes in labels or ()]
    bundle = (Bundle if recipe.object is None else ObjectBundle)(
        recipe,
        Columns(scaler, known, None if means is None else Means(*means), rule),
        None if labels is None else Outputs(each) if recipe.entry.multi_output else each[0],
        pipeline.from_steps(estimators),
        [PrequentialScores.from_stored(*fields, position=position) for position, fields in enumerate(scores)],
        rows_seen,
        tuple([Rows(*fields) for fields in waiting]),
        changed,
        list(targets),
        learned_width,
        LearningCurve.from_stored(*curve) if curve else LearningCurve(rows_seen),
    )
    if recipe.object is None:
        pipeline.attach_links(bundle.estimator, links)
    return bundle


def try_predict(bundle: Bundle) -> None:
    """Predict one row, as the last check of a bundle from storage.

    Raises
    ------
    EnvelopeError
        If the bundle cannot predict although it has learned.
    """
    # The rows that an uploaded object accepts are not known.
    if not bundle.is_fitted or bundle.recipe.object is not None:
        return
    non_numeric: list[list[NonNumeric]] = [[""] for _ in bundle.recipe.layout.non_numeric]
    numbers = len(bundle.recipe.numbers)
    if bundle.recipe.features is None:
        numbers = bundle.width or 0
    try:
        X = bundle.columns.transform(bundle.recipe, Rows(1, bytes(8 * numbers), non_numeric))
        # Zeros, because some estimators reject the code -1 of an unknown label, or a scaled zero.
        bundle._predict_matrix(X if bundle.recipe.reads_text else np.zeros_like(X))
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        if isinstance(error, NotFittedError) and hasattr(pipeline.final_of(bundle.estimator), "estimators_"):
            # An inner estimator whose classes have no rows yet.
            return
        raise EnvelopeError(f"The bundle loads but cannot predict: {error}") from error
