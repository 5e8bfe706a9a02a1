"""Two tasks of one user: `stay` is there, `look` goes through what it can reach of its neighbours."""

import ctypes
import os
import stat
import time
from pathlib import Path

from airflow.sdk import DAG, task

PIDFD_OPEN, PIDFD_GETFD = 434, 438
SECRET = b"AIRFLOW__API_AUTH__JWT_SECRET"


def sockets(pid):
    """How many sockets of that process we get hold of."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    pidfd, found = call(PIDFD_OPEN, pid, 0), 0
    for number in range(16) if pidfd >= 0 else ():
        taken = call(PIDFD_GETFD, pidfd, number, 0)
        if taken >= 0:
            found += stat.S_ISSOCK(os.fstat(taken).st_mode)
            os.close(taken)
    return found


def holds(pid, word):
    """Whether this is in its memory."""
    regions = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for first, last in (region[0].split("-") for region in regions if region[1].startswith("rw")):
            memory.seek(int(first, 16))
            try:
                if word in memory.read(int(last, 16) - int(first, 16)):
                    return True
            except OSError:
                continue
    return False


def neighbours():
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdecimal()
                and entry.stat().st_uid == os.getuid()
                and os.getpgid(int(entry.name)) != os.getpgrp()
            ):
                yield int(entry.name)
        except OSError:
            continue


with DAG("way_neighbour_stay", schedule=None):

    @task(run_as_user="@OWNER@")
    def stay():
        Path("@SHARED@/staying").write_text("yes")
        while not Path("@SHARED@/looked").read_text():
            time.sleep(0.05)

    stay()

with DAG("way_neighbour_look", schedule=None):

    @task(run_as_user="@OWNER@")
    def look():
        found = []
        for pid in neighbours():
            try:
                if holds(pid, SECRET):
                    found.append("JWT secret")
            except OSError:
                pass
            if sockets(pid):
                found.append("supervisor's socket")
        return sorted(set(found))

    look()
