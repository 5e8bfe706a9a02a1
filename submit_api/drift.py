"""Whether a worker has what it should: the rule, without I/O.

    verified   it follows the log to its end, and holds exactly what the active releases of its queues need
    behind     it does not know the newest leaves yet, or has not fetched everything
    drifted    what it holds was changed under it, or it saw another log than this one: it gets no launch until that is mended
    silent     it has said nothing for some time, or never

A report is the agent's word: one that lies denies service to its own host and gets nothing for it, as every launch is verified
again. What it is for is to find the honest host whose disk, clock or network is not.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from integrity.digests import Digest

VERIFIED, BEHIND, DRIFTED, SILENT = "verified", "behind", "drifted", "silent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an agent says of itself. `at` in microseconds, as the service received it; `held_root` as `vocabulary.holdings` has
    it, over what of the active releases it holds; `missing` and `damaged` may be only the first of so many."""

    at: int
    log_size: int
    log_root: bytes
    held_root: bytes
    missing: frozenset[Digest]
    missing_count: int
    damaged: tuple[Digest, ...]
    alarm: str

    def has(self, digest: Digest, leaf: int) -> bool:
        """Whether it says that it holds these bytes, and knows of the leaf that names them."""
        return self.log_size > leaf and self.missing_count <= len(self.missing) and digest not in self.missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What this service has: the size of its log, its root where the report ends (None where no commit ended there), and the
    root over all that a worker of these queues is to hold."""

    log_size: int
    log_root: bytes | None
    held_root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    state: str
    why: str


@dataclass(slots=True)
class Reports:
    """The newest of each worker, with how it was judged; and what is due of queues, for the log's newest size only."""

    newest: dict[str, tuple[Report, Standing]] = field(default_factory=dict)
    size: int = -1
    due: dict[frozenset[str], bytes] = field(default_factory=dict)


def is_silent(report: Report | None, *, now: int, silent_us: int) -> bool:
    return report is None or now - report.at > silent_us


def judge(report: Report, due: Due) -> Standing:
    """Of a report that was just received."""
    if report.alarm:
        return Standing(state=DRIFTED, why=f"its agent does not believe this log: {report.alarm}")
    if report.log_size > due.log_size:
        return Standing(
            state=DRIFTED,
            why=f"it saw {report.log_size} leaves of the log, which has {due.log_size}: was it restored from a backup?",
        )
    if due.log_root != report.log_root:
        return Standing(state=DRIFTED, why=f"it saw another log: the root of {report.log_size} leaves is not the same")
    if report.damaged:
        return Standing(state=DRIFTED, why=_named(report.damaged, "was changed in its cache"))
    if report.log_size < due.log_size:
        return Standing(state=BEHIND, why=f"it knows {report.log_size} of the log's {due.log_size} leaves")
    if report.missing_count:
        return Standing(state=BEHIND, why=f"{report.missing_count} active archives are not fetched yet")
    if report.held_root != due.held_root:
        return Standing(state=DRIFTED, why="it holds other bytes than the active releases of its queues have")
    return Standing(state=VERIFIED, why="")


def _named(digests: Collection[Digest], what: str) -> str:
    first = str(min(digests, key=str))[:23]
    return f"{first}… {what}" if len(digests) == 1 else f"{len(digests)} blobs, the first {first}… {what}"
