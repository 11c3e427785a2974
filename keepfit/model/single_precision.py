"""Numbers of single precision, which halve the bytes of what each commit writes, as they are shown.

Owns how many digits a number shows. Pure.
"""

from typing import Any

import numpy as np

TYPE = "f"
# Powers of ten up to this one are exact as float64.
PLACES_MAX = 22


def as_lists(values: Any) -> Any:
    """Return an array of single precision as lists: numbers have the digits of it; None is not finite.

    >>> as_lists(np.array([[0.1, 2e7], [np.nan, -1.25e-5]], np.float32))
    [[0.1, 20000000.0], [None, -1.25e-05]]
    """
    values = values.astype(np.float64)
    with np.errstate(all="ignore"):
        places = 6 - np.floor(np.log10(np.abs(values)))
        scale = 10.0**places
        values = np.where((places >= 0) & (places <= PLACES_MAX), np.round(values * scale) / scale, values)
    listed = values.astype(object)
    listed[~np.isfinite(values)] = None
    return listed.tolist()
