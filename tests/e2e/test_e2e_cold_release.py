"""Sixteen tasks of one release at once, of three unix users, on a worker that has never seen it: one fetch, all run, and none
of them can touch the cache, hold it up, or make it fetch."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.live import ENDED, Live, running

USERS = ("nobody", "bin", "sys")
TASKS = 16
# Of a queue that the worker does not serve, so that nothing is fetched ahead of the launches.
DAG = """
import fcntl, os, socket
from airflow.sdk import DAG, task

CACHE, SOCKET = {cache!r}, {socket!r}

def tried(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"

def ask():
    import json, struct
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(SOCKET)
        body = json.dumps({{"archive": "never.py", "fds": 0, "kind": "release", "number": None, "want": "file"}},
                          separators=(",", ":"), sort_keys=True).encode()
        sock.sendall(struct.pack(">I", len(body)) + body)
        return sock.recv(4096)[4:].decode()

with DAG("cold", schedule=None):

    @task(queue="elsewhere")
    def poke():
        print("LIST", tried(lambda: os.listdir(CACHE)))
        print("WRITE", tried(lambda: open(CACHE + "/sha512/evil", "w")))
        print("LOCK", tried(lambda: fcntl.flock(os.open(CACHE + "/lock", os.O_RDWR), fcntl.LOCK_EX)))
        try:
            print("ASK", ask())
        except OSError as error:
            print("ASK", type(error).__name__)

    poke()
"""


def fetched(live: Live) -> int:
    """How many times somebody asked the API for bytes, by either route."""
    lines = live.http("GET", "/metrics").body.decode().splitlines()
    counted = [line for line in lines if line.startswith("dagseal_http_requests_total{") and "/v1/blobs/" in line]
    return sum(int(float(line.rpartition(" ")[2])) for line in counted)


@pytest.mark.root
def test_one_fetch_for_sixteen_tasks_of_three_users() -> None:
    with running(slots=TASKS, more_users=USERS[1:]) as live:
        for user in USERS[1:]:
            rule = {"subject_kind": "principal", "subject": "admin", "unix_user": user}
            assert live.http("POST", "/v1/impersonation-rules", rule).status == 201
        source = DAG.format(cache=str(live.stack.cache), socket=str(live.stack.releases_socket))
        pushed = live.push("cold.py", source)
        assert pushed.status == 201, pushed.body
        assert live.push("never.py", source.replace('"cold"', '"never"')).status == 201
        before = fetched(live)

        def one(number: int) -> dict[str, object]:
            user = USERS[number % len(USERS)]
            return live.launch("cold", "poke", f"run-{number}", run_as_user=user, queue="default")

        with ThreadPoolExecutor(TASKS) as pool:
            ended = list(pool.map(one, range(TASKS)))
        assert all(launch["state"] in ENDED for launch in ended)
        assert [launch["state"] for launch in ended] == ["success"] * TASKS, [launch["detail"] for launch in ended]
        assert {launch["unix_user"] for launch in ended} == set(USERS)
        assert fetched(live) - before == 1
        for launch in ended:
            said = dict(re.findall(r"^(LIST|WRITE|LOCK|ASK) (.*)$", live.log(str(launch["id"])), re.MULTILINE))
            assert {said["LIST"], said["WRITE"], said["LOCK"]} <= {"PermissionError", "FileNotFoundError"}
            assert "not-found" in said["ASK"] or said["ASK"] in ("PermissionError", "FileNotFoundError")
        digest = live.http("GET", "/v1/archives/never.py/releases/1").json["digest"].removeprefix("sha512:")
        assert not (live.stack.cache / "sha512" / digest[:2] / digest).exists()
        assert live.cli("fsck", "--cache", str(live.stack.cache)).returncode == 0
