"""The state of the snapshots as the store has it, for probes and metrics."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """State of the snapshots: number of models `changed` since their last snapshot, and the last pass.

    `age_s` is the age of the last pass by the clock of Redis, which all machines share; None if there was no pass.
    `uncollected` is the reason why the last garbage collection failed, '' if it did not.
    """

    changed: int
    age_s: int | None
    failed: int
    reason: str
    uncollected: str = ""
