"""Objects of S3 that are read, not written: one state of each, range by range.

Owns the calls and their errors. Never lists, and never opens what its caller has not checked. Invariant: each range is
of the object with the ETag that was found first: S3 is asked for that one, and its answer is compared. Credentials,
region and endpoint come from the AWS SDK's own settings.
"""

from dataclasses import dataclass
from typing import Any

import fsspec
import fsspec.asyn
from botocore.exceptions import BotoCoreError, ClientError

from keepfit.backends.blobs import S3_LIMITS
from keepfit.errors import ConflictError, InvalidError, NotFoundError, UnavailableError

CHANGED = "The object has changed."
NOT_READ = "The object cannot be read."
# What S3 answers if the caller lacks permission, and if the ETag has changed.
DENIED, OTHER_TAG = (403, 401), (412,)


@dataclass(slots=True)
class S3Object:
    """One state of an object: that with the ETag `etag`."""

    bucket: str
    key: str
    etag: str
    size: int
    _fs: Any

    @classmethod
    def find(cls, bucket: str, key: str) -> "S3Object":
        """Return the present state of an object.

        Raises
        ------
        NotFoundError, InvalidError
            If there is no such object, or it may not be read.
        UnavailableError
            If S3 does not answer.
        """
        fs = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=dict(S3_LIMITS))
        found = _call(fs, "head_object", Bucket=bucket, Key=key)
        return cls(bucket, key, str(found["ETag"]), int(found["ContentLength"]), fs)

    def read(self, begin: int, end: int) -> bytes:
        """Return the bytes from `begin` up to `end`; raises ConflictError if the object has changed, else as `find`."""
        where = {"Bucket": self.bucket, "Key": self.key, "Range": f"bytes={begin}-{end - 1}", "IfMatch": self.etag}
        answer = _call(self._fs, "get_object", **where)
        if str(answer["ETag"]) != self.etag:
            raise ConflictError(CHANGED)
        try:
            data: bytes = fsspec.asyn.sync(self._fs.loop, _read, answer["Body"])
        except Exception as error:
            # Whichever class the HTTP client of the SDK has for an answer that ends early.
            raise UnavailableError(f"The answer of S3 ended early: {error}", NOT_READ) from error
        return data

    def check(self) -> None:
        """Raise ConflictError if the object has another state by now."""
        found = _call(self._fs, "head_object", Bucket=self.bucket, Key=self.key)
        if str(found["ETag"]) != self.etag:
            raise ConflictError(CHANGED)


async def _read(body: Any) -> bytes:
    async with body:
        data: bytes = await body.read()
        return data


def _call(fs: Any, name: str, **arguments: Any) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = fs.call_s3(name, **arguments)
    except FileNotFoundError:
        raise NotFoundError("There is no such object.") from None
    except PermissionError:
        raise InvalidError("S3 does not allow the workers to read the object.") from None
    except (OSError, BotoCoreError, ClientError) as error:
        status = _status_of(error)
        if status in OTHER_TAG:
            raise ConflictError(CHANGED) from None
        raise UnavailableError(f"S3 cannot be read: {error}", NOT_READ) from error
    return answer


def _status_of(error: BaseException | None) -> int:
    while error is not None and not isinstance(error, ClientError):
        error = error.__cause__
    return 0 if error is None else int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
