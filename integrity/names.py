"""Which names are names. Every rule is a full match with a length cap, applied before a name is used for anything.

A name that passes here is safe in a log line, in a URL path after quoting, and on a terminal, and is never `.` or `..`.
Archives, principals, groups, workers and ids are safe as file names as well.
Of an issuer of tokens principals have its name and ':' before theirs, groups ':@': `corp:ada` is not the local `ada`.
"""

from __future__ import annotations

import re

from integrity.errors import MalformedError

_NAME, _ISSUER = r"[a-z0-9][a-z0-9._@-]", r"[a-z0-9][a-z0-9-]{0,19}:"
_TEXT = "lower-case letters, digits and ._@- , at most 100"
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
    "local principal": (re.compile(_NAME + "{0,99}"), f"{_TEXT}; no ':'"),
    "principal": (re.compile(f"{_NAME}{{0,99}}|{_ISSUER}{_NAME}{{0,78}}"), f"{_TEXT}; of an issuer ISSUER:NAME"),
    "group": (  # every good name of a principal is one of a group: an archive's group is at first its submitter
        re.compile(f"{_NAME}{{0,99}}|{_ISSUER}(?:{_NAME}{{0,78}}|@{_NAME}{{0,77}})"),
        f"{_TEXT}; of an issuer ISSUER:@NAME",
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


def pattern(kind: str) -> str:
    """The rule of `kind` as a JSON Schema's pattern, for the description of an interface; `check` decides. Of lone
    surrogates it says nothing: they are in no JSON and in no URL, and not every reader of patterns takes them."""
    return rf"^(?!\.\.?$)(?:{_RULES[kind][0].pattern})$".replace(r"\ud800-\udfff", "")
