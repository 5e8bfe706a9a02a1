"""Isolation profiles: what is put between a task and the host, and in which order. Every step is done or the launch is refused.

                   own pid, mount, ipc, uts  private /tmp, /proc   writes        reads     TCP      system calls
    minimal        no                        no                    as the user   as the user  any   any
    standard       yes                       yes                   work folders  as the user  any   deny list
    strict         yes                       yes, own pids only    work folders  listed    listed   longer deny list

All of them: dropped for good, no_new_privs, not dumpable, own session, no core, umask 077, rlimits, descriptors closed. A
description has besides no network. `Confinement` is a profile with the operator's paths, as it travels to the warm process;
`launcher.task.confining` applies it, after the drop.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from integrity.errors import SettingsError


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
