"""Every rule by which an archive is refused, as one literal table: rule -> whose fault it is.

A rule is the stable last part of the problem's `type` that HTTP answers, and what `dagseal check` prints. `docs/bad-uploads.md`
says of each what to do. A describing process runs the archive's code, so a rule that it names and that is not here is its
own invention, and is shown as a finding only, never as a type.
"""

from __future__ import annotations

from integrity.errors import ArchiveError, InvalidArchiveError, UnsafeArchiveError

TOO_LARGE_RULES = frozenset({"source-too-large", "zip-expanded-too-large", "zip-too-many-entries"})
"""About size, not about content: HTTP answers 413 to them."""

UNSUPPORTED_RULES = frozenset({"unsupported-media-type"})
"""Not what its name says: HTTP answers 415. All other rules are 422."""

UNSAFE_RULES = frozenset(
    {
        # the zip, read as bytes
        *("zip-comment", "zip-corrupt", "zip-crc", "zip-data-descriptor", "zip-encrypted", "zip-eocd"),
        *("zip-expanded-too-large", "zip-extra-field", "zip-flags", "zip-header-mismatch", "zip-hidden-entry"),
        *("zip-leading-data", "zip-method", "zip-mode", "zip-multidisk", "zip-overlap", "zip-size-lie"),
        *("zip-special-file", "zip-symlink", "zip-too-many-entries", "zip-trailing-data", "zip-version", "zip-zip64"),
        # its names
        *("zip-absolute-path", "zip-backslash", "zip-case-collision", "zip-drive-letter", "zip-duplicate"),
        *("zip-name-bidi", "zip-name-control-char", "zip-name-encoding", "zip-name-too-long", "zip-path-conflict"),
        *("zip-path-not-canonical", "zip-path-traversal", "zip-reserved-name", "zip-unicode-collision"),
        # what no archive may hold
        *("forbidden-file-name", "forbidden-file-type", "nested-archive", "shadows-module"),
        # the sources
        *("line-too-long", "source-bare-cr", "source-bidi", "source-bom", "source-encoding"),
        *("source-encoding-cookie", "source-homoglyph", "source-too-large"),
    }
)
INVALID_RULES = frozenset(
    {
        *("no-dag-found", "unsupported-media-type"),
        # found out by importing it
        *("describe-died", "describe-timeout", "import-error", "import-exits", "reads-connection", "reads-variable"),
        *("source-syntax", "source-too-complex", "unstable"),
        # the dags that it defines
        *(
            "cluster-policy",
            "declared-needs",
            "duplicate-dag-id",
            "duplicate-task-id",
            "invalid-dag",
            "not-serialisable",
        ),
        "too-many-connections",
    }
)
RULES: dict[str, type[ArchiveError]] = {
    **dict.fromkeys(sorted(UNSAFE_RULES), UnsafeArchiveError),
    **dict.fromkeys(sorted(INVALID_RULES), InvalidArchiveError),
}
