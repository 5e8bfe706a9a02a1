"""An author's key, one file (64 hexadecimal characters and a newline, 0600), and the signature that goes with a push."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

from dagseal.cli.exits import UsageError

if TYPE_CHECKING:
    from integrity.digests import Digest
    from vocabulary.keys import SigningKey

_KEY = re.compile(rb"[0-9a-f]{64}\n?")


def load(path: str) -> SigningKey:
    """Raises `UsageError` for what is no such file, or one that others may read."""
    from vocabulary.keys import SigningKey

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid != os.geteuid():
                raise UsageError(f"the key {path} is to be this account's alone: chown and chmod 600 it")
            text = file.read(100)
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read: {error.strerror}") from None
    if not _KEY.fullmatch(text):
        raise UsageError(
            f"{path} is no author's key: make one with 'dagseal key author-new'; ssh keys sign by themselves"
        )
    return SigningKey(bytes.fromhex(text.decode("ascii")))


def given(path: str, name: str, digest: Digest) -> bytes:
    """The signature in this file. Raises `UsageError`, and `SecurityError` where it is not one of this archive and digest."""
    from dagseal.cli import secret_input
    from vocabulary import authorship

    signature = secret_input.read_bytes(path)
    authorship.verify(signature, archive=name, digest=digest, keys=[authorship.key_of(signature)])
    return signature
