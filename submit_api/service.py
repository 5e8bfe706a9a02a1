"""Everything that the rules of this service need, opened once: settings, keys, database, stores, and the effects."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from submit_api.accepting import Submitted
from submit_api.admission import Admission
from submit_api.backends.lookup import Backends
from submit_api.batching import Batches
from submit_api.blobs import BlobStore, Upload
from submit_api.describing import Describer
from submit_api.drift import Reports
from submit_api.effects import Clock, Randomness
from submit_api.keyfiles import Keys
from submit_api.logs import LogStore
from submit_api.nonces import Nonces
from submit_api.oidc.verifying import TrustedIssuer
from submit_api.recording import Candidate
from submit_api.registry.database import Database
from submit_api.registry.records import Release
from submit_api.settings import Settings
from submit_api.signals import Signals
from submit_api.strangers import Strangers
from submit_api.throttling import Throttle
from submit_api.transparency import TransparencyLog
from vocabulary import manifest
from vocabulary.manifest import VerifiedManifest

_INLINE_MANIFEST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What the modules beside this one work with."""

    settings: Settings
    keys: Keys
    database: Database
    blobs: BlobStore
    logs: LogStore
    transparency: TransparencyLog
    describer: Describer
    admission: Admission
    recordings: Batches[tuple[Candidate, Upload], Submitted]
    clock: Clock
    randomness: Randomness
    signals: Signals
    strangers: Strangers
    issuers: Mapping[str, TrustedIssuer]
    failures: Throttle
    backends: Backends
    nonces: Nonces
    reports: Reports
    epoch: str  # of this process, and of no other

    def now_us(self) -> int:
        return self.clock.now_us()

    def new_id(self) -> str:
        return self.randomness.token_bytes(16).hex()

    async def manifest_of(self, release: Release) -> VerifiedManifest:
        """The release's manifest, its signature checked again. Raises `SignatureError`, `DigestMismatchError`."""
        if len(release.manifest) <= _INLINE_MANIFEST_BYTES:
            found = manifest.verify(release.manifest, self.keys.ring)
        else:
            found = await asyncio.to_thread(manifest.verify, release.manifest, self.keys.ring)
        release.sha512.require(found.manifest.digest, f"the manifest's digest of {release.archive}@{release.number}")
        return found
