"""Roll-ups and expiry of the history after a pass of the snapshotter."""

import time

from keepfit.history import Timeline
from keepfit.settings import Settings
from keepfit_snapshotter.run import run_once


async def test_a_pass_rolls_up_and_expires_history_documents(settings: Settings) -> None:
    """After a pass the roll-ups of the settings are up to date, and expired documents are deleted."""
    now = time.time()
    configured = settings.model_copy(update={"history_rollups": "vote 1m n", "history_keep": "vote 1d"})
    async with Timeline.open(settings.mongo_url.get_secret_value()) as timeline:
        await timeline.bulk_upsert({"type": "vote", "timestamp": now - ago, "n": 1} for ago in (200_000.0, 600.0, 0.0))
        await run_once(configured)
        left = await timeline.query({"type": "vote"})
        assert [round(now - document["timestamp"]) for document in left] == [0, 600]
        assert [document["count"] for document in await timeline.query({"type": "vote/1m"})] == [1, 1]
