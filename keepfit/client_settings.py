"""The settings of a client, read without the packages of the services.

Owns :class:`ClientSettings`, which the commands that call a gateway and :mod:`keepfit.objects` read, and the names and
the form of all variables. Library code never reads settings: entry points call :func:`load`. Invariant: a variable
means here what it means to :class:`keepfit.settings.Settings`, which declares and describes it; a test compares the
two.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from keepfit.errors import SettingsError

PREFIX = "KEEPFIT_"
SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*(?=:)")
# Characters of a value, or of the name of a variable, that a message repeats.
VALUE_SHOWN_MAX = 80
PORT_MAX = 65_535
# How similar a variable must be to a setting of clients, from 0 to 1, to be taken for a misspelled one.
SIMILAR_MIN = 0.8


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How a client finds its gateway, and with what it signs objects; ``repr`` shows no key."""

    url: str = ""
    api_key: str = field(default="", repr=False)
    host: str = "127.0.0.1"
    port: int = 8000
    upload_keys: str = field(default="", repr=False)

    @classmethod
    def from_variables(cls, variables: Mapping[str, str]) -> Self:
        """Return the settings in `variables`, by names such as ``KEEPFIT_URL`` in capitals.

        Raises
        ------
        SettingsError
            If one has an invalid value.
        """
        texts = {one.name: variables.get(variable_of(one.name)) for one in dataclasses.fields(cls)}
        values: dict[str, Any] = {name: cleaned(name, text) for name, text in texts.items() if text is not None}
        wrong = [_invalid("host", "an address or a name", "")] if values.get("host") == "" else []
        if "port" in values:
            port = _port_of(values["port"])
            if port is None:
                wrong.append(_invalid("port", f"a whole number from 0 to {PORT_MAX}", values["port"]))
            values["port"] = port
        if wrong:
            raise SettingsError(" ".join(wrong))
        return cls(**values)


def load(env_file: Path | None = None) -> ClientSettings:
    """Read the settings from the environment, and those that it does not set from `env_file`, which need not exist.

    Raises
    ------
    SettingsError
        If a variable has an invalid value, or the file cannot be read.
    """
    stored = {} if env_file is None else _read(env_file)
    return ClientSettings.from_variables(stored | {name.upper(): value for name, value in os.environ.items()})


def _read(env_file: Path) -> dict[str, str]:
    """Return the variables in a file, with their names in capitals."""
    if not env_file.is_file():
        return {}
    from dotenv import dotenv_values  # noqa: PLC0415 - only commands on the folder of `keepfit up` need it

    try:
        stored = dotenv_values(env_file, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings in {env_file} cannot be read: {error}") from None
    return {name.upper(): value for name, value in stored.items() if value is not None}


def variable_of(name: str) -> str:
    """Return the environment variable of the setting `name`.

    >>> variable_of("api_key")
    'KEEPFIT_API_KEY'
    """
    return f"{PREFIX}{name.upper()}"


def cleaned(name: str, value: str) -> str:
    """Return a value without white space around it, a URL with its scheme in lower case, a host without brackets.

    A file that a value was read from often ends with a newline, and schemes are case-insensitive (RFC 3986).

    >>> cleaned("url", "HTTP://gateway:8000 "), cleaned("host", "[::1]")
    ('http://gateway:8000', '::1')
    """
    value = value.strip()
    if name == "host":
        return value.removeprefix("[").removesuffix("]")
    return SCHEME.sub(lambda scheme: scheme[0].lower(), value, count=1) if name.endswith("url") else value


def other_variables(names: Iterable[str] | None = None) -> list[str]:
    """Return the variables named ``KEEPFIT_…`` that clients do not read; `names` are the environment's by default.

    >>> other_variables(["KEEPFIT_URL", "keepfit_port", "KEEPFIT_WORKERS", "PATH"])
    ['KEEPFIT_WORKERS']
    """
    known = {variable_of(one.name) for one in dataclasses.fields(ClientSettings)}
    return sorted(
        name
        for name in (os.environ if names is None else names)
        if name.upper().startswith(PREFIX) and name.upper() not in known
    )


def misspelled_variables(names: Iterable[str] | None = None) -> dict[str, str]:
    """Return the variables of :func:`other_variables` that are nearly a setting of clients, each with that setting.

    >>> misspelled_variables(["KEEPFIT_API_KEYS", "KEEPFIT_STORE_URL", "KEEPFIT_WORKERS"])
    {'KEEPFIT_API_KEYS': 'KEEPFIT_API_KEY'}
    """
    known = [one.name.upper() for one in dataclasses.fields(ClientSettings)]
    # Compared without the prefix, which makes every two names similar.
    similar = {
        name: get_close_matches(name.upper().removeprefix(PREFIX), known, n=1, cutoff=SIMILAR_MIN)
        for name in other_variables(names)
    }
    return {name: PREFIX + match[0] for name, match in similar.items() if match}


def _port_of(text: str) -> int | None:
    try:
        port = int(text)
    except ValueError:
        return None
    return port if 0 <= port <= PORT_MAX else None


def _invalid(name: str, valid: str, text: str) -> str:
    return f"{variable_of(name)}: {text[:VALUE_SHOWN_MAX]!r} is not {valid}."
