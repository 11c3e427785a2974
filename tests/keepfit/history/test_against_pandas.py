"""Points of drawn queries equal those of pandas."""

from keepfit.history import TimelineSync
from tests.keepfit.history import against_pandas


def test_points_of_drawn_queries_equal_those_of_pandas(mongo_url: str) -> None:
    """All statistics, zones with their clock changes, groups, fills and steps give the points that pandas gives."""
    frame = against_pandas.documents(1_200)
    with TimelineSync(mongo_url) as timeline:
        timeline.bulk_upsert(against_pandas.stored(frame))
        assert against_pandas.check(timeline, frame, 25) > 2_000
