"""Estimators of scikit-learn whose models learn and predict on a gateway.

Owns how the methods of an estimator become calls of :class:`keepfit.Client`. Never computes a prediction itself.
Invariant: `fit` makes a fresh model each time, under the metadata and an id of the run, so that two fits never share a
model; a clone has the parameters and no model. Needs scikit-learn; `keepfit.RemoteRegressor` imports it when it is
asked for.
"""

import uuid
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, is_classifier
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from keepfit.client import recipes
from keepfit.client.clients import Client, Model
from keepfit.errors import InvalidError

TYPE = "remote-estimator"
# Classifiers that answer probabilities; of SGDClassifier those with one of the losses.
WITH_PROBA = {"BernoulliNB", "CategoricalNB", "ComplementNB", "GaussianNB", "MLPClassifier", "MultinomialNB"}
LOSSES_WITH_PROBA = {"log_loss", "modified_huber"}


class _RemoteEstimator(BaseEstimator):  # type: ignore[misc]
    """What both kinds share."""

    _default: str

    def __init__(
        self,
        estimator: Any = None,
        *,
        client: Client | str | None = None,
        metadata: Mapping[str, Any] | None = None,
        recipe: Mapping[str, Any] | None = None,
        epochs: int = 1,
    ) -> None:
        self.estimator = estimator
        self.client = client
        self.metadata = metadata
        self.recipe = recipe
        self.epochs = epochs

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Make a fresh model, and learn `X` of shape (rows, columns) and `y` of shape (rows,) in `epochs` passes."""
        X, y = self._checked(X, y, reset=True)
        self._make(y)
        for _ in range(self.epochs):
            self._learn(X, y, sample_weight)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Learn more rows; the first call makes the model. `classes` are labels that later rows may have."""
        is_first = not hasattr(self, "model_metadata_")
        X, y = self._checked(X, y, reset=is_first)
        if is_first:
            self._make(y if classes is None else np.asarray(classes))
        self._learn(X, y, sample_weight)
        return self

    def predict(self, X: Any) -> Any:
        """Return predictions, shape (rows,)."""
        check_is_fitted(self, "model_metadata_")
        return self._of_predictions(self.model_.predict(self._checked_rows(X)))

    def delete(self) -> None:
        """Delete the model on the gateway; until then it stays there, like any other."""
        self.model_.delete()

    @property
    def model_(self) -> Model:
        """The model on the gateway."""
        check_is_fitted(self, "model_metadata_")
        return self._client().model(self.model_metadata_)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_metadata_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        # Rows with missing values are for columns that the recipe names.
        tags.input_tags.allow_nan = False
        return tags

    def _whole_recipe(self) -> dict[str, Any]:
        named = recipes.recipe_of(self._default if self.estimator is None else self.estimator)
        return {**named, **(self.recipe or {})}

    def _has_columns(self) -> bool:
        return bool((self.recipe or {}).get("features"))

    def _checked_rows(self, X: Any) -> Any:
        # Named columns and their types are checked by the gateway.
        return X if self._has_columns() else validate_data(self, X, reset=False, accept_sparse="csr")

    def _checked(self, X: Any, y: Any, *, reset: bool) -> tuple[Any, Any]:
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        if self._has_columns():
            return X, self._checked_target(np.asarray(y))
        X, y = validate_data(self, X, y, reset=reset, accept_sparse="csr", y_numeric=not is_classifier(self))
        return X, self._checked_target(y)

    def _checked_target(self, y: Any) -> Any:
        raise NotImplementedError

    def _of_predictions(self, predictions: Any) -> Any:
        raise NotImplementedError

    def _make(self, y: Any) -> None:
        run = {"run": uuid.uuid4().hex}
        metadata = {"type": TYPE, **(self.metadata or {}), **run}
        self._client().create(metadata, self._recipe_for(y))
        self.model_metadata_ = metadata

    def _recipe_for(self, y: Any) -> dict[str, Any]:
        del y
        return self._whole_recipe()

    def _learn(self, X: Any, y: Any, sample_weight: Any) -> None:
        weights = None if sample_weight is None else _checked_weights(sample_weight, len(y))
        self.model_.partial_fit(X, y, sample_weight=weights, wait=True)

    def _client(self) -> Client:
        if isinstance(self.client, Client):
            return self.client
        return _client_of(self.client)


class RemoteRegressor(RegressorMixin, _RemoteEstimator):  # type: ignore[misc]
    """A regressor of scikit-learn that learns and predicts on a gateway.

    >>> from sklearn.linear_model import SGDRegressor
    >>> RemoteRegressor(SGDRegressor(alpha=0.01)).get_params()["estimator__alpha"]
    0.01

    Parameters
    ----------
    estimator : name of an estimator of scikit-learn that has ``partial_fit``, or an unfitted object of it, whose
        parameters can be searched (``estimator__alpha``)
    client : a :class:`keepfit.Client`, or the URL of a gateway; None: `keepfit up` on this machine
    metadata : of the models that are made; each has a ``run`` of its own besides
    recipe : further fields of the recipe, such as ``features`` and ``scaler``; with ``features``, `X` is a data frame
        and is sent as it is
    epochs : how often `fit` sends all rows
    """

    _default = "SGDRegressor"

    def _checked_target(self, y: Any) -> Any:
        return np.asarray(y, np.float64)

    def _of_predictions(self, predictions: Any) -> Any:
        return np.asarray(predictions, np.float64)


class RemoteClassifier(ClassifierMixin, _RemoteEstimator):  # type: ignore[misc]
    """A classifier of scikit-learn that learns and predicts on a gateway.

    Its parameters are those of :class:`RemoteRegressor`. ``predict_proba`` is there if the estimator has it.

    Attributes
    ----------
    classes_ : labels, sorted, shape (classes,)
    """

    _default = "SGDClassifier"

    @available_if(lambda self: self._has_proba())  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Any:
        """Return probabilities, shape (rows, classes), in the order of `classes_`."""
        check_is_fitted(self, "model_metadata_")
        answer = self.model_.predict(self._checked_rows(X), proba=True)
        found = np.asarray(answer.probabilities, np.float64)
        order = {label: column for column, label in enumerate(answer.classes or ())}
        return found[:, [order[label] for label in self._sent(self.classes_)]]

    def _has_proba(self) -> bool:
        recipe = self._whole_recipe()
        steps = recipe.get("steps")
        name, params = next(iter(steps[-1].items())) if steps else (recipe.get("estimator"), recipe.get("params", {}))
        return name in WITH_PROBA or (name == "SGDClassifier" and params.get("loss") in LOSSES_WITH_PROBA)

    def _checked_target(self, y: Any) -> Any:
        check_classification_targets(y)
        return y

    def _recipe_for(self, y: Any) -> dict[str, Any]:
        self.classes_ = unique_labels(y)
        if len(self.classes_) < 2:
            raise ValueError("The classifier needs rows of at least 2 classes; the data contains only one class.")
        return {**self._whole_recipe(), "classes": self._sent(self.classes_)}

    def _learn(self, X: Any, y: Any, sample_weight: Any) -> None:
        super()._learn(X, self._sent(y), sample_weight)

    def _of_predictions(self, predictions: Any) -> Any:
        labels = dict(zip(self._sent(self.classes_), self.classes_, strict=True))
        return np.array([labels[one] for one in predictions], self.classes_.dtype)

    @staticmethod
    def _sent(labels: Any) -> list[Any]:
        """Return labels as a gateway has them: floats of scikit-learn's own checks are whole numbers."""
        listed = np.asarray(labels).tolist()
        if any(isinstance(label, float) for label in listed):
            if not all(float(label).is_integer() for label in listed):
                raise InvalidError("Labels are texts, integers or booleans: a float is none.")
            return [int(label) for label in listed]
        return list(listed)


def _checked_weights(sample_weight: Any, rows: int) -> Any:
    """Return weights as an array of shape (rows,); one number is the weight of all."""
    weights = np.asarray(sample_weight, np.float64)
    if weights.ndim == 0:
        weights = np.full(rows, weights)
    if weights.ndim != 1 or len(weights) != rows:
        raise ValueError(f"sample_weight has the shape {weights.shape}; Sample weights must be 1D array of {rows}.")
    if not weights.any():
        raise ValueError("Sample weights must contain at least one non-zero number.")
    return weights


_clients: dict[str | None, Client] = {}


def _client_of(url: str | None) -> Client:
    """Return the client of a URL, which estimators of this process share."""
    if url not in _clients:
        _clients[url] = Client() if url is None else Client(url)
    return _clients[url]
