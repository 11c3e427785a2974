"""The functions that replace SciPy's give the same bits."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.utils._array_api import _logsumexp

from keepfit.rows.values import Floats
from keepfit.scoring import functions

SPECIAL = [
    0.0,
    -0.0,
    np.inf,
    -np.inf,
    np.nan,
    709.0,
    709.79,
    710.0,
    -709.79,
    -745.2,
    -746.0,
    1e-320,
    5e-324,
    1e308,
    37.0,
]


def samples(seed: int) -> Floats:
    """Return numbers of every size."""
    random = np.random.default_rng(seed)
    wide = random.integers(0, 2**64, 20_000, dtype=np.uint64).view(np.float64)
    return np.concatenate([SPECIAL, random.normal(0, 3, 60_000), random.uniform(-750, 750, 60_000), wide])


@pytest.mark.parametrize("seed", range(3))
def test_logistic_equals_scipy_s_expit(seed: int) -> None:
    """Every bit of the logistic function is SciPy's, which workers use for large arrays."""
    values = samples(seed)
    with np.errstate(all="ignore"):
        expected = expit(values)
    for shape in (values.shape, (-1, 5)):
        found = values[: 5 * (len(values) // 5)].reshape(shape) if shape != values.shape else values
        assert functions.logistic(found.copy()).tobytes() == expected[: found.size].tobytes()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("classes", [1, 2, 3, 7, 8, 9, 40, 300])
def test_logsumexp_equals_scikit_learn_s(classes: int, order: str) -> None:
    """Every bit of the logarithm of a sum of exponentials is scikit-learn's, for arrays of both orders."""
    random = np.random.default_rng(classes)
    for n in (1, 2, 9, 50):
        values = np.array(random.normal(-30, 40, (n, classes)), order=order)
        values[random.random(values.shape) < 0.1] = random.choice([-np.inf, np.inf, np.nan, 1e308, 0.0])
        before = values.tobytes("A")
        with np.errstate(all="ignore"):
            assert functions.logsumexp(values).tobytes() == np.atleast_1d(_logsumexp(values, axis=1)).tobytes()
        assert values.tobytes("A") == before


def test_is_finite() -> None:
    """Large numbers whose squares overflow are finite; one NaN or infinity among them is not."""
    assert functions.is_finite(np.array([[1e300, -1e300]]))
    assert not functions.is_finite(np.array([[1.0, np.nan]]))
    assert not functions.is_finite(np.array([[1e300, np.inf]]))
