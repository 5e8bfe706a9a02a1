"""Where a rollback leads: the rule, without I/O.

Every activation is recorded with the one `before` it, and a rollback takes over the `before` of what it goes back to. So the
record is read as a stack: after 1, 2, 3 the first rollback leads to 2 and the next to 1, never back to 3, which somebody
found bad. (Who wants that again activates it.) A push or an activation after a rollback goes on from where that led.

What cannot be launched any more is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from integrity.errors import ConflictError, NotFoundError
from submit_api.registry.records import Activation, Archive


def target(
    archive: Archive, activations: Iterable[Activation], unusable: Mapping[int, str], wanted: int | None
) -> Activation:
    """The activation to go back to: the last before the current one, or the last of release `wanted`. `unusable` says why a
    release cannot be activated. Raises `ConflictError`, `NotFoundError`."""
    if wanted is not None and wanted > archive.latest:
        raise NotFoundError(f"archive {archive.name} has no release {wanted}; the latest is {archive.latest}")
    if wanted is not None and wanted in unusable:
        raise ConflictError(f"{archive.name}@{wanted} {unusable[wanted]}: roll back to another release")
    known = {one.seq: one for one in activations}
    at = known.get(archive.activation)
    while at is not None and (at := known.get(at.before)) is not None:
        if at.number != archive.active and (at.number not in unusable if wanted is None else at.number == wanted):
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
