"""Targets and weights in the forms in which they are given."""

from typing import Any

import numpy as np
import pytest

from keepfit.client.rows.targets import data_of
from keepfit.errors import InvalidError

ROW = {"make": "nike", "year": 2001}


@pytest.mark.parametrize("y", [4, 4.0, np.float64(4), np.array(4.0), [4.0], (4.0,), np.array([4.0])])
def test_a_single_row_may_have_a_number_as_target_and_weight(y: Any) -> None:
    """A row and its target are one row with a list of one target."""
    data = data_of([ROW], y, sample_weight=y)
    assert (data.labels(0, 1), data.weights_of(0, 1)) == ([4], [4])


def test_what_is_no_target_is_refused() -> None:
    """The message says what is expected, or which lengths differ."""
    with pytest.raises(InvalidError, match="lists, arrays or numbers, not object"):
        data_of([ROW], object())
    with pytest.raises(InvalidError, match="X has 2 rows and y has 1"):
        data_of([ROW, ROW], 4)
    with pytest.raises(InvalidError, match="X has 1 rows and sample_weight has 2"):
        data_of([ROW], 4, sample_weight=[1, 2])
