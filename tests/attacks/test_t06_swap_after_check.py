"""T06 swap-after-check: the file is exchanged or rewritten while it is checked, or between the check and the use.

Seen to fail when weakened: `verify_and_seal` that hands out the file's own descriptor, or does not seal;
`MemberLoader.get_code` that compiles what lies in the private copy. (In the first two the task's own look at the
seals was taken out too.)
"""

from __future__ import annotations

import io
import multiprocessing
import os
import secrets
import tempfile
import zipfile
from typing import Any

import pytest

from tests.attacks.attacker import PROBES, LyingAgent, Traces, dag, result_of, traced_dag, until
from tests.live import Live

ROUNDS = 40


def pushed(live: Live, name: str, data: str | bytes) -> None:
    answer = live.push(name, data)
    assert answer.status == 201, answer.body


@pytest.mark.parametrize("how", ["overwrite", "truncate", "rename"])
def test_between_the_check_and_the_use(live: Live, agent: LyingAgent, traces: Traces, how: str) -> None:
    """The task has been verified, imported and claimed; before it runs, the agent changes what it handed in."""
    dag_id = f"t06{how}"
    pushed(live, f"{dag_id}.py", traced_dag(dag_id, traces))
    offer = agent.offer(dag_id)
    evil = offer.blob.replace(b'trace("ran")', b'trace("bad")')
    assert len(evil) == len(offer.blob)
    with agent.connect() as peer, tempfile.NamedTemporaryFile() as file:
        file.write(offer.blob)
        file.flush()
        claim = peer.run(offer.ticket, offer.manifest, file.fileno())
        assert claim.kind == "claim"
        if how == "overwrite":
            os.pwrite(file.fileno(), evil, 0)
        elif how == "truncate":
            os.ftruncate(file.fileno(), 0)
        else:
            with open(file.name + "~", "wb") as other:
                other.write(evil)
            os.rename(file.name + "~", file.name)
        grant = agent.claim(offer.launch_id, claim.envelope)
        peer.grant(grant.body)
        said, _ = peer.hear_end()
    assert result_of(live, said).state == "success"
    assert len(traces.of("ran")) == 1
    assert not traces.of("bad")


def _toggle(path: str, one: bytes, other: bytes, stop: Any) -> None:
    """As fast as it can: the good bytes, the bad ones, and half of each."""
    fd = os.open(path, os.O_WRONLY)
    while not stop.is_set():
        for data in (one, other):
            os.pwrite(fd, data, 0)


def test_while_it_is_read(live: Live, agent: LyingAgent, traces: Traces) -> None:
    """Whatever the launcher read: it is refused, or it is the good bytes whole, which then run."""
    source = traced_dag("t06race", traces) + ("#" * 99 + "\n") * 1000
    pushed(live, "t06race.py", source)
    offer = agent.offer("t06race")
    evil = offer.blob.replace(b'trace("import")', b'trace("badbad")').replace(b'trace("ran")', b'trace("bad")')
    assert len(evil) == len(offer.blob)
    stop = multiprocessing.get_context("spawn").Event()
    kinds = []
    with tempfile.NamedTemporaryFile() as file:
        file.write(offer.blob)
        file.flush()
        arguments = (file.name, offer.blob, evil, stop)
        toggler = multiprocessing.get_context("spawn").Process(target=_toggle, args=arguments)
        toggler.start()
        try:
            until("the file changes", lambda: open(file.name, "rb").read() != offer.blob)  # noqa: SIM115
            for _ in range(ROUNDS):
                with agent.connect() as peer:
                    said = peer.run(offer.ticket, offer.manifest, file.fileno())
                    kinds.append(said.kind)
                    if said.kind == "claim":
                        offer = agent.offer("t06race", run_id=secrets.token_hex(4))
                    else:
                        assert result_of(live, said).error == "digest-mismatch"
        finally:
            stop.set()
            toggler.join()
    assert "result" in kinds
    assert not traces.of("badbad")
    assert not traces.of("bad")


def test_the_task_cannot_change_what_it_runs_from(live: Live, traces: Traces) -> None:
    """Its memfd is sealed: neither write, nor truncate, nor map, nor take a seal away."""
    body = """
        import fcntl, json, mmap
        def again(flags):
            fd = os.open("/proc/self/fd/4", flags)
            os.write(fd, b"x")
        before = os.pread(4, 1 << 20, 0)
        tries = {
            "write": attempt(os.pwrite, 4, b"x", 0),
            "append": attempt(os.pwrite, 4, b"x", len(before)),
            "truncate": attempt(os.ftruncate, 4, 0),
            "grow": attempt(os.ftruncate, 4, 1 << 20),
            "map": attempt(mmap.mmap, 4, len(before), mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
            "reopen": attempt(again, os.O_RDWR),
            "append again": attempt(again, os.O_WRONLY | os.O_APPEND),
            "punch": attempt(os.posix_fallocate, 4, 0, 1 << 20),
            "unseal": attempt(fcntl.fcntl, 4, fcntl.F_ADD_SEALS, 0),
        }
        trace("tries", json.dumps([tries, fcntl.fcntl(4, fcntl.F_GET_SEALS), os.pread(4, 1 << 20, 0) == before]))
    """
    pushed(live, "t06seal.py", dag("t06seal", body, top=PROBES + traces.source()))
    ended = live.launch("t06seal", "t", "r")
    assert ended["state"] == "success", live.log(ended["id"])
    tries, seals, same = traces.json("tries")
    assert set(tries.values()) <= {"PermissionError", "OSError"}, tries
    assert seals & 0b1111 == 0b1111, "seal, shrink, grow, write"
    assert same


def test_a_zip_runs_from_its_bytes_and_not_from_its_copy(live: Live, traces: Traces) -> None:
    """The private copy is for data, and belongs to the task's user: whoever rewrites it changes no module."""
    top = PROBES + traces.source() + "import t06helper"
    body = """
        import importlib, json, sys
        root = os.path.dirname(os.path.abspath(t06helper.__file__))
        for folder, _, _ in os.walk(root):
            os.chmod(folder, 0o700)
        for name in ("t06later.py", "t06helper.py", "t06package/__init__.py"):
            os.chmod(f"{root}/{name}", 0o600)
            with open(f"{root}/{name}", "w") as file:
                file.write("VALUE = 'from the copy'\\n")
        for name in ("t06planted.py", "t06package/planted.py"):
            with open(f"{root}/{name}", "w") as file:
                file.write("VALUE = 'planted'\\n")
        importlib.invalidate_caches()
        import t06later, t06package
        found = {name: sys.modules[name].VALUE for name in ("t06later", "t06package")}
        found["reloaded"] = importlib.reload(t06helper).VALUE
        found["planted"] = [attempt(importlib.import_module, n) for n in ("t06planted", "t06package.planted")]
        trace("found", json.dumps(found))
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("t06zip.py", dag("t06zip", body, top=top))
        for name in ("t06helper.py", "t06later.py", "t06package/__init__.py"):
            archive.writestr(name, "VALUE = 'verified'\n")
    pushed(live, "t06zip.zip", buffer.getvalue())
    ended = live.launch("t06zip", "t", "r")
    assert ended["state"] == "success", live.log(ended["id"])
    assert traces.json("found") == {
        "t06later": "verified",
        "t06package": "verified",
        "reloaded": "verified",
        "planted": ["ModuleNotFoundError"] * 2,
    }
