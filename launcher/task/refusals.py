"""What is wrong with an archive, said of its own files: `etl.py:12`, not of ours or the interpreter's.

source-syntax  source-too-complex  import-error  import-exits  no-dag-found  duplicate-dag-id  duplicate-task-id
invalid-dag  not-serialisable  cluster-policy  reads-variable  reads-connection  no-such-dag  no-such-task
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

from integrity.errors import InvalidArchiveError
from launcher.task.secrets import Read

MAX_DETAIL_CHARS = 4000
MemberOf = Callable[[str], str | None]


def of_import(error: BaseException, member: str, member_of: MemberOf) -> InvalidArchiveError:
    """The refusal for what `member` raised when it was imported."""
    where = member
    for frame in traceback.extract_tb(error.__traceback__):
        inside = member_of(frame.filename)
        if inside is not None:
            where = f"{inside}:{frame.lineno}"
    if isinstance(error, SyntaxError) and error.filename and (broken := member_of(error.filename)):
        return InvalidArchiveError(
            "source-syntax", shorten(f"{type(error).__name__}: {error.msg}"), f"{broken}:{error.lineno or 0}"
        )
    if isinstance(error, SystemExit):
        return InvalidArchiveError(
            "import-exits", f"the import ends the interpreter (SystemExit: {error.code}): leave that out", where
        )
    rule = "duplicate-task-id" if type(error).__name__ == "DuplicateTaskIdFound" else "import-error"
    return InvalidArchiveError(rule, describe(error), where)


def too_complex(error: BaseException, member: str) -> InvalidArchiveError:
    """The refusal for a source that Python's compiler gave up on."""
    return InvalidArchiveError(
        "source-too-complex", f"the compiler gave up ({type(error).__name__}): make it less deeply nested", member
    )


def of_reads(reads: Sequence[Read]) -> InvalidArchiveError:
    """The refusal for an archive that asked for a connection or variable while it was imported."""
    first = reads[0]
    calls = sorted({f"{read.call} at {read.where}" if read.where else read.call for read in reads})
    shown = ", ".join(calls[:5]) + (f" and {len(calls) - 5} more" if len(calls) > 5 else "")
    return InvalidArchiveError(
        f"reads-{first.kind}",
        shorten(
            f"{shown} is called at import, when no {first.kind} is there yet: call it inside a task, or use a template"
        ),
        first.where,
    )


def describe(error: BaseException) -> str:
    """`Type: message`, of bounded length."""
    text = str(error)
    return shorten(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def shorten(text: str) -> str:
    """At most `MAX_DETAIL_CHARS`, and encodable as UTF-8."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MAX_DETAIL_CHARS else text[: MAX_DETAIL_CHARS - 1] + "…"
