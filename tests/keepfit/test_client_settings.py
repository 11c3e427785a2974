"""The settings of clients mean what the same variables mean to the services."""

import dataclasses
from pathlib import Path

import pytest
from pydantic import SecretStr

from keepfit import client_settings, settings
from keepfit.client_settings import ClientSettings
from keepfit.errors import SettingsError
from keepfit.settings import Settings

FILES = [
    "",
    "KEEPFIT_URL=http://a:1\nKEEPFIT_PORT=1234\n",
    "keepfit_url=HTTPS://a\nexport KEEPFIT_API_KEY='k1'\n",
    '# a comment\nKEEPFIT_UPLOAD_KEYS="u1:00" # another\nKEEPFIT_HOST=[::1]\nKEEPFIT_URL\n',
    "KEEPFIT_API_KEY=a#b\nKEEPFIT_HOST=${NAME_OF_NO_VARIABLE:-elsewhere}\n",
    "KEEPFIT_PORT=none\n",
]
ENVIRONMENTS: list[dict[str, str]] = [
    {},
    {"KEEPFIT_URL": " HTTP://b:2/\n", "KEEPFIT_API_KEY": "k2\n"},
    {"keepfit_port": " 80 ", "KEEPFIT_HOST": " [::] ", "KEEPFIT_WORKERS": "3", "PORT": "1"},
    {"KEEPFIT_URL": "", "KEEPFIT_UPLOAD_KEYS": ""},
    {"KEEPFIT_PORT": ""},
    {"KEEPFIT_PORT": "65536"},
    {"KEEPFIT_PORT": "-1"},
    {"KEEPFIT_PORT": "x" * 100},
    {"KEEPFIT_HOST": "  "},
]


def read(load: object, env_file: Path | None) -> dict[str, object] | str:
    """Return the settings of clients that `load` reads, or its error."""
    try:
        found = load(env_file)  # type: ignore[operator]
    except SettingsError as error:
        return str(error)
    values = {one.name: getattr(found, one.name) for one in dataclasses.fields(ClientSettings)}
    return {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in values.items()}


@pytest.mark.parametrize("text", [None, *FILES])
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_clients_and_services_read_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], text: str | None
) -> None:
    """Defaults, values and errors are those of the class that declares the settings, from variables and from a file."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    env_file = tmp_path / "env"
    if text is not None:
        env_file.write_text(text)
    assert read(client_settings.load, env_file) == read(settings.load, env_file)


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    """The message names the file, as that of the services does."""
    env_file = tmp_path / "env"
    env_file.write_bytes(b"KEEPFIT_URL=\xff\n")
    assert read(client_settings.load, env_file) == read(settings.load, env_file)
    with pytest.raises(SettingsError, match="env cannot be read: "):
        client_settings.load(env_file)


def test_repr_shows_no_key() -> None:
    """What is secret in the class that declares the settings is not in repr()."""
    given = {one.name: f"value-of-{one.name}" for one in dataclasses.fields(ClientSettings) if one.name != "port"}
    shown = repr(ClientSettings(**given))  # type: ignore[arg-type]
    hidden = {name for name, value in given.items() if value not in shown}
    assert hidden == {name for name in given if Settings.model_fields[name].annotation is SecretStr}
