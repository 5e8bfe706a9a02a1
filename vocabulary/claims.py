"""The launcher's own word, signed with its enrolled key: the claim before a secret, the result after the task.

A claim says "the bytes agreed, the child is dropped and hardened, send the grant of this ticket". It is made once.
A result says how it ended. The agent relays both and can alter neither. Canonical JSON; payload types
`application/vnd.dagseal.claim.v1+json` and `application/vnd.dagseal.result.v1+json`; times in microseconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from integrity import canonical
from integrity.digests import Digest
from integrity.errors import MalformedError
from integrity.fields import Fields
from vocabulary import envelopes
from vocabulary.keys import KeyRing, SigningKey, VerifyKey

CLAIM_TYPE = "application/vnd.dagseal.claim.v1+json"
RESULT_TYPE = "application/vnd.dagseal.result.v1+json"
STATES = (
    "success",
    "failed",
    "skipped",
    "up_for_retry",
    "up_for_reschedule",
    "deferred",
    "cancelled",
    "refused",
    "lost",
)
PROFILES = ("minimal", "standard", "strict")  # of isolation, the weakest first
MAX_CLAIM_BYTES = 64 * 1024
MAX_RESULT_BYTES = 4 * 1024 * 1024
MAX_XCOMS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """`attestation` names the mitigations in force in the child, as the launcher read them from the kernel; its `profile`
    is what they add up to."""

    ticket_id: str
    launch_id: str
    ticket_digest: Digest
    task_digest: Digest
    attestation: dict[str, Any]
    claimed_at: int

    def to_bytes(self) -> bytes:
        return canonical.dump(
            {
                "v": 1,
                "ticket_id": self.ticket_id,
                "launch_id": self.launch_id,
                "ticket_digest": str(self.ticket_digest),
                "task_digest": str(self.task_digest),
                "attestation": self.attestation,
                "claimed_at": self.claimed_at,
            }
        )

    @classmethod
    def from_bytes(cls, payload: bytes) -> Claim:
        fields = Fields(canonical.load(payload, max_bytes=MAX_CLAIM_BYTES), "claim")
        fields.version(1)
        claim = cls(
            ticket_id=fields.name("ticket_id", "id"),
            launch_id=fields.name("launch_id", "id"),
            ticket_digest=fields.digest("ticket_digest"),
            task_digest=fields.digest("task_digest"),
            attestation=fields.take("attestation"),
            claimed_at=fields.integer("claimed_at"),
        )
        fields.done()
        if not isinstance(claim.attestation, dict):
            raise MalformedError("claim: 'attestation' is to be an object")
        return claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Xcom:
    """One pushed XCom. `value` is Airflow's serialised JSON as text: it may hold floats, canonical JSON does not."""

    key: str
    value: str

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, "value": self.value}

    @classmethod
    def from_json(cls, value: Any) -> Xcom:
        fields = Fields(value, "xcom")
        xcom = cls(key=fields.text("key", max_chars=512), value=fields.text("value", max_chars=MAX_RESULT_BYTES))
        fields.done()
        return xcom


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a launch ended. `error` is an error's slug or empty; `detail` says it in words; `log_digest` covers every
    byte of the log's records (`vocabulary.logrecords`) that the launcher passed on, in order."""

    launch_id: str
    ticket_digest: Digest
    state: str
    exit_code: int
    error: str
    detail: str
    started_at: int
    ended_at: int
    timings_us: dict[str, int]
    max_rss_kib: int
    log_digest: Digest
    log_bytes: int
    log_truncated: bool
    xcoms: tuple[Xcom, ...]

    def to_bytes(self) -> bytes:
        return canonical.dump(
            {
                "v": 1,
                "launch_id": self.launch_id,
                "ticket_digest": str(self.ticket_digest),
                "state": self.state,
                "exit_code": self.exit_code,
                "error": self.error,
                "detail": self.detail,
                "started_at": self.started_at,
                "ended_at": self.ended_at,
                "timings_us": self.timings_us,
                "max_rss_kib": self.max_rss_kib,
                "log_digest": str(self.log_digest),
                "log_bytes": self.log_bytes,
                "log_truncated": self.log_truncated,
                "xcoms": [xcom.to_json() for xcom in self.xcoms],
            }
        )

    @classmethod
    def from_bytes(cls, payload: bytes) -> Result:
        fields = Fields(canonical.load(payload, max_bytes=MAX_RESULT_BYTES), "result")
        fields.version(1)
        timings = Fields(fields.take("timings_us"), "timings")
        result = cls(
            launch_id=fields.name("launch_id", "id"),
            ticket_digest=fields.digest("ticket_digest"),
            state=fields.choice("state", STATES),
            exit_code=fields.integer("exit_code", least=-64),
            error=fields.text("error", max_chars=100),
            detail=fields.text("detail", max_chars=8192),
            started_at=fields.integer("started_at"),
            ended_at=fields.integer("ended_at"),
            timings_us={key: timings.integer(key) for key in timings.keys()},
            max_rss_kib=fields.integer("max_rss_kib"),
            log_digest=fields.digest("log_digest"),
            log_bytes=fields.integer("log_bytes"),
            log_truncated=fields.boolean("log_truncated"),
            xcoms=tuple(Xcom.from_json(item) for item in fields.items("xcoms", max_items=MAX_XCOMS)),
        )
        fields.done()
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedClaim:
    """A claim that the enrolled launcher signed. `digest` is that of the signed payload."""

    claim: Claim
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedResult:
    """A result that the enrolled launcher signed."""

    result: Result
    digest: Digest


def meets(profile: object, floor: str) -> bool:
    """Whether a launch with this profile does all that `floor`, one of `PROFILES`, does. What is no profile meets none."""
    return profile in PROFILES and PROFILES.index(profile) >= PROFILES.index(floor)


def sign_claim(claim: Claim, key: SigningKey) -> bytes:
    return envelopes.sign(claim.to_bytes(), payload_type=CLAIM_TYPE, key=key)


def sign_result(result: Result, key: SigningKey) -> bytes:
    return envelopes.sign(result.to_bytes(), payload_type=RESULT_TYPE, key=key)


def verify_claim(envelope: bytes, launcher: VerifyKey) -> VerifiedClaim:
    """Signed by exactly this launcher. Not checked here: that the ticket is open, unclaimed and unexpired."""
    payload, _ = envelopes.verify(envelope, payload_type=CLAIM_TYPE, ring=KeyRing([launcher]))
    return VerifiedClaim(claim=Claim.from_bytes(payload), digest=Digest.of(payload))


def verify_result(envelope: bytes, launcher: VerifyKey) -> VerifiedResult:
    """Signed by exactly this launcher. Not checked here: that the launch is one of this launcher's."""
    payload, _ = envelopes.verify(envelope, payload_type=RESULT_TYPE, ring=KeyRing([launcher]))
    return VerifiedResult(result=Result.from_bytes(payload), digest=Digest.of(payload))
