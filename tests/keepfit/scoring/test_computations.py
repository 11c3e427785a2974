"""Records compute what scikit-learn's own objects compute, in every bit, for matrices of every size."""

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.naive_bayes import GaussianNB

from keepfit.model import fast_predict, pipeline
from keepfit.model.smoothing import smoothed
from keepfit.scoring import bayes, clusters, computations, linear
from tests.keepfit.scoring import models

SIZES = [1, 2, 3, 5, 8, 17, 64, 301]


@pytest.mark.parametrize("labels", ["named", "three", "late"])
@pytest.mark.parametrize("case", models.CASES)
def test_a_record_computes_the_bits_of_scikit_learn(case: str, labels: str) -> None:
    """Predictions, probabilities and scores of a record equal those of scikit-learn's methods."""
    has_labels = models.parse(models.document(case, "unnamed", None, "onehot", "")).entry.kind == "classifier"
    if not has_labels and labels != "named":
        return
    bundle = models.learned(case, "unnamed", None, "onehot", labels if has_labels else "")
    estimator, scorer = smoothed(pipeline.final_of(bundle.estimator)), models.scorer_of(bundle, 1, 1)
    assert scorer is not None
    record, random = scorer.state.final, np.random.default_rng(3)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for n in SIZES:
            X = np.abs(random.normal(1, 3, (n, models.UNNAMED_WIDTH)))
            before = X.tobytes()
            check_equal(computations.predict(record, X), estimator.predict(X))
            assert record.has_probabilities == hasattr(estimator, "predict_proba")
            if record.has_probabilities:
                check_equal(computations.probabilities(record, X), estimator.predict_proba(X))
                check_equal(fast_predict.predict_proba(estimator, X), estimator.predict_proba(X))
            if type(record) is linear.InlierDetector:
                check_equal(linear.inlier_scores(record, X), estimator.decision_function(X))
            assert X.tobytes() == before


def check_equal(found: Any, expected: Any) -> None:
    """Check that arrays, or lists of arrays, are equal in values, shape and bits."""
    if isinstance(expected, list):
        for pair in zip(found, expected, strict=True):
            check_equal(*pair)
        return
    assert (found.shape, found.dtype.kind) == (expected.shape, expected.dtype.kind)
    assert found.tolist() == expected.tolist() or found.tobytes("C") == expected.tobytes("C")
    if expected.dtype.kind == "f":
        assert found.tobytes("C") == expected.tobytes("C")


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 9, 16, 31, 127, 128, 129, 300])
def test_gaussian_naive_bayes_of_all_classes_at_once(width: int) -> None:
    """Few rows, whose classes are computed at once, and many rows have the bits of scikit-learn."""
    random = np.random.default_rng(width)
    for classes in (2, 3, 9, 40):
        estimator = GaussianNB().partial_fit(
            random.normal(1, 3, (3 * classes, width)), np.arange(3 * classes) % classes, classes=np.arange(classes)
        )
        for n in (1, 2, 9, 1 + bayes.TOGETHER_VALUES_MAX // (classes * width)):
            X = random.normal(1, 3, (n, width))
            found, expected = bayes.gaussian(estimator, X), estimator.predict_joint_log_proba(X)
            assert (found.tobytes("A"), found.strides) == (expected.tobytes("A"), expected.strides)


@pytest.mark.parametrize("width", [1, 3, 20])
def test_a_cluster_that_rounding_decides_is_left_to_scikit_learn(width: int) -> None:
    """Of two centres at the same distance none is answered, and neither if they differ in the last bits."""
    centres = np.random.default_rng(width).normal(0, 5, (4, width))
    centres[3] = centres[0]
    record = clusters.Clusters(centres)
    assert clusters.nearest(record, centres[:1]) is None
    centres[3, 0] = np.nextafter(centres[0, 0], np.inf)
    assert clusters.nearest(record, centres[:1]) is None
    found = clusters.nearest(record, centres[1:3])
    assert found is not None
    assert found.tolist() == [1, 2]


def test_a_single_cluster_is_the_nearest_one() -> None:
    """With one centre there is nothing to compare."""
    found = clusters.nearest(clusters.Clusters(np.ones((1, 2))), np.full((3, 2), 1e300))
    assert found is not None
    assert found.tolist() == [0, 0, 0]
