"""T09 unlisted-code: a module that the manifest does not list is imported: from beside the archive, /tmp, the home, a `.pyc`,
a `.pth`, `sitecustomize`, a variable of the environment.

Seen to fail when weakened: `loader._hook` that answers for the root only; `loader.install` without its hook;
`child._verified` without the comparison of the members; `become.main` that puts /tmp on `sys.path`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import py_compile
import secrets
import shutil
import sys
import tempfile
import textwrap
import zipfile
from pathlib import Path

import pytest

from integrity.digests import Digest
from tests.attacks.attacker import (
    PROBES,
    LyingAgent,
    Traces,
    dag,
    descendants,
    manifest_of,
    other_manifest,
    other_ticket,
    slug_of,
    traced_dag,
    until,
    warm_pids,
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


PADDING = "#" * 99 + "\n"


def launched_until_kept(live: Live, dag_id: str) -> None:
    """Until a launch compiled nothing."""

    def kept() -> bool:
        ended = live.launch(dag_id, "t", secrets.token_hex(8))
        assert ended["state"] == "success", live.log(ended["id"])
        return not ended["timings_us"]["task_compile"]

    until("its code is kept", kept)


def test_code_that_a_task_would_leave_to_the_next(live: Live, traces: Traces) -> None:
    """What it changes of its own process stays there, and it has nothing of what is kept: no descriptor and no mapping."""
    top = traces.source() + textwrap.dedent(
        """
        import hashlib, json, marshal
        from launcher.task import compiling, loader
        names = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        there = [os.readlink(name) for name in names if os.path.lexists(name)] + open("/proc/self/maps").read().split()
        trace("there", json.dumps([name for name in there if "dagseal-code" in name]))
        trace("import", json.dumps(loader.spent_ns["compile"]))
        evil = marshal.dumps(compile("VALUE = 'evil'", "evil", "exec"))
        for path in [os.path.join(os.path.dirname(__file__), "t09mod.py")]:
            loader._marshalled[hashlib.sha512(open(path, "rb").read()).digest()] = evil
        marshal.dumps = compiling.compiled = lambda *_: evil
        """
    )
    data = zipped(
        **{
            "t09leave.py": dag("t09leave", "import t09mod\ntrace(t09mod.VALUE)", top=top) + PADDING * 90,
            "t09mod.py": "VALUE = 'good'\n",
        }
    )
    assert live.push("t09leave.zip", data).status == 201
    launched_until_kept(live, "t09leave")
    before = len(traces.of("good"))
    assert before == 0 and traces.of("evil"), "each task deceives itself"
    assert {json.loads(path.read_text()) == [] for path in traces.of("there")} == {True}
    assert 0 in {json.loads(path.read_text()) for path in traces.of("import")}


def test_code_that_is_kept_for_another_archive(live: Live, traces: Traces) -> None:
    """Of the same user, with modules of the same names and sizes."""
    for word in ("one", "two"):
        top = traces.source() + f"import t09same\ntrace('{word}', t09same.VALUE)\n"
        members = {
            f"t09{word}.py": dag(f"t09{word}", "pass", top=top) + PADDING * 90,
            "t09same.py": f"VALUE = '{word}'\n",
        }
        assert live.push(f"t09{word}.zip", zipped(**members)).status == 201
    for word in ("one", "two", "one"):
        launched_until_kept(live, f"t09{word}")
    for word in ("one", "two"):
        assert {path.read_text() for path in traces.of(word)} == {word}


def test_a_source_that_the_compiler_does_not_survive(live: Live) -> None:
    """In modules that nothing imports, so that only who compiles ahead meets them: it dies of it, and launches go on."""
    nested = "".join(f"{' ' * deep}try: a()\n{' ' * deep}finally:\n" for deep in range(17)) + " " * 17
    bombs = {f"t09bomb{number}.py": f"{nested}b({number})\n" for number in range(40)}
    assert (
        live.push("t09bombs.zip", zipped(**{"t09bombs.py": dag("t09bombs", "pass") + PADDING * 90}, **bombs)).status
        == 201
    )

    def compiles() -> list[int]:
        warm = warm_pids(live, "run")
        found = set().union(*(descendants(pid) for pid in warm))
        return [pid for pid in found if "Max open files            0 " in limits_of(pid)]

    assert live.launch("t09bombs", "t", "r0")["state"] == "success"
    until("it is compiled", compiles)
    meanwhile = 0
    while compiles():
        ended = live.launch("t09bombs", "t", f"r{secrets.token_hex(8)}")
        assert ended["state"] == "success" and ended["timings_us"]["task_compile"] > 0
        meanwhile += 1
    assert meanwhile
    ended = live.launch("t09bombs", "t", "last")
    assert ended["state"] == "success" and ended["timings_us"]["task_compile"] > 0
    assert not compiles(), "it is not tried again"


def limits_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/limits").read_text()
    except OSError:
        return ""


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
