"""Which names are names. Every rule is a full match with a length cap, applied before a name is used for anything.

A name that passes here is safe in a log line, in a URL path after quoting, and on a terminal, and is never `.` or `..`.
Archives, principals, groups, workers and ids are safe as file names as well.

Who was named by an issuer of tokens has that issuer's name and a colon before it, and its groups `:@`: `corp:ada` is never
the local `ada`, and `corp:@ada`, a group that the issuer tells of, never the group that `corp:ada` is by itself. (The name
of a principal is always a good name for a group: an archive's group is at first its submitter.)
"""

from __future__ import annotations

import re

from integrity.errors import MalformedError

_RULES: dict[str, tuple[re.Pattern[str], str]] = {
    "archive": (
        re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,190}\.(?:py|zip)"),
        "letters, digits, '_', '.', '-', at most 200 characters, ending in .py or .zip",
    ),
    "dag_id": (re.compile(r"[\w.-]{1,250}"), "letters, digits, '_', '.', '-', at most 250 characters"),
    "task_id": (re.compile(r"[\w.-]{1,250}"), "letters, digits, '_', '.', '-', at most 250 characters"),
    "run_id": (re.compile(r"[A-Za-z0-9_.~:+-]{1,250}"), "letters, digits and _.~:+- , at most 250 characters"),
    "queue": (re.compile(r"[A-Za-z0-9_.-]{1,100}"), "letters, digits, '_', '.', '-', at most 100 characters"),
    "unix user": (
        re.compile(r"[a-z_][a-z0-9_-]{0,31}"),
        "a lower-case letter or '_', then letters, digits, '_' or '-', at most 32; never a number",
    ),
    "principal": (
        re.compile(r"[a-z0-9][a-z0-9._@-]{0,99}|[a-z0-9][a-z0-9-]{0,19}:[a-z0-9][a-z0-9._@-]{0,78}"),
        "lower-case letters, digits and ._@- , at most 100; of an issuer of tokens, its name and ':' before it",
    ),
    "local principal": (
        re.compile(r"[a-z0-9][a-z0-9._@-]{0,99}"),
        "lower-case letters, digits and ._@- , at most 100; what has a ':' comes from an issuer of tokens",
    ),
    "group": (
        re.compile(
            r"[a-z0-9][a-z0-9._@-]{0,99}|[a-z0-9][a-z0-9-]{0,19}:(?:[a-z0-9][a-z0-9._@-]{0,78}|@[a-z0-9][a-z0-9._@-]{0,77})"
        ),
        "lower-case letters, digits and ._@- , at most 100; of an issuer of tokens, its name and ':@' before it",
    ),
    "worker": (re.compile(r"[a-z0-9][a-z0-9._-]{0,99}"), "lower-case letters, digits and ._- , at most 100"),
    "connection": (re.compile(r"[\w#!()./:\\-]{1,250}"), "as Airflow's conn_id: word characters and #!()-./:\\"),
    "variable": (
        re.compile(r"[^\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]{1,250}"),
        "1 to 250 characters, none of them a control character",
    ),
    "id": (re.compile(r"[0-9a-f]{32}"), "32 lower-case hexadecimal characters"),
}


def check(kind: str, name: object) -> str:
    """Return `name` if it is a good one of `kind` (a key of the table above). Raises `MalformedError` with the rule."""
    pattern, rule = _RULES[kind]
    if not isinstance(name, str) or not pattern.fullmatch(name) or name in (".", ".."):
        shown = repr(name)[:80]
        raise MalformedError(f"{shown} is not a good name for a {kind}: {rule}")
    return name


def archive_kind(name: str) -> str:
    """`py` or `zip`, from a checked archive name."""
    return check("archive", name).rpartition(".")[2]


def archive_stem(name: str) -> str:
    """The module or package name of an archive: its file name without the ending."""
    return check("archive", name).rpartition(".")[0]
