"""The servers of the queue: their addresses, and which of them serves a model.

Owns the form of ``KEEPFIT_QUEUE_URLS``, the names of servers, and rendezvous hashing. Never knows which servers are up:
the processes that use them do. Invariants: a model's server depends on the names of the servers that are up, not on
their order, and a server that goes away moves only its own models; a name has no password, so that processes with other
credentials choose the same server.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import SecretStr

from keepfit.backends import redis_clients, redis_scripts, redis_sentinel
from keepfit.errors import SettingsError, UnavailableError
from keepfit.settings import Settings

QUEUES = "KEEPFIT_QUEUE_URLS"
T = TypeVar("T")

# Commands for people that read all servers do not wait longer for one of them.
ANSWER_S = 4.0
# Commas also separate the sentinels of one address: an address begins with a scheme.
SEPARATOR = re.compile(r"\s*,\s*(?=[a-z+]+://)")


def split(text: str) -> list[str]:
    """Return the addresses in a list.

    >>> split("redis://a:6379/0, redis+sentinel://b,c:26380/0?master=m")
    ['redis://a:6379/0', 'redis+sentinel://b,c:26380/0?master=m']
    """
    text = text.strip().rstrip(",")
    return SEPARATOR.split(text) if text else []


def name_of(url: str) -> str:
    """Return the name of a server: its address without scheme, credentials and options.

    >>> name_of("rediss://:secret@Queue-1/0?ssl_ca_certs=/ca"), name_of("redis://queue-1:6379")
    ('queue-1:6379/0', 'queue-1:6379/0')
    >>> name_of("redis+sentinel://:secret@b,a:26380/0?master=m"), name_of("unix:///run/a.sock?db=1")
    ('m@a:26380,b:26379/0', '/run/a.sock/1')
    """
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"{parts.path}/{dict(parse_qsl(parts.query)).get('db', '0')}"
    database = parts.path.strip("/") or "0"
    if parts.scheme in redis_sentinel.SCHEMES:
        address = redis_sentinel.parse(url)
        hosts = ",".join(sorted(f"{host.lower()}:{port}" for host, port in address.sentinels))
        return f"{address.master}@{hosts}/{database}"
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}/{database}"


def settings_of(settings: Settings) -> list[Settings]:
    """Return the settings of the processes and clients of each server, in the order of the list.

    They name this server alone, as ``KEEPFIT_QUEUE_URL``. Without a list they are the settings themselves.

    Raises
    ------
    SettingsError
        If one is a Redis Cluster.
    """
    urls = split(settings.queue_urls.get_secret_value()) if settings.queue_urls else []
    each = [settings.model_copy(update={"queue_url": SecretStr(url), "queue_urls": None}) for url in urls] or [settings]
    for one in each:
        redis_clients.check_queue(one)
    return each


def settings_for(settings: Settings, key: str) -> Settings:
    """Return the settings of the server of `key`, whichever servers answer."""
    each = settings_of(settings)
    return each[pick(key, [name_of(one.queue_url_or_store) for one in each])]


def pick(key: str, names: Sequence[str]) -> int:
    """Return the position of the server of `key`, usually the hash of a model, among the servers with these names.

    Rendezvous hashing (Thaler and Ravishankar 1996): the server whose name and the key together give the highest hash.

    >>> pick("a", ["one:6379/0"]), pick("a", ["one:6379/0", "b:6379/0"]) == 1 - pick("a", ["b:6379/0", "one:6379/0"])
    (0, True)
    """
    if len(names) == 1:
        return 0
    return max(range(len(names)), key=lambda i: _weight(key, names[i]))


def first_up(key: str, settings: Settings) -> Settings:
    """Return the settings of the server of a key, or of the next one if that does not answer; the last if none does."""
    each = sorted(settings_of(settings), key=lambda one: _weight(key, name_of(one.queue_url_or_store)), reverse=True)
    for one in each[:-1]:
        with redis_clients.queue_sync(one) as client, suppress(UnavailableError):
            redis_scripts.run(client, ("PING",))
            return one
    return each[-1]


def _weight(key: str, name: str) -> bytes:
    return blake2b(f"{name} {key}".encode(), digest_size=8).digest()


async def read_each(settings: Settings, read: Callable[[Any], Awaitable[T]]) -> list[T]:
    """Return what is read from each server that answers within :data:`ANSWER_S`, with a client of its own.

    Raises
    ------
    UnavailableError
        If none answers; with a single server, its error.
    """

    async def one(of: Settings) -> T | UnavailableError:
        client = redis_clients.queue_async(of)
        try:
            async with asyncio.timeout(ANSWER_S):
                return await read(client)
        except UnavailableError as error:
            return error
        except TimeoutError:
            return UnavailableError(f"Redis is unavailable: it did not answer for {ANSWER_S:g} s.")
        finally:
            await client.aclose()

    answers = await asyncio.gather(*map(one, settings_of(settings)))
    found = [answer for answer in answers if not isinstance(answer, UnavailableError)]
    if not found:
        raise next(answer for answer in answers if isinstance(answer, UnavailableError))
    return found


def check(settings: Settings) -> None:
    """Check the addresses of the queue's servers, without connecting.

    Raises
    ------
    SettingsError
        If one cannot be used, a server is named twice, or both settings name different ones.
    """
    single = settings.queue_url.get_secret_value() if settings.queue_url else ""
    if single:
        redis_clients.check_url(single, redis_clients.QUEUE)
    if settings.queue_urls is None or not settings.queue_urls.get_secret_value():
        settings_of(settings)
        return
    urls = split(settings.queue_urls.get_secret_value())
    if not urls:
        raise SettingsError(f"{QUEUES} has no address; remove it, or write redis://host:6379/0,redis://other:6379/0.")
    for url in urls:
        redis_clients.check_url(url, QUEUES)
    twice = _first_twice(map(name_of, urls))
    if twice:
        raise SettingsError(f"{QUEUES} names the server {twice} twice; name each server once.")
    if single and urls != [single]:
        raise SettingsError(
            f"{redis_clients.QUEUE} and {QUEUES} name different servers; set one of them: {QUEUES} for several servers."
        )
    settings_of(settings)


def _first_twice(names: Iterable[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""
