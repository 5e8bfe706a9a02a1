"""The first start: keys, database, and the first administrator's token.

Promise: keys that exist are kept; an administrator's token is made each time it is asked for, and shown only by whoever
called this.
"""

from __future__ import annotations

from submit_api import audit, identity, issuing, keyfiles
from submit_api.running import opened
from submit_api.settings import Settings

ADMIN = "admin"


async def bootstrap(settings: Settings) -> str:
    """Make what is missing; the text of a new token of the administrator `admin`."""
    keyfiles.create(settings)
    async with opened(settings) as service, service.database.write() as tx:
        made = await issuing.issue(tx, service, audit.SERVICE, principal=ADMIN, kind=identity.USER, admin=True)
        return made.text
