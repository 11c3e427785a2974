"""The bundle: what is kept of a model (columns, estimator, counters, running error), and its whole life.

::

    new(recipe) ──▶ partial_fit(rows) ──▶ seal(...) ──▶ Redis, snapshots ──▶ unseal(...) ──▶ partial_fit, predict, score

Owns how rows are learned and predicted. Never talks to a store. Invariants: ``predict`` and ``score`` change nothing;
``partial_fit`` does what a plain scikit-learn loop over the same rows does, in the same order of calls; the only
``pickle.loads`` of the project stands behind the check of the signature in :func:`unseal`.
"""

import math
import pickle  # the only module that may; a test sees to that  # nosec B403
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from sklearn.exceptions import NotFittedError

from keepfit import envelope, estimators, finite, fitting, metrics, plain
from keepfit.columns import Columns
from keepfit.envelope import Header, Keyring
from keepfit.errors import ConflictError, EnvelopeError, InvalidError
from keepfit.metrics import Running
from keepfit.recipe import Recipe
from keepfit.rows import Rows

# With 5, each small array would come back as a view of a view of a buffer: 4.5 kB of memory a small bundle, not 2.1.
PROTOCOL = 4


@dataclass(slots=True)
class Bundle:
    """One model's learned state, in memory of one process."""

    recipe: Recipe
    columns: Columns
    estimator: Any
    running: Running
    rows_seen: int = 0

    @classmethod
    def new(cls, recipe: Recipe) -> Self:
        """Build the bundle of `recipe` that has learned nothing."""
        return cls(recipe, Columns.new(recipe), estimators.build(recipe.estimator, recipe.params), Running())

    def partial_fit(self, rows: Rows) -> None:
        """Predict `rows`, note the error, then learn them in one ``partial_fit`` call.

        Raises
        ------
        ValueError, TypeError, ArithmeticError
            The estimator's own; the bundle is then half changed and must be thrown away.
        """
        entry, y = self.recipe.entry, rows.target()
        if entry.takes_y and self.rows_seen:
            self._evaluate(rows, y)
        self.columns.partial_fit(rows)
        X = self.columns.transform(self.recipe, rows)
        if not entry.takes_y or rows.sample_weight is not None or not fitting.learn(self.estimator, X, y):
            self._have_learned(rows, X, y)
        self.rows_seen += rows.n
        self._check_finite()

    def _have_learned(self, rows: Rows, X: Any, y: Any) -> None:
        """Have scikit-learn do it."""
        optional: dict[str, Any] = {}
        if rows.sample_weight is not None:
            optional["sample_weight"] = rows.weights()
        if self.recipe.entry.kind == "classifier" and not self.rows_seen:
            optional["classes"] = np.sort(np.asarray(self.recipe.classes))
        if self.recipe.entry.takes_y:
            self.estimator.partial_fit(X, y, **optional)
        else:
            self.estimator.partial_fit(X, **optional)

    def _evaluate(self, rows: Rows, y: Any) -> None:
        """Note the error of predicting `rows` before they are learned, where they can be predicted by then."""
        try:
            predicted = self._predict(rows)
        except (ValueError, IndexError):
            # CategoricalNB predicts no category that it has not learned; what is truly wrong, learning will say.
            return
        self.running.update(self.recipe.entry.kind, y, predicted)

    def _check_finite(self) -> None:
        """Look at all that a commit would store: what these rows made infinite would stay so for ever."""
        learned = ((self.recipe.estimator, self.estimator), (self.recipe.scaler, self.columns.scaler))
        for owner, thing in learned:
            name = None if thing is None else finite.fault(thing)
            if name is not None:
                raise ArithmeticError(f"{name} of {owner} would no longer be finite")
        if not math.isfinite(self.running.total):
            raise ArithmeticError("the running error would no longer be finite, so far off are the predictions")

    def predict(self, rows: Rows) -> list[Any]:
        """Predict `rows`: n floats, labels or cluster numbers. Unseen labels are encoded as unknown.

        Raises
        ------
        ConflictError
            If the model has not learned any row yet.
        InvalidError
            If the rows have another width than those learned.
        """
        self._check_ready(rows)
        predictions: list[Any] = self._predict(rows).tolist()
        return predictions

    def predict_proba(self, rows: Rows) -> list[list[float]]:
        """Probabilities of `rows`, shape (n, classes), in the order of :attr:`classes`.

        Raises
        ------
        InvalidError
            If the estimator gives none.
        """
        self._check_ready(rows)
        probabilities = self._probabilities(rows)
        if probabilities is None:
            raise InvalidError(f"{self.recipe.estimator} with these params gives no probabilities: leave out proba.")
        listed: list[list[float]] = probabilities.tolist()
        return listed

    @property
    def width(self) -> int | None:
        """Columns of a row as it comes in; None where the first row is to tell."""
        if self.recipe.features is not None:
            return len(self.recipe.features)
        width: int | None = getattr(self.estimator, "n_features_in_", None)
        return width

    @property
    def classes(self) -> list[Any]:
        """Labels in the order of the columns of :meth:`predict_proba`."""
        labels: list[Any] = self.estimator.classes_.tolist()
        return labels

    def score(self, rows: Rows) -> dict[str, float | None]:
        """Score predictions of `rows` against their target.

        Raises
        ------
        InvalidError
            If the estimator takes no target.
        """
        self._check_ready(rows)
        kind, y = self.recipe.entry.kind, rows.target()
        if kind == "regressor":
            return metrics.regression_score(y, self._predict(rows))
        if kind == "classifier":
            return metrics.classification_score(
                y, self._predict(rows), self._probabilities(rows), self.estimator.classes_
            )
        raise InvalidError(f"{self.recipe.estimator} takes no y, so there is nothing to score against.")

    def _predict(self, rows: Rows) -> Any:
        return plain.predict(self.estimator, self.columns.transform(self.recipe, rows))

    def _probabilities(self, rows: Rows) -> Any:
        if not hasattr(self.estimator, "predict_proba"):
            return None
        return plain.predict_proba(self.estimator, self.columns.transform(self.recipe, rows))

    def _check_ready(self, rows: Rows) -> None:
        if not self.rows_seen:
            raise ConflictError("The model has not learned any row yet; send partial_fit first.")
        expected = getattr(self.estimator, "n_features_in_", None)
        if self.recipe.features is None and expected is not None and rows.width != expected:
            raise InvalidError(f"The rows have {rows.width} values where the model has learned {expected}.")

    def metrics(self) -> dict[str, float | int]:
        """Prequential metrics over all rows learned so far."""
        return self.running.values(self.recipe.entry.kind)


def seal(bundle: Bundle, keyring: Keyring, header: Header) -> bytes:
    """Pickle `bundle` and sign it under `header`."""
    leaves = _take_apart(bundle.estimator)
    try:
        state = (bundle.columns, bundle.estimator, bundle.running, bundle.rows_seen, leaves)
        return keyring.seal(header, pickle.dumps(state, protocol=PROTOCOL))
    finally:
        _put_together(bundle.estimator, leaves)


def unseal(data: bytes, keyring: Keyring, recipe: Recipe, model_hash: str) -> tuple[Header, Bundle]:
    """Verify `data`, then unpickle it.

    Raises
    ------
    EnvelopeError
        If it is not a bundle of this model that we signed; RuntimeMismatchError if this process cannot load it.
    """
    header, payload = keyring.open(data, envelope.BUNDLE)
    if header.hash != model_hash:
        raise EnvelopeError(f"The bundle belongs to the model {header.hash[:12]}, not to {model_hash[:12]}.")
    envelope.check_runtime(header)
    state = pickle.loads(payload)  # noqa: S301 - signed by us, see the lines above # nosec B301
    columns, estimator, running, rows_seen, leaves = state
    _put_together(estimator, leaves)
    return header, Bundle(recipe, columns, estimator, running, rows_seen)


def _take_apart(estimator: Any) -> list[Any]:
    """Cut the chain of a Birch tree's leaves and return them in its order; an empty list for all other estimators.

    Pickle follows the chain by recursion, and would fail at some hundred leaves.
    """
    leaves, leaf = [], getattr(estimator, "dummy_leaf_", None)
    while leaf is not None:
        leaves.append(leaf)
        leaf = leaf.next_leaf_
    for leaf in leaves:
        leaf.prev_leaf_ = leaf.next_leaf_ = None
    return leaves


def _put_together(estimator: Any, leaves: Sequence[Any]) -> None:
    """Chain the leaves of a Birch tree again, and make those arrays views again that pickle made copies."""
    for left, right in pairwise(leaves):
        left.next_leaf_, right.prev_leaf_ = right, left
    nodes = [estimator.root_] if leaves else []
    for node in nodes:
        size = len(node.subclusters_)
        if size:
            # Birch writes into the left ones and reads the right ones.
            node.centroids_, node.squared_norm_ = node.init_centroids_[:size], node.init_sq_norm_[:size]
        nodes += [cluster.child_ for cluster in node.subclusters_ if cluster.child_ is not None]


def try_predict(bundle: Bundle) -> None:
    """Encode one row and predict, as a last check of a bundle that comes from storage.

    Raises
    ------
    EnvelopeError
        If the bundle cannot predict although it has learned.
    """
    if not bundle.rows_seen:
        return
    categories: list[list[str | int]] = [[""] for _ in bundle.recipe.categories]
    numbers = len(bundle.recipe.numbers)
    if bundle.recipe.features is None:
        numbers = int(getattr(bundle.estimator, "n_features_in_", 0))
    try:
        X = bundle.columns.transform(bundle.recipe, Rows(1, bytes(8 * numbers), categories))
        # Of zeros: an unknown label's -1, or a zero after scaling, is more than some estimators take.
        bundle.estimator.predict(np.zeros_like(X))
    except (ValueError, TypeError, AttributeError, LookupError, NotFittedError) as error:
        raise EnvelopeError(f"The bundle loads but cannot predict: {error}") from error
