"""T14 hostile-archive: every committed hostile vector is uploaded to the running service.

Each is refused with its own rule and entry, and nothing of it is left: the tables have the same rows (but for one audit event),
the folders of the API and of the launcher the same files. The rules themselves have their tests in `tests/unit/vocabulary`.

Seen to fail when weakened: `zipreader._check_entry` without the rules for links; `Upload.__exit__` that keeps its
temporary file; a submission that publishes before it looks; `_audit_refusal` that returns.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from integrity.digests import Digest
from tests.live import Live
from vocabulary.archiverules import TOO_LARGE_RULES, UNSUPPORTED_RULES

VECTORS = Path(__file__).parents[1] / "vectors" / "archives"
BAD: list[dict[str, str]] = json.loads((VECTORS / "index.json").read_text(encoding="utf-8"))["bad"]
UNCOUNTED = {"audit_events", "alembic_version", "sqlite_sequence"}


def rows(live: Live) -> dict[str, int]:
    (path,) = (live.stack.folder / "api").glob("*.db")
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {t: database.execute(f'SELECT count(*) FROM "{t}"').fetchone()[0] for t in tables if t not in UNCOUNTED}


def newest_event(live: Live) -> int:
    (path,) = (live.stack.folder / "api").glob("*.db")
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        return int(database.execute("SELECT max(seq) FROM audit_events").fetchone()[0])


def files(live: Live) -> set[str]:
    """Names below the folders of the API and the launcher. (No agent takes part in a submission.)"""
    folders = [live.stack.folder / name for name in ("api", "launcher", "run")]
    return {str(path) for folder in folders for path in folder.rglob("*")}


def refusals(live: Live, after: int) -> list[dict[str, Any]]:
    return live.http("GET", f"/v1/audit?after={after}&limit=1000").json["events"]  # type: ignore[no-any-return]


def test_every_vector(live: Live) -> None:
    assert len(BAD) > 100
    wrong, last = [], live.audit()[-1]["seq"]
    for vector in BAD:
        data = (VECTORS / vector["file"]).read_bytes()
        before, there = rows(live), files(live)
        answer = live.push(vector["name"], data)
        (error,) = answer.json.get("errors", [{}])
        rule, entry = vector["rule"], vector["entry"]
        if not data:  # an empty body is refused before anybody asks what its name promises
            rule, entry = "no-dag-found", vector["name"]
        status = 413 if rule in TOO_LARGE_RULES else 415 if rule in UNSUPPORTED_RULES else 422
        found = (answer.status, answer.problem, error.get("entry"))
        events = refusals(live, last)
        last = events[-1]["seq"] if events else last
        audited = [(event["action"], event["object"], event["verdict"]) for event in events]
        audited = [one for one in audited if one[0].startswith("archive.")]  # offers of other tests run out meanwhile
        expected = [("archive.submit", f"archive:{vector['name']}", "refused")]
        left = {key: count for key, count in rows(live).items() if count != before[key]}, files(live) - there
        if found != (status, rule, entry) or audited != expected or any(left):
            wrong.append((vector, found, audited, left))
        assert live.http("GET", f"/v1/blobs/sha512/{Digest.of(data).hex}").status == 404
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("name", "headers", "status", "problem"),
    [
        ("t14a.py", {"Repr-Digest": Digest.of(b"other").repr_digest}, 422, "digest-mismatch"),
        ("t14b.py", {"Repr-Digest": "sha-512=:AAAA:"}, 400, "malformed"),
        ("t14b.py", {"Repr-Digest": "sha-256=:AAAA:"}, 400, "digest-algorithm"),
        ("t14c.txt", {}, 400, "malformed"),
        ("t14d.py.exe", {}, 400, "malformed"),
        ("..%2Ft14e.py", {}, 400, "malformed"),
        ("t14f.py", {"Content-Encoding": "gzip"}, 415, "content-encoding"),
    ],
)
def test_what_is_wrong_with_the_request(
    live: Live, name: str, headers: dict[str, str], status: int, problem: str
) -> None:
    before, there = rows(live), files(live)
    answer = live.http("PUT", f"/v1/archives/{name}", b"import airflow\n", headers=headers)
    assert (answer.status, answer.problem) == (status, problem), answer.body
    assert (rows(live), files(live) - there) == (before, set())


def test_too_large(live: Live) -> None:
    before, there = rows(live), files(live)
    answer = live.push("t14large.zip", b"PK\3\4" + bytes(70 << 20))
    assert (answer.status, answer.problem) == (413, "too-large")
    assert (rows(live), files(live) - there) == (before, set())
