"""Where a rollback leads: the rule, without I/O.

Every activation is recorded with the one `before` it, and a rollback takes over the `before` of what it goes back to. So the
record is read as a stack: after 1, 2, 3 the first rollback leads to 2 and the next to 1, never back to 3, which somebody
found bad. (Who wants that again activates it.) A push or an activation after a rollback goes on from where that led.

What cannot be launched any more is passed over.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable

from integrity.errors import ConflictError, NotFoundError
from submit_api.registry.records import Activation, Archive


async def target(
    archive: Archive,
    back: AsyncIterable[Activation],
    unusable: Callable[[int], Awaitable[str | None]],
    wanted: int | None,
) -> Activation:
    """The activation to go back to: the last before the current one, or the last of release `wanted`. `back` is the way: the
    `before` of the current one, the `before` of that, and so on; those of other releases than `wanted` can be left out.
    `unusable` says why a release cannot be activated. No more is asked for than is needed. Raises `ConflictError`,
    `NotFoundError`."""
    if wanted is not None and wanted > archive.latest:
        raise NotFoundError(f"archive {archive.name} has no release {wanted}; the latest is {archive.latest}")
    if wanted is not None and (why := await unusable(wanted)) is not None:
        raise ConflictError(f"{archive.name}@{wanted} {why}: roll back to another release")
    async for at in back:
        if at.number == archive.active:
            continue
        if at.number == wanted or (wanted is None and await unusable(at.number) is None):
            return at
    now = f"release {archive.active} is active" if archive.active else "no release is active"
    if wanted is not None:
        raise ConflictError(
            f"{now}, and {archive.name}@{wanted} was not before it: see 'dagseal history {archive.name}', "
            f"or 'dagseal activate {archive.name}@{wanted}'"
        )
    raise ConflictError(
        f"{now}, and nothing that can be launched was active before: push a new release of {archive.name}"
    )
