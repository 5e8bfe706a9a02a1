"""A child in which a test confines itself, as that cannot be undone: of one thread and without privileges."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher import privileges
from launcher.privileges import Identity
from tests.forked import in_fork

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

    def as_nobody() -> object:
        if os.geteuid() == 0:
            privileges.drop(NOBODY)
        privileges.prctl(privileges.PR_SET_NO_NEW_PRIVS, 1)
        return body()

    return in_fork(as_nobody)


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
