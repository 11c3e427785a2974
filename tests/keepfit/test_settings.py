"""Settings: sources, errors, repr() and the agreement with docs/reference/settings.md."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import SecretStr

from keepfit.errors import SettingsError
from keepfit.settings import Settings, load

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
        ("KEEPFIT_PORT", "http", "valid integer"),
        ("KEEPFIT_PORT", "65536", "less than or equal to 65535"),
        ("KEEPFIT_PORT", "", "valid integer"),
        ("KEEPFIT_WORKERS", "0", "greater than or equal to 1"),
        ("KEEPFIT_BODY_BYTES_MAX", "1", "greater than or equal to 1024"),
        ("KEEPFIT_BODY_BYTES_MAX", "1.5", "valid integer"),
        ("KEEPFIT_LEASE_TTL_S", "-1", "greater than 0"),
        ("KEEPFIT_LEASE_TTL_S", "nan", "greater than 0"),
        ("KEEPFIT_SNAPSHOT_EVERY_S", "1m", "valid number"),
    ],
)
def test_an_invalid_value_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    """An invalid value raises SettingsError with the name of the variable and the valid range."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}: .*{message}"):
        load()


def test_all_invalid_values_are_reported_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message names every invalid variable, also those from the file."""
    (tmp_path / "env").write_text("KEEPFIT_WORKERS=many\n")
    monkeypatch.setenv("KEEPFIT_PORT", "-1")
    with pytest.raises(SettingsError, match=r"KEEPFIT_PORT: .*; KEEPFIT_WORKERS: "):
        load(tmp_path / "env")


def test_errors_show_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error about a variable shows neither its value nor a secret, in the message or in its context."""
    for name in SECRETS:
        monkeypatch.setenv(f"KEEPFIT_{name.upper()}", PASSWORD)
    monkeypatch.setenv("KEEPFIT_PORT", PASSWORD)
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
    suspicious = {name for name in Settings.model_fields if re.search(r"_url$|key|pass|token|secret", name)}
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
    units = ("_s", "_ms", "_bytes_max", "_entries_max")
    numbers = {name for name, field in Settings.model_fields.items() if field.annotation in (int, float)}
    assert {name for name in numbers if not name.endswith(units)} == {"port", "workers"}


def table() -> dict[str, list[str]]:
    """Return the rows of the table in the document by variable: default, meaning, secret."""
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `KEEPFIT_")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_the_document_lists_every_setting() -> None:
    """docs/reference/settings.md has one line per setting, in the order of the class, and no other."""
    assert list(table()) == [f"KEEPFIT_{name.upper()}" for name in Settings.model_fields]


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
