"""One task, from the fork to its last word: confined, hello, job, import, ready, secrets, run, finished; then it is killed.

Promise: it is confined before it says hello, and it may then wait long for its job. Before any byte of the archive runs, this
process has exactly seven descriptors (0 /dev/null, 1 stdout, 2 stderr, 3 control, 4 the sealed archive, 5 the secrets pipe,
6 the structured log), of which 3 to 6 are not inherited by what it starts; the archive's seals and SHA-512 agreed with the
job. In a supervised launch there is a 7 besides, likewise: /dev/null, and with the grant the supervisor's socket. The secrets
are read after the launcher had the task's digest, and the pipe is closed before the task runs. Nothing returns from here.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from typing import NoReturn

from integrity.digests import Digest
from integrity.errors import (
    ArchiveError,
    DagsealError,
    InvalidArchiveError,
    MalformedError,
    NotFoundError,
    SecurityError,
)
from integrity.fields import Fields
from launcher import privileges
from launcher.isolation import Confinement
from launcher.privileges import Identity
from launcher.task import clock, compiling, confining, frames, logs, refusals, rehearsal, terminating
from notary.sealed import SEALS
from vocabulary import archives
from vocabulary.archives import Archive
from vocabulary.durable import write_all
from vocabulary.grants import MAX_SECRET_BYTES, Secrets
from vocabulary.manifest import MAX_MEMBERS, Member

CONTROL_FD, ARCHIVE_FD, SECRETS_FD = 3, 4, 5
_FIRST_FREE_FD = logs.LOG_FD + 1
_PARK_FROM = 16
EXIT_BUG = 70
# What a process is asked to do -> what it was started for.
_PURPOSES = {"run": "run", "compile": "run", "describe": "describe", "serialise": "describe"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """What a fork inherits from its warm process. `copy` is where a zip's files are to be put."""

    parent: int
    purpose: str
    copy: str
    identity: Identity
    confinement: Confinement
    packages: tuple[str, ...]


def main(fds: list[int], birth: Birth) -> NoReturn:
    """The fork's whole life; `fds` as the `fork` message brought them: control, secrets, stdout, stderr, structured log."""
    code = EXIT_BUG
    try:
        os.setsid()
        privileges.die_with(birth.parent)
        # What the task forks away comes back to it, not to the warm process: so its tree can be found (launcher.trees).
        privileges.prctl(privileges.PR_SET_CHILD_SUBREAPER, 1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGPIPE else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        arrange(fds)
        own_word = confining.confine(birth.confinement, birth.identity, packages=birth.packages)
        _serve(socket.socket(fileno=CONTROL_FD), birth, own_word)
        code = 0
    except EOFError:
        code = 0  # the launcher gave up on this task
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def arrange(fds: list[int]) -> None:
    """Put the five at their numbers, /dev/null at 0, and close everything else; 4 stays free for the archive."""
    control, pipe, stdout, stderr, log = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _PARK_FROM) for fd in fds)
    null = fcntl.fcntl(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), fcntl.F_DUPFD_CLOEXEC, _PARK_FROM)
    os.dup2(null, 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for fd, number in ((control, CONTROL_FD), (pipe, SECRETS_FD), (log, logs.LOG_FD)):
        os.dup2(fd, number, inheritable=False)
    os.closerange(ARCHIVE_FD, ARCHIVE_FD + 1)
    os.closerange(_FIRST_FREE_FD, os.sysconf("SC_OPEN_MAX"))


def _serve(control: socket.socket, birth: Birth, own_word: dict[str, int]) -> None:
    logs.configure()
    rehearsal.rehearse(birth.purpose)
    frames.send(control, "hello", **own_word)
    message, (archive, *more) = frames.receive(control, fds=1, more=1)
    if archive != ARCHIVE_FD:
        os.dup2(archive, ARCHIVE_FD, inheritable=False)
        os.close(archive)
    if message.kind != "job":
        raise MalformedError(f"a job is expected, not {message.kind!r}")
    job = message.fields
    kind = job.choice("job", tuple(_PURPOSES))
    if _PURPOSES[kind] != birth.purpose:
        raise MalformedError(f"this process was started to {birth.purpose}, not to {kind}")
    try:
        if kind == "run":
            _run(control, job, birth.copy, more)
        elif kind == "compile":
            _compile(control, job, more)
        else:
            _look(control, kind, job, birth.copy)
    except DagsealError as error:
        _refuse(control, error)
    sys.stdout.flush()
    sys.stderr.flush()
    while control.recv(4096):
        pass


def _look(control: socket.socket, kind: str, job: Fields, copy: str) -> None:
    """Describe it or serialise it."""
    name, digest = job.name("name", "archive"), job.digest("digest")
    members = _members(job)
    variant = job.integer("variant") if kind == "describe" else 0
    task_check = job.choice("task_check", ("task", "archive")) if "task_check" in job.keys() else "task"
    job.done()
    archive = _verified(name, digest, members)
    os.close(SECRETS_FD)
    archives.check_identifiers(archive)  # of all, before the first runs and can reach what checks them

    from launcher.task import describe, secrets, serialise
    from launcher.task.discover import ImportedArchive
    from launcher.task.importcomms import while_importing

    if variant:
        clock.shift()
    imported = ImportedArchive(archive, copy=copy)
    try:
        try:
            while_importing(imported.member_of)
            dags = imported.load()
            if kind == "describe":
                answer = describe.describe(dags, digest, root=imported.root)
            else:
                answer = serialise.serialise(dags, name, root=imported.root)
        except InvalidArchiveError:
            # What it asked for says more than what it died of, unless it never got that far.
            if task_check == "task" and secrets.reads():
                raise refusals.of_reads(secrets.reads()) from None
            raise
        if task_check == "task" and secrets.reads():
            raise refusals.of_reads(secrets.reads())
    finally:
        imported.remove()
    frames.send(control, "described" if kind == "describe" else "serialised", **answer)


def _compile(control: socket.socket, job: Fields, more: list[int]) -> None:
    """For tasks to come, in a process that will never have another job; `more` is where to."""
    name, digest, members = job.name("name", "archive"), job.digest("digest"), _members(job)
    job.done()
    (code,) = more
    os.close(SECRETS_FD)
    compiling.limit()
    archive = _verified(name, digest, members)
    write_all(code, [compiling.compiled(archive.members, digest)])
    frames.send(control, "compiled")


def _run(control: socket.socket, job: Fields, copy: str, more: list[int]) -> None:
    name, digest = job.name("name", "archive"), job.digest("digest")
    members = _members(job)
    dag_id, task_id, run_id = job.name("dag_id", "dag_id"), job.name("task_id", "task_id"), job.name("run_id", "run_id")
    map_index, try_number = job.integer("map_index", least=-1), job.integer("try_number", least=1)
    queue, unix_user = job.name("queue", "queue"), job.name("unix_user", "unix user")
    is_supervised = job.boolean("supervised")
    job.done()
    started = time.perf_counter_ns()
    archive = _verified(name, digest, members)
    if unix_user != os.environ["USER"]:
        raise SecurityError(f"the job is for {unix_user}, this process runs as {os.environ['USER']}")

    from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager

    from launcher.task import describe, loader, runner, secrets, supervised
    from launcher.task.discover import ImportedArchive
    from launcher.task.importcomms import while_importing

    loader.expect({key: code for fd in more for key, code in compiling.read(fd, digest).items()})
    frames.close_all(more)
    if is_supervised:
        supervised.reserve()
    imported = ImportedArchive(archive, copy=copy)
    try:
        while_importing(imported.member_of)
        with _airflow_parsing_context_manager(dag_id=dag_id, task_id=task_id):
            dags = imported.load()
        if dag_id not in dags:
            raise NotFoundError(f"{name} does not define dag {dag_id!r}")
        found = dags[dag_id]
        if task_id not in found.dag.task_dict:
            raise NotFoundError(f"dag {dag_id!r} of {name} has no task {task_id!r}")
        loaded = time.perf_counter_ns()
        task_digest = describe.task_digest(found, task_id, digest, root=imported.root)
        hashed = time.perf_counter_ns()
        frames.send(control, "ready", task_digest=str(task_digest))
        if is_supervised:
            supervised.receive(control)
        delivered = _read_secrets()
        secrets.deliver(delivered)
        received = time.perf_counter_ns()
        terminating.listen(control)
        what = runner.TaskName(task_id=task_id, run_id=run_id, map_index=map_index, try_number=try_number, queue=queue)
        bundle = runner.ArchiveBundle(name=name, version=str(digest), path=imported.root)
        if is_supervised:
            outcome = supervised.run(found.dag, what, bundle=bundle)
        else:
            outcome = runner.run(found.dag, what, delivered, dags=[one.dag for one in dags.values()], bundle=bundle)
        ended = time.perf_counter_ns()
    finally:
        imported.remove()
    sys.stdout.flush()
    sys.stderr.flush()
    marks = (started, loaded, hashed, received, ended)
    steps = zip(("import", "digest", "secrets", "run"), marks, marks[1:], strict=False)
    frames.send(
        control,
        "finished",
        state=outcome.state,
        exit_code=outcome.exit_code,
        detail=outcome.detail,
        xcoms=outcome.xcoms,
        timings_us={step: (end - begin) // 1000 for step, begin, end in steps}
        | {step: spent // 1000 for step, spent in loader.spent_ns.items()},
    )


def _verified(name: str, digest: Digest, members: list[Member] | None) -> Archive:
    """1 the descriptor is sealed, so what is checked is what runs; 2 its SHA-512 is the job's; 3 it is an acceptable archive;
    4 its members are the manifest's. The launcher checked 1 and 2 already; it cannot do 3 without parsing."""
    if fcntl.fcntl(ARCHIVE_FD, fcntl.F_GET_SEALS) & SEALS != SEALS:
        raise SecurityError("the archive's descriptor is not sealed")
    data = bytearray(os.fstat(ARCHIVE_FD).st_size)
    view, at = memoryview(data), 0
    while at < len(data) and (got := os.preadv(ARCHIVE_FD, [view[at:]], at)):
        at += got
    digest.require(Digest.of(view), "the archive")
    archive = archives.read(name, view)
    if members is not None and list(archives.manifest_members(archive)) != members:
        raise MalformedError("the archive's members are not those of the manifest")
    return archive


def _members(job: Fields) -> list[Member] | None:
    value = job.take("members")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MAX_MEMBERS:
        raise MalformedError(f"job: 'members' is to be null or a list of at most {MAX_MEMBERS}")
    return [Member.from_json(item) for item in value]


def _read_secrets() -> Secrets:
    """Read the pipe to its end and close it. Raises `EOFError` when nothing came: the launcher will say why."""
    with open(SECRETS_FD, "rb") as pipe:
        payload = pipe.read(MAX_SECRET_BYTES + 1)
    if not payload:
        raise EOFError("no grant came")
    return Secrets.from_bytes(payload)


def _refuse(control: socket.socket, error: DagsealError) -> None:
    rule, entry, detail = "", "", str(error)
    if isinstance(error, ArchiveError):
        rule, entry, detail = error.rule, error.entry, error.detail
    if error.__cause__ is not None:
        traceback.print_exception(error.__cause__)
    frames.send(
        control,
        "refused",
        error=error.slug,
        rule=rule,
        entry=refusals.shorten(entry),
        detail=logs.masked(refusals.shorten(detail)),
    )
