"""Every setting of keepfit, declared once.

Owns names, defaults and units; each is the environment variable ``KEEPFIT_`` + name in capitals. Never read by library
code on its own: entry points call :func:`load` and hand values on. Invariant: what has a password in it is a
``SecretStr``, so that it cannot reach a log by accident. ``docs/reference/settings.md`` and the ConfigMap in ``k8s/``
are held to this class by a test.
"""

from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from keepfit.errors import SettingsError


class Settings(BaseSettings):
    """The settings of all services; see each field's description."""

    model_config = SettingsConfigDict(env_prefix="KEEPFIT_", extra="ignore")

    store_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Redis that holds models and their inboxes."
    )
    queue_url: SecretStr | None = Field(
        None, description="Redis that holds RQ's queue and the waiting rooms; the store's by default."
    )
    mongo_url: SecretStr = Field(
        SecretStr("mongodb://127.0.0.1:27017/keepfit"),
        description="MongoDB that holds the register of models and the history; names its database.",
    )
    snapshot_url: str = Field(
        "file:///var/lib/keepfit/snapshots",
        description="Where snapshots go: file:///path or s3://bucket/prefix.",
    )
    row_log_url: str = Field(
        "",
        description="Where each accepted request is written before it is answered, file:///… or s3://…; none: nowhere.",
    )
    row_log_keep_s: int = Field(
        7 * 86_400, ge=3600, description="Age up to which the row log keeps what is in snapshots."
    )
    signing_keys: SecretStr = Field(
        SecretStr(""),
        description="Keys that sign bundles, id:hex,id:hex with 32 bytes or more each; the first signs, all verify.",
    )
    import_keys: SecretStr = Field(
        SecretStr(""),
        description="Signing keys of another deployment whose files `keepfit import` takes in; they sign nothing here.",
    )
    upload_keys: SecretStr = Field(
        SecretStr(""),
        description="Keys that sign objects sent in recipes, as signing_keys; with none no object is taken.",
    )
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="API keys, name:scopes:sha256 each; with none here and none in a file the gateway asks for none.",
    )
    api_keys_file: str = Field(
        "", description="File of more API keys, one a line, read again when it changes (docs/operations/security.md)."
    )
    rate_per_s: float = Field(
        0.0, ge=0, description="Requests a second that an API key may make unless it names its own rate; 0 is no limit."
    )
    open: bool = Field(
        False, description="Let a gateway without API keys bind to an address that is not this machine's own."
    )
    host: str = Field("127.0.0.1", description="Address the gateway binds to.")
    port: int = Field(8000, ge=0, le=65535, description="Port the gateway listens on; 0 takes a free one.")
    workers: int = Field(2, ge=1, le=256, description="Worker processes that one `keepfit worker` starts.")
    body_bytes_max: int = Field(500 * 2**20, ge=1024, description="Largest request body, counted after decompression.")
    bodies_bytes_max: int = Field(
        500 * 2**20,
        ge=1024,
        description="Bytes of request bodies one gateway holds at once; more get 503, but for one that is alone.",
    )
    body_timeout_s: float = Field(60.0, gt=0, description="Time a request body may take to arrive.")
    predict_timeout_s: float = Field(
        10.0, gt=0, description="Time after which a waiting predict answers 504, unless the request names its own."
    )
    predict_entries_max: int = Field(
        4096, ge=1, description="Requests that may wait for an answer, per model and per gateway; more get 429."
    )
    predict_cache_bytes_max: int = Field(
        32 * 2**20, ge=0, description="Bytes of predictions one gateway keeps to give again; 0 keeps none."
    )
    predict_staleness_s: float = Field(
        2.0, ge=0.1, description="Longest time a kept prediction is given after a commit that went unheard."
    )
    inbox_entries_max: int = Field(
        10_000, ge=1, description="Requests that may wait to be learned, per model; more get 429."
    )
    inbox_bytes_max: int = Field(
        64 * 2**20, ge=1024, description="Bytes that may wait to be learned, per model; more get 429."
    )
    replay_bytes_max: int = Field(
        2**20,
        ge=0,
        description="Bytes of learned rows that are kept until a snapshot has them, per model; 0 keeps none.",
    )
    idempotency_ttl_s: int = Field(86_400, ge=1, description="How long an Idempotency-Key is remembered.")
    lease_slice_s: float = Field(5.0, gt=0, description="Longest time one RQ job drains before it hands over.")
    lease_ttl_s: float = Field(
        6.0, gt=0, description="A lease or lock not renewed for this long counts as its worker's death."
    )
    linger_ms: int = Field(10, ge=1, le=1000, description="How long an idle lease waits for more before it ends.")
    bundle_cache_bytes_max: int = Field(
        256 * 2**20, ge=0, description="Bytes of bundles one worker process keeps unpickled."
    )
    worker_memory_bytes_max: int = Field(
        0,
        ge=0,
        description="Memory above which a worker process, between jobs, makes room for a fresh one; 0: no bound.",
    )
    snapshot_every_s: float = Field(60.0, gt=0, description="Time between the passes of `keepfit up`'s snapshotter.")
    snapshot_entries_max: int = Field(16, ge=1, le=256, description="Blobs that one snapshotter writes at once.")
    snapshot_bytes_max: int = Field(
        64 * 2**20, ge=1024, description="Bytes of bundles one snapshotter holds at once; a larger bundle goes alone."
    )
    retention_all_s: int = Field(3600, ge=0, description="Age up to which every snapshot is kept.")
    retention_hourly_s: int = Field(86_400, ge=0, description="Age up to which the last snapshot of an hour is kept.")
    retention_daily_s: int = Field(
        30 * 86_400,
        ge=0,
        description="Age up to which the last snapshot of a day is kept; a model's newest good one is never deleted.",
    )
    garbage_grace_s: int = Field(
        3600, ge=0, description="Age after which what a snapshotter has not finished counts as abandoned."
    )
    garbage_entries_max: int = Field(
        200, ge=0, description="Models one pass clears up after, the next pass going on behind them; 0 deletes nothing."
    )

    history_rollups: str = Field(
        "",
        description="Roll-ups of the history, TYPE EVERY FIELD [GROUP] each, with commas between: shoes 5m metrics.r2.",
    )
    history_keep: str = Field(
        "",
        description="How long stored documents of the history are kept, TYPE SPAN each, with commas: shoes 30d, * 90d.",
    )

    @property
    def queue_url_or_store(self) -> str:
        """URL of the Redis that RQ uses (plain text: for clients only, never for logs)."""
        return (self.queue_url or self.store_url).get_secret_value()


def load(env_file: Path | None = None) -> Settings:
    """Read the settings from the environment, then from `env_file` where the environment is silent.

    Raises
    ------
    SettingsError
        If a variable has a value that its setting does not take; names the variable, never a secret's value.
    """
    try:
        return Settings(_env_file=env_file)  # type: ignore[call-arg]
    except ValidationError as error:
        wrong = "; ".join(
            f"KEEPFIT_{'_'.join(map(str, item['loc'])).upper()}: {item['msg']}"
            for item in error.errors(include_input=False, include_url=False)
        )
        raise SettingsError(wrong) from None
