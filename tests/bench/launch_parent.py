"""The small parent of the other ways to become somebody: started with `python -I -S`, it imports next to nothing.

Reads a line of JSON per measurement and answers with seconds: a list is a command (start to exit, by vfork), an object
`{"uid": …, "gid": …}` a fork that becomes that account (request to its first instruction afterwards, and to its exit).
"""

import json
import os
import sys
import time


def command(arguments):
    begin = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    pid = os.posix_spawnp(arguments[0], arguments, os.environ, file_actions=_QUIET)
    _, status = os.waitpid(pid, 0)
    took = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - begin
    if status:
        raise SystemExit(f"{arguments} ended with status {status}")
    return [took / 1e9]


def fork(uid, gid):
    read, write = os.pipe()
    begin = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        os.write(write, b"%d" % time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    took = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - begin
    first = int(os.read(read, 64)) - begin
    os.close(read)
    os.close(write)
    if status:
        raise SystemExit(f"the fork ended with status {status}")
    return [first / 1e9, took / 1e9]


_QUIET = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]

for line in sys.stdin:
    wanted = json.loads(line)
    took = fork(wanted["uid"], wanted["gid"]) if isinstance(wanted, dict) else command(wanted)
    print(json.dumps(took), flush=True)
