"""A child in which a test confines itself, as that cannot be undone: of one thread and without privileges."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher import privileges
from launcher.privileges import Identity

ROOT = Path(__file__).parents[3]
NOBODY = Identity(65534, 65534, (65534,))
# What an interpreter and its packages need to read.
SYSTEM = tuple(
    path
    for path in (str(ROOT), sys.prefix, sys.base_prefix, "/usr", "/bin", "/lib", "/lib64", "/etc", "/proc", "/sys")
    if os.path.exists(path)
)
DEVICES = ("/dev/null", "/dev/urandom")


def confined(body: Callable[[], object]) -> str:
    """Run a function as an ordinary user with no_new_privs; what it returned as text, or `ErrorClass: text` of what it
    raised, or the signal it was killed by."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            if os.geteuid() == 0:
                privileges.drop(NOBODY)
            privileges.prctl(privileges.PR_SET_NO_NEW_PRIVS, 1)
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


@contextmanager
def owned_folder() -> Iterator[Path]:
    """A folder of the confined user's own, open to everybody on the way down."""
    folder = Path(tempfile.mkdtemp(prefix="dagseal-place-"))
    try:
        folder.chmod(0o755)
        give(folder)
        yield folder
    finally:
        shutil.rmtree(folder)


def give(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, NOBODY.uid, NOBODY.gid)
