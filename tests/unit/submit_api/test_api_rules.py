"""The API's rules without I/O: tokens, states, permissions, rows, settings, problems, OpenAPI."""

from __future__ import annotations

import doctest
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator

from integrity import errors, names
from integrity.digests import Digest
from integrity.errors import ConflictError, DagsealError, NotOwnerError, OutOfScopeError, SettingsError, SignatureError
from submit_api import (
    audit,
    connections,
    docs_page,
    identity,
    launches,
    modes,
    openapi,
    permissions,
    problems,
    rowkeys,
    settings,
)
from submit_api.effects import SystemRandomness
from submit_api.http.table import ROUTES
from submit_api.identity import Caller
from submit_api.models.fields import Profile
from submit_api.refusals import BelowFloorError, InvalidRequestError, UnauthenticatedError
from submit_api.registry.records import Launch, Queue, Secret, Token
from submit_api.rowkeys import RowKeys, prefix
from vocabulary.archiverules import RULES
from vocabulary.claims import PROFILES, STATES
from vocabulary.keys import RowKey
from vocabulary.manifest import TaskEntry

ALICE = Caller(principal="alice", kind="user", admin=False, token_id="t", address="", groups=frozenset({"team"}))
ADMIN = replace(ALICE, principal="root", admin=True, groups=frozenset())
WORKER = replace(ALICE, principal="w1", kind="worker", groups=frozenset())
EARLIER = Secret(
    kind="connection",
    name="db",
    version=2,
    ciphertext=b"",
    updated_at=1,
    updated_by="x",
    owner="x",
    group="x",
    mode=0o600,
)
TASK = TaskEntry(
    task_id="t", digest=Digest.of(b""), operator="X", run_as_user=None, queue="q", connections=(), mapped=False
)


def token_row(made: identity.NewToken) -> Token:
    return Token(
        token_id=made.token_id, principal="alice", kind="user", admin=False, secret_hash=made.secret_hash,
        created_at=1, created_by="admin", expires_at=100, revoked_at=None,
    )  # fmt: skip


def launch(state: str) -> Launch:
    return Launch(
        id="0" * 32, state=state, dag_id="d", task_id="t", run_id="r", map_index=-1, try_number=1, archive="d.py",
        release=1, digest=str(Digest.of(b"")), unix_user="nobody", queue="q", owner="alice", group="team",
        principal="alice", timeout_seconds=1, created_at=1,
    )  # fmt: skip


def test_a_token_opens_its_row_until_it_expires_or_is_revoked() -> None:
    made = identity.create(SystemRandomness())
    token_id, secret = identity.read(identity.bearer(f"Bearer {made.text}"))
    row = token_row(made)
    assert token_id == made.token_id
    assert identity.check(row, token_id, secret, 99) is row
    for bad in (None, replace(row, revoked_at=1), replace(row, secret_hash="0" * 128)):
        with pytest.raises(UnauthenticatedError):
            identity.check(bad, token_id, secret, 99)
    with pytest.raises(UnauthenticatedError, match="expired"):
        identity.check(row, token_id, secret, 100)
    assert made.text not in repr(made) and made.secret_hash not in repr(row)


def test_every_changed_character_of_a_token_is_refused() -> None:
    made = identity.create(SystemRandomness())
    row = token_row(made)
    for at, instead in itertools.product(range(len(made.text)), "aZ_0é"):
        changed = made.text[:at] + instead + made.text[at + 1 :]
        if changed == made.text:
            continue
        with pytest.raises(UnauthenticatedError) as caught:
            token_id, secret = identity.read(identity.bearer(f"Bearer {changed}"))
            identity.check(row if token_id == row.token_id else None, token_id, secret, 1)
        assert changed not in str(caught.value)
    for header in (None, "", "Bearer", "Basic " + made.text, made.text, "Bearer " + "x" * 10_000):
        with pytest.raises(UnauthenticatedError):
            identity.read(identity.bearer(header))


def test_the_launch_table_is_whole() -> None:
    ended = "success failed skipped up_for_retry up_for_reschedule deferred cancelled refused lost"
    assert set(ended.split()) == launches.ENDS == set(STATES)
    assert set(launches.TRANSITIONS) == launches.ENDS | {"queued", "offered", "running"}
    for state, to in itertools.product(launches.TRANSITIONS, launches.TRANSITIONS):
        if to in launches.TRANSITIONS[state]:
            assert launches.step(launch(state), to) == to
        else:
            with pytest.raises(ConflictError, match=f"is {state}"):
                launches.step(launch(state), to)
    assert all(not launches.TRANSITIONS[end] for end in launches.ENDS)
    # Only a claim makes a launch run, and only a launch that ran can succeed.
    assert [state for state, to in launches.TRANSITIONS.items() if "running" in to] == ["offered"]
    assert [state for state, to in launches.TRANSITIONS.items() if "success" in to] == ["running"]


def test_connections_must_exist_and_be_granted() -> None:
    task = replace(TASK, connections=("a",))
    granted = {("connection", "a"), ("variable", "b")}
    launches.require_connections(task, owner="alice", granted=granted, existing={"a"})
    with pytest.raises(OutOfScopeError, match="does not exist"):
        launches.require_connections(task, owner="alice", granted=granted, existing=set())
    for others in (set(), {("variable", "a"), ("connection", "b")}):
        with pytest.raises(OutOfScopeError, match="dagseal connection grant a --to alice"):
            launches.require_connections(task, owner="alice", granted=others, existing={"a"})


@pytest.mark.parametrize(("release", "queue"), itertools.product((None, *PROFILES), repeat=2))
@pytest.mark.parametrize("profile", [*PROFILES, None, "", "Strict", ["strict"]])
def test_the_highest_floor_is_to_be_met(release: str | None, queue: str | None, profile: object) -> None:
    rank = {None: 0, "minimal": 1, "standard": 2, "strict": 3}
    highest = max(rank[release], rank[queue])
    attestation = {"uid": 1} if profile is None else {"uid": 1, "profile": profile}
    floors = {"release etl.py@1": release, "queue payments": queue}
    if highest <= (rank[profile] if isinstance(profile, str) and profile in PROFILES else 0):
        launches.require_isolation(attestation, floors)
        return
    with pytest.raises(BelowFloorError) as caught:
        launches.require_isolation(attestation, floors)
    who = "release etl.py@1" if rank[release] >= rank[queue] else "queue payments"
    attested = profile if profile in PROFILES else "none that is known"
    assert str(caught.value).startswith(
        f"{who} asks for isolation profile {PROFILES[highest - 1]} or more, the launcher attests to {attested}: "
    )


def test_the_profiles_of_http_are_those_of_claims() -> None:
    assert get_args(Profile) == PROFILES


def test_each_route_has_an_action_and_each_action_a_route() -> None:
    assert {route.action for route in ROUTES} == set(permissions.ACTIONS)


@pytest.mark.parametrize("action", permissions.ACTIONS)
def test_who_may_ask_for_what(action: str) -> None:
    who = permissions.ACTIONS[action]
    for caller in (ALICE, ADMIN, WORKER):
        allowed = {
            permissions.ADMIN: caller is ADMIN,
            permissions.WORKERS: caller is WORKER,
            permissions.FETCHERS: True,
            permissions.PUBLIC: None,
        }.get(who, caller.kind == "user")
        if allowed is True:
            permissions.require_action(action, caller)
        elif allowed is False:
            with pytest.raises(OutOfScopeError):
                permissions.require_action(action, caller)


def queue(owner: str, group: str, mode: int) -> Queue:
    return Queue(name="q", owner=owner, group=group, mode=mode, created_at=1)


@pytest.mark.parametrize("bit", [modes.READ, modes.WRITE, modes.EXECUTE])
def test_each_bit_is_its_class_s_alone(bit: int) -> None:
    """Of the three classes the first that fits decides; administrators always may, workers never."""
    for shift, caller, owner, group in (
        (6, ALICE, "alice", "team"),
        (3, ALICE, "bob", "team"),
        (0, ALICE, "bob", "other"),
    ):
        for mode in range(0o1000):
            found = queue(owner, group, mode)
            allowed = bool(mode >> shift & bit)
            assert permissions.may(caller, bit, found) is allowed
            assert permissions.may(ADMIN, bit, found) and not permissions.may(replace(WORKER, admin=True), bit, found)
            if not allowed and mode in (0, 0o777 ^ bit << shift):
                with pytest.raises(NotOwnerError, match=f"alice may not {modes.WORDS[bit]} it: ask {owner} to"):
                    permissions.require(caller, bit, found, "it")


@given(st.integers(0, 0o777))
def test_a_mode_reads_as_it_is_shown(mode: int) -> None:
    u, g, o = (modes.shown(mode)[i : i + 3].replace("-", "") for i in (0, 3, 6))
    assert modes.changed(0o777, f"u={u},g={g},o={o}") == modes.changed(0, f"{mode:03o}") == mode


@pytest.mark.parametrize(
    ("mode", "text", "wanted"),
    [
        (0o770, "o+r", 0o774), (0o770, "g-w", 0o750), (0o000, "+x", 0o111), (0o777, "a-x", 0o666), (0o770, "go=", 0o700),
        (0o770, "ug=rx,o+r", 0o554), (0o644, "a=rw,u+x", 0o766), (0o777, "750", 0o750),
    ],
)  # fmt: skip
def test_modes_change_as_chmod_changes_them(mode: int, text: str, wanted: int) -> None:
    assert modes.changed(mode, text) == wanted
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, mode)
        subprocess.run(["chmod", text, file.name], check=True, umask=0)
        assert os.stat(file.name).st_mode & 0o777 == wanted


@pytest.mark.parametrize(
    "text", ["", "8", "77", "0770", "888", "rwx", "u+s", "u+t", "x+r", "u+r,", ",", "u", "u+r g+r", "+r" * 99, "７５０"]
)
def test_what_is_no_mode(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="is no mode"):
        modes.changed(0o770, text)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
def test_a_secret_opens_only_in_its_own_row(value: str) -> None:
    key = ring()
    row = connections.seal(key, "connection", "db", value, earlier=EARLIER, at=1, by="x")
    assert connections.open_secret(key, row) == value
    assert "ciphertext" not in repr(row)
    moved: list[Secret] = [
        replace(row, name="db2"), replace(row, kind="variable"), replace(row, version=2),
        replace(row, ciphertext=row.ciphertext[:-1] + bytes([row.ciphertext[-1] ^ 1])), replace(row, ciphertext=b""),
    ]  # fmt: skip
    for other in moved:
        with pytest.raises(SignatureError):
            connections.open_secret(key, other)
    with pytest.raises(SignatureError):
        connections.open_secret(ring(), row)


def ring() -> RowKeys:
    """Of one new key."""
    keys = {1: RowKey.generate()}
    return RowKeys(lambda: keys)


def test_the_newest_key_encrypts_and_every_key_decrypts() -> None:
    keys = {1: RowKey.generate()}
    ours = RowKeys(lambda: keys)
    of_before = keys[1].encrypt(b"of before there were rings", row=b"row")
    first = ours.encrypt(b"first", row=b"row")
    keys[2] = RowKey.generate()
    other_process = RowKeys(lambda: keys).encrypt(b"of another process", row=b"row")
    assert ours.decrypt(other_process, row=b"row") == b"of another process"
    assert ours.newest == keys[2]
    second = ours.encrypt(b"second", row=b"row")
    assert (first[:20], second[:20]) == (prefix(keys[1]), prefix(keys[2]))
    assert [ours.decrypt(one, row=b"row") for one in (of_before, first, second)] == [
        b"of before there were rings", b"first", b"second",
    ]  # fmt: skip
    with pytest.raises(SignatureError):
        ours.decrypt(first[:20] + second[20:], row=b"row")
    with pytest.raises(SignatureError):
        ours.decrypt(first[20:], row=b"row")  # the name of its key belongs to it
    del keys[1]
    ours.refresh()
    for gone in (of_before, first):
        with pytest.raises(SignatureError, match="a key that is not here"):
            ours.decrypt(gone, row=b"row")
    assert ours.decrypt(second, row=b"row") == b"second"


def test_the_example_of_the_ring() -> None:
    assert doctest.testmod(rowkeys) == (0, 4)


def test_audit_text_is_one_harmless_line() -> None:
    assert audit._plain("a\nb\x1b[31m\u202ec\udc80" + "x" * 999, 20) == "a\ufffdb\ufffd[31m\ufffdc\ufffd" + "x" * 9


def every_error() -> list[type[DagsealError]]:
    found: dict[type[DagsealError], None] = {}
    left: list[type[DagsealError]] = [DagsealError]
    while left:
        kind = left.pop()
        found[kind] = None
        left += kind.__subclasses__()
    return list(found)


def test_every_error_has_a_status_and_its_own_slug() -> None:
    ours = [
        kind for kind in every_error() if kind.__module__.split(".")[0] in ("integrity", "vocabulary", "submit_api")
    ]
    slugs = [kind.slug for kind in ours if "slug" in vars(kind)]
    assert len(slugs) == len(set(slugs))
    for kind in ours:
        error = kind("rule", "detail") if issubclass(kind, errors.ArchiveError) else kind("detail")
        status = problems.status_of(error)
        assert 400 <= status < 600
        if status == 500:
            assert kind in (DagsealError, SettingsError)
            assert problems.document(error) == problems.internal()
        else:
            assert problems.document(error)["type"] == f"https://dagseal.dev/problems/{kind.slug}"


def test_an_archives_rule_is_its_type_when_it_is_one_of_ours() -> None:
    for rule, kind in RULES.items():
        document = problems.document(kind(rule, "detail", "a.py"))
        assert document["type"] == f"https://dagseal.dev/problems/{rule}"
        assert document["errors"] == [{"rule": rule, "entry": "a.py", "detail": "detail"}]
        assert document["status"] == problems.status_of(kind(rule, "detail"))
    invented = problems.document(errors.InvalidArchiveError("unauthenticated", "detail"))
    assert invented["type"] == "https://dagseal.dev/problems/invalid-archive"


@pytest.mark.parametrize("seed", ["1", "2"])
def test_each_process_describes_it_in_the_same_words(seed: str) -> None:
    """Else a client could not tell a change from another replica."""
    code = "from submit_api import openapi\nfrom submit_api.http.table import ROUTES\nprint(openapi.document(ROUTES))"
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said == f"{openapi.document(ROUTES)}\n"


def test_the_description_is_valid_openapi_and_names_every_route() -> None:
    document = openapi.document(ROUTES)
    OpenAPIV31SpecValidator(document).validate()
    operations = [(path, method) for path, found in document["paths"].items() for method in found]
    assert len(operations) == len(ROUTES)
    ids = [document["paths"][path][method]["operationId"] for path, method in operations]
    assert len(ids) == len(set(ids))
    page = docs_page.render(document)
    assert all(path in page for path, _ in operations) and "<script" not in page


def test_what_the_description_says_of_names_can_be_read_by_others() -> None:
    """Also by validators whose patterns are of code points, which a lone surrogate is none of."""

    def patterns(value: object) -> Iterator[str]:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if isinstance(value, dict) and isinstance(value.get("pattern"), str):
            yield value["pattern"]
        for one in inside:
            yield from patterns(one)

    found = set(patterns(openapi.document(ROUTES)))
    assert names.pattern("variable") in found and len(found) > 20
    for pattern in found:
        large = jsonschema_rs.FancyRegexOptions(size_limit=2**26)  # 250 letters of any script
        jsonschema_rs.validator_for({"type": "string", "pattern": pattern}, pattern_options=large)


def test_settings_come_from_the_environment_then_the_file(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    config = f"{tmp_path}/api.toml"
    with open(config, "w") as file:
        file.write('[api]\nport = 1\nhost = "h"\n[launches]\nticket_seconds = 5\n')
    monkeypatch.setenv("DAGSEAL__API__PORT", "2")
    loaded = settings.load(config)
    assert (loaded.api.port, loaded.api.host, loaded.launches.ticket_seconds) == (2, "h", 5)
    assert settings.load(config, api={"port": 3}).api.port == 3
    assert loaded.database_url == "sqlite+aiosqlite:////var/lib/dagseal/dagseal.db"


def test_a_queues_floor_holds_for_every_spelling_of_its_name(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable's name has no case: `Payments` would else have no floor without anybody being told."""
    config = f"{tmp_path}/api.toml"
    with open(config, "w") as file:
        file.write("[launches]\nisolation_floors = {vault = 'strict', VAULT = 'minimal', etl = 'standard'}\n")
    monkeypatch.setenv("DAGSEAL__LAUNCHES__ISOLATION_FLOORS__Payments", "standard")
    found = settings.load(config).launches
    queues = ("Payments", "payments", "vault", "Vault", "etl", "payment", "default")
    assert [found.floor_of(queue) for queue in queues] == ["standard"] * 2 + ["strict"] * 2 + ["standard", None, None]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[api]\nprot = 1\n", "api.prot"),
        ("[apis]\n", "apis"),
        ("[api]\nport = 'x'\n", "api.port"),
        ("[api", "api.toml"),
        ("[launches]\nticket_seconds = 3601\n", "launches.ticket_seconds"),
        ("[launches]\nisolation_floors = {pay = 'paranoid'}\n", "floors.pay: .*'minimal', 'standard' or 'strict'"),
        ("[launches]\nisolation_floors = {pay = ''}\n", "launches.isolation_floors.pay"),
        ("[launches]\nisolation_floors = {'a b' = 'strict'}\n", "launches.isolation_floors.a b"),
        ("[launches]\nisolation_floors = 'strict'\n", "launches.isolation_floors"),
    ],
)
def test_settings_that_cannot_be_used_are_named(tmp_path: object, text: str, says: str) -> None:
    config = f"{tmp_path}/api.toml"
    with open(config, "w") as file:
        file.write(text)
    with pytest.raises(SettingsError, match=says):
        settings.load(config)
    with pytest.raises(SettingsError, match="no configuration file"):
        settings.load(f"{tmp_path}/none.toml")


def test_an_unknown_key_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSEAL__API__PROT", "2")
    with pytest.raises(SettingsError, match=r"api\.prot"):
        settings.load()
