"""Is this process able to work: database, blob store, signing key. What is wrong is said without its particulars."""

from __future__ import annotations

from sqlalchemy.exc import SQLAlchemyError

from integrity.errors import SignatureError
from submit_api.refusals import NoSpaceError, UnavailableError
from submit_api.registry import archives
from submit_api.service import Service

_PROBE = b"dagseal/readiness/v1"


async def checks(service: Service) -> dict[str, str]:
    """Each check by name: `ok`, or what failed."""
    return {
        "database": await _database(service),
        "blobs": await _blobs(service),
        "signing_key": _signing_key(service),
    }


async def _database(service: Service) -> str:
    try:
        async with service.database.read() as tx:
            await archives.counts(tx)
    except (SQLAlchemyError, UnavailableError, OSError) as error:
        return f"cannot be read: {type(error).__name__}"
    return "ok"


async def _blobs(service: Service) -> str:
    try:
        await service.blobs.check_writable()
    except (OSError, UnavailableError, NoSpaceError) as error:
        return f"cannot be written: {error.strerror if isinstance(error, OSError) else error}"
    return "ok"


def _signing_key(service: Service) -> str:
    try:
        service.keys.signing.public.verify(service.keys.signing.sign(_PROBE), _PROBE)
    except SignatureError:
        return "does not sign"
    return "ok"
