"""Settings that hold addresses, keys and rules are checked before a service starts."""

import pytest

from keepfit.errors import SettingsError
from keepfit.settings import Settings, load
from keepfit.settings_check import check

SECRET = "hunter2"

WRONG = {
    "KEEPFIT_STORE_URL": (
        (
            "http://h/0",
            "unix://, redis+sentinel://, rediss+sentinel://, redis+cluster://, rediss+cluster://; write redis://",
        ),
        ("redis+cluster://h/1", "a cluster has the database 0 alone"),
        ("redis://h/models", "the path must be the number of a database"),
        ("redis://h:0/0", "the port must be from 1 to 65535"),
        ("redis://h:70000/0", "the address or its port cannot be read"),
        ("redis://h/0?no_such_option=1", "an option of the address is unknown"),
        (f"redis://:{SECRET}/0@h:6379", "cannot be read"),
    ),
    "KEEPFIT_QUEUE_URL": (
        ("redis:/h", "does not begin with"),
        (f"{SECRET}:6379", "does not begin with"),
        (f"redis+cluster://:{SECRET}@h", "a Redis Cluster holds no queue; name a single server"),
    ),
    "KEEPFIT_MONGO_URL": (
        ("mongo://h/keepfit", "URI must begin with 'mongodb://'"),
        ("mongodb://h/a.b", "the database's name has a dot"),
        ("mongodb://h/keepfit?tlss=true", "Unknown option: tlss"),
        ("mongodb://h/keepfit?tls=maybe", "The value of tls must be 'true' or 'false'"),
        (f"mongodb://u:{SECRET}/x@h/keepfit", "cannot be read; write mongodb://user:password@host:27017/keepfit"),
        (f"mongodb://u:{SECRET}", "Port contains non-digit characters"),
    ),
    "KEEPFIT_SNAPSHOT_URL": (
        ("http://bucket/x", "'http://bucket/x' is neither file:///path nor s3://bucket/prefix"),
        ("gs://bucket/x", "is neither"),
        ("/var/snapshots", "is neither"),
        ("file://var/snapshots", "is neither"),
        ("s3://", "is neither"),
        ("s3:///prefix", "is neither"),
        ("", "is neither"),
        (f"s3://key:{SECRET}@bucket/x", "the address has credentials; write s3://bucket/prefix, and set AWS_ACCESS"),
    ),
    "KEEPFIT_ROW_LOG_URL": (("ftp://x/y", "'ftp://x/y' is neither file:///path nor s3://bucket/prefix"),),
    "KEEPFIT_URL": (("127.0.0.1:8000", "'127.0.0.1:8000' is not http://host:port or https://host"),),
    "KEEPFIT_SIGNING_KEYS": (
        (f"k1:{SECRET}", "key 1 is not id:hex with at least 32 bytes of hex; `keepfit key signing`"),
    ),
    "KEEPFIT_IMPORT_KEYS": (("k1", "key 1 is not id:hex"),),
    "KEEPFIT_UPLOAD_KEYS": (("u1:abcd", "`keepfit key upload` prints one"),),
    "KEEPFIT_API_KEYS": ((f"web:root:{SECRET}", "key 1 is not name:scopes:sha256"),),
    "KEEPFIT_ALLOWED_HOSTS": (
        (
            "gw.example, http://gw.example",
            "'http://gw.example' is neither a host name without a port: gateway.example.com",
        ),
        ("gw.example:80", "'gw.example:80' is neither"),
        ("*.gw.example", "'*.gw.example' is neither"),
    ),
    "KEEPFIT_CORS_ORIGINS": (
        ("app.example.com", "'app.example.com' is neither an origin: https://app.example.com"),
        ("https://app.example.com/", "'https://app.example.com/' is neither"),
    ),
    "KEEPFIT_HISTORY_KEEP": (("shoes 30 days", "'shoes 30 days' is not a valid rule"),),
    "KEEPFIT_HISTORY_ROLLUPS": (("shoes 5m", "'shoes 5m'"),),
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [(name, value, message) for name, cases in WRONG.items() for value, message in cases],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    """The error names the variable and what would be right, and shows no secret."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        check(load())
    assert str(raised.value).startswith(name)
    assert message in str(raised.value)
    assert SECRET not in str(raised.value)


def test_all_wrong_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names each wrong setting, whichever service uses it."""
    for name, cases in WRONG.items():
        monkeypatch.setenv(name, cases[0][0])
    with pytest.raises(SettingsError) as raised:
        check(load())
    assert [name for name in WRONG if name not in str(raised.value)] == []


def test_defaults_and_usual_addresses_pass() -> None:
    """The defaults pass; so do TLS, sockets, IPv6, several hosts, and schemes in capitals."""
    check(Settings())
    check(
        Settings(
            store_url="REDISS://:p%40ss@[::1]:6379/2",
            queue_url="unix:///run/redis.sock?db=1",
            mongo_url="mongodb+srv://u:p%2Fw@db.example.com/keepfit?w=majority",
            snapshot_url="S3://my.bucket-1/a/b",
            row_log_url="FILE:///var/log rows",
            history_keep="shoes 30d, * 90d",
            history_rollups="shoes 5m metrics.r2",
        )
    )
