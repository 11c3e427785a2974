"""The settings of snapshots, of their retention, and of the history.

Owns their names, defaults, units and ranges, as a part of :class:`keepfit.settings.Settings`. Never read by themselves.
"""

from pydantic import Field
from pydantic_settings import BaseSettings

# 30 years, and a petabyte: every clock, timer and counter that keepfit uses accepts them.
SECONDS_MAX, BYTES_MAX, ENTRIES_MAX = 10**9, 2**50, 10**9


class SnapshotSettings(BaseSettings):
    """When snapshots are made, and for how long they and the documents of the history are kept."""

    idle_after_s: int = Field(
        7 * 86_400,
        ge=0,
        # Redis counts seconds in 24 bits, and begins again after 194 days.
        le=180 * 86_400,
        description=(
            "Time without use after which a saved model leaves Redis, which counts 194 days at most; 0: never. Until "
            "its next use its only copy is in the storage."
        ),
    )
    snapshot_every_s: float = Field(
        60.0, ge=0.01, le=SECONDS_MAX, description="Time between the passes of the snapshotter of `keepfit up`."
    )
    snapshot_entries_max: int = Field(
        16, ge=1, le=256, description="Maximum number of blobs that one snapshotter writes at a time."
    )
    snapshot_bytes_max: int = Field(
        64 * 2**20,
        ge=1024,
        le=BYTES_MAX,
        description=(
            "Maximum total size of the bundles that one snapshotter holds at a time; a larger bundle is saved alone."
        ),
    )
    retention_all_s: int = Field(3600, ge=0, le=SECONDS_MAX, description="Age up to which every snapshot is kept.")
    retention_hourly_s: int = Field(
        86_400, ge=0, le=SECONDS_MAX, description="Age up to which the last snapshot of each hour is kept."
    )
    retention_daily_s: int = Field(
        30 * 86_400,
        ge=0,
        le=SECONDS_MAX,
        description=(
            "Age up to which the last snapshot of each day is kept; the newest valid snapshot of a "
            "model is never deleted."
        ),
    )
    garbage_grace_s: int = Field(
        3600, ge=0, le=SECONDS_MAX, description="Age after which an unfinished snapshot counts as abandoned."
    )
    garbage_entries_max: int = Field(
        200,
        ge=0,
        le=ENTRIES_MAX,
        description=(
            "Maximum number of models whose garbage one pass collects, the next pass continuing after "
            "them; 0 deletes nothing."
        ),
    )

    history_rollups: str = Field(
        "",
        description=(
            "Roll-ups of the history, TYPE EVERY FIELD [GROUP] each, separated by commas: shoes 5m metrics.r2."
        ),
    )
    history_keep: str = Field(
        "",
        description=(
            "Time for which stored documents of the history are kept, TYPE DURATION each, separated by "
            "commas: shoes 30d, * 90d."
        ),
    )
    history_daily_entries_max: int = Field(
        0,
        ge=0,
        le=ENTRIES_MAX,
        description=(
            "Maximum number of documents that the clients of one API key may write to the history on a day of UTC; "
            "further ones get 429; 0: no limit."
        ),
    )
    history_daily_bytes_max: int = Field(
        0,
        ge=0,
        le=BYTES_MAX,
        description="Maximum size of these documents, as they were sent; further ones get 429; 0: no limit.",
    )
