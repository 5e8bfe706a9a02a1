"""T09 unlisted-code: a module that the manifest does not list is imported: from beside the archive, /tmp, the home, a `.pyc`,
a `.pth`, `sitecustomize`, a variable of the environment.

Seen to fail when weakened: `loader._hook` that answers for the root only; `loader.install` without its hook;
`child._verified` without the comparison of the members; `become.main` that puts /tmp on `sys.path`.
"""

from __future__ import annotations

import dataclasses
import io
import os
import py_compile
import secrets
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from integrity.digests import Digest
from tests.attacks.attacker import (
    PROBES,
    LyingAgent,
    Traces,
    dag,
    manifest_of,
    other_manifest,
    other_ticket,
    slug_of,
    traced_dag,
)
from tests.live import Live

PROFILES = ("standard", "minimal", "strict")


def zipped(**files: str | bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__slash__", "/").replace("__dot__", "."), data)
    return buffer.getvalue()


def refused(live: Live, name: str, data: bytes | str, rule: str, words: str) -> str:
    answer = live.push(name, data)
    assert answer.status == 422, answer.body
    (error,) = answer.json["errors"]
    assert (error["rule"], words in error["detail"]) == (rule, True), error
    assert live.http("GET", f"/v1/archives/{name}").status == 404
    return str(error["entry"])


def planted_source(traces: Traces) -> str:
    return traces.source() + 'trace("planted")\n'


@pytest.mark.parametrize("where", ["tmp", "home", "cwd"])
def test_a_module_in_a_folder_that_others_may_write(live: Live, traces: Traces, where: str) -> None:
    """The upload of whoever imports it is refused, and it is not run."""
    module = f"planted_{secrets.token_hex(4)}"
    folder = {"tmp": Path(tempfile.gettempdir()), "home": traces.path, "cwd": live.stack.folder}[where]
    path = folder / f"{module}.py"
    path.write_text(planted_source(traces))
    path.chmod(0o644)
    try:
        source = dag("t09folder", "pass", top=f"import os\nos.environ['HOME'] = {str(traces.path)!r}\nimport {module}")
        entry = refused(live, "t09folder.py", source, "import-error", f"No module named '{module}'")
        assert entry.startswith("t09folder.py:")
    finally:
        path.unlink()
    assert not traces.of("planted")


def test_beside_the_file_that_the_agent_hands_in(live: Live, agent: LyingAgent, traces: Traces) -> None:
    module = f"beside_{secrets.token_hex(4)}"
    body = f'trace("found", attempt(__import__, "{module}"))'
    source = dag("t09beside", body, top=PROBES + traces.source())
    assert live.push("t09beside.py", source).status == 201
    offer = agent.offer("t09beside")
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        (folder / f"{module}.py").write_text(planted_source(traces))
        (folder / "t09beside.py").write_bytes(offer.blob)
        with agent.connect() as peer, (folder / "t09beside.py").open("rb") as file:
            claim = peer.run(offer.ticket, offer.manifest, file.fileno())
            grant = agent.claim(offer.launch_id, claim.envelope)
            peer.grant(grant.body)
            peer.hear_end()
    finally:
        shutil.rmtree(folder)
    assert traces.text("found") == "ModuleNotFoundError"
    assert not traces.of("planted")


def test_what_only_python_would_find(live: Live, traces: Traces, tmp_path: Path) -> None:
    """Members of the archive that are no source: bytecode, archives within it, links to other folders."""
    source = tmp_path / "t09ghost.py"
    source.write_text(planted_source(traces))
    compiled = Path(py_compile.compile(str(source), cfile=str(tmp_path / "t09ghost.pyc"), doraise=True)).read_bytes()
    cached = f"__pycache__/t09ghost.cpython-{sys.version_info.major}{sys.version_info.minor}.pyc"
    top = dag("t09pyc", "pass", top="import t09ghost")
    for name in ("t09ghost.pyc", cached):
        answer = live.push("t09pyc.zip", zipped(**{"t09pyc.py": top, name: compiled}))
        assert answer.status == 422, answer.body
    for name in ("t09.pth", "sitecustomize.py", "usercustomize.py", "usercustomize/__init__.py", "t09.so"):
        answer = live.push("t09pth.zip", zipped(**{"t09dag.py": dag("t09pth", "pass"), name: planted_source(traces)}))
        assert answer.status == 422, (name, answer.body)
        assert answer.json["errors"][0]["entry"].startswith(name.split("/")[0])
    assert not traces.of("planted")


def test_bytecode_that_a_task_plants_in_its_copy(live: Live, traces: Traces) -> None:
    """Neither it nor a package, an extension or a zip below the archive's root is found, also when the root is put on
    `sys.path` by hand."""
    top = PROBES + traces.source() + "import t09near"
    body = """
        import importlib, json, py_compile, sys, zipfile
        root = os.path.dirname(os.path.abspath(t09near.__file__))
        os.chmod(root, 0o700)
        planted = f"{root}/t09planted.py"
        with open(planted, "w") as file:
            file.write("open('/dev/null')\\nVALUE = 1\\n")
        py_compile.compile(planted, cfile=f"{root}/t09bytes.pyc", doraise=True)
        os.makedirs(f"{root}/__pycache__")
        py_compile.compile(planted, cfile=f"{root}/__pycache__/t09cached.{sys.implementation.cache_tag}.pyc")
        os.makedirs(f"{root}/t09package")
        open(f"{root}/t09package/__init__.py", "w").close()
        with zipfile.ZipFile(f"{root}/t09.zip", "w") as archive:
            archive.writestr("t09zipped.py", "VALUE = 1")
        roundabout = f"{root}/../{os.path.basename(root)}"
        sys.path[:0] = [root, roundabout, f"{root}/t09.zip", f"{root}/t09package", f"{root}/__pycache__"]
        sys.path_importer_cache.clear()
        importlib.invalidate_caches()
        names = ("t09planted", "t09bytes", "t09cached", "t09package", "t09zipped", "t09planted.x")
        trace("found", json.dumps({name: attempt(importlib.import_module, name) for name in names}))
    """
    data = zipped(**{"t09near.py": "VALUE = 1\n", "t09plant.py": dag("t09plant", body, top=top)})
    assert live.push("t09plant.zip", data).status == 201
    ended = live.launch("t09plant", "t", "r")
    assert ended["state"] == "success", live.log(ended["id"])
    assert set(traces.json("found").values()) == {"ModuleNotFoundError"}, traces.json("found")


def test_a_member_that_the_manifest_does_not_list(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """A manifest, signed by the API, that lists less than, more than or other than the archive: nothing is imported."""
    data = zipped(
        **{"t09helper.py": planted_source(traces), "t09list.py": traced_dag("t09list", traces) + "import t09helper\n"}
    )
    answer = live.push("t09list.zip", data)
    assert answer.status == 201, answer.body
    offer = agent.offer("t09list")
    before = traces.all()
    members = manifest_of(live, offer.manifest).members
    assert [member.name for member in members] == ["t09helper.py", "t09list.py"]
    other = dataclasses.replace(members[0], digest=Digest.of(b"other"))
    for changed in (
        members[1:],
        (),
        (other, members[1]),
        (*members, dataclasses.replace(members[0], name="t09more.py")),
    ):
        stated = other_manifest(live, offer.manifest, members=changed)
        digest = Digest.of(manifest_of(live, stated).to_bytes())
        ticket = other_ticket(live, offer.ticket, manifest_digest=digest)
        with agent.connect() as peer, tempfile.TemporaryFile() as file:
            file.write(offer.blob)
            file.flush()
            said = peer.run(ticket, stated, file.fileno())
            slug_of(live, said)
        lines = [line["event"] for line in live.journal() if line.get("launch_id") == offer.launch_id]
        assert "claim" not in lines
        assert "manifest" in live.journal()[-1]["detail"]
    assert traces.all() == before
    result, _ = agent.run_honestly(agent.offer("t09list"))
    assert result.state == "success"


def test_variables_of_the_environment(live: Live, traces: Traces) -> None:
    """What would make an interpreter load more is neither there, nor does it come from the caller of a launch."""
    body = """
        import json, site, sys
        found = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "LD_"))}
        modules = [name for name in ("sitecustomize", "usercustomize") if name in sys.modules]
        where = [getattr(sys.modules[name], "__file__", "") for name in modules]
        flags = {name: getattr(sys.flags, name) for name in ("no_user_site", "safe_path", "inspect", "interactive")}
        trace("found", json.dumps([found, where, flags, site.ENABLE_USER_SITE]))
    """
    assert live.push("t09env.py", dag("t09env", body, top=traces.source())).status == 201
    ended = live.launch("t09env", "t", "r")
    assert ended["state"] == "success", live.log(ended["id"])
    found, customised, flags, user_site = traces.json("found")
    assert found == {}
    assert flags == {"no_user_site": 1, "safe_path": True, "inspect": 0, "interactive": 0}
    assert not user_site
    for path in customised:
        assert not os.access(path, os.W_OK) or os.stat(path).st_uid in (0, os.geteuid())
