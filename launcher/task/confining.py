"""A task's own part of its profile, after its fork and before it reads anything: mounts, capabilities, Landlock, seccomp.

By then it is the unix user that it stays. Every step is done, in the one order that works, or `PrivilegeError` ends the task.
"""

from __future__ import annotations

import contextlib
import os
import resource

from integrity.errors import PrivilegeError
from launcher import namespaces, privileges
from launcher.isolation import Confinement
from launcher.privileges import Identity
from launcher.task import landlock, mounts, seccomp

SYSTEM_FOLDERS = ("/bin", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/opt", "/proc", "/run", "/sbin", "/sys", "/usr")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
_LEAST_ABI = {"standard": 1, "strict": 6}


def confine(confinement: Confinement, identity: Identity, *, packages: tuple[str, ...]) -> dict[str, int]:
    """In a task, after its fork and before it reads anything: all of the profile. What only the task itself knows of it, for
    the attestation. `packages`: the folders of the interpreter and its modules. Raises `PrivilegeError`; it must then exit."""
    chosen = confinement.profile
    if chosen.namespaces:
        flags = namespaces.CLONE_NEWNS | namespaces.CLONE_NEWIPC | namespaces.CLONE_NEWUTS
        namespaces.unshare(flags | (0 if confinement.network else namespaces.CLONE_NEWNET))
        mounts.private(
            keep=(*packages, *confinement.readable),
            writable=confinement.writable,
            tmp_bytes=confinement.tmp_bytes,
            only_own_pids=chosen.name == "strict",
        )
        privileges.empty_bounding_set()
        privileges.shed_capabilities()
        _prove_no_namespace_power()
    privileges.prove_dropped(identity)
    for limit, most in confinement.rlimits:
        resource.setrlimit(limit, (most, most))
    abi = denied = 0
    if chosen.landlock:
        abi = landlock.restrict(_access(confinement, packages), least_abi=_LEAST_ABI[chosen.landlock])
    if chosen.seccomp:
        denied = seccomp.install(chosen.seccomp)
    return {"landlock_abi": abi, "seccomp_denied": denied}


def _access(confinement: Confinement, packages: tuple[str, ...]) -> landlock.Access:
    strict = confinement.profile.landlock == "strict"
    listed = (*SYSTEM_FOLDERS, *packages, *confinement.readable)
    return landlock.Access(
        read=tuple(path for path in listed if os.path.exists(path)) if strict else ("/",),
        write=tuple(
            path for path in (*mounts.PRIVATE_FOLDERS, *DEVICES, *confinement.writable) if os.path.exists(path)
        ),
        connect_ports=confinement.tcp_ports if strict else None,
        # Before ABI 6 (Linux 6.12) only the pid namespace keeps signals away, and abstract sockets stay open: the attestation
        # shows the ABI, and strict asks for it.
        scope=landlock.abi() >= _LEAST_ABI["strict"],
    )


def _prove_no_namespace_power() -> None:
    with contextlib.suppress(PrivilegeError):
        namespaces.unshare(namespaces.CLONE_NEWNS)
        raise RuntimeError("capabilities over the own user namespace were kept: this process must end")
