"""Which cgroup hierarchy of this host holds which limit of a task, and what is written there.

A host has its controllers in cgroup v2 (Documentation/admin-guide/cgroup-v2.rst), in v1 hierarchies
(Documentation/admin-guide/cgroup-v1/), or some here and some there. A limit that was asked for and cannot be had is a
`PrivilegeError`: none is left out.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from integrity.errors import PrivilegeError, SettingsError

# What is written for a limit, in this order.
_WRITES = {
    "2 memory": {"memory.max": "{}", "memory.oom.group": "1"},
    "1 memory": {"memory.limit_in_bytes": "{}"},
    "2 pids": {"pids.max": "{}"},
    "1 pids": {"pids.max": "{}"},
    "2 cpu": {"cpu.max": "{}000 100000"},
    "1 cpu": {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "{}000"},
}
# Memory may not be had as swap instead; the file is not there where the kernel does not account it.
_SWAP = {2: "memory.swap.max", 1: "memory.memsw.limit_in_bytes"}
_REMEDY = "start the launcher as root or in a unit of its own with Delegate=yes, or take the limit out of the profile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one task with all its processes; None is no limit. 100 percent of CPU is one core."""

    memory_max_bytes: int | None = None
    pids_max: int | None = None
    cpu_percent: int | None = None

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            if (value := getattr(self, name)) is not None and value < 1:
                raise SettingsError(f"{name} is {value}: give at least 1, or leave it out for no limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCgroup:
    """The launcher's own cgroup in one hierarchy. `controllers` of v2 are those that it may share out."""

    version: int
    folder: Path
    controllers: frozenset[str]


def own_cgroups(cgroup: str, mountinfo: str) -> list[OwnCgroup]:
    """From the texts of /proc/self/cgroup (cgroups(7)) and /proc/self/mountinfo, v2 first. Left out is what is not mounted,
    or mounted from a folder that our cgroup is not below."""
    paths = {
        names: Path(path)
        for _, names, path in (line.split(":", 2) for line in cgroup.splitlines() if "/.." not in line)
    }
    found: dict[str, OwnCgroup] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        mounted = {"cgroup": set(options.split(",")), "cgroup2": {""}}.get(kind, set())  # cgroup v2 has no name
        root, mount = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), word) for word in before.split(" ")[3:5])
        for names, path in paths.items():
            if set(names.split(",")) <= mounted and names not in found and path.is_relative_to(root):
                folder = Path(mount) / path.relative_to(root)
                controllers = names.split(",") if names else read(folder / "cgroup.controllers").split()
                found[names] = OwnCgroup(version=1 if names else 2, folder=folder, controllers=frozenset(controllers))
    return sorted(found.values(), key=lambda own: -own.version)


def share(limits: Limits, owns: list[OwnCgroup]) -> dict[OwnCgroup, dict[str, int]]:
    """Which hierarchy holds which limit. Raises `PrivilegeError` for one that none can hold."""
    shared: dict[OwnCgroup, dict[str, int]] = {own: {} for own in owns}
    asked = {"memory": limits.memory_max_bytes, "pids": limits.pids_max, "cpu": limits.cpu_percent}
    for controller, value in asked.items():
        if value is not None:
            holder = next((own for own in owns if controller in own.controllers), None)
            if holder is None:
                there = "; ".join(f"v{own.version} {own.folder}: {' '.join(sorted(own.controllers))}" for own in owns)
                raise PrivilegeError(f"the launcher's cgroups have no controller {controller} ({there}): {_REMEDY}")
            shared[holder][controller] = value
    return shared


def limit(folder: str, version: int, asked: dict[str, int]) -> None:
    """Set them, before a process is in it. Raises `PrivilegeError`."""
    for controller, value in asked.items():
        with refusing(f"{controller} limit {value}"):
            for name, text in _WRITES[f"{version} {controller}"].items():
                write(f"{folder}/{name}", text.format(value))
            swap = f"{folder}/{_SWAP[version]}"
            if controller == "memory" and os.path.exists(swap):
                write(swap, "0" if version == 2 else str(value))


def told(folder: Path, version: int, asked: dict[str, int]) -> list[str]:
    """What is in force in such a folder: `memory=4294967296`, `pids=1024`."""
    words = [f"{controller}={value}" for controller, value in asked.items()]
    return words + ["swap=unlimited"] * ("memory" in asked and not (folder / _SWAP[version]).exists())


def share_out(folder: Path, controllers: set[str]) -> None:
    """Let what is below `folder` have these v2 controllers. Raises `OSError`: EBUSY if others than we live in its parent."""
    if (folder.parent / "cgroup.type").exists():  # not the root, which alone may hold processes as well
        (folder / "launcher").mkdir()
        write(folder / "launcher" / "cgroup.procs", str(os.getpid()))
    for level in (folder.parent, folder):
        write(level / "cgroup.subtree_control", " ".join(f"+{name}" for name in controllers))


def take_back(folder: Path, controllers: set[str]) -> None:
    """Undo what `share_out` did, as far as nobody else needs it. The root keeps what it shares."""
    if (folder / "launcher").exists():
        for level in (folder, folder.parent):
            with contextlib.suppress(OSError):
                write(level / "cgroup.subtree_control", " ".join(f"-{name}" for name in controllers))
        with contextlib.suppress(OSError):
            write(folder.parent / "cgroup.procs", str(os.getpid()))
        with contextlib.suppress(OSError):
            (folder / "launcher").rmdir()


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PrivilegeError(f"{what}: {error.filename}: {error.strerror}: {_REMEDY}") from None


def read(path: Path | str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def write(path: Path | str, text: str) -> None:
    """In one write, as the kernel takes it, and never making a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(fd)
