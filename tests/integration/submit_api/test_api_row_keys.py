"""Rotation of the row key: every row is readable at every instant, whoever is killed, and no key goes that a row needs."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
from collections.abc import Callable
from typing import Any

import pytest
from api_rig import SOURCE, Api
from sqlalchemy import event, text

from integrity import canonical
from submit_api import audit, connections, keyfiles, rekeying
from submit_api.bootstrap import bootstrap
from submit_api.fsck import fsck
from submit_api.registry import events, secrets
from submit_api.running import opened
from submit_api.service import Service
from submit_api.settings import Settings, load
from tests.forked import in_fork
from vocabulary.claims import Xcom
from vocabulary.keys import RowKey

VALUES = {f"c{number}": f"http://u:hunter{number}@h" for number in range(7)}
STEPS = ("write", "fsync", "link", "rename", "unlink")


async def fill(service: Service) -> None:
    """Connections and a variable; two connections lie there as before there were rings."""
    now = service.now_us()
    async with service.database.write() as tx:
        for name, value in VALUES.items():
            kind = "variable" if name == "c6" else "connection"
            await secrets.put(
                tx, connections.seal(service.keys.rows, kind, name, value, earlier=None, at=now, by="admin")
            )
        for name in ("c0", "c1"):
            row = canonical.dump(["dagseal/secret/v1", "connection", name, 1])
            old = service.keys.rows.newest.encrypt(VALUES[name].encode(), row=row)
            change = text("UPDATE secrets SET ciphertext = :old WHERE name = :name")
            await tx.session.execute(change, {"old": old, "name": name})


async def values(service: Service) -> dict[str, str]:
    async with service.database.read() as tx:
        return {row.name: connections.open_secret(service.keys.rows, row) for row in await secrets.listed(tx)}


async def actions(service: Service) -> list[str]:
    async with service.database.read() as tx:
        found = await events.page(tx, events.Query(), limit=1000)
    return [one.action for one in found if one.action.startswith("key.") and one.verdict == "accepted"]


def files(settings: Settings) -> list[str]:
    return sorted(name for name in os.listdir(os.path.dirname(settings.row_key_file)) if name.startswith("rows"))


async def keys(api: Api) -> list[dict[str, Any]]:
    return list((await api.call("GET", "/v1/keys", token=api.admin)).json["keys"])


async def test_a_rotation_from_the_new_key_to_the_end_of_the_old_one(api: Api) -> None:
    await fill(api.service)
    await api.push("etl.py", SOURCE)
    await api.allow("admin")
    worker = await api.worker()
    await api.launch()
    offer = await worker.take()
    assert offer is not None
    await worker.claimed(offer)
    await worker.finish(offer, xcoms=(Xcom(key="return_value", value='"pushed"'),))
    (old,) = await keys(api)
    assert old["state"] == "newest" and (old["connections"], old["variables"], old["xcoms"]) == (6, 1, 1)
    only = await api.call("DELETE", f"/v1/keys/{old['key_id']}", token=api.admin)
    assert (only.status, only.slug) == (409, "conflict") and "is the newest" in only.json["detail"]

    made = await api.call("POST", "/v1/keys/rotate", token=api.admin)
    assert (made.status, made.json["state"]) == (201, "newest")
    new = made.json["key_id"]
    assert await values(api.service) == VALUES
    await api.connection("later", "http://later")
    await rekeying.rewrite(api.service)
    ours, theirs = await keys(api)
    counted = {name: (theirs[name], ours[name]) for name in ("key_id", "state", "connections", "variables", "xcoms")}
    assert counted == {
        "key_id": (new, old["key_id"]), "state": ("newest", "older"), "connections": (7, 0), "variables": (1, 0),
        "xcoms": (1, 0),
    }  # fmt: skip
    retired = await api.call("DELETE", f"/v1/keys/{old['key_id']}", token=api.admin)
    assert retired.status == 204
    again = await api.call("DELETE", f"/v1/keys/{old['key_id']}", token=api.admin)
    assert (again.status, again.slug) == (404, "not-found")
    assert [key["key_id"] for key in await keys(api)] == [new]
    assert files(api.settings) == ["rows.000002.key"]
    assert os.stat(f"{api.settings.api.state_folder}/keys/rows.000002.key").st_mode & 0o777 == 0o600
    assert await values(api.service) == {**VALUES, "later": "http://later"}
    assert await api.fsck() == []
    told = [(e["action"], e["object"], e["principal"]) for e in await api.events() if e["verdict"] == "accepted"]
    assert ("key.rotate", f"key:{new}", "admin") in told and ("key.retire", f"key:{old['key_id']}", "admin") in told
    assert ("key.rewrite", "row-keys", "dagseal") in told
    await bootstrap(api.settings)
    assert files(api.settings) == ["rows.000002.key"], "a start makes no first key beside later ones"


async def test_the_running_service_rewrites_by_itself(api: Api) -> None:
    await fill(api.service)
    assert (await api.call("POST", "/v1/keys/rotate", token=api.admin)).status == 201
    async with asyncio.timeout(60):
        while [key["connections"] for key in await keys(api)] != [0, 6]:
            pass
    assert await values(api.service) == VALUES


async def test_a_key_that_a_row_needs_is_not_retired(api: Api) -> None:
    await fill(api.service)
    async with api.service.database.write() as tx:
        await tx.session.execute(text("UPDATE secrets SET version = 9 WHERE name = 'c3'"))
    (old,) = await keys(api)
    await api.call("POST", "/v1/keys/rotate", token=api.admin)
    await rekeying.rewrite(api.service)
    refused = await api.call("DELETE", f"/v1/keys/{old['key_id']}", token=api.admin)
    assert (refused.status, refused.slug) == (409, "conflict")
    assert "still holds 1 rows" in refused.json["detail"] and "dagseal fsck" in refused.json["detail"]
    assert files(api.settings) == ["rows.000002.key", "rows.key"]
    assert [finding.subject for finding in await api.fsck()] == ["connection:c3"]
    await api.call("DELETE", "/v1/connections/c3", token=api.admin)
    assert (await api.call("DELETE", f"/v1/keys/{old['key_id']}", token=api.admin)).status == 204


async def test_a_row_whose_key_is_gone_is_shown_and_found(api: Api) -> None:
    await fill(api.service)
    await api.call("POST", "/v1/keys/rotate", token=api.admin)
    await rekeying.rewrite(api.service)
    path = f"{api.settings.api.state_folder}/keys/rows.000002.key"
    os.rename(path, f"{path}.aside")
    api.service.keys.rows.refresh()
    assert [(key["state"], key["connections"]) for key in await keys(api)] == [("newest", 0), ("missing", 6)]
    assert {finding.rule for finding in await api.fsck()} == {"secret-unreadable"}
    os.rename(f"{path}.aside", path)
    assert await values(api.service) == VALUES, "found again without a restart"


async def test_who_is_no_administrator_changes_no_key(api: Api) -> None:
    bob = await api.token("bob")
    (old,) = await keys(api)
    for method, path in (("GET", ""), ("POST", "/rotate"), ("DELETE", f"/{old['key_id']}")):
        answer = await api.call(method, f"/v1/keys{path}", token=bob)
        assert (answer.status, answer.slug) == (403, "out-of-scope")
    assert await keys(api) == [old] and files(api.settings) == ["rows.key"]


async def test_a_folder_that_cannot_be_written_keeps_the_old_key(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for code, status, slug in ((30, 409, "conflict"), (28, 507, "no-space")):

        def broken(*_: object, code: int = code, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, "link", broken)
            answer = await api.call("POST", "/v1/keys/rotate", token=api.admin)
        assert (answer.status, answer.slug) == (status, slug)
        assert files(api.settings) == ["rows.key"] and len(await keys(api)) == 1
    assert "key.rotate" not in await actions(api.service)


async def test_two_rotations_at_once_are_two_keys(api: Api) -> None:
    await fill(api.service)
    answers = await asyncio.gather(*(api.call("POST", "/v1/keys/rotate", token=api.admin) for _ in range(2)))
    assert [answer.status for answer in answers] == [201, 201]
    assert files(api.settings) == ["rows.000002.key", "rows.000003.key", "rows.key"]
    await rekeying.rewrite(api.service)
    for key in (await keys(api))[:2]:
        assert (await api.call("DELETE", f"/v1/keys/{key['key_id']}", token=api.admin)).status == 204
    assert await values(api.service) == VALUES


class Death:
    """`kill -9` of this process at the `at`th step: before a system call that changes files, or before a commit."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def step(self, *_: object) -> None:
        self.seen += 1
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self, service: Service) -> None:
        for name in STEPS:
            setattr(os, name, self._before(getattr(os, name)))
        event.listen(service.database._writer.sync_engine, "commit", self.step)

    def _before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.step()
            return call(*args, **kwargs)

        return wrapped


async def rotate_and_die(settings: Settings, at: int) -> str:
    rekeying.ROWS_AT_ONCE = 3
    async with opened(settings) as service:
        old = service.keys.rows.newest.key_id
        Death(at).install(service)
        await rekeying.rotate(service, audit.SERVICE)
        await rekeying.rewrite(service)
        await rekeying.retire(service, audit.SERVICE, old)
        return "survived"


async def look_after_death(settings: Settings, old: RowKey) -> None:
    """Nothing is lost; what is recorded is so and what is not is not; and the rest of the rotation can be done."""
    assert await fsck(settings) == []
    async with opened(settings) as service:
        assert await values(service) == VALUES
        await rekeying.settle(service)
        assert await values(service) == VALUES
        recorded, ring = await actions(service), service.keys.rows
        assert (len(ring.listed()) == 2 or ring.newest != old) == ("key.rotate" in recorded)
        assert (old not in ring.listed().values()) == ("key.retire" in recorded)
        assert not [name for name in files(settings) if name.endswith(keyfiles.NEW)]
        if ring.newest == old:
            await rekeying.rotate(service, audit.SERVICE)
        await rekeying.rewrite(service)
        if old in ring.listed().values():
            await rekeying.retire(service, audit.SERVICE, old.key_id)
        assert await values(service) == VALUES and old not in ring.listed().values()


@pytest.mark.sqlite  # its state folder is copied for each step
def test_killed_at_any_step_every_row_stays_readable(folder: str) -> None:
    first = load(api={"state_folder": f"{folder}/first"})

    async def prepare() -> RowKey:
        await bootstrap(first)
        async with opened(first) as service:
            await fill(service)
            return service.keys.rows.newest

    old = asyncio.run(prepare())
    for at in itertools.count(1):
        settings = load(api={"state_folder": f"{folder}/{at}"})
        shutil.copytree(first.api.state_folder, settings.api.state_folder)
        said = in_fork(lambda: asyncio.run(rotate_and_die(settings, at)))  # noqa: B023 - run at once
        assert said in ("survived", f"killed by {signal.SIGKILL.value}"), (at, said)
        asyncio.run(look_after_death(settings, old))
        if said == "survived":
            break
    assert at > 15, "the steps were not seen"
