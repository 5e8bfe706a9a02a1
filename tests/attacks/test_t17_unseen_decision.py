"""T17 unseen-decision: something is decided and recorded nowhere, or what is recorded is changed afterwards.

Seen to fail when weakened: `_audit_refusal` that returns; `claiming._grant` without the events of its secrets; no
`launch` line in the journal; `journal.verify` that does not compare `prev`, or `seq`; `audit verify` that does not compare
the ends of launches, or does not ask for the claims that the server has.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integrity import canonical
from integrity.errors import MalformedError
from notary.journal import Journal, verify
from tests.attacks.attacker import (
    LyingAgent,
    Traces,
    dag,
    opened,
    other_ticket,
    slug_of,
    ticket_of,
    traced_dag,
    until,
)
from tests.live import Live


def events(live: Live, launch_id: str) -> list[tuple[str, str]]:
    return [(event["action"], event["verdict"]) for event in live.audit(object=f"launch:{launch_id}")]


def lines(live: Live, launch_id: str) -> list[str]:
    return [line["event"] for line in live.journal() if line.get("launch_id") == launch_id]


def test_a_launch_from_end_to_end(live: Live, traces: Traces) -> None:
    name = f"t17-{secrets.token_hex(4)}"
    assert live.http("PUT", f"/v1/connections/{name}", {"value": "http://a:b@c"}).status == 201
    grant = {"kind": "connection", "name": name, "to_kind": "principal", "to": "admin"}
    assert live.http("POST", "/v1/grants", grant).status == 201
    pushed = live.push("t17.py", traced_dag("t17", traces))
    assert pushed.status == 201
    launch = live.launch("t17", "t", "r")
    assert launch["state"] == "success"

    accepted = [("launch.create", "accepted"), ("launch.offer", "accepted"), ("launch.claim", "accepted")]
    assert events(live, launch["id"]) == [*accepted, ("launch.end", "accepted")]
    assert lines(live, launch["id"]) == ["launch", "claim", "grant", "result"]
    found = live.audit(object=f"launch:{launch['id']}")
    assert [event["principal"] for event in found] == ["admin", "quickstart", "quickstart", "quickstart"]
    assert found[0]["digest"] == pushed.json["digest"]
    assert all(event["token_id"] and event["address"] == "127.0.0.1" and event["at"] for event in found)
    delivered = [event for event in live.audit(object=f"connection:{name}") if event["action"] == "secret.deliver"]
    assert [event["detail"] for event in delivered] == [f"launch:{launch['id']}"]
    (granted,) = [one for one in live.journal() if one["event"] == "grant" and one["launch_id"] == launch["id"]]
    assert name in granted["connections"]
    # Both records hold what the other signed for.
    (claim,) = [event for event in found if event["action"] == "launch.claim"]
    (end,) = [event for event in found if event["action"] == "launch.end"]
    assert claim["digest"].startswith("sha512:")
    assert end["digest"].startswith("sha512:")
    (submit,) = [event for event in live.audit(object="archive:t17.py") if event["action"] == "archive.submit"][-1:]
    assert (submit["verdict"], submit["digest"]) == ("accepted", pushed.json["digest"])
    assert live.http("DELETE", f"/v1/connections/{name}").status == 204


def test_every_change_that_an_administrator_makes(live: Live) -> None:
    word = secrets.token_hex(4)
    last = live.audit()[-1]["seq"]
    rule = {"subject_kind": "principal", "subject": f"p{word}", "unix_user": f"u{word}"}
    grant = {"kind": "variable", "name": f"v{word}", "to_kind": "group", "to": f"g{word}"}
    changes: list[tuple[str, str, Any]] = [
        ("PUT", f"/v1/connections/c{word}", {"value": "http://x"}),
        ("POST", "/v1/connections/import?format=json", {f"i{word}": "http://x"}),
        ("PUT", f"/v1/variables/v{word}", {"value": "x"}),
        ("POST", "/v1/grants", grant),
        ("POST", "/v1/impersonation-rules", rule),
        ("PUT", f"/v1/groups/g{word}", {"members": [f"p{word}"]}),
        ("POST", "/v1/tokens", {"principal": f"p{word}"}),
        ("DELETE", f"/v1/connections/c{word}", None),
        ("DELETE", f"/v1/connections/i{word}", None),
        ("DELETE", f"/v1/variables/v{word}", None),
    ]
    for method, path, body in changes:
        assert live.http(method, path, body).status in (200, 201, 204), path
    # A ticket of a launch before may run out meanwhile: the API's own decision.
    found = [event["action"] for event in live.audit(after=last) if event["action"] != "launch.requeue"]
    assert found == [
        "connection.write",
        "connection.import",
        "variable.write",
        "grant.add",
        "impersonation.add",
        "group.write",
        "token.create",
        "connection.remove",
        "connection.remove",
        "variable.remove",
    ]


def test_every_refusal(live: Live, traces: Traces) -> None:
    assert live.push("t17no.py", traced_dag("t17no", traces)).status == 201
    person = live.http("POST", "/v1/tokens", {"principal": f"p{secrets.token_hex(4)}"}).json["token"]
    launch = {"dag_id": "t17no", "task_id": "t", "run_id": "r", "run_as_user": "somebody"}
    refusals: list[tuple[str, str, Any, str, str, int]] = [
        ("GET", "/v1/audit", None, person, "out-of-scope", 403),
        ("GET", "/v1/archives", None, "nobody", "unauthenticated", 401),
        ("POST", "/v1/launches", launch, live.token, "out-of-scope", 403),
        ("POST", "/v1/launches", launch, person, "not-owner", 403),
        ("GET", "/v1/archives/t17no.py", None, person, "not-owner", 403),
        ("PUT", "/v1/archives/t17bad.py", b"syntax error here", live.token, "source-syntax", 422),
        ("POST", "/v1/tokens", {"principal": "Not A Name"}, live.token, "invalid-request", 422),
    ]
    last = live.audit()[-1]["seq"]
    for method, path, body, token, slug, status in refusals:
        answer = live.http(method, path, body, token=token)
        assert (answer.status, answer.problem) == (status, slug), path
        # A launch of an earlier test may still be ending: what it does is accepted.
        (event,) = live.audit(after=last, verdict="refused")
        last = event["seq"]
        assert event["address"] == "127.0.0.1", path
        assert event["detail"].startswith(f"{slug}: "), path
        assert token not in json.dumps(event)


def test_what_the_agent_keeps_to_itself(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """Runs, refusals and results that no agent tells the API of: the launcher's journal has them."""
    assert live.push("t17quiet.py", traced_dag("t17quiet", traces)).status == 201
    offer = agent.offer("t17quiet")
    count = len(live.journal())
    with agent.connect() as peer, opened(offer.blob) as fd:
        peer.run(b"{}", offer.manifest, fd)
    with agent.connect() as peer, opened(b"other bytes") as fd:
        peer.run(offer.ticket, offer.manifest, fd)
    with agent.connect() as peer, opened(offer.blob) as fd:
        peer.run(other_ticket(live, offer.ticket, unix_user="root"), offer.manifest, fd)
    result, _ = agent.run_honestly(offer)
    assert result.state == "success"
    written = [(line["event"], line.get("error", "")) for line in live.journal()[count:]]
    assert written == [
        ("refused", "malformed"),
        ("result", "digest-mismatch"),
        ("result", "privilege"),
        ("launch", ""),
        ("claim", ""),
        ("grant", ""),
        ("result", ""),
    ]
    assert ("launch.end", "accepted") not in events(live, offer.launch_id), "the agent did keep it to itself"
    (line,) = [one for one in live.journal()[count:] if one["event"] == "launch"]
    assert line["digest"] == str(ticket_of(live, offer.ticket).digest)
    assert line["user"] == live.user


def test_descriptions_are_in_the_journal(live: Live) -> None:
    count = len(live.journal())
    assert live.push("t17seen.py", dag("t17seen", "pass")).status == 201
    assert live.push("t17unseen.py", "raise RuntimeError").status == 422
    # A launch of an earlier test may still be ending.
    written = [line["event"] for line in live.journal()[count:] if "launch_id" not in line]
    assert written == ["describe", "refused"]


def test_a_journal_that_was_changed(live: Live, traces: Traces) -> None:
    """Any bit of any line but the last breaks the chain; so does every line that is taken out, doubled or moved."""
    assert live.push("t17chain.py", traced_dag("t17chain", traces)).status == 201
    live.launch("t17chain", "t", "r")
    true = (live.journal_folder / "journal.000000000001.jsonl").read_bytes().splitlines()[:40]
    assert len(list(verify(true))) == len(true) >= 5

    def broken(changed: list[bytes]) -> None:
        with pytest.raises(MalformedError):
            list(verify(changed))

    for number, line in enumerate(true[:-1]):
        for at in range(0, len(line), 7):
            flipped = bytearray(line)
            flipped[at] ^= 1 << at % 8
            broken([*true[:number], bytes(flipped), *true[number + 1 :]])
        broken([*true[:number], *true[number + 1 :]])
        broken([*true[: number + 1], line, *true[number + 1 :]])
        broken([*true[:number], true[number + 1], line, *true[number + 2 :]])
        entry = json.loads(line) | {"event": "something else"}
        broken([*true[:number], canonical.dump(entry), *true[number + 1 :]])


Folder = Callable[[], Path]


@pytest.fixture
def since(live: Live, tmp_path: Path) -> Iterator[Folder]:
    """The journal as a launcher would have it that was started when the test began."""
    count = len(live.journal())

    def folder() -> Path:
        made = tmp_path / secrets.token_hex(4)
        made.mkdir()
        fd = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        lines = live.journal()[count:]
        times = iter(line["at"] for line in lines)
        journal = Journal(fd, now_us=lambda: 0)
        journal._now_us = lambda: next(times)
        for line in lines:
            journal.write(**line)
        journal.close()
        os.close(fd)
        return made

    yield folder


def audited(live: Live, folder: Path) -> subprocess.CompletedProcess[str]:
    return live.cli("-o", "json", "audit", "verify", "--journal", str(folder))


def findings(answer: subprocess.CompletedProcess[str]) -> list[tuple[str, str, str, str]]:
    """What is said of each launch. The first line is the chain's."""
    assert answer.stdout.startswith("ok     "), answer
    rows = json.loads(answer.stdout.partition("\n")[2] or "[]")
    assert answer.returncode == (1 if rows else 0), answer
    assert not rows or f"the server knows {len(rows)} launches otherwise" in answer.stderr
    return [(row["launch_id"], row["journal"], row["server"], row["finding"]) for row in rows]


def test_honest_launches_are_found_in_order(live: Live, traces: Traces, since: Folder) -> None:
    """Also one that failed."""
    assert live.push("t17fair.py", traced_dag("t17fair", traces)).status == 201
    assert live.push("t17fails.py", dag("t17fails", "raise ValueError")).status == 201
    assert live.launch("t17fair", "t", "r")["state"] == "success"
    assert live.launch("t17fails", "t", "r")["state"] == "failed"
    assert findings(audited(live, since())) == []


def test_a_result_that_the_agent_swallows(live: Live, agent: LyingAgent, traces: Traces, since: Folder) -> None:
    assert live.push("t17gulp.py", traced_dag("t17gulp", traces)).status == 201
    offer = agent.offer("t17gulp")
    result, _ = agent.run_honestly(offer)
    assert result.state == "success"
    swallowed = (offer.launch_id, "success", "running", "the server was not told")
    assert findings(audited(live, since())) == [swallowed]
    # That its ticket is tried again, or with other bytes, does not make it look like a refusal.
    for data in (offer.blob, b"other bytes"):
        with agent.connect() as peer, opened(data) as fd:
            assert slug_of(live, peer.run(offer.ticket, offer.manifest, fd)) in ("replay", "digest-mismatch")
    assert findings(audited(live, since())) == [swallowed]


def test_a_result_that_the_agent_forges(live: Live, agent: LyingAgent, traces: Traces, since: Folder) -> None:
    """Without a claim the agent's word counts, not the launcher's: it says refused of what it broke off itself."""
    assert live.push("t17forge.py", traced_dag("t17forge", traces)).status == 201
    offer = agent.offer("t17forge")
    with agent.connect() as peer, opened(offer.blob) as fd:
        assert peer.run(offer.ticket, offer.manifest, fd).kind == "claim"
    until("the launcher wrote its end", lambda: "result" in lines(live, offer.launch_id))
    lie = {"state": "refused", "error": "privilege", "detail": "the launcher would not"}
    told = live.http("POST", f"/v1/launches/{offer.launch_id}/state", lie, token=agent.token)
    assert (told.status, told.json["state"]) == (200, "refused")
    assert findings(audited(live, since())) == [
        (offer.launch_id, "cancelled", "refused", "the server was told otherwise")
    ]


def test_lines_that_were_cut_off_its_end(live: Live, traces: Traces, since: Folder) -> None:
    """No file can tell that; the server can, as it has the claim and the result that they were written for."""
    assert live.push("t17cut.py", traced_dag("t17cut", traces)).status == 201
    for run_id in ("first", "second"):
        launch = live.launch("t17cut", "t", run_id)
        assert launch["state"] == "success"
    end, claim = "the journal lost its end", "the journal lost its claim"
    for cut, finding, said in ((1, end, "claimed"), (2, end, "claimed"), (3, claim, "nothing"), (4, claim, "nothing")):
        folder = since()
        (path,) = folder.iterdir()
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-cut]))
        (found,) = findings(audited(live, folder))
        assert (found[0], found[1], found[3]) == (launch["id"], said, finding), cut
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    answer = audited(live, folder)
    assert answer.returncode == 3
    assert "the server knows no launch of this journal" in answer.stderr


def test_lines_that_were_touched(live: Live, traces: Traces, since: Folder) -> None:
    """Found out before any server is asked, and named by file and line."""
    assert live.push("t17touch.py", traced_dag("t17touch", traces)).status == 201
    assert live.launch("t17touch", "t", "r")["state"] == "success"
    folder = since()
    (path,) = folder.iterdir()
    true = path.read_bytes().splitlines(keepends=True)
    (grant,) = [at for at, line in enumerate(true) if b'"event":"grant"' in line]
    lied = canonical.dump(json.loads(true[grant]) | {"connections": ["other"]}) + b"\n"
    for changed, line in (
        ([*true[:grant], *true[grant + 1 :]], grant + 1),
        ([*true[:grant], lied, *true[grant + 1 :]], grant + 2),
        ([*true[:grant], true[grant + 1], true[grant], *true[grant + 2 :]], grant + 1),
        (true[1:], 1),
    ):
        path.write_bytes(b"".join(changed))
        answer = audited(live, folder)
        assert (answer.returncode, answer.stdout) == (1, "")
        assert f"{path}: verification FAILED: journal: line {line} does not follow the line before it" in answer.stderr
