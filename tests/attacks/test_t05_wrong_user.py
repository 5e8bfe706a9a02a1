"""T05 wrong-user: a task is asked for as root, as a number, as a banned, system or unlisted account, or as dagseal's own.

The names go to the API, to the command line, into a DAG and, in tickets that the API itself signed, to the launcher. Expired
accounts and second names for a uid are in `tests/root`, where /etc/passwd and /etc/shadow are replaced.

Seen to fail when weakened: `accounts.resolve` without its `reserved` rule, or without `min_uid` and `allowed`; a rule
for names that takes digits; `impersonation.decide` that allows.
"""

from __future__ import annotations

import os
import pwd
import secrets

import pytest

from tests.attacks.attacker import (
    LyingAgent,
    Offer,
    Traces,
    api_key,
    dag,
    opened,
    other_ticket,
    slug_of,
    ticket_of,
    traced_dag,
    used_tickets,
)
from tests.live import Live
from vocabulary import envelopes, tickets

PROFILES = ("standard", "minimal", "strict")
NOT_NAMES = ("0", "#0", "+0", "-1", "65534", "4294967295", "Root", "root ", " root", "root\n", "ro ot", "../root", "")
MISSING = "dagseal-absent"


@pytest.fixture
def offer(live: Live, agent: LyingAgent, traces: Traces) -> Offer:
    answer = live.push("t05.py", traced_dag("t05", traces))
    assert answer.status == 201, answer.body
    return agent.offer("t05")


def forbidden(live: Live) -> dict[str, str]:
    """Each account of this host that no task may become, and words of the rule that says so."""
    users = {"root": "uid or gid 0", MISSING: "does not exist"}
    if os.geteuid() != 0:
        return dict.fromkeys(users, "cannot be become")
    accounts = live.stack.accounts
    own = {accounts.api, accounts.agent, accounts.parser, accounts.notary}
    users |= dict.fromkeys(own, "one of dagseal's own accounts")
    for entry in pwd.getpwall():
        if entry.pw_name in users or entry.pw_name == live.user or 0 in (entry.pw_uid, entry.pw_gid):
            continue
        users[entry.pw_name] = "below min_uid" if entry.pw_uid < 1000 else "not allowed here"
    return users


def test_at_the_launcher(live: Live, agent: LyingAgent, traces: Traces, offer: Offer) -> None:
    before, used = traces.all(), used_tickets(live)
    for user, rule in forbidden(live).items():
        ticket = other_ticket(live, offer.ticket, unix_user=user)
        with agent.connect() as peer, opened(offer.blob) as fd:
            assert slug_of(live, peer.run(ticket, offer.manifest, fd)) == "privilege", user
        line = live.journal()[-1]
        assert (line["event"], line["error"]) == ("result", "privilege")
        # An account with a privileged group (daemon's, shadow's) may be refused for that first.
        assert rule in line["detail"] or "gives power over the host" in line["detail"], line["detail"]
    assert (traces.all(), used_tickets(live)) == (before, used)


def test_what_is_no_name_at_the_launcher(live: Live, agent: LyingAgent, traces: Traces, offer: Offer) -> None:
    before, used = traces.all(), used_tickets(live)
    true = ticket_of(live, offer.ticket).to_bytes()
    for name in NOT_NAMES:
        payload = true.replace(f'"unix_user":"{live.user}"'.encode(), f'"unix_user":{_json(name)}'.encode())
        assert payload != true
        ticket = envelopes.sign(payload, payload_type=tickets.PAYLOAD_TYPE, key=api_key(live))
        with agent.connect() as peer, opened(offer.blob) as fd:
            said = peer.run(ticket, offer.manifest, fd)
        assert (said.kind, slug_of(live, said)) == ("refused", "malformed"), name
    assert (traces.all(), used_tickets(live)) == (before, used)


def test_what_is_no_name_at_the_api(live: Live, traces: Traces, offer: Offer) -> None:
    count = len(live.http("GET", "/v1/launches?dag_id=t05").json["launches"])
    for name in NOT_NAMES:
        body = {"dag_id": "t05", "task_id": "t", "run_id": secrets.token_hex(8), "run_as_user": name}
        answer = live.http("POST", "/v1/launches", body)
        assert (answer.status, answer.problem) == (422, "invalid-request"), name
        rule = {"subject_kind": "principal", "subject": "admin", "unix_user": name}
        assert live.http("POST", "/v1/impersonation-rules", rule).status == 422
    assert len(live.http("GET", "/v1/launches?dag_id=t05").json["launches"]) == count


def test_without_a_rule_at_the_api(live: Live, traces: Traces, offer: Offer) -> None:
    count, before = len(live.http("GET", "/v1/launches?dag_id=t05").json["launches"]), traces.all()
    for user in forbidden(live):
        body = {"dag_id": "t05", "task_id": "t", "run_id": secrets.token_hex(8), "run_as_user": user}
        answer = live.http("POST", "/v1/launches", body)
        assert (answer.status, answer.problem) == (403, "out-of-scope"), user
        assert f"as unix user {user}" in answer.json["detail"]
    answer = live.cli("launch", "t05", "t", "--run-id", "no-rule", "--as-user", "root", "--follow")
    assert answer.returncode == 7
    assert "no rule lets admin run dag t05 as unix user root" in answer.stderr
    assert len(live.http("GET", "/v1/launches?dag_id=t05").json["launches"]) == count
    assert traces.all() == before


def allow(live: Live, user: str) -> str:
    rule = {"subject_kind": "principal", "subject": "admin", "dag_glob": "t05*", "unix_user": user}
    made = live.http("POST", "/v1/impersonation-rules", rule)
    assert made.status == 201, made.body
    return str(made.json["id"])


def test_with_a_rule_that_should_not_be(live: Live, traces: Traces, offer: Offer) -> None:
    """An administrator of the API permitted it; the launcher's own policy still says no, and the command line why."""
    before, used = traces.all(), used_tickets(live)
    accounts = live.stack.accounts
    for user in sorted({"root", MISSING} | ({accounts.agent, accounts.parser} if os.geteuid() == 0 else set())):
        rule = allow(live, user)
        answer = live.cli("launch", "t05", "t", "--run-id", f"as-{user}", "--as-user", user, "--follow")
        assert live.http("DELETE", f"/v1/impersonation-rules/{rule}").status == 204
        assert answer.returncode == 7, answer.stderr
        assert f"privilege: unix user {user} " in answer.stderr
        assert forbidden(live)[user] in answer.stderr
        (launch,) = [
            one for one in live.http("GET", "/v1/launches?dag_id=t05").json["launches"] if one["run_id"] == f"as-{user}"
        ]
        assert (launch["state"], launch["error"], launch["exit_code"]) == ("refused", "privilege", 77)
        last = live.audit(object=f"launch:{launch['id']}")[-1]
        assert (last["action"], last["verdict"]) == ("launch.end", "refused")
    assert (traces.all(), used_tickets(live)) == (before, used)


def test_as_the_dag_says(live: Live, traces: Traces) -> None:
    """A DAG's own `run_as_user` comes with its signed manifest, and is refused by the same rules."""
    source = dag("t05says", 'trace("ran")', top=traces.source() + 'trace("import")\n', arguments='run_as_user="root"')
    pushed = live.push("t05says.py", source)
    assert pushed.status == 201, pushed.body
    assert pushed.json["dags"][0]["tasks"][0]["run_as_user"] == "root"
    before = traces.all()
    answer = live.cli("launch", "t05says", "t", "--run-id", "no-rule", "--follow")
    assert answer.returncode == 7
    assert "no rule lets admin" in answer.stderr
    rule = allow(live, "root")
    answer = live.cli("launch", "t05says", "t", "--run-id", "rule", "--follow")
    assert live.http("DELETE", f"/v1/impersonation-rules/{rule}").status == 204
    assert answer.returncode == 7
    assert "privilege: unix user root " in answer.stderr
    assert traces.all() == before


def _json(text: str) -> str:
    return '"' + text.replace("\n", "\\n") + '"'
