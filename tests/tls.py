"""TLS in front of the servers of tests, which do not speak it themselves: certificates, and a proxy that ends it.

Run as a program it is the proxy: ``python -m tests.tls PORT HOST PORT CERTIFICATE``.
"""

import asyncio
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import trustme

from keepfit.local.servers import accepts, free_port
from tests import servers

CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority of the test's own, its certificate in the file `path`."""

    ca: trustme.CA
    path: Path

    @classmethod
    def make(cls, path: Path) -> "Authority":
        """Make one, and write its certificate to `path`."""
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(path))
        return cls(ca, path)

    def certificate(self, name: str = "127.0.0.1") -> Path:
        """Return a file with a certificate for `name`, and its key."""
        path = self.path.with_name(f"{self.path.stem}-{name}.pem")
        self.ca.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(path))
        return path


@contextmanager
def in_front_of(url: str, certificate: Path) -> Iterator[int]:
    """Take TLS connections on the port that is yielded, and hand on what they say to the server at `url`."""
    parts, port = urlsplit(url), free_port()
    words = [str(port), str(parts.hostname), str(parts.port), str(certificate)]
    with servers.running(
        [sys.executable, "-m", "tests.tls", *words],
        certificate.with_name(f"{port}.log"),
        lambda: accepts(port),
    ):
        yield port


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _serve(port: int, host: str, behind: int, certificate: str) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection(host, behind)
        await asyncio.gather(_pump(reader, behind_writer), _pump(behind_reader, writer))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = await asyncio.start_server(connected, "127.0.0.1", port, ssl=context)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]))
