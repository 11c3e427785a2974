"""Check the settings of all services before a service starts.

Owns which parser reads which setting, and which address a gateway may listen on. Never connects: what is unavailable is
reported by the service that needs it. Invariant: an address, a key or a rule that passes :func:`check` can be parsed by
the service that uses it.
"""

import re
from collections.abc import Callable
from pathlib import Path

from keepfit.backends import queue_servers, redis_clients
from keepfit.backends.files import open_regular
from keepfit.backends.source_urls import parse_prefixes
from keepfit.backends.storage_urls import check_storage_url
from keepfit.client_settings import VALUE_SHOWN_MAX
from keepfit.errors import SettingsError
from keepfit.history import mongo
from keepfit.history.upkeep import rollups
from keepfit.history.upkeep.timeline_upkeep import parse_keep
from keepfit.security import origins
from keepfit.security.api_keys import Keys
from keepfit.security.envelope import IMPORT_KEYS, SIGNING_KEYS, UPLOAD_KEYS, Keyring
from keepfit.settings import Settings

API_KEYS_FILE_BYTES_MAX = 1 << 20
GATEWAY = re.compile(r"https?://[^/@?#\s]+/?[^@?#\s]*")


def check(settings: Settings) -> None:
    """Check every setting that holds an address, keys or rules, whichever service uses it.

    Raises
    ------
    SettingsError
        If any is malformed. The message names each of them, and what would be right.
    """
    wrong = []
    for check_one in CHECKS:
        try:
            check_one(settings)
        except SettingsError as error:
            wrong.append(str(error))
    if wrong:
        raise SettingsError(" ".join(wrong))


def _check_row_log(settings: Settings) -> None:
    if settings.row_log_url:
        check_storage_url(settings.row_log_url, "KEEPFIT_ROW_LOG_URL")


def _check_url(settings: Settings) -> None:
    if settings.url and not GATEWAY.fullmatch(settings.url):
        raise SettingsError(f"KEEPFIT_URL: {settings.url[:VALUE_SHOWN_MAX]!r} is not http://host:port or https://host.")


def _check_keys(setting: str, field: str) -> Callable[[Settings], None]:
    """Return a check of the keys in a setting, if it has any."""

    def check_one(settings: Settings) -> None:
        text = getattr(settings, field).get_secret_value()
        if text:
            Keyring.from_text(text, setting)

    return check_one


CHECKS: tuple[Callable[[Settings], object], ...] = (
    lambda settings: redis_clients.check_url(settings.store_url.get_secret_value(), redis_clients.STORE),
    queue_servers.check,
    lambda settings: mongo.check_url(settings.mongo_url.get_secret_value()),
    lambda settings: check_storage_url(settings.snapshot_url, "KEEPFIT_SNAPSHOT_URL"),
    _check_row_log,
    _check_url,
    _check_keys(SIGNING_KEYS, "signing_keys"),
    _check_keys(IMPORT_KEYS, "import_keys"),
    _check_keys(UPLOAD_KEYS, "upload_keys"),
    lambda settings: Keys.from_text(settings.api_keys.get_secret_value()),
    lambda settings: parse_prefixes(settings.pull_prefixes),
    lambda settings: origins.parse_hosts(settings.allowed_hosts),
    lambda settings: origins.parse_origins(settings.cors_origins),
    lambda settings: rollups.parse(settings.history_rollups),
    lambda settings: parse_keep(settings.history_keep),
)


def check_host(settings: Settings) -> None:
    """Refuse to listen on a network address without API keys.

    Raises
    ------
    SettingsError
        If no keys are configured, the address is not loopback, and KEEPFIT_OPEN is not set.
    """
    if requires_keys(settings) or settings.open or origins.is_loopback(settings.host):
        return
    raise SettingsError(
        f"KEEPFIT_HOST is {settings.host!r}, which other machines can reach, and no API keys are set: set "
        "KEEPFIT_API_KEYS or KEEPFIT_API_KEYS_FILE (`keepfit key new` prints a key), or KEEPFIT_OPEN=true if a proxy "
        "authenticates requests."
    )


def requires_keys(settings: Settings) -> bool:
    """Return whether requests need an API key."""
    return bool(settings.api_keys.get_secret_value().strip() or settings.api_keys_file)


def load_api_keys(settings: Settings, content: bytes) -> Keys:
    """Return the API keys of the settings and of the file's `content`.

    Raises
    ------
    SettingsError
        If a key is malformed, or there is none.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise SettingsError("KEEPFIT_API_KEYS_FILE is not text.") from None
    keys = Keys.from_text(f"{settings.api_keys.get_secret_value()}\n{text}", settings.rate_per_s)
    if not keys:
        raise SettingsError("KEEPFIT_API_KEYS and KEEPFIT_API_KEYS_FILE hold no key; `keepfit key new` prints one.")
    return keys


def read_api_keys_file(path: Path) -> bytes:
    """Return the content of the file with API keys.

    Raises
    ------
    SettingsError
        If it cannot be read, or is no regular file: a FIFO has no content to read again.
    """
    try:
        with open_regular(path) as file:
            return file.read(API_KEYS_FILE_BYTES_MAX)
    except OSError as error:
        raise SettingsError(f"KEEPFIT_API_KEYS_FILE: {str(path)!r} cannot be read: {error.strerror}.") from None


def check_gateway(settings: Settings) -> None:
    """Check what a gateway reads at its start besides the settings: its address and its API keys.

    Raises
    ------
    SettingsError
        If the gateway would refuse to start.
    """
    check_host(settings)
    if requires_keys(settings):
        file = settings.api_keys_file
        load_api_keys(settings, read_api_keys_file(Path(file)) if file else b"")
