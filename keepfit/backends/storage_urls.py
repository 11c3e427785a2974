"""Addresses of storages: ``file:///path`` and ``s3://bucket/prefix``.

Pure, and without the libraries that open a storage (:mod:`keepfit.backends.blobs`), which would double the memory of a
gateway. Invariant: an address that :func:`check_storage_url` accepts can be opened, and holds no credentials.
"""

import re
from urllib.parse import SplitResult, urlsplit

from keepfit.errors import SettingsError

# Of S3 and of servers that follow it.
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
FORMS = "file:///path nor s3://bucket/prefix"


def check_storage_url(url: str, setting: str) -> SplitResult:
    """Return the parts of a storage's URL, the value of `setting`.

    >>> check_storage_url("s3://models/snapshots", "KEEPFIT_SNAPSHOT_URL").netloc
    'models'

    Raises
    ------
    SettingsError
        If it is neither ``file:///path`` nor ``s3://bucket/prefix``.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if "@" in parts.netloc:
        raise SettingsError(
            f"{setting}: the address has credentials; write s3://bucket/prefix, and set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY."
        )
    if not parts.query and not parts.fragment:
        if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/") and parts.path.strip("/"):
            return parts
        if parts.scheme == "s3" and BUCKET.fullmatch(parts.netloc):
            return parts
    raise SettingsError(f"{setting}: {url!r} is neither {FORMS}.")
