"""Addresses of sources that may be pulled: the prefixes that the operator allows, and whether an address is below one.

Pure. Never opens anything and never resolves a name. Invariant: an address is compared in one form, in which it has no
credentials, no `..`, no empty part, nothing percent-encoded but bytes of a name, and no query unless it is https; so
no two readers understand it differently.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from keepfit.errors import ForbiddenError, MalformedError, SettingsError

SETTING = "KEEPFIT_PULL_PREFIXES"
SCHEMES = ("s3", "https", "file")
URL_LENGTH_MAX = 2048
HOST = re.compile(r"(?=.{1,253}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
FORMATS = ("csv", "parquet", "npy", "jsonl")
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".npy": "npy",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
COMPRESSED = (".gz", ".zst")
FORMS = "s3://bucket/prefix, https://host/path or file:///folder"


@dataclass(frozen=True, slots=True)
class SourceUrl:
    """An address: `host` is the bucket of S3, "" of a file; `path` begins with "/" and is not percent-encoded."""

    scheme: str
    host: str
    port: int
    path: str
    query: str = ""

    def is_below(self, prefix: "SourceUrl") -> bool:
        """Return whether this address is `prefix` itself or below it, part by part."""
        same = (self.scheme, self.host, self.port) == (prefix.scheme, prefix.host, prefix.port)
        folder = prefix.path.rstrip("/")
        return same and (self.path == prefix.path or self.path.startswith(f"{folder}/"))

    def __str__(self) -> str:
        port = "" if self.port in (0, 443) else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}{quote(self.path)}{'?' if self.query else ''}{self.query}"


def parse(url: str) -> SourceUrl:
    """Parse the address of a source.

    Raises
    ------
    MalformedError
        If it has another form, or one that two readers may understand differently.
    """
    fault = _fault(url)
    if fault:
        raise MalformedError(f"url: {fault}; write {FORMS}.")
    parts = urlsplit(url)
    port = (parts.port or 443) if parts.scheme == "https" else 0
    host = parts.netloc if parts.scheme == "s3" else (parts.hostname or "")
    return SourceUrl(parts.scheme.lower(), host, port, unquote(parts.path) or "/", parts.query)


def _fault(url: str) -> str:
    """Return what is wrong with an address; "" if nothing is."""
    if len(url) > URL_LENGTH_MAX or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return f"an address is at most {URL_LENGTH_MAX} visible ASCII characters without backslashes"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "the address cannot be read"
    faults = {
        f"the scheme is none of {', '.join(SCHEMES)}": parts.scheme not in SCHEMES,
        "the address has credentials": "@" in parts.netloc,
        "the address has a query or a fragment": "#" in url or (bool(parts.query) and parts.scheme != "https"),
        "a file has no host": parts.scheme == "file" and bool(parts.netloc),
        "the bucket has another form": parts.scheme == "s3" and not BUCKET.fullmatch(parts.netloc),
        "the host is no name in lower case": parts.scheme == "https"
        and (not HOST.fullmatch(parts.hostname or "") or port == 0),
    }
    return next((fault for fault, applies in faults.items() if applies), "") or _path_fault(parts.path or "/")


def _path_fault(path: str) -> str:
    plain = unquote(path, errors="replace")
    inner = plain.rstrip("/").split("/")[1:]
    if not plain.startswith("/"):
        return "the path does not begin with /"
    if any(part in ("", ".", "..") for part in inner) or "\ufffd" in plain or not plain.isprintable():
        return "the path has an empty part, . or .., or characters that are no text"
    if "%2f" in path.lower() or "%25" in path or "%5c" in path.lower():
        return "the path has an encoded separator or percent sign"
    return ""


def format_of(url: str, given: str | None) -> str:
    """Return the format of a source: as given, else by the end of its name.

    Raises
    ------
    MalformedError
        If its name ends in none.

    >>> format_of("s3://data/shoes.csv.gz", None), format_of("https://example.org/export", "parquet")
    ('csv', 'parquet')
    """
    found = given or SUFFIXES.get(name_of(url).suffix)
    if found is None:
        raise MalformedError(f"url: its name ends in no known format; name one as `format`: {', '.join(FORMATS)}.")
    return found


def name_of(url: str) -> PurePosixPath:
    """Return the last part of an address in lower case, without the suffix of a compressed file."""
    name = PurePosixPath(PurePosixPath(urlsplit(url).path).name.lower())
    return name.with_suffix("") if name.suffix in COMPRESSED else name


def parse_prefixes(text: str) -> tuple[SourceUrl, ...]:
    """Parse the setting: prefixes, separated by commas or white space.

    Raises
    ------
    SettingsError
        If one has another form.

    >>> [str(prefix) for prefix in parse_prefixes("s3://data/daily, file:///srv/data")]
    ['s3://data/daily', 'file:///srv/data']
    """
    found = []
    for item in re.split(r"[\s,]+", text.strip()):
        if not item:
            continue
        try:
            found.append(parse(item))
        except MalformedError as error:
            raise SettingsError(f"{SETTING}: {item[:80]!r}: {str(error).removeprefix('url: ')}") from None
        if found[-1].query or (found[-1].scheme == "file" and not found[-1].path.strip("/")):
            raise SettingsError(f"{SETTING}: {item[:80]!r} is no folder; write {FORMS}.")
    return tuple(found)


def check_allowed(url: str, prefixes: str) -> tuple[SourceUrl, SourceUrl]:
    """Return the parsed address and the longest allowed prefix that it is below.

    Raises
    ------
    MalformedError
        If the address has another form.
    ForbiddenError
        If it is below no allowed prefix.
    """
    allowed = parse_prefixes(prefixes)
    if not allowed:
        raise ForbiddenError(f"Nothing may be pulled here: {SETTING} names no prefix.")
    source = parse(url)
    if source.path.endswith("/"):
        raise MalformedError("url: the address is that of a folder; name a file or an object.")
    below = [prefix for prefix in allowed if source.is_below(prefix)]
    if not below:
        raise ForbiddenError(f"This address is below none of the prefixes that {SETTING} allows.")
    return source, max(below, key=lambda prefix: len(prefix.path))
