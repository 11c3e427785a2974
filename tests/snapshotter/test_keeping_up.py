"""The upkeep of the history, as a snapshotter's pass does it."""

import time

from keepfit.history import Timeline
from keepfit.settings import Settings
from keepfit_snapshotter.run import run_once


async def test_a_pass_keeps_the_history_up(settings: Settings) -> None:
    """After a pass what the settings name is rolled up, and what is older than they say is gone."""
    now = time.time()
    wanted = settings.model_copy(update={"history_rollups": "vote 1m n", "history_keep": "vote 1d"})
    async with Timeline.open(settings.mongo_url.get_secret_value()) as timeline:
        await timeline.bulk_upsert({"type": "vote", "timestamp": now - ago, "n": 1} for ago in (200_000.0, 600.0, 0.0))
        await run_once(wanted)
        left = await timeline.query({"type": "vote"})
        assert [round(now - document["timestamp"]) for document in left] == [0, 600]
        assert [document["count"] for document in await timeline.query({"type": "vote/1m"})] == [1, 1]
