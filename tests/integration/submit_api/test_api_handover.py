"""The signing key is handed on in the log: what the old one signed is believed, the new one signs, and no crash leaves a
service whose key is not the log's."""

from __future__ import annotations

import io

import pytest
from api_rig import SOURCE, Api

from integrity.errors import ConflictError, SettingsError, SignatureError
from submit_api import handover, keyfiles
from submit_api.backups import backup
from submit_api.restoring import restore
from submit_api.running import opened, state_lock
from submit_api.settings import Settings, load
from vocabulary import checkpoints, manifest, tiles
from vocabulary.keys import KeyRing
from vocabulary.leaves import Keyed, from_bytes
from vocabulary.logview import LogView


def settings_of(folder: str) -> Settings:
    return load(api={"port": 0, "state_folder": folder})


async def made(folder: str) -> Settings:
    """A service with one release, stopped."""
    async with Api(folder) as api:
        await api.push("etl.py", SOURCE)
        return api.service.settings


async def test_the_new_key_signs_and_the_old_ones_word_holds(folder: str) -> None:
    settings = await made(folder)
    before = keyfiles.load(settings).signing.public
    prepared = handover.prepare(settings)
    assert handover.prepare(settings) == prepared
    done = await handover.hand_on(settings)
    assert (done.before, done.after) == (before.key_id, prepared.key_id)
    async with Api(folder) as api:
        assert await api.fsck() == []
        note = (await api.call("GET", "/v1/log/checkpoint")).body
        found = checkpoints.verify(note, [prepared], origin=checkpoints.origin_of(before))
        with pytest.raises(SignatureError):
            checkpoints.verify(note, [before])
        keys = [from_bytes(entry) for entry in tiles.entries_of((await api.call("GET", "/v1/log/keys")).body)]
        assert LogView().extended(keys).keys == (before, prepared)
        assert isinstance(keys[1], Keyed) and done.leaf == found.checkpoint.size - 1
        old = (await api.call("GET", "/v1/archives/etl.py/releases/1/manifest", token=api.admin)).body
        assert manifest.verify(old, KeyRing([before])).manifest.number == 1
        assert (await api.call("GET", "/v1/archives/etl.py/releases/1", token=api.admin)).status == 200
        await api.push("etl.py", SOURCE + b"#\n")
        new = (await api.call("GET", "/v1/archives/etl.py/releases/2/manifest", token=api.admin)).body
        assert manifest.verify(new, KeyRing([prepared])).manifest.number == 2
        told = [one for one in await api.events() if one["action"] == "signing-key.hand-on"]
        assert [one["object"] for one in told] == [f"key:{prepared.key_id}"]


async def test_without_a_prepared_key_or_beside_the_service_nothing_is_handed_on(folder: str) -> None:
    settings = await made(folder)
    with pytest.raises(ConflictError, match="prepare-signing"):
        await handover.hand_on(settings)
    before = keyfiles.load(settings).signing.public
    handover.prepare(settings)
    with pytest.raises(SettingsError, match="another process"), state_lock(settings):
        await handover.hand_on(settings)
    assert keyfiles.load(settings).signing.public == before


@pytest.mark.parametrize("at", ["commit", "public", "rename"])
async def test_a_handover_that_was_cut_off_is_ended_or_did_not_happen(
    folder: str, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = await made(folder)
    before, prepared = keyfiles.load(settings).signing.public, handover.prepare(settings)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    target = {
        "commit": (handover.audit, "accepted"),
        "public": (keyfiles.durable, "overwrite"),
        "rename": (keyfiles.os, "rename"),
    }
    with monkeypatch.context() as patched:
        patched.setattr(*target[at], killed)
        with pytest.raises(KeyboardInterrupt):
            await handover.hand_on(settings)
    async with opened(settings) as service:
        signs = service.keys.signing.public
        note = await service.transparency.checkpoint()
    assert signs == (before if at == "commit" else prepared)
    assert checkpoints.verify(note, [signs]).key_id == signs.key_id
    with open(settings.verify_key_file, encoding="ascii") as file:
        assert bytes.fromhex(file.read()) == signs.raw


async def test_a_key_that_nobody_handed_on_does_not_serve(folder: str) -> None:
    settings = await made(folder)
    handover.prepare(settings)
    keyfiles.count_signing_key(settings, keyfiles.load(settings).signing.public)  # past the log
    with pytest.raises(SettingsError, match="the log was handed on to"):
        async with opened(settings):
            pass


@pytest.mark.sqlite
async def test_a_backup_is_restored_with_the_key_that_its_log_ends_with(folder: str) -> None:
    settings = await made(folder)
    handover.prepare(settings)
    old, new = io.BytesIO(), io.BytesIO()
    await backup(settings, old)
    await handover.hand_on(settings)
    await backup(settings, new)
    other = load(
        api={"port": 0, "state_folder": f"{folder}/other"},
        keys={"signing_key_file": settings.signing_key_file, "row_key_file": settings.row_key_file},
    )
    old.seek(0)
    with pytest.raises(SignatureError, match="ends with key"):
        await restore(other, old)
    new.seek(0)
    await restore(other, new)
    async with opened(other) as service:
        assert len(service.keys.public) == 2
