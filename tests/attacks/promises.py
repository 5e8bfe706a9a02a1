"""What each isolation profile promises, attempt by attempt of `sideways.py`: the error that stops a task, or that it is open.

A cell is what the attempt ends with in a task of that profile. `minimal` is for hosts and queues that cannot have more: what it
leaves open is written here, and tried like all else.
"""

from __future__ import annotations

PROFILES = ("minimal", "standard", "strict")

OPEN = ""
HOST = "as on the host"  # whatever an unconfined process of the task's user gets there: by sysctl and kernel
EPERM, EACCES, ENOENT, ESRCH, EMFILE = "EPERM", "EACCES", "ENOENT", "ESRCH", "EMFILE"
CLOSED = "PermissionError"  # of every way into another process: it is there, and not dumpable
UNSEEN = "FileNotFoundError PermissionError ProcessLookupError"  # there is no such process
ITSELF = "still itself"
KILLED = "killed by SIGSYS"

EXPECTED = {
    #                                     minimal standard strict
    "signal a neighbour":                (OPEN, ESRCH, ESRCH),
    "signal a neighbour by pidfd":       (OPEN, ESRCH, ESRCH),
    "signal a spare":                    (OPEN, ESRCH, ESRCH),
    "signal the warm process":           (OPEN, ESRCH, ESRCH),
    "signal who waits for it":           (OPEN, ESRCH, ESRCH),
    "signal everybody":                  (OPEN, ESRCH, ESRCH),
    "signal the launcher":               (EPERM, ESRCH, ESRCH),
    "signal the agent":                  (EPERM, ESRCH, ESRCH),
    "read a neighbour's limits":         (OPEN, ESRCH, ESRCH),
    "look into a neighbour":             (CLOSED, UNSEEN, UNSEEN),
    "look into a spare":                 (CLOSED, UNSEEN, UNSEEN),
    "look into the warm process":        (CLOSED, UNSEEN, UNSEEN),
    "look into who waits for it":        (CLOSED, UNSEEN, UNSEEN),
    "look into the launcher":            (CLOSED, UNSEEN, UNSEEN),
    "look into the agent":               (CLOSED, UNSEEN, UNSEEN),
    "read a neighbour's command line":   (OPEN, ENOENT, ENOENT),
    "a neighbour's abstract socket":     (OPEN, EPERM, EPERM),
    "an abstract socket of the host":    (OPEN, EPERM, EPERM),
    "a socket of the host with a path":  (OPEN, OPEN, OPEN),
    "a neighbour's shared memory":       (OPEN, ENOENT, ENOENT),
    "a neighbour's message queue":       (OPEN, ENOENT, ENOENT),
    "a neighbour's /tmp":                (OPEN, ENOENT, ENOENT),
    "a neighbour's /dev/shm":            (OPEN, ENOENT, ENOENT),
    "the host's /tmp":                   (OPEN, ENOENT, ENOENT),
    "write where the user may":          (OPEN, EACCES, EACCES),
    "read where the user may":           (OPEN, OPEN, EACCES),
    "write to a listed folder":          (OPEN, OPEN, OPEN),
    "run a set-uid program":             (ITSELF, ITSELF, ITSELF),
    "mount":                             (EPERM, EPERM, EPERM),
    "a user namespace by unshare":       (HOST, EPERM, EPERM),
    "a user namespace by clone":         (HOST, EPERM, EPERM),
    "join a namespace":                  (EPERM, EPERM, EPERM),
    "trace a child":                     (HOST, EPERM, EPERM),
    "take a descriptor by pidfd":        (OPEN, EPERM, EPERM),
    "make itself dumpable":              (OPEN, EPERM, EPERM),
    "io_uring":                          (HOST, EPERM, EPERM),
    "bpf":                               (HOST, EPERM, EPERM),
    "keyctl":                            (HOST, EPERM, EPERM),
    "userfaultfd":                       (HOST, EPERM, EPERM),
    "x32 calls":                         (OPEN, KILLED, KILLED),
    "type into a terminal":              (OPEN, EPERM, EPERM),
    "raise its core limit":              (EPERM, EPERM, EPERM),
    "be spared when memory ends":        (EACCES, EACCES, EACCES),
    "read /proc/sys":                    (OPEN, OPEN, ENOENT),
    "write /proc/sys":                   (EACCES, EACCES, ENOENT),
    "read the kernel's log":             (EACCES, EACCES, ENOENT),
    "leave its cgroup":                  (EACCES, EACCES, EACCES),
    "connect to a local TCP port":       (OPEN, OPEN, EACCES),
    "listen on a TCP port":              (OPEN, OPEN, EACCES),
    "connect by MPTCP":                  (HOST, EPERM, EPERM),
    "send to a local UDP port":          (OPEN, OPEN, OPEN),
    "a raw socket":                      (EPERM, EPERM, EPERM),
    "a vsock":                           (HOST, EPERM, EPERM),
}  # fmt: skip

# Where a task finds what the one before it left, in order: in memory, in a queue and in folders.
FOUND = {
    "minimal": ["/tmp", "/var/tmp", "/dev/shm", "shared memory", "a message queue", "a listed folder"],
    "standard": ["a listed folder"],
    "strict": ["a listed folder"],
}
# Not held to the policy's limit for the folders of temporary files: they are the host's.
UNLIMITED_TMP = ("minimal",)


def expected(threat: str, profile: str, of_user: str) -> str:
    """`of_user` is what an unconfined process of the task's user got."""
    cell = EXPECTED[threat][PROFILES.index(profile)]
    return of_user if cell == HOST else cell
