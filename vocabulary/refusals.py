"""Reads a launcher's `refused` as the error that it tells of, for whoever asked it to look into an archive."""

from __future__ import annotations

from integrity.errors import (
    DagsealError,
    DigestMismatchError,
    FetchError,
    InvalidArchiveError,
    MalformedError,
    UnsafeArchiveError,
)
from integrity.fields import Fields


def read(fields: Fields) -> DagsealError:
    """The fields of `refused`. What is not about the archive itself is a `FetchError`: another time it may be answered."""
    try:
        slug = fields.text("error", max_chars=100)
        rule = fields.text("rule", max_chars=100)
        entry = fields.text("entry", max_chars=1024)
        detail = fields.text("detail", max_chars=8192)
        if "exit_code" in fields.keys():  # what a command of the launcher's would exit with; nothing to us
            fields.integer("exit_code")
        fields.done()
    except MalformedError as error:
        return FetchError(f"the launcher sent what cannot be used: {error}")
    if slug == UnsafeArchiveError.slug:
        return UnsafeArchiveError(rule, detail, entry)
    if slug == InvalidArchiveError.slug:
        return InvalidArchiveError(rule, detail, entry)
    if slug == DigestMismatchError.slug:
        return DigestMismatchError(detail)
    return FetchError(f"the launcher did not look into the archive ({slug}): {detail}")
