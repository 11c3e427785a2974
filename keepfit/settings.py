"""Every setting of keepfit, declared once.

Owns names, defaults and units. The environment variable of a setting is ``KEEPFIT_`` + its name in capitals. Library
code never reads settings: entry points call :func:`load` and pass values on. Invariant: a value that can hold a
password is a ``SecretStr``, so that it cannot reach a log by accident. A test compares ``docs/reference/settings.md``
and the ConfigMap in ``k8s/`` with this class.
"""

from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from keepfit.errors import SettingsError


class Settings(BaseSettings):
    """The settings of all services. Each field has a description."""

    model_config = SettingsConfigDict(env_prefix="KEEPFIT_", extra="ignore")

    store_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Redis that holds models and their inboxes."
    )
    queue_url: SecretStr | None = Field(
        None, description="Redis that holds the run queues and the jobs of RQ; by default the Redis of the store."
    )
    mongo_url: SecretStr = Field(
        SecretStr("mongodb://127.0.0.1:27017/keepfit"),
        description="MongoDB that holds the model registry and the history; the URL names the database.",
    )
    snapshot_url: str = Field(
        "file:///var/lib/keepfit/snapshots",
        description="Storage for snapshots: file:///path or s3://bucket/prefix.",
    )
    row_log_url: str = Field(
        "",
        description=(
            "Storage for the row log, which gets each accepted request before the response: "
            "file:///path or s3://bucket/prefix; empty: no row log."
        ),
    )
    row_log_keep_s: int = Field(
        7 * 86_400, ge=3600, description="Age up to which the row log keeps requests that snapshots contain."
    )
    signing_keys: SecretStr = Field(
        SecretStr(""),
        description="Keys that sign bundles: id:hex,id:hex with at least 32 bytes each; the first signs, all verify.",
    )
    import_keys: SecretStr = Field(
        SecretStr(""),
        description=(
            "Signing keys of another deployment, with which `keepfit import` verifies its files; they sign nothing."
        ),
    )
    upload_keys: SecretStr = Field(
        SecretStr(""),
        description=(
            "Keys that sign uploaded objects, in the form of signing_keys; without a key no objects are accepted."
        ),
    )
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="API keys, name:scopes:sha256 each; without keys here and in api_keys_file requests need no key.",
    )
    api_keys_file: str = Field(
        "",
        description="File with more API keys, one per line, read again when it changes (docs/operations/security.md).",
    )
    rate_per_s: float = Field(
        0.0, ge=0, description="Requests per second that an API key without its own rate may make; 0: no limit."
    )
    open: bool = Field(False, description="Allow a gateway without API keys to bind to an address other than loopback.")
    host: str = Field("127.0.0.1", description="Address that the gateway binds to.")
    port: int = Field(8000, ge=0, le=65535, description="Port that the gateway listens on; 0 picks a free port.")
    workers: int = Field(2, ge=1, le=256, description="Number of worker processes that one `keepfit worker` starts.")
    body_bytes_max: int = Field(500 * 2**20, ge=1024, description="Maximum size of a request body after decompression.")
    bodies_bytes_max: int = Field(
        500 * 2**20,
        ge=1024,
        description=(
            "Maximum total size of the request bodies that one gateway holds at a time; further "
            "requests get 503, except a single large one."
        ),
    )
    body_timeout_s: float = Field(60.0, gt=0, description="Maximum time for a request body to arrive.")
    predict_timeout_s: float = Field(
        10.0, gt=0, description="Time after which a pending predict gets 504, unless the request has its own timeout."
    )
    predict_entries_max: int = Field(
        4096,
        ge=1,
        description=(
            "Maximum number of worker requests that wait for an answer, per model and per gateway; "
            "further requests get 429."
        ),
    )
    predict_cache_bytes_max: int = Field(
        32 * 2**20, ge=0, description="Memory of the prediction cache of one gateway; 0 disables the cache."
    )
    predict_staleness_s: float = Field(
        2.0,
        ge=0.1,
        description="Maximum time for which a cached prediction is used after a commit whose message was lost.",
    )
    inbox_entries_max: int = Field(
        10_000, ge=1, description="Maximum number of pending requests per model; further requests get 429."
    )
    inbox_bytes_max: int = Field(
        64 * 2**20, ge=1024, description="Maximum size of the pending requests of a model; further requests get 429."
    )
    replay_bytes_max: int = Field(
        2**20,
        ge=0,
        description=(
            "Maximum size of the retained requests of a model, which stay until a snapshot contains "
            "them; 0 retains none."
        ),
    )
    idempotency_ttl_s: int = Field(86_400, ge=1, description="Time for which an Idempotency-Key is remembered.")
    lease_slice_s: float = Field(
        5.0, gt=0, description="Maximum time for which one RQ job drains a run queue before it hands over."
    )
    lease_ttl_s: float = Field(
        6.0, gt=0, description="Time without renewal after which a lease or lock expires and its worker counts as dead."
    )
    linger_ms: int = Field(
        10, ge=1, le=1000, description="Time for which an idle lease waits for more work before it ends."
    )
    bundle_cache_bytes_max: int = Field(
        256 * 2**20, ge=0, description="Memory for unpickled bundles in one worker process."
    )
    worker_memory_bytes_max: int = Field(
        0,
        ge=0,
        description="Memory above which a worker process is replaced between two jobs; 0: no limit.",
    )
    snapshot_every_s: float = Field(
        60.0, gt=0, description="Time between the passes of the snapshotter of `keepfit up`."
    )
    snapshot_entries_max: int = Field(
        16, ge=1, le=256, description="Maximum number of blobs that one snapshotter writes at a time."
    )
    snapshot_bytes_max: int = Field(
        64 * 2**20,
        ge=1024,
        description=(
            "Maximum total size of the bundles that one snapshotter holds at a time; a larger bundle is saved alone."
        ),
    )
    retention_all_s: int = Field(3600, ge=0, description="Age up to which every snapshot is kept.")
    retention_hourly_s: int = Field(86_400, ge=0, description="Age up to which the last snapshot of each hour is kept.")
    retention_daily_s: int = Field(
        30 * 86_400,
        ge=0,
        description=(
            "Age up to which the last snapshot of each day is kept; the newest valid snapshot of a "
            "model is never deleted."
        ),
    )
    garbage_grace_s: int = Field(3600, ge=0, description="Age after which an unfinished snapshot counts as abandoned.")
    garbage_entries_max: int = Field(
        200,
        ge=0,
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

    @property
    def queue_url_or_store(self) -> str:
        """URL of the Redis that RQ uses, in plain text: for clients only, never for logs."""
        return (self.queue_url or self.store_url).get_secret_value()


def load(env_file: Path | None = None) -> Settings:
    """Read the settings from the environment, and those that it does not set from `env_file`.

    Raises
    ------
    SettingsError
        If a variable has an invalid value. The message names the variable and never shows a value.
    """
    try:
        return Settings(_env_file=env_file)  # type: ignore[call-arg]
    except ValidationError as error:
        wrong = "; ".join(
            f"KEEPFIT_{'_'.join(map(str, item['loc'])).upper()}: {item['msg']}"
            for item in error.errors(include_input=False, include_url=False)
        )
        raise SettingsError(wrong) from None
