"""T19 neighbour: links that a task plants where somebody may clean up or write after it.

Of a task's own folders only its warm process cleans one up: the private copy of a zip, in `minimal`, with the rights of the
same user. The launcher and the agent write to no folder that a task may write.

Seen to fail when weakened: `files.remove` that changes modes or deletes through links.
"""

from __future__ import annotations

import io
import os
import pwd
import zipfile
from pathlib import Path

import pytest

from tests.attacks.attacker import PROBES, Traces, dag, until
from tests.attacks.promises import PROFILES
from tests.live import Live

__all__ = ["PROFILES"]
pytestmark = pytest.mark.root


@pytest.mark.parametrize("whole", [False, True], ids=["inside", "in its place"])
def test_links_in_a_copy_that_is_removed(live: Live, traces: Traces, whole: bool) -> None:
    """To a file and a folder of the task's own user, which could be deleted: they stay as they were."""
    victim = traces.path / "victim"
    victim.mkdir()
    (victim / "file").write_text("stays")
    user = pwd.getpwnam(live.user)
    for path in (victim / "file", victim):
        os.chown(path, user.pw_uid, user.pw_gid)
    victim.chmod(0o500)
    (victim / "file").chmod(0o400)
    body = f"""
        root = os.path.dirname(os.path.abspath(t19near.__file__))
        for folder, _, _ in os.walk(root):
            os.chmod(folder, 0o700)
        os.symlink({str(victim)!r}, root + "/data/folder")
        os.symlink({str(victim / "file")!r}, root + "/data/file")
        # A hard link needs one file system: where the copy is on another, so is everything of others.
        trace("hard", attempt(os.link, {str(victim / "file")!r}, root + "/data/hard"))
        if {whole}:
            os.rename(root, root + ".away")
            os.symlink({str(victim)!r}, root)
        trace("root", root)
        os._exit(1)
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("t19plant.py", dag("t19plant", body, top=PROBES + traces.source() + "import t19near"))
        archive.writestr("t19near.py", "VALUE = 1\n")
        archive.writestr("data/text.txt", "text")
    assert live.push("t19plant.zip", buffer.getvalue()).status in (200, 201)
    ended = live.launch("t19plant", "t", f"whole{whole}")
    assert (ended["state"], ended["error"]) == ("failed", "task-died"), live.log(ended["id"])
    root = Path(traces.text("root"))
    if whole and root.is_symlink():
        for path in (root, Path(f"{root}.away/data/hard")):
            path.unlink(missing_ok=True)
    else:
        until("the copy is gone", lambda: not root.exists())
    assert (victim / "file").read_text() == "stays"
    assert [(path.stat().st_mode & 0o7777) for path in (victim, victim / "file")] == [0o500, 0o400]
    assert (victim / "file").stat().st_nlink == 1 + (whole and Path(f"{root}.away/data/hard").exists())


def test_links_where_nobody_follows(live: Live, traces: Traces) -> None:
    """Every folder that a task of this profile can write: no file of the launcher, the agent or the API is opened there. The
    folders of logs, cache and journal are closed to it."""
    own = live.stack.folder
    body = f"""
        import json
        folders = {[str(own / name) for name in ("launcher", "launcher/journal", "agent", "agent/spool", "api", "run", "")]!r}
        folders.append({str(live.stack.cache)!r})
        tries = [attempt(os.symlink, "/etc/passwd", folder + "/planted") for folder in folders]
        tries += [attempt(os.link, "/etc/hostname", folder + "/planted") for folder in folders]
        trace("tries", json.dumps(tries))
    """
    assert live.push("t19links.py", dag("t19links", body, top=PROBES + traces.source())).status == 201
    ended = live.launch("t19links", "t", "r")
    assert ended["state"] == "success", live.log(ended["id"])
    assert set(traces.json("tries")) <= {"PermissionError", "OSError"}, traces.json("tries")
    assert not list(own.rglob("planted"))
    agents = {path for path in (own / "agent").rglob("*") if path.is_symlink()}
    assert not agents
