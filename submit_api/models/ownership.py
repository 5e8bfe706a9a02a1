"""Bodies about who owns archives and queues, and whose tasks run as which unix user."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from submit_api import modes
from submit_api.models.fields import ArchiveName, Effect, Glob, In, Mode, Out, QueueGlob, Subject, SubjectKind, UnixUser


class OwnershipChange(In):
    """What is left out stays. `mode` as chmod(1) takes it: three octal digits, or clauses such as `g+rx,o=`."""

    owner: Subject | None = None
    group: Subject | None = None
    mode: str | None = Field(default=None, max_length=modes.MAX_CHARS, pattern=modes.PATTERN)


class QueueRequest(In):
    """Left out: the caller, who owns it; the owner; `rwxrwx--x`."""

    owner: Subject | None = None
    group: Subject | None = None
    mode: str | None = Field(default=None, max_length=modes.MAX_CHARS, pattern=modes.PATTERN)


class TransferRequest(In):
    archive: ArchiveName


class RuleRequest(In):
    subject_kind: SubjectKind
    subject: Subject
    dag_glob: Glob = "*"
    unix_user: UnixUser
    queue_glob: QueueGlob = "*"
    effect: Effect = "allow"


class OwnershipView(Out):
    kind: Literal["archive", "connection", "variable", "queue"]
    name: str
    owner: str
    group: str
    mode: Mode


class QueueView(Out):
    name: str
    owner: str
    group: str
    mode: Mode
    created_at: int


class QueueList(Out):
    queues: list[QueueView]


class TransferView(Out):
    dag_id: str
    archive: str
    was: str


class RuleView(Out):
    id: str
    effect: str
    subject_kind: str
    subject: str
    dag_glob: str
    unix_user: str
    queue_glob: str
    created_at: int
    created_by: str


class RuleList(Out):
    rules: list[RuleView]


class MatchView(RuleView):
    """A rule that fits: `principal`, the launch's `role`, is whom it speaks of."""

    role: Literal["owner", "submitter", "caller"]
    principal: str
    decides: bool


class ExplainedView(Out):
    """What a launch would run as, and why it may or may not. `rule` is the id of the one that decides, or null where none
    fits; `ask` is what to ask an administrator for, empty where it is allowed."""

    dag_id: str
    task_id: str
    archive: str
    release: int
    owner: str
    unix_user: str
    named_by: Literal["request", "manifest", "default_impersonation"]
    queue: str
    verdict: Literal["allowed", "refused"]
    rule: str | None
    ask: str
    matches: list[MatchView]
