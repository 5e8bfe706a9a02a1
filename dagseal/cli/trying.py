"""What this host permits of the four ways to be privileged and of each isolation profile: not looked up but done.

A child takes the steps of the launcher's own code, from its first privilege to a confined task, and says what stopped it. No
running launcher is touched. `docs/privilege-separation.md` says what each way promises.
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from dagseal.cli.diagnoses import Diagnosis, failed, ok, warning
from integrity.errors import DagsealError
from launcher import cgroups, controllers, namespaces, privileges, rootless
from launcher.isolation import PROFILES, Confinement
from launcher.policy import Limits
from launcher.privileges import CAP_KILL, CAP_SETGID, CAP_SETUID, Identity
from launcher.task import landlock
from launcher.task.confining import confine

ROOT, CAPABILITIES, SUDO, ROOTLESS = "(a) root", "(b) capabilities", "(c) sudo", "(d) rootless"
_PR_SET_KEEPCAPS = 8
_CAPABILITY_VERSION = 0x20080522
_DEFAULTS = cgroups.Limits(memory_max_bytes=Limits().task_memory_bytes, pids_max=Limits().task_pids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """`enter` makes this process what a launcher of that way is; empty `missing` or why it cannot even be tried."""

    name: str
    enter: Callable[[], object]
    missing: str = ""
    but: str = ""


def mode_checks(users: list[str], needed: set[str]) -> list[Diagnosis]:
    """For each way and profile what stops it. One that does not work is a warning; that none does what is needed, a failure."""
    task = _task_identity(users)
    found, works = [], set()
    for way in (_root(), _capabilities(task), _sudo(), _rootless()):
        if way.missing:
            found.append(warning(way.name, way.missing))
            continue
        for name in PROFILES:
            problem, label = attempt(way.enter, name, task), f"{way.name}, {name}"
            found.append(warning(label, problem) if problem else ok(label, f"a task can be confined so{way.but}"))
            works |= set() if problem else {name}
    lacking = sorted(needed - works)
    if lacking and os.geteuid() == 0:
        found.append(failed("profiles", f"no way to be privileged does {', '.join(lacking)} here: see the lines above"))
    return [*found, *_kernel(), *_limits()]


def attempt(enter: Callable[[], object], profile: str, task: Identity) -> str:
    """Take all steps with that profile, in a child; what stopped it, or nothing."""

    def steps() -> None:
        enter()
        confinement = Confinement(
            profile=PROFILES[profile], network=True, readable=(), writable=(), tcp_ports=(), tmp_bytes=1 << 20
        )
        inner = confinement.profile.namespaces
        if inner:
            namespaces.enter_user_namespace(task)
        else:
            privileges.empty_bounding_set()
        privileges.drop(task, keep_capabilities=inner)
        privileges.prctl(privileges.PR_SET_NO_NEW_PRIVS, 1)
        if inner:
            _in_child(lambda: _confined_in_namespaces(confinement, task))
        else:
            confine(confinement, task, packages=_packages())

    return in_child(steps)


def _confined_in_namespaces(confinement: Confinement, task: Identity) -> None:
    """As process 1 of a warm process's pid namespace: one more, and a task in it."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    namespaces.next_pid_namespace(own)
    _in_child(lambda: confine(confinement, task, packages=_packages()) and None)


def in_child(body: Callable[[], None]) -> str:
    """What `body` raised in a forked child, as text; nothing if it did not."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _report(body, write)
    os.close(write)
    with os.fdopen(read, encoding="utf-8", errors="replace") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return said or ("" if status == 0 else f"the child ended with wait status {status}")


def _in_child(body: Callable[[], object]) -> None:
    """A further fork of the child: what it raises is ours."""

    def run() -> None:
        body()

    said = in_child(run)
    if said:
        raise RuntimeError(said)


def _report(body: Callable[[], None], write: int) -> NoReturn:
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in (1, 2):
            os.dup2(null, fd)
        body()
        code = 0
    except BaseException as error:
        words = str(error) if isinstance(error, DagsealError | RuntimeError) else f"{type(error).__name__}: {error}"
        os.write(write, (words or type(error).__name__).encode())
    finally:
        os._exit(code)


def _root() -> Way:
    missing = "" if os.geteuid() == 0 else "not tried: run dagseal doctor as root"
    return Way(name=ROOT, enter=lambda: None, missing=missing)


def _capabilities(task: Identity) -> Way:
    if os.geteuid() != 0:
        return Way(name=CAPABILITIES, enter=lambda: None, missing="not tried: run dagseal doctor as root")
    try:
        shadow, group = os.stat("/etc/shadow"), grp.getgrnam("shadow").gr_gid
    except (OSError, KeyError):
        return Way(
            name=CAPABILITIES, enter=lambda: None, missing="there is no /etc/shadow or no group shadow to read it"
        )
    missing = (
        ""
        if shadow.st_gid == group and shadow.st_mode & stat.S_IRGRP
        else "/etc/shadow cannot be read by group shadow: chgrp shadow /etc/shadow; chmod g+r /etc/shadow"
    )
    account = next(e for e in pwd.getpwall() if e.pw_uid not in (0, task.uid) and e.pw_gid != 0)

    def enter() -> None:
        privileges.prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups([group])
        os.setresgid(*[account.pw_gid] * 3)
        os.setresuid(*[account.pw_uid] * 3)
        held = 1 << CAP_SETUID | 1 << CAP_SETGID | 1 << CAP_KILL
        data = (ctypes.c_uint32 * 6)(held, held, 0, 0, 0, 0)
        if ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), data) != 0:
            raise RuntimeError("the three capabilities cannot be held: this host or container lacks one of them")
        privileges.prctl(privileges.PR_SET_DUMPABLE, 1)  # as after the exec of a warm process
        with open("/etc/shadow", "rb"):
            pass

    return Way(name=CAPABILITIES, enter=enter, missing=missing)


def _sudo() -> Way:
    path = shutil.which("sudo")
    if path is None:
        return Way(name=SUDO, enter=lambda: None, missing="sudo is not installed: apt-get install sudo")
    problem = _setuid_problem(path)
    if not problem and os.geteuid() != 0:
        listed = subprocess.run(
            [path, "-n", "-l"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        if "--on-stdin" not in listed.stdout:
            problem = "sudo has no line for the launcher and this account: see docs/sudoers.d/dagseal"
        else:
            problem = "sudo has a line for this account; the profiles are not tried: run dagseal doctor as root"
    but = "; whether sudo has a line for it: run dagseal doctor as the agent's account"
    return Way(name=SUDO, enter=lambda: None, missing=problem, but=but)


def _rootless() -> Way:
    for program in ("newuidmap", "newgidmap"):
        path = shutil.which(program)
        if path is None:
            return Way(name=ROOTLESS, enter=lambda: None, missing=f"{program} is not installed: apt-get install uidmap")
        problem = _setuid_problem(path)
        if problem:
            return Way(name=ROOTLESS, enter=lambda: None, missing=problem)
    account = None
    if os.geteuid() == 0:
        account = next((entry for name in _with_ranges() if (entry := _entry(name)) and entry.pw_uid != 0), None)
        if account is None:
            advice = "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ACCOUNT"
            return Way(
                name=ROOTLESS, enter=lambda: None, missing=f"no account has subordinate ids (/etc/subuid): {advice}"
            )

    def enter() -> None:
        if account is not None:
            os.setgroups([])
            os.setresgid(*[account.pw_gid] * 3)
            os.setresuid(*[account.pw_uid] * 3)
            privileges.prctl(privileges.PR_SET_DUMPABLE, 1)  # as after an exec
        rootless.enter()

    return Way(name=ROOTLESS, enter=enter)


def _kernel() -> list[Diagnosis]:
    found = landlock.abi()
    advice = (
        f"Landlock ABI {found}: profile strict needs 6 (Linux 6.12), standard 1 (5.13), both with landlock among lsm="
    )
    checks = [ok("landlock", f"ABI {found}") if found >= 6 else warning("landlock", advice)]
    if os.geteuid() != 0:
        said = in_child(lambda: namespaces.unshare(namespaces.CLONE_NEWUSER))
        checks.append(
            warning("user namespaces", f"{said}: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone and"
                    " kernel.apparmor_restrict_unprivileged_userns decide") if said
            else ok("user namespaces", "an ordinary account may make one")
        )  # fmt: skip
    return checks


def _limits() -> list[Diagnosis]:
    """The launcher's default limits, set for a probe and removed again."""
    said = in_child(_limited)
    if said:
        return [
            warning(
                "limits of a task", f"{said}; or isolation.unsafe_no_cgroup_limits = true, and nothing limits a task"
            )
        ]
    found = [ok("limits of a task", "memory and processes of a task can be limited from here")]
    owns = controllers.own_cgroups(_text("/proc/self/cgroup"), _text("/proc/self/mountinfo"))
    if any(asked and own.version == 1 for own, asked in controllers.share(_DEFAULTS, owns).items()):
        advice = "these controllers are in cgroup v1 here, where only root may move others' processes: boot with cgroup v2, or"
        found.append(warning("limits of a task, (b) and (d)", f"{advice} isolation.unsafe_no_cgroup_limits = true"))
    return found


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _limited() -> None:
    trees = cgroups.CgroupTrees.find(_DEFAULTS)
    if trees is None:
        raise RuntimeError("no cgroup here can be divided: start the launcher as root or with Delegate=yes")
    trees.close()


def _setuid_problem(path: str) -> str:
    found = os.stat(path)
    if not (found.st_mode & stat.S_ISUID and found.st_uid == 0) and "security.capability" not in os.listxattr(path):
        return f"{path} is neither setuid root nor has file capabilities: reinstall its package"
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        return f"{path} lies on a file system that is mounted nosuid"
    if privileges.status_of("self")["NoNewPrivs"] == "1":
        return "this process has no_new_privs, so no setuid program works: NoNewPrivileges=no in its unit"
    return ""


def _task_identity(users: list[str]) -> Identity:
    entry = next((found for name in (*users, "nobody") if (found := _entry(name))), None)
    if entry is None or entry.pw_uid == 0:
        return Identity(65534, 65534, (65534,))
    return Identity(entry.pw_uid, entry.pw_gid, (entry.pw_gid,))


def _with_ranges() -> list[str]:
    try:
        with open("/etc/subuid", encoding="utf-8", errors="replace") as file:
            return [line.split(":")[0] for line in file]
    except OSError:
        return []


def _entry(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _packages() -> tuple[str, ...]:
    return tuple(sorted({path for path in (sys.prefix, sys.base_prefix, *sys.path) if os.path.isdir(path)}))
