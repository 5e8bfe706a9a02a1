"""What a test tries in a child of its own, as it could not be undone in the test's process, and what the kernel said to it."""

from __future__ import annotations

import ctypes
import errno
import os
import traceback
from collections.abc import Callable

InChild = Callable[[Callable[[], object]], str]


def in_fork(body: Callable[[], object]) -> str:
    """Run a function in a forked child; what it returned as text, or `ErrorClass: text` of what it raised, or the signal it was
    killed by."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            answer = str(body())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
            if isinstance(error, AssertionError):
                answer += traceback.format_exc()
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return answer if status == 0 else f"killed by {-status}"


def refusal(action: Callable[[], object]) -> str:
    """The errno's name; empty when it was done."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def called(name: str, *arguments: object) -> str:
    """Call a function of libc by its name; the errno's name, empty when it was done."""
    libc = ctypes.CDLL(None, use_errno=True)
    return errno.errorcode[ctypes.get_errno()] if getattr(libc, name)(*arguments) == -1 else ""
