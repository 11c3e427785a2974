"""Settings: sources, errors, repr() and the agreement with docs/reference/settings.md."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import SecretStr

from keepfit.errors import SettingsError
from keepfit.monitoring_settings import MonitoringSettings
from keepfit.settings import Settings, load
from keepfit.snapshot_settings import SnapshotSettings
from keepfit.unknown_settings import unknown_variables

DOCUMENT = Path(__file__).parents[2] / "docs/reference/settings.md"
SECRETS = {
    name
    for name, field in Settings.model_fields.items()
    if SecretStr in (field.annotation, *get_args(field.annotation))
}
PASSWORD = "hunter2-and-more"


def shown(default: Any) -> str:
    """Return a default as the document writes it."""
    value = default.get_secret_value() if isinstance(default, SecretStr) else default
    if value in (None, ""):
        return "none"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def test_defaults_apply_when_nothing_is_set() -> None:
    """Without variables every setting has its declared default."""
    settings = load()
    assert settings == Settings()
    assert settings.model_fields_set == set()
    assert (settings.port, settings.workers, settings.body_bytes_max) == (8000, 2, 500 * 2**20)


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable of a setting is KEEPFIT_ and its name in capitals; other variables are ignored."""
    monkeypatch.setenv("KEEPFIT_PORT", "8123")
    monkeypatch.setenv("KEEPFIT_STORE_URL", f"redis://:{PASSWORD}@store:6379/1")
    monkeypatch.setenv("KEEPFIT_LEASE_TTL_S", "2.5")
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("KEEPFIT_NO_SUCH_THING", "x")
    settings = load()
    assert (settings.port, settings.lease_ttl_s) == (8123, 2.5)
    assert settings.store_url.get_secret_value() == f"redis://:{PASSWORD}@store:6379/1"
    assert settings.model_fields_set == {"port", "store_url", "lease_ttl_s"}


def test_the_environment_overrides_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file supplies the settings that the environment does not set; a missing file counts as empty."""
    path = tmp_path / "env"
    assert load(path) == Settings()
    path.write_text("KEEPFIT_PORT=1111\nKEEPFIT_WORKERS=7\nOTHER=1\n")
    monkeypatch.setenv("KEEPFIT_PORT", "2222")
    settings = load(path)
    assert (settings.port, settings.workers) == (2222, 7)


def test_load_reads_no_dotenv_file_on_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file .env in the working directory is ignored."""
    (tmp_path / ".env").write_text("KEEPFIT_PORT=1111\n")
    monkeypatch.chdir(tmp_path)
    assert load().port == 8000


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("KEEPFIT_PORT", "http", "a whole number from 0 to 65535"),
        ("KEEPFIT_PORT", "65536", "a whole number from 0 to 65535"),
        ("KEEPFIT_PORT", "", "a whole number from 0 to 65535"),
        ("KEEPFIT_LOG_LEVEL", "loud", "info or warning or error"),
        ("KEEPFIT_WORKERS", "0", "a whole number from 1 to 256, or auto"),
        ("KEEPFIT_BODY_BYTES_MAX", "1", "a whole number from 1024 to 1125899906842624 (bytes)"),
        ("KEEPFIT_BODY_BYTES_MAX", "1.5", "a whole number from 1024 to 1125899906842624 (bytes)"),
        ("KEEPFIT_BODY_TIMEOUT_S", "0", "a number above 0 to 1000000000 (seconds)"),
        ("KEEPFIT_ANSWER_TIMEOUT_S", "0", "a number from 1 to 86400 (seconds)"),
        ("KEEPFIT_LEASE_TTL_S", "-1", "a number from 0.1 to 1000000000 (seconds)"),
        ("KEEPFIT_LEASE_TTL_S", "nan", "a number from 0.1 to 1000000000 (seconds)"),
        ("KEEPFIT_RATE_PER_S", "inf", "a number from 0 to 1000000000 (per second)"),
        ("KEEPFIT_SNAPSHOT_EVERY_S", "1m", "a number from 0.01 to 1000000000 (seconds)"),
        ("KEEPFIT_IDLE_AFTER_S", "16777216", "a whole number from 0 to 15552000 (seconds)"),
        ("KEEPFIT_OPEN", "perhaps", "true or false"),
        ("KEEPFIT_HOST", " ", "an address or a name"),
    ],
)
def test_an_invalid_value_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    """An invalid value raises SettingsError with the name of the variable, the value and the valid range."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}: {value.strip()!r} is not {re.escape(message)}\\.$"):
        load()


def test_all_invalid_values_are_reported_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message names every invalid variable, also those from the file."""
    (tmp_path / "env").write_text("KEEPFIT_WORKERS=many\n")
    monkeypatch.setenv("KEEPFIT_PORT", "-1")
    with pytest.raises(SettingsError, match=r"KEEPFIT_PORT: .* KEEPFIT_WORKERS: 'many' is"):
        load(tmp_path / "env")


def test_errors_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error shows the value of no secret, in the message or in its context."""
    for name in SECRETS:
        monkeypatch.setenv(f"KEEPFIT_{name.upper()}", PASSWORD)
    monkeypatch.setenv("KEEPFIT_PORT", "http")
    with pytest.raises(SettingsError) as caught:
        load()
    assert PASSWORD not in str(caught.value)
    assert caught.value.__suppress_context__


def test_repr_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """repr(), str(), JSON and dictionary of the settings hold no value of a secret."""
    for name in SECRETS:
        monkeypatch.setenv(f"KEEPFIT_{name.upper()}", PASSWORD)
    settings = load()
    assert settings.signing_keys.get_secret_value() == PASSWORD
    for text in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump())):
        assert PASSWORD not in text
        assert "signing_keys" in text


def test_settings_that_can_hold_a_password_are_secret() -> None:
    """Every URL of a server and every setting named key, password or token is a SecretStr."""
    suspicious = {name for name in Settings.model_fields if re.search(r"_urls?$|key|pass|token|secret", name)}
    # The URL of a storage has no password: the AWS SDK has settings of its own for S3 credentials. Nor has a file name.
    assert suspicious - {"snapshot_url", "row_log_url", "api_keys_file"} == SECRETS
    assert len(SECRETS) >= 4


@pytest.mark.parametrize("queue_url", [None, "", "redis://queue:6379/0"])
def test_the_queue_uses_the_redis_of_the_store_by_default(queue_url: str | None) -> None:
    """With a missing or empty queue_url, RQ uses the Redis of the store."""
    settings = Settings(
        store_url=SecretStr("redis://store:6379/0"), queue_url=None if queue_url is None else SecretStr(queue_url)
    )
    assert settings.queue_url_or_store == (queue_url or "redis://store:6379/0")


def test_names_end_in_their_unit() -> None:
    """The name of a number ends in its unit or in the thing that it counts."""
    units = ("_s", "_ms", "_bytes_max", "_entries_max", "connections_max", "streams_max")
    numbers = {name for name, field in Settings.model_fields.items() if field.annotation in (int, float)}
    assert {name for name in numbers if not name.endswith(units)} == {
        "port",
        "worker_metrics_port",
        "workers",
        "gateway_processes",
        "pulls",
        "store_replicas_min",
    }


def table() -> dict[str, list[str]]:
    """Return the rows of the table in the document by variable: default, meaning, secret."""
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `KEEPFIT_")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_the_document_lists_every_setting() -> None:
    """docs/reference/settings.md has one line per setting, those of services first, and no other."""
    groups = (Settings.model_fields, MonitoringSettings.model_fields, SnapshotSettings.model_fields, {})
    ordered = [name for group, inherited in pairwise(groups) for name in group if name not in inherited]
    assert list(table()) == [f"KEEPFIT_{name.upper()}" for name in ordered]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_document_agrees_with_the_class(name: str) -> None:
    """Default, meaning and secrecy of each setting in docs/reference/settings.md equal those of the class."""
    field = Settings.model_fields[name]
    assert table()[f"KEEPFIT_{name.upper()}"] == [
        shown(field.default),
        field.description,
        "yes" if name in SECRETS else "no",
    ]


def test_every_description_is_a_sentence() -> None:
    """Each setting has a description that begins with a capital and ends with a full stop."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert re.fullmatch(r"[A-Z].*\.", field.description), name


def test_white_space_and_the_case_of_a_scheme_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values lose white space around them, schemes of URLs become lower case, an IPv6 host loses its brackets."""
    monkeypatch.setenv("KEEPFIT_STORE_URL", " REDISS://:Secret@Host:6379/0\n")
    monkeypatch.setenv("KEEPFIT_MONGO_URL", "MongoDB+SRV://host/keepfit")
    monkeypatch.setenv("KEEPFIT_SNAPSHOT_URL", "S3://bucket/Prefix")
    monkeypatch.setenv("KEEPFIT_HOST", "[::1]")
    monkeypatch.setenv("KEEPFIT_PORT", "8001\n")
    settings = load()
    assert settings.store_url.get_secret_value() == "rediss://:Secret@Host:6379/0"
    assert settings.mongo_url.get_secret_value() == "mongodb+srv://host/keepfit"
    assert (settings.snapshot_url, settings.host, settings.port) == ("s3://bucket/Prefix", "::1", 8001)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A file of settings that is not text is a SettingsError that names it."""
    (tmp_path / "env").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=f"The settings in {tmp_path}/env cannot be read"):
        load(tmp_path / "env")


def test_unknown_variables_are_listed_with_the_most_similar_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable KEEPFIT_… that is no setting is listed, with the setting that it may be a misspelling of."""
    for name in ("KEEPFIT_PORT", "KEEPFIT_FAULT_POINT", "keepfit_host", "KEEPFIT_SNAPSHOTS_URL", "KEEPFIT_QQ"):
        monkeypatch.setenv(name, "1")
    assert unknown_variables() == {"KEEPFIT_QQ": "", "KEEPFIT_SNAPSHOTS_URL": "KEEPFIT_SNAPSHOT_URL"}
