"""One prefix of a bucket, through obstore: six questions, and what the library says of each comes out as an error of ours.

Promise: no question takes longer than its deadline, all attempts together; what a bucket may heal is asked again, what it
refused is not. No answer is trusted: a range has exactly its bytes, however much more is sent. No PUT replaces an object,
where the bucket honours If-None-Match. No credential, and no text of the bucket's but its error code, is logged or shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Literal, TypeVar

import obstore
import structlog
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from integrity.errors import DagsealError, FetchError, NotFoundError
from submit_api.blobs.credentials import FileCredentials, read
from submit_api.blobs.section import BlobsSection
from submit_api.refusals import NoSpaceError, UnavailableError

T = TypeVar("T")
MADE: Literal["made"] = "made"
THERE: Literal["there"] = "there"
UNSURE: Literal["unsure"] = "unsure"
_ATTEMPTS = 3
_FIRST_PAUSE_SECONDS = 0.1
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_STATUS = re.compile(r"non-2xx status code: ([0-9]{3})")
_PATH = re.compile(r'[Pp]ath "([^"]{1,500})"')
_ROLE = re.compile(r"Error performing [A-Z]+ \S+/latest/(?:api/token|meta-data/)")
_NO_SPACE = ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507")
_log = structlog.get_logger("submit_api")


class DeniedError(UnavailableError):
    """Asking again does not help: credentials, policy, or the bucket's name are to be fixed."""


class BeyondEndError(FetchError):
    """The object has no byte there."""


class Bucket:
    """Open for the life of the process; connections are obstore's."""

    def __init__(self, section: BlobsSection) -> None:
        """Raises `SettingsError` for a credentials file that cannot be used."""
        self._section = section
        if section.credentials_file:
            read(section.credentials_file)
        # All that a variable of the environment could weaken is said here.
        self._store = S3Store(
            section.bucket,
            prefix=section.prefix or None,
            config={
                "region": section.region,
                "conditional_put": "etag",
                "unsigned_payload": False,
                "skip_signature": False,
                "disable_bulk_delete": True,
                **({"endpoint": section.endpoint, "aws_endpoint_url_s3": section.endpoint} if section.endpoint else {}),
            },
            credential_provider=FileCredentials(section.credentials_file) if section.credentials_file else None,
            client_options={
                "allow_http": section.endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=section.connect_seconds),
                "timeout": timedelta(days=1),  # `_ask` has the deadline, which knows how much is sent
            },
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=section.request_seconds)},
        )

    async def create(self, key: str, data: memoryview | bytes) -> Literal["made", "there", "unsure"]:
        """Put an object where none is. `THERE`: one is. `UNSURE`: one is, and it may be this call's, as an answer was lost."""
        attempts = 0

        async def put() -> None:
            nonlocal attempts
            attempts += 1
            await obstore.put_async(self._store, key, data, mode="create", use_multipart=False)

        try:
            await self._ask("put", put, len(data))
        except AlreadyExistsError:
            return THERE if attempts == 1 else UNSURE
        return MADE

    async def fetch(self, key: str, at: int, count: int) -> tuple[bytes, int]:
        """At most `count` bytes from `at`, and how many the object has. Raises `NotFoundError`, `BeyondEndError`."""

        async def get() -> tuple[bytes, int]:
            found = await obstore.get_async(self._store, key, options={"range": (at, at + count)})
            total, held = found.meta["size"], bytearray()
            wanted = min(at + count, total) - at
            async for chunk in found.stream(min_chunk_size=count):
                held += chunk
                if len(held) > wanted:
                    break
            if len(held) != wanted:  # that it is this range, obstore has checked
                raise FetchError("the bucket did not send the range that it was asked for")
            return bytes(held), total

        return await self._ask("get", get, count)

    async def delete(self, key: str) -> None:
        """No object is fine, and some stores say so."""
        with contextlib.suppress(NotFoundError):
            await self._ask("delete", lambda: obstore.delete_async(self._store, key), 0)

    async def keys(self) -> AsyncIterator[str]:
        """Every key below the prefix. At one that cannot be a path it ends, with that key as its last."""
        pages = obstore.list(self._store)
        while True:
            try:
                page = await self._ask("list", pages.__anext__, 0, attempts=1)
            except StopAsyncIteration:
                return
            except InvalidPathError as error:
                named = _PATH.search(str(error))
                yield "/" + (named[1] if named else "?")
                return
            for item in page:
                yield item["path"]

    async def _ask(self, what: str, call: Callable[[], Awaitable[T]], size: int, *, attempts: int = _ATTEMPTS) -> T:
        left, pause = attempts, _FIRST_PAUSE_SECONDS
        failure: DagsealError
        try:
            async with asyncio.timeout(self._section.seconds_for(size)):
                while True:
                    left -= 1
                    try:
                        return await call()
                    except (AlreadyExistsError, InvalidPathError):
                        raise
                    except (BaseError, FileNotFoundError, FetchError) as error:
                        failure = _translated(what, error)
                    if left == 0 or type(failure) is not UnavailableError:
                        raise failure
                    await asyncio.sleep(pause)
                    pause *= 4
        except TimeoutError:
            failure = UnavailableError("the bucket did not answer in time: nothing counts as stored, try again")
        except (UnavailableError, NoSpaceError) as error:
            failure = error
        _log.error("bucket_failed", asked=what, detail=str(failure))
        raise failure


def _translated(what: str, error: Exception) -> DagsealError:
    """What it means for this question. Only the code and the status are taken from its text."""
    if isinstance(error, FetchError):
        return UnavailableError(f"{error}: try again")
    text = str(error)
    code, status = _CODE.search(text), _STATUS.search(text)
    said = code[1] if code else status[1] if status else "no answer"
    if "redirect without LOCATION" in text:
        said = "it is in another region than blobs.region"
    if _ROLE.search(text):
        return UnavailableError(
            "there are no credentials for the bucket: no blobs.credentials_file, no AWS_ACCESS_KEY_ID, and this host has no "
            "role that can be asked for any"
        )
    if said in _NO_SPACE or (status and status[1] in _NO_SPACE):
        return NoSpaceError(f"the bucket has no space left ({said}): nothing was stored")
    if said == "NoSuchKey" and what in ("get", "delete"):
        return NotFoundError("there is no such object")
    if said in ("InvalidRange", "416") and what == "get":
        return BeyondEndError("the object has no byte there")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError | FileNotFoundError):
        return DeniedError(
            f"the bucket refuses this service ({said}): its operator finds what to do in the documentation"
        )
    return UnavailableError(f"the bucket cannot be asked now ({said}): nothing counts as stored, try again")
