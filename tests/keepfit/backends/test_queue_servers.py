"""Which server of the queue serves a model, and which lists of servers are refused."""

import hashlib
from collections import Counter

import pytest

from keepfit.backends import queue_servers
from keepfit.errors import SettingsError
from keepfit.settings import Settings
from keepfit.settings_check import check

NAMES = ["queue-a:6379/0", "queue-b:6379/0", "queue-c:6379/0"]
HASHES = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(10_000)]


def test_models_are_spread_evenly() -> None:
    """Of 10,000 models each of three servers has a third, within 10 %."""
    counts = Counter(queue_servers.pick(model_hash, NAMES) for model_hash in HASHES)
    assert all(abs(counts[position] - len(HASHES) / 3) < len(HASHES) / 30 for position in range(3))


@pytest.mark.parametrize("gone", range(3))
def test_a_server_that_goes_away_moves_only_its_models(gone: int) -> None:
    """The models of the others stay; its own go to both of them, and the order of the list does not matter."""
    left = [name for name in NAMES if name != NAMES[gone]]
    before = [NAMES[queue_servers.pick(model_hash, NAMES)] for model_hash in HASHES]
    after = [left[::-1][queue_servers.pick(model_hash, left[::-1])] for model_hash in HASHES]
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(moved) == before.count(NAMES[gone])
    assert all(abs(moved.count(name) - len(moved) / 2) < len(moved) / 20 for name in left)


def test_credentials_and_options_do_not_change_the_name() -> None:
    """Processes with other passwords, or with TLS, choose the same servers."""
    urls = ["redis://queue-a:6379/0", "rediss://user:secret@QUEUE-A/?ssl_ca_certs=/ca"]
    assert {queue_servers.name_of(url) for url in urls} == {"queue-a:6379/0"}


def test_each_server_has_settings_of_its_own() -> None:
    """Clients of one server get its address alone, sentinels too; the store is used if no server is named."""
    sentinel = "redis+sentinel://one,two:26380/0?master=queue"
    settings = Settings(store_url="redis://store/0", queue_urls=f"redis://:a@b/0 , {sentinel},")
    check(settings)
    assert [one.queue_url_or_store for one in queue_servers.settings_of(settings)] == ["redis://:a@b/0", sentinel]
    with pytest.raises(RuntimeError):
        _ = settings.queue_url_or_store
    (single,) = queue_servers.settings_of(Settings(store_url="redis://store/0", queue_urls=""))
    assert single.queue_url_or_store == "redis://store/0"


@pytest.mark.parametrize(
    ("urls", "single", "reason"),
    [
        ("redis://a/0,redis://b/0", "redis://c/0", "KEEPFIT_QUEUE_URL and KEEPFIT_QUEUE_URLS name different servers"),
        ("redis://a/0,redis://:hush@a:6379/0", None, "KEEPFIT_QUEUE_URLS names the server a:6379/0 twice"),
        ("redis://a/0,http://b/0", None, "KEEPFIT_QUEUE_URLS: the address does not begin with"),
        ("redis://:hush@a:6379/0,b:6379/0", None, "KEEPFIT_QUEUE_URLS: the path must be the number of a database"),
        (" , ", None, "KEEPFIT_QUEUE_URLS has no address"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(urls: str, single: str | None, reason: str) -> None:
    """The error names the setting and what is wrong, and quotes no password."""
    with pytest.raises(SettingsError) as caught:
        check(Settings(queue_urls=urls, queue_url=single))
    assert reason in str(caught.value)
    assert "hush" not in str(caught.value)


def test_both_settings_may_name_the_same_server() -> None:
    """A list of one server is as good as the setting for one."""
    check(Settings(queue_urls="redis://a/0", queue_url="redis://a/0"))
