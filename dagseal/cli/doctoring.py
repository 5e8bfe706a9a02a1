"""Whether a host is fit to run tasks: rules over what the kernel and the file system say, and what to do about it.

The check that matters most: every unix user that tasks run as must be able to read the interpreter and its packages, and
must not be able to write any of it, for it is code that other users' tasks and the launcher's children run.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import stat
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass

from dagseal.cli.diagnoses import Diagnosis, failed, ok, warning

OLDEST_PYTHON = (3, 11)
_MAX_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """An account's numbers."""

    name: str
    uid: int
    gids: frozenset[int]


def host_checks(users: list[str]) -> list[Diagnosis]:
    """Everything that needs no peer."""
    people, checks = [], [_python(), _memfd()]
    for user in users:
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            checks.append(failed(f"user {user}", f"there is no such account on this host: useradd --system {user}"))
            continue
        gids = frozenset(os.getgrouplist(user, entry.pw_gid))
        people.append(Person(name=user, uid=entry.pw_uid, gids=gids))
        checks.append(ok(f"user {user}", f"uid {entry.pw_uid}, gid {entry.pw_gid}"))
    if not users:
        checks.append(warning("users", "no unix user was named: add --user NAME or --launcher-config FILE"))
    for person in people:
        checks += code_checks(person, code_paths())
    return checks


def code_paths() -> list[str]:
    """What a task's process must be able to read: the interpreter, its library, the installed packages and ours."""
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    found = [sys.executable, os.path.realpath(sys.executable), sysconfig.get_path("stdlib")]
    found += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), os.path.join(own, "launcher")]
    return list(dict.fromkeys(found))


def code_checks(person: Person, paths: list[str]) -> list[Diagnosis]:
    """Readable by this person, and not writable, in every component and every file below."""
    unreadable: dict[str, str] = {}
    writable: dict[str, str] = {}
    for path in paths:
        for component, found, inside in _components(path):
            needed = 0o5 if not inside and stat.S_ISDIR(found.st_mode) else 0o1 if inside else 0o4
            if not _may(person, found, needed):
                unreadable.setdefault(component, f"mode {stat.S_IMODE(found.st_mode):04o} of uid {found.st_uid}")
            if _may_replace(person, component, found):
                writable.setdefault(component, f"mode {stat.S_IMODE(found.st_mode):04o} of uid {found.st_uid}")
        if os.path.isdir(path):
            for inner, found in _below(path):
                if _may(person, found, 0o2) and not stat.S_ISLNK(found.st_mode):
                    writable.setdefault(inner, f"mode {stat.S_IMODE(found.st_mode):04o} of uid {found.st_uid}")
    return [
        _from_faults(
            f"code readable by {person.name}",
            unreadable,
            "the interpreter and its packages can be read",
            "cannot be entered or read: chmod o+rx it, or install Python and the packages outside of it (/opt, /usr)",
        ),
        _from_faults(
            f"code not writable by {person.name}",
            writable,
            "neither the interpreter nor its packages can be changed",
            "can be changed by a task: chown root it and chmod go-w",
        ),
    ]


def _from_faults(name: str, faults: dict[str, str], fine: str, advice: str) -> Diagnosis:
    if not faults:
        return ok(name, fine)
    shown = ", ".join(f"{path} ({why})" for path, why in list(faults.items())[:_MAX_NAMED])
    more = f" and {len(faults) - _MAX_NAMED} more" if len(faults) > _MAX_NAMED else ""
    return failed(name, f"{shown}{more} {advice}")


def _components(path: str) -> Iterator[tuple[str, os.stat_result, bool]]:
    """Each component of a path from the root on, and whether it is a folder on the way to the next."""
    parts = [part for part in os.path.abspath(path).split("/") if part]
    for count in range(len(parts) + 1):
        component = "/" + "/".join(parts[:count])
        try:
            yield component, os.stat(component), count < len(parts)
        except OSError:
            return


def _below(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every entry below a folder; what vanishes meanwhile is left out."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            found = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        yield entry.path, found
        if stat.S_ISDIR(found.st_mode):
            yield from _below(entry.path)


def _may(person: Person, found: os.stat_result, bits: int) -> bool:
    """By mode bits, as the kernel picks them: owner, else group, else others. Access lists are not looked at."""
    mode = found.st_mode
    if found.st_uid == person.uid:
        mode >>= 6
    elif found.st_gid in person.gids:
        mode >>= 3
    return mode & bits == bits


def _may_replace(person: Person, component: str, found: os.stat_result) -> bool:
    """Writable, or owned and so made writable. In a sticky folder others' entries are safe, so it does not count."""
    if found.st_uid == person.uid and person.uid != 0:
        return True
    return _may(person, found, 0o2) and not (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX)


def _python() -> Diagnosis:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < OLDEST_PYTHON:
        return failed("python", f"{version}: dagseal needs {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer")
    return ok("python", f"{version} at {sys.executable}")


def _memfd() -> Diagnosis:
    try:
        fd = os.memfd_create("dagseal-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        return failed("memfd", f"the kernel refuses memfd_create ({error.strerror}): verified bytes cannot be sealed")
    try:
        os.write(fd, b"x")
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
        try:
            os.write(fd, b"y")
        except OSError:
            return ok("memfd", "sealed memory files cannot be written any more")
        return failed("memfd", "a sealed memory file could still be written: this kernel is not fit")
    except OSError as error:
        return failed("memfd", f"the kernel refuses seals ({error.strerror})")
    finally:
        os.close(fd)


def launcher_check(socket_path: str) -> Diagnosis:
    """Reachable, and who it says it is."""
    import asyncio

    from integrity.errors import DagsealError
    from vocabulary.keys import fingerprint
    from worker_cache import agent
    from worker_cache.launchers import AtSocket

    try:
        found = asyncio.run(agent.identify(AtSocket(socket_path)))
    except DagsealError as error:
        return failed("launcher", str(error))
    detail = f"version {found.version}, fingerprint {fingerprint(found.verify_key, found.sealing_key)}"
    if not found.privileged or found.warnings:
        return warning("launcher", "; ".join([detail, *found.warnings]))
    return ok("launcher", detail)
