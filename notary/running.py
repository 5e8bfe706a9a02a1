"""The `run` job: from a ticket and a descriptor to a signed result.

    verify ─► fork ─► ready ─► claim ─► grant ─► secrets ─► finished ─► dead
       └────────┴───────┴────────┴────────┴─► refused: no secret was given, nothing of the task is left

Until the ticket is verified a refusal is unsigned, as there is nothing to bind it to; from then on every end is a result
signed with the launcher's key and a line in its journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field, replace
from typing import Any

from integrity.digests import Digest
from integrity.errors import ArchiveError, DagsealError, ExpiredError, SecurityError, UnauthorizedError
from integrity.fields import Fields, to_base64
from integrity.messages import Message
from launcher.channel import Channel, close_all
from notary.attestation import attest
from notary.callerword import CallerWord, Cancelled
from notary.checks import VerifiedRequest, check_request, check_ticket
from notary.context import Context
from notary.describing import refusal
from notary.sealed import seal
from notary.supervision import require_descriptors
from notary.taskprocess import TaskProcess
from notary.warmprocess import WarmProcess
from vocabulary import claims, grants
from vocabulary.claims import MAX_RESULT_BYTES, MAX_XCOMS, Claim, Result, Xcom
from vocabulary.envelopes import MAX_ENVELOPE_BYTES
from vocabulary.tickets import Ticket, VerifiedTicket

EXIT_REFUSED = 77
EXIT_KILLED = 137
_MAX_TIMINGS = 50
_RESULT_ROOM_BYTES = 64 * 1024  # for what a result holds besides


@dataclass(slots=True)
class Run:
    """One run while it lasts. Nobody else uses `caller` meanwhile, nor takes from `fds`: the archive, and of a supervised
    launch the task's end of its supervisor's socket, which is closed here as soon as the task has it."""

    context: Context
    caller: Channel
    verified: VerifiedTicket
    started_at: int
    fds: list[int]
    timings: dict[str, int] = field(default_factory=dict)
    _word: CallerWord | None = None
    _log_pump: asyncio.Task[None] | None = None
    _uncompiled: tuple[WarmProcess, int, dict[str, Any]] | None = None

    @property
    def ticket(self) -> Ticket:
        return self.verified.ticket

    async def go(self, manifest_envelope: bytes) -> Result:
        """The whole of it. Every error of ours becomes a result; a bug goes up."""
        result = self._result("refused", EXIT_REFUSED, "", "")
        task: TaskProcess | None = None
        try:
            request = check_request(self.verified, manifest_envelope, self.context.ring)
            require_descriptors(self.fds, supervised=self.ticket.supervised)
            task = await self._start(request)
            self._word = CallerWord(self.caller)
            result = await self._converse(task, request, self._word)
        except (SecurityError, ArchiveError) as error:
            # "refused" promises that no secret was given.
            state = "failed" if "granted" in self.timings else "refused"
            result = self._result(state, EXIT_REFUSED, error.slug, str(error))
        except DagsealError as error:
            result = self._result("failed", EXIT_REFUSED, error.slug, str(error))
        except Cancelled as why:
            if task is not None and "secrets" in self.timings and why.grace_seconds:
                await self._let_end(task, why.grace_seconds)
            result = self._result("cancelled", EXIT_KILLED, "cancelled", str(why))
        except EOFError as why:
            result = self._result("failed", EXIT_KILLED, "task-died", f"the task's process ended early: {why}")
        except TimeoutError:
            limit = self.ticket.timeout_seconds
            result = self._result(
                "failed", EXIT_KILLED, "timeout", f"not done within its limits (task: {limit} s): killed"
            )
        except OSError as error:
            result = self._result("failed", EXIT_REFUSED, "launcher", f"the launcher's host: {error}")
        finally:
            if task is not None:
                rss = task.max_rss_kib()
                await self.context.pool.give_back(task)
                if self._log_pump is not None:
                    await self._log_pump
        if task is not None:
            if result.error == "task-died" and task.oom_kills:
                limit = self.context.policy.limits.task_memory_bytes
                result = self._result(
                    "failed", EXIT_KILLED, "out-of-memory", f"killed: over its memory limit of {limit} bytes"
                )
            log = task.log
            result = replace(
                result, log_digest=log.digest, log_bytes=log.bytes, log_truncated=log.truncated, max_rss_kib=rss
            )
        return replace(result, ended_at=self.context.now_us(), timings_us=self.timings)

    async def _start(self, request: VerifiedRequest) -> TaskProcess:
        context, ticket = self.context, self.ticket
        account = await context.account(ticket.unix_user, "run")
        kind = context.kind_of_run(account, ticket.queue)
        with await seal(self.fds[0], ticket.digest, max_bytes=context.policy.limits.max_archive_bytes) as code:
            self._mark("verified")
            if context.now() >= ticket.expires_at:
                raise ExpiredError("the ticket expired while its archive was verified: launch again")
            context.journal.use(self.verified, user=account.name, profile=kind.confinement.profile.name)
            self._mark("recorded")
            task = await context.pool.take(kind)
            self._mark("forked")
            try:
                job = self._job(request)
                with task.warm.codes.lend(ticket.digest) as codes:
                    await task.ask(job, code.fd, *codes)
                if task.warm.codes.wants(request.manifest.manifest):
                    self._uncompiled = task.warm, os.dup(code.fd), job
            except BaseException:
                await context.pool.give_back(task)
                raise
        self._mark("asked")
        return task

    async def _converse(self, task: TaskProcess, request: VerifiedRequest, word: CallerWord) -> Result:
        limits = self.context.policy.limits
        async with asyncio.timeout(limits.import_timeout_seconds):
            ready = await word.unless_cancelled(task.answer("ready", "refused"))
        if ready.kind == "refused":
            raise refusal(ready.fields)
        reported = ready.fields.digest("task_digest")
        ready.fields.done()
        if self.ticket.task_digest is not None:
            self.ticket.task_digest.require(reported, "the task digest reported by the child")
        self._mark("ready")

        claim, envelope = self._claim(task, reported)
        await self.caller.send("claim", envelope=to_base64(envelope))
        async with asyncio.timeout(limits.grant_timeout_seconds):
            secrets = await self._granted(claim, word)
        self._log_pump = asyncio.create_task(self._pass_log_on(task))
        self._mark("granted")
        async with asyncio.timeout(limits.secrets_timeout_seconds):
            if self.ticket.supervised:
                await word.unless_cancelled(task.give_supervisor(self.fds[1]))
                close_all([self.fds.pop()])
            await word.unless_cancelled(task.give_secrets(secrets))
        self._mark("secrets")
        async with asyncio.timeout(self.ticket.timeout_seconds):
            finished = await word.unless_cancelled(task.answer("finished", "refused"))
        self._mark("finished")
        if finished.kind == "refused":  # what it was given cannot be used
            raise SecurityError(str(refusal(finished.fields)))
        return self._finished(finished)

    async def _let_end(self, task: TaskProcess, grace_seconds: int) -> None:
        """Until it is done or dead, or the caller speaks again or goes away. What it says then is not the launch's end."""
        assert self._word is not None
        with contextlib.suppress(DagsealError, EOFError, TimeoutError, Cancelled):
            async with asyncio.timeout(grace_seconds):
                await task.terminate()
                await self._word.unless_cancelled(task.answer("finished"))

    def _claim(self, task: TaskProcess, reported: Digest) -> tuple[Claim, bytes]:
        context = self.context
        attestation = attest(task, limits=context.limits, empties_bounding_set=context.empties_bounding_set)
        claim = Claim(
            ticket_id=self.ticket.ticket_id,
            launch_id=self.ticket.launch_id,
            ticket_digest=self.verified.digest,
            task_digest=reported,
            attestation=attestation,
            claimed_at=self.context.now_us(),
        )
        self.context.journal.write(
            "claim", launch_id=self.ticket.launch_id, task_digest=str(reported), attestation=attestation
        )
        return claim, claims.sign_claim(claim, self.context.keys.signing)

    async def _granted(self, claim: Claim, word: CallerWord) -> bytes:
        """Check 12, and the record that a secret is about to be handed over."""
        message = await word.about_the_claim()
        if message.kind == "deny":
            raise UnauthorizedError(f"the API refused the claim: {message.fields.text('detail', max_chars=4096)}")
        envelope = message.fields.binary("envelope", max_bytes=MAX_ENVELOPE_BYTES)
        message.fields.done()
        plaintext = grants.open_sealed(
            envelope,
            self.context.ring,
            ticket_digest=self.verified.digest,
            claim_digest=Digest.of(claim.to_bytes()),
            key=self.context.keys.sealing,
        )
        delivered = grants.Secrets.from_bytes(plaintext)
        self.context.journal.write(
            "grant",
            launch_id=self.ticket.launch_id,
            connections=sorted(delivered.connections),
            variables=sorted(delivered.variables),
        )
        return plaintext

    async def _pass_log_on(self, task: TaskProcess) -> None:
        """To the agent, as long as it listens; the log's digest covers every byte all the same."""
        try:
            async for piece in task.log.pieces():
                await self.caller.send("log", data=to_base64(piece))
        except EOFError:
            async for _ in task.log.pieces():
                pass

    def _job(self, request: VerifiedRequest) -> dict[str, Any]:
        ticket = self.ticket
        return {
            "job": "run",
            "name": ticket.archive,
            "digest": str(ticket.digest),
            "members": [member.to_json() for member in request.manifest.manifest.members],
            "dag_id": ticket.dag_id,
            "task_id": ticket.task_id,
            "run_id": ticket.run_id,
            "map_index": ticket.map_index,
            "try_number": ticket.try_number,
            "queue": ticket.queue,
            "unix_user": ticket.unix_user,
            "supervised": ticket.supervised,
        }

    def _finished(self, message: Message) -> Result:
        """What the task says of itself, read strictly. It can lie about itself and about nothing else."""
        fields = message.fields
        state = fields.choice("state", tuple(s for s in claims.STATES if s not in ("refused", "cancelled", "lost")))
        exit_code = fields.integer("exit_code")
        detail = fields.text("detail", max_chars=8192)
        most = 0 if self.ticket.supervised else MAX_XCOMS  # its supervisor was told
        xcoms = tuple(Xcom.from_json(item) for item in fields.items("xcoms", max_items=most))
        timings = Fields(fields.take("timings_us"), "timings")
        for name in timings.keys()[:_MAX_TIMINGS]:
            self.timings[f"task_{name[:30]}"] = timings.integer(name)
        fields.done()
        result = replace(self._result(state, exit_code, "", detail), xcoms=xcoms)
        if len(result.to_bytes()) > MAX_RESULT_BYTES - _RESULT_ROOM_BYTES:
            return self._result(
                "failed", 1, "xcom-too-large", f"its XComs are over the {MAX_RESULT_BYTES >> 20} MiB of a result"
            )
        return result

    def _mark(self, name: str) -> None:
        self.timings[name] = max(0, self.context.now_us() - self.started_at)

    def _result(self, state: str, exit_code: int, error: str, detail: str) -> Result:
        return Result(
            launch_id=self.ticket.launch_id,
            ticket_digest=self.verified.digest,
            state=state,
            exit_code=exit_code,
            error=error,
            detail=detail[:8192],
            started_at=self.started_at,
            ended_at=self.started_at,
            timings_us={},
            max_rss_kib=0,
            log_digest=Digest.of(b""),
            log_bytes=0,
            log_truncated=False,
            xcoms=(),
        )

    async def compile(self) -> None:
        """For the next launch, behind the result of this one. What could not be imported is not tried."""
        if self._uncompiled is not None and "ready" in self.timings:
            warm, fd, job = self._uncompiled
            await warm.codes.fill(self.context.pool, warm.kind, job, self.ticket.digest, fd)

    async def close(self) -> None:
        if self._uncompiled is not None:
            os.close(self._uncompiled[1])
        if self._word is not None:
            await self._word.close()


async def run(context: Context, caller: Channel, message: Message, fds: list[int]) -> None:
    """Answer one `run` on `caller`; what is taken out of `fds` is closed here. Raises a `SecurityError` when there is no
    verified ticket to sign a result for."""
    started_at = context.now_us()
    ticket_envelope = message.fields.binary("ticket", max_bytes=MAX_ENVELOPE_BYTES)
    manifest_envelope = message.fields.binary("manifest", max_bytes=MAX_ENVELOPE_BYTES)
    message.fields.done()
    audience = context.keys.signing.public.key_id
    verified = check_ticket(ticket_envelope, context.ring, audience=audience, now=context.now())
    job = Run(context, caller, verified, started_at, fds)
    try:
        result = await job.go(manifest_envelope)
        context.journal.write(
            "result", launch_id=result.launch_id, state=result.state, error=result.error, detail=result.detail[:1000],
            log=str(result.log_digest),
        )  # fmt: skip
        await caller.send("result", envelope=to_base64(claims.sign_result(result, context.keys.signing)))
        caller.close()
        await job.compile()
    finally:
        await job.close()
