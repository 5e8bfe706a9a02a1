"""T15 hostile-import: what an archive does to whoever describes it, and what it may not depend on.

Every case is uploaded over HTTP; the true reason comes back, nothing is recorded, no process of it is left, and the next
description works. What a confined import finds out comes back in the text of the error that it ends with.

Seen to fail when weakened: descriptions with a network, or without their limits; `_variant` without its deadline; `note` that
does not; a description of one variant, or without the shifted clock, or with one hash seed; `require_stable` that does not
compare the tasks; a warm pool that keeps the dead.
"""

from __future__ import annotations

import ast
import io
import json
import os
import pwd
import re
import signal
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, FetchError, InvalidArchiveError
from tests.attacks.attacker import (
    PR_SET_NAME,
    PROBES,
    Traces,
    acting_as,
    all_pids,
    is_alive,
    name_of,
    notary_pid,
    opened,
    traced_dag,
    until,
    warm_pids,
)
from tests.attacks.conftest import LIMITS
from tests.live import Live
from worker_cache import launcher_link
from worker_cache.launcher_link import Serialised
from worker_cache.launchers import AtSocket

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ("standard", "minimal", "strict")
STABLE = "from airflow.sdk import DAG, task\nwith DAG('{0}', schedule=None):\n    @task\n    def t():\n        pass\n    t()\n"

TOO_LONG = f"importing it took over {LIMITS['describe_timeout_seconds']} s"
REFUSED = {
    "exit": ("import sys\nsys.exit(0)", "import-exits", "SystemExit"),
    "interrupt": ("raise KeyboardInterrupt", "import-error", "KeyboardInterrupt"),
    "really_exit": ("import os\nos._exit(0)", "describe-died", "died"),
    "segfault": ("import ctypes\nctypes.string_at(0)", "describe-died", "died"),
    "abort": ("import os\nos.abort()", "describe-died", "died"),
    "loop": ("while True: pass", "describe-timeout", TOO_LONG),
    "sleep": ("import time\ntime.sleep(1000)", "describe-timeout", TOO_LONG),
    "memory": ("data = bytearray(8 << 30)", "import-error", "MemoryError"),
    "nested": ("x = " + "(" * 5000 + ")" * 5000, "source-syntax", "too many nested parentheses"),
    "deep": ("x = " + "-" * 60_000 + "1", "source-too-complex", "the compiler gave up (MemoryError)"),
    "folded": ("x = 10 ** 10 ** 9", "describe-timeout", TOO_LONG),
    "variable": ("from airflow.sdk import Variable\nVariable.get('x')", "reads-variable", "Variable.get('x')"),
    "variable_default": ("from airflow.sdk import Variable\nVariable.get('y', default=1)", "reads-variable", "'y'"),
    "connection": ("from airflow.sdk import Connection\nConnection.get('x')", "reads-connection", "'x'"),
    "hook": (
        "from airflow.sdk import BaseHook\nBaseHook.get_connection('c')",
        "reads-connection",
        "get_connection('c')",
    ),
    "caught": (
        "from airflow.sdk import Variable\ntry:\n    Variable.get('z')\nexcept Exception:\n    pass\n"
        + STABLE.format("t15caught"),
        "reads-variable",
        "'z'",
    ),
}
VALUES = {
    "clock": "__import__('datetime').datetime.now().isoformat()",
    "time": "__import__('time').time()",
    "today": "__import__('datetime').date.today().isoformat()",
    "random": "__import__('random').random()",
    "uuid": "str(__import__('uuid').uuid4())",
    "urandom": "__import__('os').urandom(8).hex()",
    "pid": "__import__('os').getpid()",
    "hash": "hash('x')",
    "set": "list({'alpha', 'beta', 'gamma', 'delta', 'epsilon', 'zeta'})",
    "id": "id(object())",
}


def processes(live: Live) -> set[int]:
    """What runs as the parser's account, but for the warm processes."""
    uid = pwd.getpwnam(live.stack.accounts.parser).pw_uid
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes()
            if path.stat().st_uid == uid and is_alive(int(path.name)) and b"become.py" not in line:
                found.add(int(path.name))
        except OSError:
            continue
    return found


def refused(live: Live, name: str, data: str | bytes, rule: str, words: str) -> dict[str, Any]:
    answer = live.push(name, data)
    assert answer.status == 422, answer.body
    (error,) = answer.json["errors"]
    assert error["rule"] == rule, error
    assert words in error["detail"], error
    assert live.http("GET", f"/v1/archives/{name}").status == 404
    return dict(error)


def works(live: Live, dag_id: str) -> None:
    answer = live.push(f"{dag_id}.py", STABLE.format(dag_id))
    assert answer.status in (200, 201), answer.body


@pytest.mark.parametrize("case", REFUSED)
def test_refused_for_its_true_reason(fragile: Live, case: str) -> None:
    source, rule, words = REFUSED[case]
    error = refused(fragile, f"t15{case}.py", source, rule, words)
    assert error["entry"].startswith(f"t15{case}.py"), error


def test_it_kills_itself(fragile: Live) -> None:
    """Process 1 of a namespace hears no signal from within, so it lives on there."""
    died = fragile.stack.describe == "minimal"
    rule, words = ("describe-died", "died") if died else ("import-error", "lives on")
    refused(fragile, "t15kill.py", "import os\nos.kill(os.getpid(), 9)\nraise OSError('lives on')", rule, words)


@pytest.mark.parametrize("value", VALUES)
def test_unstable_descriptions_name_the_field(fragile: Live, value: str) -> None:
    source = (
        "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.bash import BashOperator\n"
        f"with DAG('t15{value}', schedule=None):\n"
        f"    BashOperator(task_id='t', bash_command='true', env={{'at': str({VALUES[value]})}})\n"
    )
    if value == "pid" and fragile.stack.describe != "minimal":
        assert fragile.push("t15pid.py", source).status == 201, "it is 1, here and on every worker"
        return
    error = refused(fragile, f"t15{value}.py", source, "unstable", f"dag t15{value}, task t: ")
    assert "env" in error["detail"]


@pytest.mark.parametrize(
    "choice", ["hash(str(i))", "int(time.time()) // 3600 + i", "random.getrandbits(1)"], ids=["hash", "clock", "random"]
)
def test_tasks_that_are_only_sometimes_there(fragile: Live, choice: str) -> None:
    """A hundred of them: that two descriptions agree by chance is not to be feared."""
    source = (
        "from airflow.sdk import DAG\nimport random, time\n"
        "from airflow.providers.standard.operators.empty import EmptyOperator\n"
        "with DAG('t15some', schedule=None):\n"
        "    for i in range(100):\n"
        f"        if ({choice}) % 2:\n"
        "            EmptyOperator(task_id=f't{i}')\n"
    )
    refused(fragile, "t15some.py", source, "unstable", "dag t15some: which tasks there are")


def test_a_flood_of_output(fragile: Live) -> None:
    """Some megabytes are read and dropped; over the log's rate an import waits in its own writes, and a hundred end with its
    time. No deadlock, nobody's memory, nobody's disk."""
    launcher = notary_pid(fragile)
    before = peak(launcher)
    size = sum(path.stat().st_size for path in fragile.stack.folder.rglob("*") if path.is_file())
    flood = "import os\nfor _ in range({}):\n    os.write(1, b'x' * (1 << 20))\n" + STABLE.format("t15flood")
    assert fragile.push("t15flood.py", flood.format(8)).status == 201
    refused(fragile, "t15more.py", flood.format(100), "describe-timeout", TOO_LONG)
    assert peak(launcher) - before < 16 * 1024
    assert sum(path.stat().st_size for path in fragile.stack.folder.rglob("*") if path.is_file()) - size < 1 << 20


def peak(pid: int) -> int:
    """VmHWM in KiB."""
    (line,) = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmHWM:")]
    return int(line.split()[1])


@pytest.mark.parametrize("then", ["", "os._exit(0)"])
def test_children_that_stay(fragile: Live, then: str) -> None:
    """Both variants leave a daemon, whom we find by its name, and go on when we say so."""
    parent, child = (f"t15{os.urandom(5).hex()}" for _ in range(2))
    source = (
        "import ctypes, os, signal, time\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "def name(text):\n"
        f"    ctypes.CDLL(None).prctl({PR_SET_NAME}, text, 0, 0, 0)\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"        name({child.encode()!r})\n"
        "        while True: time.sleep(1)\n"
        "    os._exit(0)\n"
        f"name({parent.encode()!r})\n"
        "signal.sigwait([signal.SIGUSR1])\n"
        f"{then}\n"
    )
    dag_id = f"t15child{len(then)}"
    with ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(fragile.push, f"{dag_id}.py", source + STABLE.format(dag_id))
        children = until("both have left a child", lambda: named(child, 2))
        for pid in until("both wait", lambda: named(parent, 2)):
            os.kill(pid, signal.SIGUSR1)
        answer = pushing.result()
    assert answer.status == (422 if then else 201), answer.body
    assert not [pid for pid in children if is_alive(pid)]
    assert not named(child, 1)


def named(name: str, count: int) -> list[int]:
    """The live processes of that name, if there are so many."""
    found = [pid for pid in all_pids() if name_of(pid) == name and is_alive(pid)]
    return found if len(found) == count else []


def found_out(live: Live, name: str, source: str) -> Any:
    """What the import found, which it raised as JSON."""
    error = refused(live, f"{name}.py", source, "import-error", "RuntimeError: FOUND ")
    return json.loads(error["detail"].partition("FOUND ")[2])


@pytest.mark.root
def test_no_network(fragile: Live) -> None:
    """Not even loopback, where the API listens; nor names, nor raw or netlink sockets that would change that."""
    source = PROBES + (
        "import json, socket\n"
        "def connect(family, address):\n"
        "    with socket.socket(family, socket.SOCK_STREAM) as sock:\n"
        "        sock.settimeout(2)\n"
        "        sock.connect(address)\n"
        "        return 'connected'\n"
        "def send(address):\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:\n"
        "        return sock.sendto(b'x', address)\n"
        "tries = {\n"
        f"    'api': attempt(connect, socket.AF_INET, ('127.0.0.1', {fragile.stack.port})),\n"
        f"    'six': attempt(connect, socket.AF_INET6, ('::1', {fragile.stack.port})),\n"
        "    'out': attempt(connect, socket.AF_INET, ('192.0.2.1', 80)),\n"
        "    'udp': attempt(send, ('127.0.0.1', 53)),\n"
        "    'metadata': attempt(connect, socket.AF_INET, ('169.254.169.254', 80)),\n"
        "    'name': attempt(socket.getaddrinfo, 'example.com', 80, 0, 0, 0, socket.AI_ADDRCONFIG),\n"
        "    'raw': attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW),\n"
        "    'interfaces': [name for _, name in socket.if_nameindex()],\n"
        "}\n"
        "raise RuntimeError('FOUND ' + json.dumps(tries))\n"
    )  # fmt: skip
    tries = found_out(fragile, "t15net", source)
    denied = {"PermissionError"} if fragile.stack.describe == "strict" else set()
    assert tries.pop("interfaces") == ["lo"], "and that one is down"
    assert tries.pop("raw") == "PermissionError"
    assert tries["udp"] == "OSError", "ENETUNREACH: there is no way out, also where Landlock says no before"
    assert set(tries.values()) <= {"OSError", "gaierror", "TimeoutError"} | denied, tries


@pytest.mark.root
def test_no_use_of_the_launchers_socket(fragile: Live) -> None:
    """A path is reachable without network; whoever describes is on none of the launcher's lists."""
    source = PROBES + (
        "import json, socket\n"
        "from integrity import messages\n"
        "def ask(kind, **fields):\n"
        "    with socket.socket(socket.AF_UNIX) as sock, open('/etc/hostname') as file:\n"
        "        sock.settimeout(2)\n"
        f"        sock.connect({str(fragile.stack.launcher_socket)!r})\n"
        "        socket.send_fds(sock, [messages.encode(kind, fds=1, **fields)], [file.fileno()])\n"
        "        return json.loads(sock.recv(65536)[4:])['error']\n"
        "asked = [ask('describe', name='x.py', digest='sha512:' + '0' * 128, task_check='task'),\n"
        "    ask('run', ticket='', manifest='')]\n"
        "raise RuntimeError('FOUND ' + json.dumps(asked))\n"
    )  # fmt: skip
    assert found_out(fragile, "t15socket", source) == ["out-of-scope"] * 2


@pytest.mark.root
def test_nothing_can_be_left_or_read(fragile: Live, traces: Traces) -> None:
    """Where descriptions are confined: neither the folders of all, nor those that the policy leaves to tasks."""
    mark = f"t15{os.urandom(5).hex()}"
    folders = ["/tmp", "/var/tmp", "/dev/shm", str(traces.path), pwd.getpwnam(fragile.stack.accounts.parser).pw_dir]
    source = PROBES + (
        "import json\n"
        "def plant(path):\n"
        "    with open(path, 'w') as file:\n"
        "        file.write('planted')\n"
        f"tries = {{folder: attempt(plant, folder + '/{mark}') for folder in {folders!r}}}\n"
        "tries['listed'] = {folder: attempt(os.listdir, folder) for folder in ('/tmp', '/var', '/root', '/home', '/')}\n"
        "raise RuntimeError('FOUND ' + json.dumps(tries))\n"
    )
    tries = found_out(fragile, "t15leave", source)
    left = [folder for folder in folders if os.path.exists(f"{folder}/{mark}")]
    for folder in left:
        os.unlink(f"{folder}/{mark}")
    listed = tries.pop("listed")
    if fragile.stack.describe == "minimal":
        assert set(left) >= {"/tmp", "/var/tmp", "/dev/shm", str(traces.path)}, "minimal does not promise it"
        return
    assert left == []
    assert tries[str(traces.path)] in ("FileNotFoundError", "PermissionError")
    # Its own, which goes with it; where the interpreter's packages are below /tmp, also the way to them.
    kept = {path.split("/")[2] for path in (sys.prefix, str(ROOT)) if path.startswith("/tmp/")}
    assert set(ast.literal_eval(listed["/tmp"].removeprefix("GOT "))) == {mark, *kept}
    if fragile.stack.describe == "strict":
        assert {listed[folder] for folder in ("/var", "/root", "/home", "/")} == {"PermissionError"}


@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP"])
def test_the_warm_process_is_attacked(fragile: Live, number: str) -> None:
    """In `minimal` it has the parser's own user, so it can be signalled. It is replaced: whoever meets a stopped one is asked
    to send again (503 with Retry-After), and the next description works. In a namespace there is no such process."""
    assert fragile.push(f"t15before{number}.py", STABLE.format(f"t15before{number}")).status == 201
    warm = set(warm_pids(fragile, "describe"))
    source = f"import os, signal\nos.kill(os.getppid(), signal.{number})\n" + STABLE.format(f"t15{number}")
    answer = fragile.push(f"t15{number}.py", source)
    assert answer.status in (201, 422, 503), answer.body
    if fragile.stack.describe != "minimal":
        assert (answer.status, set(warm_pids(fragile, "describe"))) == (201, warm)
    after = STABLE.format(f"t15after{number}")
    answer = fragile.push(f"t15after{number}.py", after)
    if number == "SIGSTOP" and answer.status == 503:
        assert answer.headers["retry-after"]
        answer = fragile.push(f"t15after{number}.py", after)
    assert answer.status == 201, answer.body


@pytest.mark.parametrize(
    ("case", "frame"),
    [
        ("garbage", "b'\\xff' * 64"),
        ("huge", "b'\\x7f\\xff\\xff\\xff' + b'x' * 4096"),
        ("other_word", "messages.encode('finished', state='success')"),
        (
            "lie",
            "messages.encode('described', airflow_version='1', dags=[{'dag_id': 'x' * 300, 'member': '', 'tasks': []}])",
        ),
        ("endless", "b'\\x00\\x00\\x10\\x00' + b'{'"),
    ],
)
def test_it_speaks_in_our_place(fragile: Live, case: str, frame: str) -> None:
    """Code that runs there can write to the control socket: what it says is read strictly, and is about itself only."""
    source = f"import os, time\nfrom integrity import messages\nos.write(3, {frame})\ntime.sleep(1000)\n"
    answer = fragile.push(f"t15{case}.py", source)
    assert answer.status in (400, 422, 503), answer.body
    assert fragile.http("GET", f"/v1/archives/t15{case}.py").status == 404
    works(fragile, f"t15after{case}")


def test_nothing_is_left_of_a_zip_whose_import_dies(fragile: Live) -> None:
    """Its private copy goes with it."""
    for name, source in (("died", "import os\nos._exit(1)\n# airflow dag"), ("fine", STABLE.format("t15fine"))):
        buffer, member = io.BytesIO(), f"t15zip{name}{os.urandom(4).hex()}.py"
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(member, source)
            archive.writestr("data/text.txt", "text")
        answer = fragile.push(f"t15zip{name}.zip", buffer.getvalue())
        assert answer.status == (422 if name == "died" else 201), answer.body
        until("its copy is gone", lambda member=member: not list(Path(tempfile.gettempdir()).glob(f"*/{member}")))


def test_nothing_runs_any_more(fragile: Live, traces: Traces) -> None:
    if fragile.stack.privileged:
        until("all that was imported is dead", lambda: not processes(fragile))
    assert fragile.push("t15last.py", traced_dag("t15last", traces)).status == 201
    assert fragile.launch("t15last", "t", os.urandom(4).hex())["state"] == "success"


async def serialised(live: Live, account: str, data: bytes, *, digest: Digest | None = None) -> Serialised:
    """As a local caller of this account asks for it."""
    with opened(data) as fd, acting_as(account):
        async with launcher_link.connect(AtSocket(str(live.stack.launcher_socket))) as link:
            return await link.serialise(
                name="t15.py", digest=digest or Digest.of(data), archive_fd=fd, task_check="task"
            )


@pytest.mark.parametrize("case", ["exit", "really_exit", "sleep", "memory", "connection", "caught"])
async def test_what_is_serialised_is_imported_as_what_is_described(fragile: Live, case: str) -> None:
    source, rule, words = REFUSED[case]
    with pytest.raises(InvalidArchiveError, match=re.escape(words)) as refused:
        await serialised(fragile, fragile.stack.accounts.api, source.encode())
    assert refused.value.rule == rule
    good = STABLE.format("t15serialised").encode()
    found = await serialised(fragile, fragile.stack.accounts.api, good)
    assert [(dag.dag_id, dag.member) for dag in found.dags] == [("t15serialised", "t15.py")]
    with pytest.raises(DigestMismatchError):
        await serialised(fragile, fragile.stack.accounts.api, good, digest=Digest.of(b""))
    if os.geteuid() == 0:
        with pytest.raises(FetchError, match="out-of-scope"):
            await serialised(fragile, fragile.stack.accounts.agent, good)
