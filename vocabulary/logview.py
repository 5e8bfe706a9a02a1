"""What a log says, leaf by leaf: which releases there are, which is active, which is never to run, whose they are, whose key.

Promise: a view comes from leaves alone. `extended` is a new view or a refusal: leaves that contradict what stands before them
(a number out of turn, another digest for the same release, what was revoked becoming active, a key that the one before it
did not sign) are no log of an honest server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from integrity.digests import Digest
from integrity.errors import MalformedError, NotFoundError, SecurityError
from vocabulary import checkpoints, leaves
from vocabulary.keys import VerifyKey
from vocabulary.leaves import Leaf


class RevokedError(SecurityError):
    """The log says that this release is never to run again, or not yet."""

    slug = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRelease:
    """`approved_by` in order; `index`: of its leaf; `author`: his signature, as it stands there, verified by nobody yet."""

    archive: str
    number: int
    digest: Digest
    size: int
    manifest: Digest
    index: int
    waits: bool
    queues: tuple[str, ...] = ()
    approved_by: tuple[str, ...] = ()
    revoked: bool = False
    retired: bool = False
    author: bytes | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"{self.archive}@{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedArchive:
    """Owner, group and mode are None until a leaf says them."""

    active: int | None = None
    owner: str | None = None
    group: str | None = None
    mode: int | None = None
    releases: Mapping[int, LoggedRelease] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogView:
    """Of the first `size` leaves. `keys` in the order in which they came; the last one signs."""

    size: int = 0
    archives: Mapping[str, LoggedArchive] = field(default_factory=dict)
    keys: tuple[VerifyKey, ...] = ()

    @property
    def origin(self) -> str:
        """The log's name. Raises `NotFoundError` of an empty one."""
        if not self.keys:
            raise NotFoundError("the log is empty: not even its key is in it")
        return checkpoints.origin_of(self.keys[0])

    def release(self, archive: str, number: int) -> LoggedRelease:
        """Raises `NotFoundError`."""
        found = self.archives.get(archive, LoggedArchive()).releases.get(number)
        if found is None:
            raise NotFoundError(f"{archive}@{number} is not in the log of {self.size} leaves")
        return found

    def require_launchable(self, archive: str, number: int, *, digest: Digest, manifest: Digest) -> LoggedRelease:
        """Raises `NotFoundError`, `DigestMismatchError` where the log names other bytes or another manifest, `RevokedError`."""
        found = self.release(archive, number)
        found.digest.require(digest, f"the digest of {found.name}")
        found.manifest.require(manifest, f"the manifest of {found.name}")
        return self.runnable(archive, number)

    def runnable(self, archive: str, number: int) -> LoggedRelease:
        """Raises `NotFoundError`, `RevokedError`."""
        found = self.release(archive, number)
        if found.revoked:
            raise RevokedError(f"{found.name} was revoked: take another release")
        if found.waits:
            raise RevokedError(f"{found.name} waits for approval: see 'dagseal approve'")
        return found

    def wanted(
        self, queues: frozenset[str], fit: Callable[[LoggedRelease], bool] = lambda release: True
    ) -> dict[Digest, int]:
        """What the active releases that `fit`, with a task in one of these queues, need: digest and size in bytes."""
        found = (entry.releases[entry.active] for entry in self.archives.values() if entry.active is not None)
        wanted = (one for one in found if not one.queues or not queues.isdisjoint(one.queues))
        return {one.digest: one.size for one in wanted if not one.retired and fit(one)}

    def extended(self, found: Iterable[Leaf]) -> LogView:
        """With these leaves after its own. Raises `MalformedError`, `SignatureError`."""
        changing = _Changing(self)
        for leaf in found:
            changing.add(leaf)
        return LogView(size=changing.size, archives=changing.archives, keys=changing.keys)


class _Changing:
    """A view on its way to the next. An archive is copied once, when the first leaf is about it."""

    def __init__(self, view: LogView) -> None:
        self.size = view.size
        self.keys = view.keys
        self.archives = dict(view.archives)
        self._copied: dict[str, dict[int, LoggedRelease]] = {}

    def add(self, leaf: Leaf) -> None:
        if not self.keys and not isinstance(leaf, leaves.Keyed):
            raise MalformedError("the log's first leaf is to be its key")
        match leaf:
            case leaves.Keyed():
                self._key(leaf)
            case leaves.Released():
                self._release(leaf)
            case leaves.Activated():
                self._activation(leaf)
            case leaves.Approved():
                release = self._known(leaf)
                self._put(
                    replace(
                        release, approved_by=(*release.approved_by, leaf.by), waits=release.waits and not leaf.enough
                    )
                )
            case leaves.Revoked():
                self._put(replace(self._known(leaf), revoked=True))
            case leaves.Retired():
                self._put(replace(self._known(leaf), retired=True))
            case leaves.Owned(archive=name, owner=owner, group=group, mode=mode):
                before = self.archives.get(name, LoggedArchive())
                self.archives[name] = replace(before, owner=owner, group=group, mode=mode)
        self.size += 1

    def _key(self, leaf: leaves.Keyed) -> None:
        if self.keys:
            leaf.require_signed(checkpoints.origin_of(self.keys[0]), self.keys[-1])
        elif leaf.signature is not None:
            raise MalformedError("the log's first key stands in its first leaf, and nobody signs it")
        self.keys = (*self.keys, leaf.key)

    def _release(self, leaf: leaves.Released) -> None:
        releases = self._releases(leaf.archive)
        if leaf.number != len(releases) + 1:
            raise MalformedError(f"the log has {leaf.archive}@{leaf.number} out of turn")
        releases[leaf.number] = LoggedRelease(
            archive=leaf.archive,
            number=leaf.number,
            digest=leaf.digest,
            size=leaf.size,
            manifest=leaf.manifest,
            index=self.size,
            waits=leaf.waits,
            queues=leaf.queues,
            author=leaf.author,
        )

    def _activation(self, leaf: leaves.Activated) -> None:
        release = self._releases(leaf.archive).get(leaf.number)
        if release is None or release.revoked or release.waits or release.retired:
            raise MalformedError(f"the log makes {leaf.archive}@{leaf.number} active, which cannot be launched")
        self.archives[leaf.archive] = replace(self.archives[leaf.archive], active=leaf.number)

    def _known(self, leaf: leaves.Approved | leaves.Revoked | leaves.Retired) -> LoggedRelease:
        release = self._releases(leaf.archive).get(leaf.number)
        if release is None or release.digest != leaf.digest:
            raise MalformedError(
                f"the log's {leaf.kind} is of {leaf.archive}@{leaf.number}, which it has not, or otherwise"
            )
        return release

    def _put(self, release: LoggedRelease) -> None:
        self._releases(release.archive)[release.number] = release
        if release.revoked and self.archives[release.archive].active == release.number:
            self.archives[release.archive] = replace(self.archives[release.archive], active=None)

    def _releases(self, archive: str) -> dict[int, LoggedRelease]:
        if archive not in self._copied:
            entry = self.archives.get(archive, LoggedArchive())
            self._copied[archive] = dict(entry.releases)
            self.archives[archive] = replace(entry, releases=self._copied[archive])
        return self._copied[archive]
