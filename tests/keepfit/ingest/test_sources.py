"""Sources over https and from S3: what is connected to, what is refused, and that a change is noticed."""

import contextlib
import http.server
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from keepfit.backends import source_urls
from keepfit.backends.source_urls import check_allowed, parse
from keepfit.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    KeepfitError,
    MalformedError,
    NotFoundError,
    SettingsError,
    UnavailableError,
)
from keepfit.ingest import addresses, sources
from keepfit.ingest.https_source import HttpsSource
from tests.tls import Authority

NAME = "data.example.org"
DATA = b"".join(b"%d,%d\n" % (i, i) for i in range(400_000))


@dataclass
class Site:
    """A server on loopback with a certificate for `data.example.org`, and what it does."""

    port: int = 0
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    data: bytes = DATA
    etag: str = '"one"'
    ranges: bool = True
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    shift: int = 0
    range_form: str = "bytes {}-{}/{}"
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def source(self, path: str = "/a.csv", name: str = NAME, **fields: Any) -> HttpsSource:
        """Return a source of this server, whose name leads to loopback, which is allowed."""
        fields = {"resolve": lambda host, port: ["127.0.0.1"], "is_allowed": lambda address: True, **fields}
        return HttpsSource(parse(f"https://{name}:{self.port}{path}"), context=self.context, **fields)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with ranges of the site's data."""

    site: ClassVar[Site]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        site, wanted = self.site, self.headers.get("Range", "")
        site.requests.append((self.path, dict(self.headers)))
        data, status = site.data, 200
        if site.ranges and wanted:
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            data, status = data[int(begin) : int(end) + 1], 206
        self.send_response(site.status or status)
        for name, value in site.headers.items():
            self.send_header(name, value)
        if status == 206:
            first, last = int(begin) + site.shift, int(end) + site.shift
            self.send_header("Content-Range", site.range_form.format(first, last, len(site.data)))
        if site.etag:
            self.send_header("ETag", site.etag)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: site.cut or len(data)])
        if site.cut:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class has it
        """Log nothing."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Run a site."""
    authority = Authority.make(tmp_path / "ca.pem")
    made = Site(context=ssl.create_default_context(cafile=str(authority.path)))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": made}))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate(NAME))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    made.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_source_is_read_to_its_end(site: Site, ranges: bool) -> None:
    """By ranges on one connection, or as one answer; nothing is asked for but the path, and no credentials are sent."""
    site.ranges = ranges
    found = site.source("/a%20b.csv?x=1")
    file = found.open(seekable=ranges)
    assert file.read() == DATA
    if ranges:
        file.seek(-7, 2)
        assert file.read(100) == DATA[-7:]
    found.check()
    assert {path for path, _ in site.requests} == {"/a%20b.csv?x=1"}
    for _, headers in site.requests:
        assert headers["Host"] == f"{NAME}:{site.port}"
        assert not headers.keys() & {"Authorization", "Cookie"}
    found.close()


def test_a_change_is_noticed(site: Site) -> None:
    """Between two ranges and at a check; what was read is of one state."""
    found = site.source()
    file = found.open(seekable=True)
    file.read(10)
    site.etag = '"two"'
    file.seek(-1, 2)
    with pytest.raises(ConflictError):
        file.read(1)
    with pytest.raises(ConflictError):
        found.check()
    found.close()


def test_a_cut_answer_is_no_end(site: Site) -> None:
    """An answer that ends early is an outage and not the end of the source."""
    site.cut = 5000
    for ranges in (True, False):
        site.ranges = ranges
        with contextlib.closing(site.source()) as found:
            file = found.open(seekable=ranges)
            with pytest.raises(UnavailableError):
                file.read()


def test_another_range_is_not_taken_for_the_one_that_was_asked_for(site: Site) -> None:
    """Neither when the source is found nor later; the unit of a range may be written in capitals."""
    site.range_form = "Bytes {}-{}/{}"
    with contextlib.closing(site.source()) as found:
        file = found.open(seekable=True)
        site.shift = 1
        with pytest.raises(UnavailableError, match="another range"):
            file.read(10)
        with pytest.raises(UnavailableError, match="another range"):
            site.source().open(seekable=True)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"status": 416}, InvalidError, "is empty"),
        ({"range_form": "bytes {}-{}/*"}, InvalidError, "how large"),
        ({"status": 302, "headers": {"Location": "https://169.254.169.254/"}}, InvalidError, "redirects"),
        ({"status": 404}, NotFoundError, "no such source"),
        ({"status": 403}, InvalidError, "403"),
        ({"status": 503}, UnavailableError, "503"),
        ({"etag": ""}, InvalidError, "neither ETag"),
        ({"headers": {"Content-Encoding": "gzip"}}, InvalidError, "compresses"),
        ({"ranges": False}, InvalidError, "no ranges"),
    ],
)
def test_answers_that_are_refused(site: Site, fields: dict[str, Any], error: type[KeepfitError], message: str) -> None:
    """Redirects are not followed, and what cannot be read safely says why; nothing else is asked for."""
    for name, value in fields.items():
        setattr(site, name, value)
    with pytest.raises(error, match=message):
        site.source().open(seekable=True)
    assert len(site.requests) == 1


def test_the_certificate_must_be_that_of_the_name(site: Site) -> None:
    """A server with another certificate gets no request."""
    with pytest.raises(UnavailableError, match="certificate"):
        site.source(name="other.example.org").open(seekable=True)
    site.context = ssl.create_default_context()
    with pytest.raises(UnavailableError, match="certificate"):
        site.source().open(seekable=True)
    assert not site.requests


def test_a_name_that_leads_inside_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One address that is not public is enough; the name is resolved once, and no proxy of the environment is used."""
    for found in (["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1"], ["::ffff:127.0.0.1"], []):
        with pytest.raises(ForbiddenError, match="not public"):
            site.source(resolve=lambda host, port, found=found: found, is_allowed=addresses.is_public).open(
                seekable=True
            )
    assert not site.requests
    resolved = []
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: 1 / 0)

    def resolve(host: str, port: int) -> list[str]:
        resolved.append(host)
        return ["127.0.0.1"]

    # Loopback by its number needs no name, so getaddrinfo is asked for numbers only.
    monkeypatch.setattr(socket, "create_connection", _connect_by_number)
    found = site.source(resolve=resolve)
    assert found.open(seekable=True).read(3) == DATA[:3]
    found.close()
    assert resolved == [NAME]


def _connect_by_number(address: tuple[str, int], timeout: float) -> socket.socket:
    connection = socket.socket()
    connection.settimeout(timeout)
    connection.connect(address)
    return connection


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.0.1", "192.0.2.1",
        "192.88.99.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:8.8.8.8",
        "::8.8.8.8", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:808:808::1",
        "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "ff02::1", "2a00::1%eth0", "3fff::1", "5f00::1", "text",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    """Private, local, special addresses, and those that stand for others."""
    assert not addresses.is_public(address)


PREFIXES = "file:///srv/data s3://bucket/daily, https://data.example.org/export"


@pytest.mark.parametrize(
    "url",
    [
        "file:///srv/data/a.csv", "s3://bucket/daily/a.csv", "https://data.example.org/export/a.csv?x=1",
        "https://data.example.org:443/export/a.csv", "file:///srv/data/a%20b.csv",
    ],
)  # fmt: skip
def test_addresses_below_a_prefix_are_allowed(url: str) -> None:
    """What is below a prefix may be pulled."""
    check_allowed(url, PREFIXES)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("file:///srv/data2/a.csv", ForbiddenError),
        ("file:///srv/a.csv", ForbiddenError),
        ("s3://bucket2/daily/a.csv", ForbiddenError),
        ("s3://bucket/dailyx", ForbiddenError),
        ("https://data.example.org/a.csv", ForbiddenError),
        ("https://data.example.org:8443/export/a.csv", ForbiddenError),
        ("https://data.example.org.evil.org/export/a.csv", ForbiddenError),
        ("file:///srv/data/../secret", MalformedError),
        ("file:///srv/data/%2e%2e/secret", MalformedError),
        ("file:///srv/data/%252e%252e/secret", MalformedError),
        ("file:///srv/data//a.csv", MalformedError),
        ("file:///srv/data%2fa.csv", MalformedError),
        ("file:///srv/data/a%00.csv", MalformedError),
        ("file://host/srv/data/a.csv", MalformedError),
        ("https://user:secret@data.example.org/export/a.csv", MalformedError),
        ("https://data.example.org\\@evil.org/export/a.csv", MalformedError),
        ("https://DATA.example.org /export/a.csv", MalformedError),
        ("https://[::1]/export/a.csv", MalformedError),
        ("https://data.example.org/export/a.csv#x", MalformedError),
        ("s3://bucket/daily/a.csv?versionId=1", MalformedError),
        ("http://data.example.org/export/a.csv", MalformedError),
        ("ftp://data.example.org/export/a.csv", MalformedError),
        ("/srv/data/a.csv", MalformedError),
        ("file:///srv/data/", MalformedError),
        ("file:///srv/data/" + "a" * 3000, MalformedError),
    ],
)
def test_other_addresses_are_refused(url: str, error: type[KeepfitError]) -> None:
    """What is not below a prefix, and what two readers may understand differently."""
    with pytest.raises(error):
        check_allowed(url, PREFIXES)


@pytest.mark.parametrize("text", ["http://a.org/", "file:///", "s3://", "https://a.org/x?y=1", "srv"])
def test_invalid_prefixes(text: str) -> None:
    """A prefix that allows more than its author means is refused at the start."""
    with pytest.raises(SettingsError, match="KEEPFIT_PULL_PREFIXES"):
        source_urls.parse_prefixes(text)


def test_nothing_is_allowed_by_default() -> None:
    """Without prefixes nothing may be pulled."""
    with pytest.raises(ForbiddenError, match="KEEPFIT_PULL_PREFIXES"):
        check_allowed("file:///srv/data/a.csv", "")


def test_a_file_is_the_same_on_another_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job of a process that died goes on on another machine, whose number for a shared volume is another one."""
    (tmp_path / "a.csv").write_bytes(DATA)
    url, prefix = (tmp_path / "a.csv").as_uri(), tmp_path.as_uri()
    first, before = os.fstat, sources.open_source(url, prefix, 2**40, seekable=False)

    def elsewhere(descriptor: int) -> os.stat_result:
        fields: Any = first(descriptor).__reduce__()[1]
        return os.stat_result((*fields[0][:2], 4711, *fields[0][3:]), fields[1])

    monkeypatch.setattr(os, "fstat", elsewhere)
    assert os.fstat(before.file.fileno()).st_dev == 4711
    with contextlib.closing(sources.open_source(url, prefix, 2**40, seekable=False)) as again:
        again.expect(before.identity)
    before.close()


def test_an_object_of_s3_is_read_in_one_state(s3_url: str) -> None:
    """By ranges; a change is noticed, a missing object is said."""
    import s3fs  # noqa: PLC0415 - as in the fixtures

    fs, url = s3fs.S3FileSystem(), f"{s3_url}/a.csv"
    fs.pipe_file(url, DATA)
    source = sources.open_source(url, s3_url, 2**40, seekable=True)
    assert source.size == len(DATA)
    assert source.file.read() == DATA
    source.check()
    fs.pipe_file(url, DATA[::-1])
    with pytest.raises(ConflictError, match="has changed since the job began"):
        source.check()
    again = sources.open_source(url, s3_url, 2**40, seekable=True)
    assert again.identity != source.identity
    fs.pipe_file(url, DATA)
    with pytest.raises(ConflictError, match="has changed since the job began"):
        again.file.read()
    with pytest.raises(NotFoundError):
        sources.open_source(f"{s3_url}/missing.csv", s3_url, 2**40, seekable=True)
    with pytest.raises(InvalidError, match="KEEPFIT_PULL_BYTES_MAX"):
        sources.open_source(url, s3_url, 1000, seekable=True)
