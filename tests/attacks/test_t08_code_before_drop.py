"""T08 code-before-drop: code at the top of an archive runs as the API, the agent, the launcher or root.

The archive says at import who it is, by a file and by a print. It goes through everything that touches an archive: `check`,
`push`, `list`, `verify`, a refused push, a launch, a failed launch. Only the parser and the task's user are ever seen; and of
a confined description nothing is, as it can leave no trace. Who describes it then tells by the name of a task.

Seen to fail when weakened: `submissions._members` that executes the source; `verify_and_seal` that does.
"""

from __future__ import annotations

import io
import json
import os
import pwd
import zipfile
from pathlib import Path

import pytest

from tests.attacks.attacker import Traces, dag
from tests.live import Live

WHO = """
import os as _os, json as _json
trace("who", _json.dumps({"ids": [_os.getresuid(), _os.getresgid()], "groups": _os.getgroups(),
    "status": {line.split(":")[0]: line.split(":")[1].strip() for line in open("/proc/self/status") if ":" in line}}))
print("imported by", _os.getuid())
"""


PROFILES = ("standard", "minimal", "strict")


def who(traces: Traces) -> dict[int, list[dict[str, object]]]:
    """What each import said, by the uid that the kernel gave to the file's owner."""
    found: dict[int, list[dict[str, object]]] = {}
    for path in traces.of("who"):
        found.setdefault(path.stat().st_uid, []).append(json.loads(path.read_text()))
    return found


def expect(live: Live, traces: Traces, *, described: bool = True, ran: bool = False) -> None:
    """Exactly these accounts imported something, each of them without any privilege: the parser if it was described where
    that leaves a trace, the task's user if it ran."""
    seen = who(traces)
    names = [live.stack.accounts.parser] * (described and live.stack.describe == "minimal") + [live.user] * ran
    assert set(seen) == {pwd.getpwnam(name).pw_uid for name in names}
    for uid, imports in seen.items():
        entry = pwd.getpwuid(uid)
        for said in imports:
            assert said["ids"] == [[uid] * 3, [entry.pw_gid] * 3]
            status = said["status"]
            assert isinstance(status, dict)
            assert status["NoNewPrivs"] == "1"
            if live.stack.privileged:
                assert uid != 0
                assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
                assert said["groups"] == sorted(set(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def test_a_py(live: Live, traces: Traces, tmp_path: Path) -> None:
    source = dag("t08py", "print('ran')", top=traces.source() + WHO)
    path = tmp_path / "t08py.py"
    path.write_text(source)

    checked = live.cli("check", str(path))
    assert checked.returncode == 0, checked.stderr
    assert "imported by" not in checked.stdout + checked.stderr
    assert who(traces) == {}, "checking ran it"

    pushed = live.cli("push", str(path))
    assert pushed.returncode == 0, pushed.stderr
    expect(live, traces)
    for command in (["list"], ["show", "t08py.py"], ["verify", str(path)], ["verify", "t08py.py"], ["fsck", "--help"]):
        assert live.cli(*command).returncode == 0
    expect(live, traces)
    assert live.http("GET", "/v1/archives/t08py.py/releases/1").status == 200

    launched = live.cli("launch", "t08py", "t", "--run-id", "r", "--follow")
    assert launched.returncode == 0, launched.stderr
    expect(live, traces, ran=True)
    uid = pwd.getpwnam(live.user).pw_uid
    lines = [line for line in launched.stdout.splitlines() if line.startswith("imported by")]
    assert lines in ([f"imported by {uid}"], []), "the log of before the grant is the task's own"
    for name in live.stack.processes:
        assert "imported by" not in live.stack.log_of(name), f"the import printed into the log of {name}"


def zipped(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__slash__", "/") + ".py", text)
    return buffer.getvalue()


def test_a_zip_with_packages(live: Live, traces: Traces) -> None:
    top = traces.source() + WHO
    files = {
        "t08dag": dag("t08zip", "print('ran')", top="import t08package.inner\n" + top),
        "t08package__slash____init__": top,
        "t08package__slash__inner": top,
        "t08unused": top,
    }
    assert live.push("t08zip.zip", zipped(**files)).status == 201
    expect(live, traces)
    assert live.launch("t08zip", "t", "r")["state"] == "success"
    expect(live, traces, ran=True)


def test_who_describes(live: Live) -> None:
    """What it calls its task by is in the manifest: the parser's ids, and none besides."""
    source = (
        "import os\nfrom airflow.sdk import DAG\nfrom airflow.providers.standard.operators.empty import EmptyOperator\n"
    )
    source += "ids = {*os.getresuid(), *os.getresgid(), *os.getgroups()}\nwith DAG('t08who', schedule=None):\n"
    source += "    EmptyOperator(task_id='as_' + '_'.join(map(str, sorted(ids))))\n"
    pushed = live.push("t08who.py", source)
    assert pushed.status == 201, pushed.body
    (task,) = pushed.json["dags"][0]["tasks"]
    parser = pwd.getpwnam(live.stack.accounts.parser)
    ids = {parser.pw_uid, parser.pw_gid, *os.getgrouplist(parser.pw_name, parser.pw_gid)}
    assert task["task_id"] == "as_" + "_".join(map(str, sorted(ids)))


@pytest.mark.parametrize(
    ("name", "more", "rule"),
    [
        ("error", "raise RuntimeError('no')", "import-error"),
        ("exit", "import sys; sys.exit(0)", "import-exits"),
        ("syntax", "def broken(:", "source-syntax"),
        ("no_dag", "", "no-dag-found"),
    ],
)
def test_what_is_refused(live: Live, traces: Traces, name: str, more: str, rule: str) -> None:
    """Also what is refused ran as the parser, if it ran at all."""
    answer = live.push(f"t08{name}.py", traces.source() + WHO + more)
    assert (answer.status, answer.json["errors"][0]["rule"]) == (422, rule), answer.body
    expect(live, traces, described=rule != "source-syntax")


def test_a_task_that_is_gone(live: Live, traces: Traces) -> None:
    """A DAG that imports otherwise for the task's user: its task is not found, and nobody else tries."""
    source = dag("t08gone", "print('ran')", top=traces.source() + WHO)
    source += "\nif os.environ.get('_AIRFLOW_PARSING_CONTEXT_TASK_ID'):\n    raise RuntimeError('gone')\n"
    assert live.push("t08gone.py", source).status == 201
    ended = live.launch("t08gone", "t", "r")
    assert (ended["state"], ended["error"]) == ("refused", "invalid-archive"), ended
    expect(live, traces, ran=True)
