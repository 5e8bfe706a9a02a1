"""Isolation profiles: what is put between a task and the host, and in which order. Every step is done or the launch is refused.

                   own pid, mount, ipc, uts  private /tmp, /proc   writes        reads     TCP      system calls
    minimal        no                        no                    as the user   as the user  any   any
    standard       yes                       yes                   work folders  as the user  any   deny list
    strict         yes                       yes, own pids only    work folders  listed    listed   longer deny list

All of them: dropped for good, no_new_privs, not dumpable, own session, no core, umask 077, rlimits, descriptors closed. A
description has besides no network. `Confinement` is a profile with the operator's paths, as it travels to the warm process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
from dataclasses import dataclass

from integrity.errors import PrivilegeError, SettingsError
from launcher import landlock, namespaces, privileges, seccomp
from launcher.privileges import Identity

SYSTEM_FOLDERS = ("/bin", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/opt", "/proc", "/run", "/sbin", "/sys", "/usr")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
_LEAST_ABI = {"standard": 1, "strict": 6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """`landlock` and `seccomp`: empty for none, else how hard."""

    name: str
    namespaces: bool
    landlock: str
    seccomp: str


PROFILES = {
    "minimal": Profile(name="minimal", namespaces=False, landlock="", seccomp=""),
    "standard": Profile(name="standard", namespaces=True, landlock="standard", seccomp="standard"),
    "strict": Profile(name="strict", namespaces=True, landlock="strict", seccomp="strict"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """A profile as it is applied: with paths, ports and sizes. Paths are absolute."""

    profile: Profile
    network: bool
    readable: tuple[str, ...]
    writable: tuple[str, ...]
    tcp_ports: tuple[int, ...]
    tmp_bytes: int
    rlimits: tuple[tuple[int, int], ...] = ()

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "profile": self.profile.name})

    @classmethod
    def from_json(cls, text: str) -> Confinement:
        fields = json.loads(text)
        fields["profile"] = profile(fields["profile"])
        for name in ("readable", "writable", "tcp_ports"):
            fields[name] = tuple(fields[name])
        fields["rlimits"] = tuple((limit, most) for limit, most in fields["rlimits"])
        return cls(**fields)


def profile(name: str) -> Profile:
    """Raises `SettingsError` for a name that is none."""
    if name not in PROFILES:
        raise SettingsError(f"isolation profile {name!r} is not known: choose {', '.join(PROFILES)}")
    return PROFILES[name]


def confine(confinement: Confinement, identity: Identity, *, packages: tuple[str, ...]) -> dict[str, int]:
    """In a task, after its fork and before it reads anything: all of the profile. What only the task itself knows of it, for
    the attestation. `packages`: the folders of the interpreter and its modules. Raises `PrivilegeError`; it must then exit."""
    chosen = confinement.profile
    if chosen.namespaces:
        flags = namespaces.CLONE_NEWNS | namespaces.CLONE_NEWIPC | namespaces.CLONE_NEWUTS
        namespaces.unshare(flags | (0 if confinement.network else namespaces.CLONE_NEWNET))
        namespaces.private_mounts(
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
            path for path in (*namespaces.PRIVATE_FOLDERS, *DEVICES, *confinement.writable) if os.path.exists(path)
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
