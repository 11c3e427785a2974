"""The settings by which a deployment is watched: logs, probes and metrics.

Owns their names, defaults and ranges, as a part of :class:`keepfit.settings.Settings`. Never read by themselves.
"""

from typing import Literal

from pydantic import Field

from keepfit.snapshot_settings import SnapshotSettings


class MonitoringSettings(SnapshotSettings):
    """What services log, and what they show of themselves."""

    alive_file: str = Field(
        "",
        description=(
            "File that `keepfit worker` touches each second, and `keepfit snapshot --every` at each pass: its age "
            "shows a probe that the process hangs; empty: none."
        ),
    )
    worker_metrics_port: int = Field(
        0, ge=0, le=65535, description="Port on which `keepfit worker` serves its metrics; 0: none."
    )
    worker_metrics_host: str = Field(
        "127.0.0.1", min_length=1, description="Address that `keepfit worker` serves its metrics at, without a key."
    )
    log_level: Literal["info", "warning", "error"] = Field(
        "info", description="Lowest level that services log; that they are ready they always log."
    )
    access_log: bool = Field(False, description="Whether gateways log each request that they have answered.")
