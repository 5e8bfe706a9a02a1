"""What was in force around a task before it got a secret: asked of the kernel, recorded in journal and claim.

The launcher reads /proc/<pid> itself. Only what the kernel shows to nobody else (Landlock, the number of denied calls) is the
task's own word, given in its hello before it read a byte of the archive. Anything less than the profile promises ends it.
"""

from __future__ import annotations

import os

from integrity.errors import PrivilegeError
from launcher import privileges
from launcher.context import identity_of
from launcher.taskprocess import TaskProcess

_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_NAMESPACES = ("ipc", "mnt", "net", "pid", "user", "uts")


def attest(task: TaskProcess, *, limits: str) -> dict[str, object]:
    """Raises `PrivilegeError` when a mitigation is not in force, `EOFError` when the task is gone."""
    confinement, identity = task.warm.kind.confinement, identity_of(task.warm.kind.account)
    profile = confinement.profile
    try:
        # /proc/<pid> of a process that is not dumpable belongs to root (proc(5)).
        status, owner = privileges.status_of(task.pid), os.stat(f"/proc/{task.pid}/environ").st_uid
    except (FileNotFoundError, ProcessLookupError):
        raise EOFError("the task's process is gone") from None
    found: dict[str, object] = {
        "profile": profile.name,
        "uid": [int(value) for value in status["Uid"].split()],
        "gid": [int(value) for value in status["Gid"].split()],
        "groups": sorted(int(value) for value in status["Groups"].split()),
        "no_new_privs": status["NoNewPrivs"] == "1",
        "dumpable": owner == identity.uid,
        "seccomp": status["Seccomp"] == "2",
        "pid_namespaces": len(status["NSpid"].split()),
        "limits": limits,
        **{name.lower(): status[name] for name in _CAPABILITIES},
        **task.own_word,
    }
    wanted: dict[str, object] = {
        "uid": [identity.uid] * 4,
        "gid": [identity.gid] * 4,
        "groups": sorted(identity.groups),
        "no_new_privs": True,
        "dumpable": False,
        **({"seccomp": True} if profile.seccomp else {}),  # a service unit may have brought a filter: more is no fault
        **{name.lower(): "0" * 16 for name in _CAPABILITIES},
    }
    own_pids = len(privileges.status_of("self")["NSpid"].split())
    if profile.namespaces:
        wanted["pid_namespaces"] = own_pids + 2  # the warm process's and the task's own
    if os.geteuid() == 0:
        ours, theirs = (_namespaces(pid) for pid in ("self", task.pid))
        found["namespaces"] = [name for name in _NAMESPACES if ours[name] != theirs[name]]
        wanted["namespaces"] = [
            name for name in _NAMESPACES if (profile.namespaces if name != "net" else not confinement.network)
        ]
    elif not profile.namespaces and not privileges.holds(privileges.CAP_SETPCAP):
        del wanted["capbnd"]  # it cannot be emptied without that capability; no_new_privs makes it useless
    for name, value in wanted.items():
        if found[name] != value:
            raise PrivilegeError(f"the task's {name} is {found[name]}, not {value}: no secret is given to it")
    if bool(profile.landlock) != bool(task.own_word["landlock_abi"]):
        raise PrivilegeError(f"the task says Landlock ABI {task.own_word['landlock_abi']}: no secret is given to it")
    return found


def _namespaces(pid: int | str) -> dict[str, str]:
    try:
        return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in _NAMESPACES}
    except (FileNotFoundError, ProcessLookupError):
        raise EOFError("the task's process is gone") from None
