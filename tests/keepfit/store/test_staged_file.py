"""Files in pieces in Redis: none stays for ever, whenever its writer dies."""

from redis.asyncio import Redis

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.settings import Settings
from keepfit.store import staged_file
from keepfit.store.staged_file import PIECE_BYTES, StagedFile

TTL_MS = 60_000


def test_a_writer_that_dies_between_two_commands_leaves_no_key_for_ever(settings: Settings) -> None:
    """Whichever of the commands arrive, of the first piece or a later one, the key has a time to live."""
    with redis_clients.store_sync(settings) as client:
        for before in (0, 1):
            commands = staged_file.piece(redis_keys.staged_file(str(before)), 3 * before, b"abc", TTL_MS)
            if before:
                redis_scripts.run(client, *staged_file.piece(redis_keys.staged_file("1"), 0, b"abc", TTL_MS))
            for command in commands:
                redis_scripts.run(client, command)
                for key in client.scan_iter():
                    assert 0 < client.pttl(key) <= TTL_MS
        assert client.get(redis_keys.staged_file("1")) == b"abcabc"


async def test_a_file_is_read_as_it_was_written(settings: Settings) -> None:
    """A file of several pieces, written in any parts by a gateway or whole by a worker, is read back in pieces."""
    data = bytes(range(256)) * (PIECE_BYTES * 5 // 2 // 256) + b"end"
    client: Redis = redis_clients.store_async(settings)
    file = StagedFile(lambda key: client, TTL_MS)
    for start in range(0, len(data), 300_000):
        await file.write(data[start : start + 300_000])
    await file.finish()
    whole = redis_keys.staged_file("whole")
    with redis_clients.store_sync(settings) as sync_client:
        staged_file.store(sync_client, whole, data, TTL_MS)
        for key in (file.key, whole):
            assert b"".join([piece async for piece in staged_file.read(client, key, len(data))]) == data
            assert 0 < sync_client.pttl(key) <= TTL_MS
    await file.delete()
    assert not await client.exists(file.key)
    await client.aclose()
