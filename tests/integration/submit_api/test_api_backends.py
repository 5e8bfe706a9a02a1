"""Secrets backends: Airflow's own classes give what they have, hostile ones give nothing and take nothing; and who may have a
name is decided before anybody is asked."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from api_rig import SOURCE, Api, WorkerPeer, dag_entry, task_entry

from integrity.digests import Digest
from integrity.errors import FetchError, SettingsError
from submit_api.backends import process
from submit_api.backends.lookup import Backends
from submit_api.backends.process import BackendProcess
from submit_api.settings import BackendSection, load
from tests.attacks.attacker import is_alive

LOCAL = "airflow.secrets.local_filesystem.LocalFilesystemBackend"
ENVIRONMENT = "airflow.secrets.environment_variables.EnvironmentVariablesBackend"
STORE = "tests.hostile_backends.Store"


@asynccontextmanager
async def started(
    class_path: str = "tests.hostile_backends.Hostile",
    *,
    hidden: tuple[str, ...] = (),
    environ: dict[str, str] | None = None,
    **changes: Any,
) -> AsyncIterator[BackendProcess]:
    section = BackendSection(class_path=class_path, **{"start_seconds": 60, "timeout_seconds": 60, **changes})
    backend = BackendProcess("b", section, hidden=hidden, environ=environ or {})
    try:
        yield backend
    finally:
        await backend.close()


async def test_airflows_own_files(tmp_path: Path) -> None:
    (tmp_path / "connections.json").write_text(
        json.dumps({"uri": "postgres://u:p%40ss@h:5432/db?sslmode=require", "json": {"conn_type": "http", "host": "ü"}})
    )
    (tmp_path / "variables.json").write_text(json.dumps({"region": "eu", "empty": ""}))
    kwargs = {
        "connections_file_path": f"{tmp_path}/connections.json",
        "variables_file_path": f"{tmp_path}/variables.json",
    }
    async with started(LOCAL, kwargs=kwargs, readable=[str(tmp_path)]) as backend:
        assert json.loads(await backend.ask("connection", "uri") or "") == {
            "conn_type": "postgres", "host": "h", "login": "u", "password": "p@ss", "schema": "db", "port": 5432,
            "extra": '{"sslmode": "require"}',
        }  # fmt: skip
        assert json.loads(await backend.ask("connection", "json") or "") == {"conn_type": "http", "host": "ü"}
        assert await backend.ask("connection", "absent") is None
        assert [await backend.ask("variable", name) for name in ("region", "empty", "absent")] == ["eu", "", None]


async def test_airflows_own_environment_variables() -> None:
    environ = {
        "AIRFLOW_CONN_DB": "http://u:p@h",
        "AIRFLOW_VAR_REGION": "eu",
        "AIRFLOW_CONN_OTHER": "http://not-named",
        "DAGSEAL__DATABASE__URL": "postgres://secret",
    }
    wanted = ["AIRFLOW_CONN_DB", "AIRFLOW_VAR_*", "DAGSEAL*"]
    async with started(ENVIRONMENT, environ=environ, environment=wanted) as backend:
        assert await backend.ask("connection", "db") == "http://u:p@h"
        assert await backend.ask("variable", "region") == "eu"
        assert await backend.ask("connection", "other") is None
        assert "DAGSEAL__DATABASE__URL" not in backend.environment("/x")


@pytest.mark.parametrize(
    "name", ["leave", "crash", "exit", "garbage", "endless", "huge", "fail", "memory", "disk", "missing"]
)
async def test_a_backend_that_fails_is_tried_again(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "FIRST_PAUSE_SECONDS", 0.0)
    async with started() as backend:
        for _ in range(2):
            assert await backend.ask("variable", "fine") == "fine"
            with pytest.raises(FetchError, match=r"secrets backend b .*: try again") as caught:
                await backend.ask("variable", name)
                await backend.ask("variable", "fine")  # of garbage: the answer came before
            assert "hunter2secret" not in str(caught.value)
        assert await backend.ask("variable", "fine") == "fine"
        assert await backend.ask("variable", "absent") is None
    said = capfd.readouterr()
    assert "hunter2secret" not in said.out + said.err


@pytest.mark.parametrize("name", ["hang", "spin", "forked_and_hung"])
async def test_a_backend_that_is_late_is_killed_with_what_it_forked(name: str) -> None:
    async with started(timeout_seconds=1, start_seconds=20) as backend:
        pid = int(await backend.ask("variable", "pid") or 0)
        forked = int(await backend.ask("variable", "fork") or 0)
        with pytest.raises(FetchError, match="does not answer"):
            await backend.ask("variable", name)
        deadline = time.monotonic() + 30
        for one in (pid, forked):
            while is_alive(one):
                assert time.monotonic() < deadline, f"{one} outlives its backend"
                await asyncio.sleep(0)
        begun = time.monotonic()
        with pytest.raises(FetchError, match="failed a moment ago"):
            await backend.ask("variable", "fine")
        assert time.monotonic() - begun < 1


async def test_an_answer_to_another_question_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FIRST_PAUSE_SECONDS", 0.0)
    async with started() as backend:
        with pytest.raises(FetchError):
            await backend.ask("variable", "twice")
        assert await backend.ask("variable", "fine") == "fine"


async def test_a_question_that_is_given_up_does_not_leave_its_answer_to_the_next() -> None:
    async with started() as backend:
        assert await backend.ask("variable", "fine") == "fine"
        asking = asyncio.create_task(backend.ask("variable", "hang"))
        while backend._running is None or backend._running.number != 2:
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await backend.ask("variable", "fine") == "fine"


async def test_what_it_prints_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    async with started() as backend:
        assert await backend.ask("variable", "print") == "printed"
    said = capfd.readouterr()
    assert "hunter2secret" not in said.out + said.err


async def test_a_backend_reaches_nothing_of_the_api(api: Api) -> None:
    """Not by files, not by /proc, not by ptrace, not by signals, though it is the same account (or even root)."""
    folder = api.settings.api.state_folder
    spied_on = [folder, f"{folder}/dagseal.db", api.settings.row_key_file, api.settings.signing_key_file]
    kwargs = {"spied_on": spied_on, "parent": os.getpid()}
    environ = {**os.environ, "DAGSEAL__X": "1"}
    async with started(hidden=tuple(spied_on), environ=environ, kwargs=kwargs) as backend:
        found = json.loads(await backend.ask("variable", "spy") or "")
        pid = await backend.ask("variable", "pid")
        assert b"spied_on" not in Path(f"/proc/{pid}/cmdline").read_bytes(), "kwargs are not in argv"
    names = found.pop("environment")
    assert names == sorted(backend.environment("/x").keys() | {"LC_CTYPE"} & set(names)) and "PATH" in names
    assert found.pop("fds") <= 4, "stdin, stdout, stderr, and the folder it lists"
    assert found == {}


async def test_what_could_read_the_keys_is_not_started(api: Api) -> None:
    folder = api.settings.api.state_folder
    async with started(hidden=(api.settings.row_key_file,), readable=[folder]) as backend:
        with pytest.raises(FetchError):
            await backend.ask("variable", "fine")


async def test_a_class_that_is_not_there_or_does_not_open(capfd: pytest.CaptureFixture[str]) -> None:
    for path in ("tests.hostile_backends.Unopened", "tests.hostile_backends.Nobody", "no_such_module.Class"):
        async with started(path, kwargs={"token": "hunter2secret"}) as backend:
            with pytest.raises(FetchError, match="secrets backend b does not answer: try again"):
                await backend.ask("variable", "fine")
    said = capfd.readouterr()
    assert "hunter2secret" not in said.out + said.err


# With the API around it


def store(**changes: Any) -> dict[str, Any]:
    values = {
        "vault/db": "http://u:c4nary@h",
        "shared": "http://of-the-backend",
        "only": '{"conn_type": "http"}',
        "bad": "no connection, c4nary",
    }
    return {"class_path": STORE, "kwargs": {"values": values}, "start_seconds": 60, "timeout_seconds": 60, **changes}


@asynccontextmanager
async def serving(folder: str, **backends: dict[str, Any]) -> AsyncIterator[tuple[Api, WorkerPeer]]:
    async with Api(folder, backends=backends) as api:
        await api.token("alice")
        await api.allow("alice")
        await api.push("etl.py", SOURCE, token=api.tokens["alice"])
        yield api, await api.worker()


async def grant(api: Api, kind: str, name: str) -> Any:
    body = {"kind": kind, "name": name, "to_kind": "principal", "to": "alice"}
    return await api.call("POST", "/v1/grants", token=api.admin, json=body)


async def offered(api: Api, worker: WorkerPeer, run_id: str = "r1") -> dict[str, Any]:
    assert (await api.launch(run_id=run_id)).status == 201
    offer = await worker.take()
    assert offer is not None
    return offer


async def state(api: Api, offer: dict[str, Any]) -> dict[str, Any]:
    return dict((await api.call("GET", f"/v1/launches/{offer['launch_id']}", token=api.admin)).json)


async def test_grants_decide_before_a_backend_is_asked(folder: str) -> None:
    async with serving(folder, vault=store(prefixes=["vault/"]), rest=store(kinds=["variable"])) as (api, worker):
        await api.connection("shared", "http://built-in", to="alice")
        made = await grant(api, "connection", "vault/db")
        assert made.status == 201
        assert (await grant(api, "connection", "only")).slug == "not-found", "no backend of connections has such names"
        assert (await grant(api, "variable", "only")).status == 201
        first = await worker.claimed(await offered(api, worker))
        assert first.connections == {"vault/db": "http://u:c4nary@h", "shared": "http://built-in"}
        assert first.variables == {"only": '{"conn_type": "http"}'}
        asked = [await api.service.backends._processes[name].ask("variable", "asked") for name in ("vault", "rest")]
        assert asked == ['["vault/db"]', '["only"]']
        delivered = [e["object"] for e in await api.events() if e["action"] == "secret.deliver"]
        assert delivered == ["connection:shared", "connection:vault/db", "variable:only"]
        # Taken back, it is not delivered, although it is still in memory.
        assert (await api.call("DELETE", f"/v1/grants/{made.json['id']}", token=api.admin)).status == 204
        assert "vault/db" not in (await worker.claimed(await offered(api, worker, "r2"))).connections
        for path in Path(folder).rglob("*"):
            assert not path.is_file() or b"c4nary" not in path.read_bytes(), path


async def test_a_fallback_is_asked_for_what_is_not_stored_here(folder: str) -> None:
    async with serving(folder, rest=store(cache_seconds=0)) as (api, worker):
        await api.connection("shared", "http://built-in", to="alice")
        for name in ("only", "nobody-has-it"):
            assert (await grant(api, "connection", name)).status == 201
        secrets = await worker.claimed(await offered(api, worker))
        assert secrets.connections == {"shared": "http://built-in", "only": '{"conn_type": "http"}'}


async def test_a_name_that_is_a_backends_is_not_stored_here(folder: str) -> None:
    async with serving(folder, vault=store(prefixes=["vault/"])) as (api, _):
        answer = await api.call("PUT", "/v1/connections/vault/db", token=api.admin, json={"value": "http://mine"})
        assert (answer.status, answer.slug) == (409, "conflict") and "secrets backend's by its prefix" in answer.json[
            "detail"
        ]
        assert (await api.call("GET", "/v1/connections", token=api.admin)).json == {"connections": []}


async def test_while_a_backend_is_down_the_claim_is_to_be_sent_again(folder: str) -> None:
    async with serving(folder, vault=store(class_path="tests.hostile_backends.Hostile", kwargs={})) as (api, worker):
        made = await grant(api, "variable", "fail")
        await grant(api, "variable", "fine")
        offer = await offered(api, worker)
        envelope, _ = worker.claim_envelope(offer)
        for _ in range(2):
            answer = await worker.post(offer["launch_id"], "claim", envelope)
            assert (answer.status, answer.slug) == (503, "fetch") and answer.headers["Retry-After"]
            assert (await state(api, offer))["state"] == "offered"
        await api.call("DELETE", f"/v1/grants/{made.json['id']}", token=api.admin)
        assert (await worker.post(offer["launch_id"], "claim", envelope)).status == 200
        assert (await state(api, offer))["state"] == "running"


@pytest.mark.parametrize(("name", "slug", "says"), [
    ("nobody-has-it", "not-found", "which no secrets backend has"),
    ("bad", "conflict", "what secrets backend rest has as connection 'bad' cannot be used"),
])  # fmt: skip
async def test_a_connection_that_no_backend_can_give_ends_the_launch(
    folder: str, name: str, slug: str, says: str
) -> None:
    async with serving(folder, rest=store()) as (api, worker):
        api.launcher.dags["etl.py"] = [dag_entry("etl", task_entry("t", connections=(name,)))]
        await api.push("etl.py", SOURCE + b"#\n", token=api.tokens["alice"])
        assert (await api.launch()).slug == "out-of-scope", "not granted"
        await grant(api, "connection", name)
        offer = await offered(api, worker)
        answer = await worker.claim(offer)
        assert answer.slug == slug and says in answer.json["detail"] and "c4nary" not in answer.body.decode()
        ended = await state(api, offer)
        assert (ended["state"], ended["error"]) == ("refused", slug)
        assert "secret.deliver" not in [event["action"] for event in await api.events()]


async def test_a_claim_that_is_refused_asks_no_backend(folder: str) -> None:
    async with serving(folder, vault=store(prefixes=["vault/"])) as (api, worker):
        await grant(api, "connection", "vault/db")
        offer = await offered(api, worker)
        assert (await worker.claim(offer, launch_id="0" * 32)).slug == "out-of-scope"
        assert (await worker.claim(offer, ticket_id="0" * 32)).slug == "expired"
        assert (await worker.claim(offer, task_digest=Digest.of(b"drifted"))).slug == "digest-mismatch"
        assert api.service.backends._processes["vault"]._running is None


async def test_values_are_kept_for_so_many_seconds() -> None:
    now = 0.0
    settings = load(api={"state_folder": "/nonexistent"}, backends={"b": store(cache_seconds=10)})
    backends = Backends(settings, now=lambda: now, environ={})
    try:
        for at, times in ((0.0, 1), (9.9, 1), (10.0, 2), (30.0, 3)):
            now = at
            assert await backends.fetch([("connection", "only")], built_in=()) == {
                ("connection", "only"): '{"conn_type": "http"}'
            }
            assert json.loads(await backends._processes["b"].ask("variable", "asked") or "") == ["only"] * times
        assert await backends.fetch([("connection", "only")], built_in={("connection", "only")}) == {}
    finally:
        await backends.close()


def test_the_longest_prefix_has_a_name() -> None:
    sections = {"a": store(prefixes=["x/", "x/y/z/"]), "b": store(prefixes=["x/y/"]), "c": store(kinds=["variable"])}
    backends = Backends(load(backends=sections), now=lambda: 0.0, environ={})
    owners = {name: backends._owner("connection", name) for name in ("x/1", "x/y/1", "x/y/z/1", "x", "other")}
    assert owners == {"x/1": "a", "x/y/1": "b", "x/y/z/1": "a", "x": None, "other": None}
    assert not backends.covers("connection", "other") and backends.covers("variable", "other")


def test_settings_that_are_refused(tmp_path: Path) -> None:
    for wrong in (
        {"class_path": "os; x"},
        {"class_path": "Class"},
        {"surprise": 1},
        {"kinds": ["config"]},
        {"cache_seconds": 9999},
    ):
        with pytest.raises(SettingsError, match="backends"):
            load(backends={"b": {"class_path": "a.B", **wrong}})
    path = tmp_path / "kwargs.json"
    for text, mode, says in (
        ('{"a": "s3cret"}', 0o644, "chmod 600"),
        ("s3cret", 0o600, "as JSON"),
        ('["s3cret"]', 0o600, "object"),
    ):
        path.write_text(text)
        path.chmod(mode)
        with pytest.raises(SettingsError, match=says) as caught:
            Backends(load(backends={"b": {"class_path": "a.B", "kwargs_file": str(path)}}), now=lambda: 0.0, environ={})
        assert "s3cret" not in str(caught.value)
    path.write_text('{"a": "s3cret"}')
    section = BackendSection(class_path="a.B", kwargs={"a": 1, "b": 2}, kwargs_file=str(path))
    assert json.loads(section.all_kwargs()) == {"a": "s3cret", "b": 2} and "s3cret" not in repr(section)
