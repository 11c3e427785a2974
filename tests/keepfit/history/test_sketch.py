"""Sketches against numpy's exact percentiles, and merged in every order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepfit.history.rollups.sketch import ACCURACY, SPAN, Sketch
from keepfit.history.rollups.summaries import Summary, summarize

NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-1e6, 1e6),
    st.integers(-20, 20).map(float),
    st.floats(1e-12, 1e-9),
)
SAMPLES = st.lists(NUMBERS, min_size=1, max_size=60).map(lambda some: np.array(some, dtype=np.float64))


@given(SAMPLES, st.floats(0, 100))
@settings(max_examples=300, deadline=None)
def test_a_percentile_is_as_near_as_promised(values: np.ndarray, percent: float) -> None:
    """Each of the two ranks differs by at most the accuracy, and so does what is interpolated between them."""
    ranked = np.sort(values)
    position = (len(values) - 1) * (percent / 100)
    low = int(position)
    below, above = float(ranked[low]), float(ranked[min(low + 1, len(values) - 1)])
    share = position - low
    exact = below if below == above else below * (1 - share) + above * share
    allowed = ACCURACY * (1 + 1e-6) * (abs(below) * (1 - share) + abs(above) * share)
    allowed += 2e-18 * float(np.abs(values).max()) + 1e-320
    assert abs(Sketch.of(values).percentile(percent) - exact) <= allowed + 1e-15 * abs(exact)


@given(SAMPLES, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_merges_in_any_order_are_the_sketch_of_all(values: np.ndarray, random: object) -> None:
    """However numbers are split and merged, the bytes are those of the sketch of all numbers."""
    pieces = [Sketch.of(some) for some in np.array_split(values, 1 + len(values) // 4)]
    while len(pieces) > 1:
        random.shuffle(pieces)  # type: ignore[attr-defined]
        pieces = [Sketch.merged(pieces[:2]), *pieces[2:]]
    whole = Sketch.of(values)
    assert pieces[0].to_bytes() == whole.to_bytes()
    again = Sketch.from_bytes(whole.to_bytes())
    assert again is not None
    assert (again.codes.tolist(), again.counts.tolist()) == (whole.codes.tolist(), whole.counts.tolist())
    assert len(whole.codes) <= 2 * SPAN + 1


@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(-1e3, 1e3)), min_size=1, max_size=50), st.data())
@settings(max_examples=100, deadline=None)
def test_merged_summaries_are_the_summary_of_all(points: list[tuple[float, float]], data: st.DataObject) -> None:
    """Counts, extremes, the first and the last value do not depend on how the numbers were split."""
    cut = data.draw(st.integers(1, len(points)))
    parts = [np.array(some, dtype=np.float64) for some in (points[:cut], points[cut:]) if some]
    merged = Summary.merged([summary for some in parts for _, summary in summarize(some[:, 0], some[:, 1], 10_000.0)])
    everything = np.array(points)
    ((begin, whole),) = summarize(everything[:, 0], everything[:, 1], 10_000.0)
    assert begin == 0
    assert merged.shown() == pytest.approx(whole.shown())
    stored = Summary.of_parts(whole.shown(), whole.parts(), 0.0)
    assert [stored.stat(stat) for stat in ("p90", "spread", "last")] == [
        whole.stat(stat) for stat in ("p90", "spread", "last")
    ]


def test_a_sketch_of_another_version_is_none() -> None:
    """What a later version wrote is not misread."""
    assert Sketch.from_bytes(b"\x63abc") is None
    assert np.isnan(Sketch.merged([]).percentile(50))
