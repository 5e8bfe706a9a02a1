"""What was in force around a task before it got a secret: asked of the kernel, recorded in journal and claim.

The notary reads /proc/<pid> itself; in which namespaces the task is, which only root may see, the monitor looked up when it
adopted the task, which by then had given up the means to change them. Only what the kernel shows to nobody else (Landlock, the
number of denied calls) is the task's own word, given in its hello before it read a byte of the archive. Anything less than the
profile promises ends it.
"""

from __future__ import annotations

import os

from integrity.errors import PrivilegeError
from launcher import privileges
from launcher.powers import NAMESPACES
from notary.taskprocess import TaskProcess

_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def attest(task: TaskProcess, *, limits: str, empties_bounding_set: bool) -> dict[str, object]:
    """`empties_bounding_set`: whether this launcher has the means to, without a user namespace. Raises `PrivilegeError` when a
    mitigation is not in force, `EOFError` when the task is gone."""
    confinement, account = task.warm.kind.confinement, task.warm.kind.account
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
        "dumpable": owner == account.uid,
        "seccomp": status["Seccomp"] == "2",
        "pid_namespaces": len(status["NSpid"].split()),
        "limits": limits,
        **{name.lower(): status[name] for name in _CAPABILITIES},
        **task.own_word,
    }
    wanted: dict[str, object] = {
        "uid": [account.uid] * 4,
        "gid": [account.gid] * 4,
        "groups": sorted(account.groups),
        "no_new_privs": True,
        "dumpable": False,
        **({"seccomp": True} if profile.seccomp else {}),  # a service unit may have brought a filter: more is no fault
        **{name.lower(): "0" * 16 for name in _CAPABILITIES},
    }
    own_pids = len(privileges.status_of("self")["NSpid"].split())
    if profile.namespaces:
        wanted["pid_namespaces"] = own_pids + 2  # the warm process's and the task's own
    if task.namespaces is not None:
        found["namespaces"] = list(task.namespaces)
        wanted["namespaces"] = [
            name for name in NAMESPACES if (profile.namespaces if name != "net" else not confinement.network)
        ]
    if not profile.namespaces and not empties_bounding_set:
        del wanted["capbnd"]  # it cannot be emptied without that capability; no_new_privs makes it useless
    for name, value in wanted.items():
        if found[name] != value:
            raise PrivilegeError(f"the task's {name} is {found[name]}, not {value}: no secret is given to it")
    if bool(profile.landlock) != bool(task.own_word["landlock_abi"]):
        raise PrivilegeError(f"the task says Landlock ABI {task.own_word['landlock_abi']}: no secret is given to it")
    return found
