"""Redis clients, made from the settings."""

import pytest

from keepfit.backends import redis_clients
from keepfit.errors import SettingsError
from keepfit.settings import Settings


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hush@host:port/0",
        "http://:hush@host/0",
        "hush",
        "rediss://:hush@host:1/0?ssl_ca_cert=/misspelled.pem",
        "rediss://:hush@host:1/0?ssl_cert_reqs=sometimes",
        "redis+sentinel://:hush@one,two/0",
        "redis+sentinel://:hush@one,two:port/0?master=hush",
        "redis+sentinel://:hush@one,/0?master=hush",
        "redis+sentinel://:hush@one/x?master=hush",
        "redis+sentinel://:hush@one/0?master=hush&misspelled=hush",
        "rediss+sentinel://:hush@one/0?master=hush&ssl_cert_reqs=sometimes",
        "redis+cluster://:hush@one,two:port",
        "redis+cluster://:hush@one,",
        "redis+cluster://:hush@one/1",
        "redis+cluster://:hush@one?misspelled=hush",
        "rediss+cluster://:hush@one?ssl_cert_reqs=sometimes",
    ],
)
def test_an_invalid_address_is_reported_without_its_password(url: str) -> None:
    """A Redis URL that cannot be read raises a SettingsError that names the settings and quotes nothing of the URL."""
    settings = Settings(store_url=url)
    for connect in (
        redis_clients.store_sync,
        redis_clients.queue_sync,
        redis_clients.store_async,
        redis_clients.queue_async,
    ):
        with pytest.raises(SettingsError, match="KEEPFIT_STORE_URL") as raised:
            connect(settings)
        assert "hush" not in str(raised.value)
