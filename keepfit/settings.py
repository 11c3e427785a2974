"""Every setting of keepfit, declared once.

Owns names, defaults, units and ranges. The environment variable of a setting is ``KEEPFIT_`` + its name in capitals.
Library code never reads settings: entry points call :func:`load` and pass values on. Invariant: a value that can hold a
password is a ``SecretStr``, so that it cannot reach a log by accident. A test compares ``docs/reference/settings.md``
and the ConfigMap in ``k8s/`` with this class. :mod:`keepfit.settings_check` checks addresses, keys and rules.
"""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsConfigDict

from keepfit import control_groups
from keepfit.client_settings import PREFIX, VALUE_SHOWN_MAX, cleaned, variable_of
from keepfit.errors import SettingsError
from keepfit.monitoring_settings import MonitoringSettings
from keepfit.snapshot_settings import BYTES_MAX, ENTRIES_MAX, SECONDS_MAX

# The number of workers that stands for one on each core.
AUTO = "auto"
UNITS = {"_per_s": " (per second)", "_s": " (seconds)", "_ms": " (milliseconds)", "_bytes_max": " (bytes)"}


class Settings(MonitoringSettings):
    """The settings of all services. Each field has a description."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    store_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Redis that holds models and their inboxes."
    )
    store_replicas_min: int = Field(
        0,
        ge=0,
        le=16,
        description="Replicas of the store that must have an accepted request before the response; 0: none.",
    )
    store_replicas_fsync: bool = Field(
        True, description="Whether these replicas must have it on disk (`WAITAOF`), or in memory (`WAIT`)."
    )
    queue_url: SecretStr | None = Field(
        None, description="Redis that holds the run queues and the jobs of RQ; by default the Redis of the store."
    )
    queue_urls: SecretStr | None = Field(
        None, description="Several such servers, separated by commas, among which the models are divided."
    )
    mongo_url: SecretStr = Field(
        SecretStr("mongodb://127.0.0.1:27017/keepfit"),
        description="MongoDB that holds the model registry and the history; the URL names the database.",
    )
    snapshot_url: str = Field(
        "file:///var/lib/keepfit/snapshots", description="Storage for snapshots: file:///path or s3://bucket/prefix."
    )
    row_log_url: str = Field(
        "",
        description=(
            "Storage for the row log, which gets each accepted request before the response: "
            "file:///path or s3://bucket/prefix; empty: no row log."
        ),
    )
    row_log_keep_s: int = Field(
        7 * 86_400,
        ge=3600,
        le=SECONDS_MAX,
        description="Age up to which the row log keeps requests that snapshots contain.",
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
        0.0, ge=0, le=SECONDS_MAX,
        description="Requests per second of an API key without its own rate, over all gateways; 0: no limit.",
    )  # fmt: skip
    open: bool = Field(False, description="Allow a gateway without API keys to bind to an address other than loopback.")
    allowed_hosts: str = Field(
        "",
        description=(
            "Names by which clients may call the gateway in addition to those of loopback, separated by commas; * "
            "allows all. Without it, only a gateway on loopback without API keys checks the Host of requests."
        ),
    )
    cors_origins: str = Field(
        "",
        description=(
            "Origins of web pages that may call the gateway from a browser (CORS), separated by commas: "
            "https://app.example.com; * allows all."
        ),
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address that the gateway binds to.")
    port: int = Field(8000, ge=0, le=65535, description="Port that the gateway listens on; 0 picks a free port.")
    url: str = Field(
        "", description="URL of the gateway that its client commands call; by default that of host and port."
    )
    api_key: SecretStr = Field(SecretStr(""), description="API key that the client commands send to the gateway.")
    gateway_processes: int = Field(
        1, ge=1, le=64, description="Number of processes of one `keepfit gateway` (docs/operations/scaling.md)."
    )
    workers: int = Field(
        2,
        ge=1,
        le=256,
        description=(
            "Number of worker processes that one `keepfit worker` starts; `auto`: one for each core it may use."
        ),
    )
    body_bytes_max: int = Field(
        500 * 2**20, ge=1024, le=BYTES_MAX, description="Maximum size of an inflated body and of its rows as float64."
    )
    bodies_bytes_max: int = Field(
        56 * 2**20,
        ge=1024,
        le=BYTES_MAX,
        description=(
            "Maximum total size of the large request bodies and answers that one gateway holds at a time; further "
            "requests get 503, except a single large one. Divided among the processes of the gateway."
        ),
    )
    head_timeout_s: float = Field(
        10.0,
        gt=0,
        le=SECONDS_MAX,
        description=(
            "Maximum time for the head of a request to arrive: from the opening of a connection for its first request, "
            "from the first byte for the others."
        ),
    )
    body_timeout_s: float = Field(60.0, gt=0, le=SECONDS_MAX, description="Maximum time for a request body to arrive.")
    connections_max: int = Field(
        2000,
        ge=1,
        le=ENTRIES_MAX,
        description=(
            "Maximum number of connections of one gateway, lowered to what the limit of open files permits; for a new "
            "one the oldest without a request is closed, or the longest idle, or one whose client is waited for. "
            "Divided among the processes of the gateway."
        ),
    )
    event_streams_max: int = Field(
        200,
        ge=1,
        le=ENTRIES_MAX,
        description=(
            "Maximum number of clients of one gateway that listen to events; further ones get 429. Divided among the "
            "processes of the gateway."
        ),
    )
    answer_timeout_s: float = Field(
        60.0,
        ge=1,
        le=86_400,
        description="Time after which a connection is aborted whose client reads nothing of its answers.",
    )
    predict_timeout_s: float = Field(
        10.0,
        gt=0,
        le=SECONDS_MAX,
        description="Time after which a pending predict gets 504, unless the request has its own timeout.",
    )
    predict_entries_max: int = Field(
        4096,
        ge=1,
        le=ENTRIES_MAX,
        description=(
            "Maximum number of worker requests that wait for an answer, per model and per process of a gateway; "
            "further requests get 429."
        ),
    )
    predict_cache_bytes_max: int = Field(
        32 * 2**20, ge=0, le=BYTES_MAX,
        description="Memory of the prediction cache of one gateway, divided among its processes; 0 disables the cache.",
    )  # fmt: skip
    predict_staleness_s: float = Field(
        2.0, ge=0.1, le=SECONDS_MAX,
        description="Maximum time for which a cached prediction is used after a commit whose message was lost.",
    )  # fmt: skip
    stale_if_error_s: float = Field(
        0.0, ge=0, le=SECONDS_MAX,
        description="Time for which a prediction may be outdated that replaces a 503 or 504; requests may say it.",
    )  # fmt: skip
    scorer_bytes_max: int = Field(
        256 * 2**10, ge=0, le=32 * 2**20,
        description="Maximum size of a scorer, with which a gateway computes predictions itself; 0: workers do.",
    )  # fmt: skip
    scorer_cache_bytes_max: int = Field(
        64 * 2**20, ge=0, le=BYTES_MAX,
        description="Memory of the scorers of one gateway, divided among its processes; 0: workers compute all.",
    )  # fmt: skip
    inbox_entries_max: int = Field(
        10_000,
        ge=1,
        le=ENTRIES_MAX,
        description="Maximum number of pending requests per model; further requests get 429.",
    )
    inbox_bytes_max: int = Field(
        64 * 2**20,
        ge=1024,
        le=BYTES_MAX,
        description="Maximum size of the pending requests of a model; further requests get 429.",
    )
    open_rows_ttl_s: int = Field(
        7 * 86_400,
        ge=1,
        le=SECONDS_MAX,
        description="Time for which a row that was predicted with an id waits for its label.",
    )
    open_rows_bytes_max: int = Field(
        64 * 2**20,
        ge=1024,
        le=BYTES_MAX,
        description="Maximum size of the rows of a model that wait for their labels; a prediction of more gets 429.",
    )
    open_rows_total_bytes_max: int = Field(
        256 * 2**20,
        ge=1024,
        le=BYTES_MAX,
        description="Maximum size of the rows of all models that wait for their labels; a prediction of more gets 429.",
    )
    replay_bytes_max: int = Field(
        2**20,
        ge=0,
        le=BYTES_MAX,
        description="Maximum size of the retained requests of a model, until a snapshot contains them; 0 retains none.",
    )
    idempotency_ttl_s: int = Field(
        86_400, ge=1, le=SECONDS_MAX, description="Time for which an Idempotency-Key is remembered."
    )
    idempotency_entries_max: int = Field(
        100_000,
        ge=2,
        le=ENTRIES_MAX,
        description="Idempotency-Keys that are remembered per model and name of an API key.",
    )
    pull_prefixes: str = Field(
        "",
        description=(
            "Addresses below which sources may be pulled, separated by commas: s3://bucket/prefix, https://host/path, "
            "file:///folder; empty: none."
        ),
    )
    pulls: int = Field(2, ge=0, le=64, description="Pull jobs that one `keepfit worker` runs at a time; 0: none.")
    pull_bytes_max: int = Field(
        2**40, ge=1024, le=BYTES_MAX, description="Maximum size of a source that is pulled, also when it is inflated."
    )
    pull_timeout_s: int = Field(7 * 86_400, ge=1, le=SECONDS_MAX, description="Maximum time that a pull job may take.")
    job_keep_s: int = Field(
        7 * 86_400, ge=60, le=SECONDS_MAX, description="Time for which a pull job is kept after its end."
    )
    lease_slice_s: float = Field(
        5.0,
        gt=0,
        le=SECONDS_MAX,
        description="Maximum time for which one RQ job drains a run queue before it hands over.",
    )
    lease_ttl_s: float = Field(
        6.0,
        ge=0.1,
        le=SECONDS_MAX,
        description=(
            "Time without renewal by the supervisor after which a lease expires and its work is put back; locks expire "
            "after twice as long."
        ),
    )
    call_timeout_s: float = Field(
        600.0,
        ge=1,
        le=86_400,
        description=(
            "Maximum time of one call in a worker (loading a bundle, learning or answering a batch), or in the process "
            "that replays requests; it is killed then."
        ),
    )
    linger_ms: int = Field(
        10, ge=1, le=1000, description="Time for which an idle lease waits for more work before it ends."
    )
    bundle_bytes_max: int = Field(
        500 * 2**20,
        ge=1024,
        le=2**29,
        description=(
            "Maximum size of a model's bundle; a request that makes it larger is put aside. Redis takes no value above "
            "512 MiB."
        ),
    )
    bundle_cache_bytes_max: int = Field(
        256 * 2**20, ge=0, le=BYTES_MAX, description="Memory for unpickled bundles in one worker process."
    )
    worker_memory_bytes_max: int = Field(
        0,
        ge=0,
        le=BYTES_MAX,
        description=(
            "Memory of a worker process: a request that needs more fails, and a process above three quarters of it is "
            "replaced between two jobs; 0: its share of three quarters of the machine's or container's memory."
        ),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _clean(cls, value: Any, info: ValidationInfo) -> Any:
        return cleaned(info.field_name or "", value) if isinstance(value, str) else value

    @field_validator("workers", mode="before")
    @classmethod
    def _count_cores(cls, value: Any) -> Any:
        return control_groups.cores() if isinstance(value, str) and value.strip() == AUTO else value

    def variables(self) -> dict[str, str]:
        """Return all settings as environment variables, secrets included: for a process that takes this one's place."""
        values = {name: value for name, value in self if value is not None}
        plain = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in values.items()
        }
        return {variable_of(name): str(value) for name, value in plain.items()}

    @property
    def queue_url_or_store(self) -> str:
        """URL of the Redis that RQ uses, in plain text: for clients only, never for logs.

        With ``queue_urls``, settings for one server have it (:func:`keepfit.backends.queue_servers.settings_of`).
        """
        if self.queue_urls and self.queue_urls.get_secret_value():
            raise RuntimeError("These settings name several servers; choose one with keepfit.backends.queue_servers.")
        return (self.queue_url or self.store_url).get_secret_value()


def load(env_file: Path | None = None) -> Settings:
    """Read the settings from the environment, and those that it does not set from `env_file`.

    Raises
    ------
    SettingsError
        If a variable has an invalid value, or the file cannot be read. The message names each variable, its value
        unless that can hold a secret, and the valid values.
    """
    try:
        return Settings(_env_file=env_file)  # type: ignore[call-arg]
    except ValidationError as error:
        raise SettingsError(" ".join(map(_describe, error.errors(include_url=False)))) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings in {env_file} cannot be read: {error}") from None


def _describe(error: ErrorDetails) -> str:
    """Return what is wrong with a setting, and which values are valid."""
    name = str(error["loc"][0])
    field = Settings.model_fields[name]
    is_secret = SecretStr in (field.annotation, *get_args(field.annotation))
    value = "its value" if is_secret else repr(str(error["input"])[:VALUE_SHOWN_MAX])
    return f"{variable_of(name)}: {value} is not {_valid_values(name, field)}."


def _valid_values(name: str, field: FieldInfo) -> str:
    """Return the values that a setting accepts, as the end of a sentence."""
    if field.annotation is bool:
        return "true or false"
    if get_origin(field.annotation) is Literal:
        return " or ".join(get_args(field.annotation))
    if field.annotation not in (int, float):
        return "an address or a name"
    kind = "a whole number" if field.annotation is int else "a number"
    bounds = [
        f"{words} {value:.16g}"
        for words, key in (("from", "ge"), ("above", "gt"), ("to", "le"))
        for value in (getattr(one, key, None) for one in field.metadata)
        if value is not None
    ]
    unit = next((words for suffix, words in UNITS.items() if name.endswith(suffix)), "")
    return " ".join((kind, *bounds)) + unit + (f", or {AUTO}" if name == "workers" else "")
