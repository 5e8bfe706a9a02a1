"""Compiles a verified archive's modules for later tasks, in a process that does nothing else; and reads what that one wrote.

Nothing is run here: `compile` makes a module's code and does not enter it. What a source does to the compiler it does to
this process: before the archive is opened it can open no file, make no socket, start no process, and its time, memory and
output are bounded (setrlimit(2); the limits of OpenSSH's sandbox-rlimit.c). A source that does not compile is left out, so
that its import says why; warnings of the compiler come from those who compile for themselves, as with Python's own `.pyc`.

The form: SHA-512 over all that the code is bound to and the payload, then the payload: marshalled, the SHA-512 of each
source to its marshalled code. Whatever does not fit is no code at all, and the reader compiles.

    sha512("dagseal/code/v1\\n" magic number in hex "\\n" uid "\\n" archive digest "\\n" payload)  payload
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import marshal
import os
import resource
import warnings
from collections.abc import Iterable

from integrity.digests import Digest
from integrity.errors import PrivilegeError
from notary.codecache import MAX_ENTRY_BYTES
from notary.sealed import SEALS
from vocabulary.archives import ArchiveMember

LIMITS = (
    (resource.RLIMIT_CPU, 10),
    (resource.RLIMIT_AS, 1 << 30),
    (resource.RLIMIT_FSIZE, MAX_ENTRY_BYTES),
    (resource.RLIMIT_NPROC, 0),
    (resource.RLIMIT_NOFILE, 0),
)
_NICEST = 19
_HASH_BYTES = 64
_FILENAME = "<dagseal>"  # until the loader names the member's path


def limit() -> None:
    """For good, and proved. What is open stays open. Raises `PrivilegeError`; the caller must then exit."""
    os.nice(_NICEST)
    for which, most in LIMITS:
        resource.setrlimit(which, (most, most))
    try:
        os.pipe()
    except OSError as error:
        if error.errno == errno.EMFILE:
            return
    raise PrivilegeError("a process that compiles could still get a descriptor: this process must end")


def compiled(members: Iterable[ArchiveMember], archive: Digest) -> bytes:
    """The code of every source that compiles, in the form above."""
    codes = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for member in members:
            if member.name.endswith(".py"):
                with contextlib.suppress(SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
                    code = compile(member.data, _FILENAME, "exec", dont_inherit=True)
                    codes[hashlib.sha512(member.data).digest()] = marshal.dumps(code)
    payload = marshal.dumps(codes)
    return _bound(payload, archive) + payload


def read(fd: int, archive: Digest) -> dict[bytes, bytes]:
    """By the SHA-512 of its source, the marshalled code of each module; nothing where this is not for that archive, this
    user and this interpreter, or was not written to its end."""
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS != SEALS:
        return {}
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    payload = memoryview(data)[_HASH_BYTES:]
    if data[:_HASH_BYTES] != _bound(payload, archive):
        return {}
    codes: dict[bytes, bytes] = marshal.loads(payload)  # noqa: S302 - sealed, and for this user alone
    return codes


def _bound(payload: bytes | memoryview, archive: Digest) -> bytes:
    to = f"dagseal/code/v1\n{importlib.util.MAGIC_NUMBER.hex()}\n{os.getuid()}\n{archive}\n"
    hasher = hashlib.sha512(to.encode())
    hasher.update(payload)
    return hasher.digest()
