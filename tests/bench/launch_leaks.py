"""What many launches leave behind in a launcher and in the processes below it: nothing may grow.

Counted after a first few launches, which fill caches and allocate what is kept, and again after all: once everything that
ends by itself has ended: the same count for a second.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.attacks.attacker import children_of
from tests.bench.launch_client import Client, clients
from tests.bench.launch_daemon import MAIN, daemon

RSS_GROWTH = 0.02
CLIENTS = 2
FIRST_CLIENTS = 6  # more than later, so that every thread and buffer that two clients can need is there by then
_SETTLE_SECONDS = 30.0
_APART_SECONDS = 0.2
_AT_REST_SECONDS = 1.0
_RSS = "RSS KiB, each"
_LAUNCHER_THREADS = 1 + min(32, (os.cpu_count() or 1) + 4)
Counts = dict[tuple[str, str], int]


def grown_by(count: int, *, profile: str = "", say: Callable[[str], None] = print) -> list[str]:
    """Make `count` launches, a fifth of which are denied or abandoned, and print before and after; what grew, in words."""
    # For ten thousand more than a minute of load, after which as many used tickets expire as come; and not near a thousand
    # launches, after which a warm process is replaced: its successor imports for seconds, and looks like rest.
    first = max(60, count // 8 + 50)
    with daemon(profile) as started, clients(started, FIRST_CLIENTS) as callers:
        pid = started.process.pid
        _launch(callers, first)
        _launch(callers[:CLIENTS], first)  # so that before and after come of the same load
        before, begin = settled(pid), time.monotonic()
        _launch(callers[:CLIENTS], count)
        took, after = time.monotonic() - begin, settled(pid)
    say(f"{count} launches in {took:.0f} s, after {2 * first} that are not counted; profile {profile or 'of today'}\n")
    say(_table(before, after))
    if os.geteuid() != 0:
        say("\nnot root: descriptors and memfds of processes that are not dumpable could not be counted")
    return grown(before, after)


def grown(before: Counts, after: Counts) -> list[str]:
    """The lines that grew beyond what they may."""
    return [
        f"{role}: {what} grew from {before.get((role, what), 0)} to {now}"
        for (role, what), now in sorted(after.items())
        if now > _most(role, what, before.get((role, what), 0))
    ]


def _most(role: str, what: str, was: int) -> float:
    """Memory, which is compared per process, may grow a little. Threads of the launcher's halves are those of asyncio's
    executor, which starts one when all are busy and keeps it, up to its bound (concurrent.futures.ThreadPoolExecutor): that
    bound holds."""
    if what == _RSS:
        return was * (1 + RSS_GROWTH)
    return max(was, _LAUNCHER_THREADS) if role in ("launcher", "notary") and what == "threads" else was


def settled(launcher: int) -> Counts:
    """Counts for a second that differ in nothing but memory, or the last after half a minute."""
    begin, last = time.monotonic(), count_all(launcher)
    same_since = begin
    while True:
        time.sleep(_APART_SECONDS)  # between two looks at processes that tell nobody when they are at rest
        found, now = count_all(launcher), time.monotonic()
        if _without_memory(found) != _without_memory(last):
            last, same_since = found, now
        if now - same_since >= _AT_REST_SECONDS or now - begin > _SETTLE_SECONDS:
            return found


def count_all(launcher: int) -> Counts:
    """By role: the launcher's monitor, its notary, each kind of its other children, and what is below these, by depth: tasks
    and spares are the lowest."""
    found: Counter[tuple[str, str]] = Counter()
    for pid, role in _family(launcher):
        try:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        except OSError:
            continue  # it ended meanwhile
        found[role, "processes"] += 1
        names, mounts = _descriptors(pid), _lines(f"/proc/{pid}/mountinfo")
        found[role, "descriptors"] += len(names)
        found[role, "memfds"] += sum(name.startswith("/memfd:") for name in names)
        found[role, "threads"] += int(status.get("Threads", "1"))
        found[role, "mounts"] += len(mounts)
        found[role, _RSS] += int(status.get("VmRSS", "0 kB").split()[0])
    found["launcher", "cgroup folders"] = _cgroup_folders(launcher)
    return {key: value // found[key[0], "processes"] if key[1] == _RSS else value for key, value in found.items()}


def _descriptors(pid: int) -> list[str]:
    """What each stands for; a zombie has none."""
    found = []
    with contextlib.suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            found.append(os.readlink(fd))
    return found


def _lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text().splitlines()
    return []


def _family(launcher: int) -> list[tuple[int, str]]:
    family, todo = [(launcher, "launcher")], [(child, _role_of(child), 0) for child in _children(launcher)]
    while todo:
        pid, role, depth = todo.pop()
        family.append((pid, f"{role}, {depth} below" if depth else role))
        todo += [(child, role, depth + 1) for child in _children(pid)]
    return family


def _children(pid: int) -> list[int]:
    try:
        return children_of(pid)
    except OSError:
        return []


def _role_of(pid: int) -> str:
    """A warm process is known by its purpose, which stands in its arguments; the notary has its monitor's; any other child is
    known by its program."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return "gone"
    purpose = next((word for word in arguments if word in ("run", "describe")), "")
    if MAIN in arguments:
        return "notary"
    return f"warm {purpose}" if purpose else os.path.basename(arguments[0]) or "zombie"


def _cgroup_folders(launcher: int) -> int:
    """Of every hierarchy: those that the launcher made, in folders that carry its pid, and all below them."""
    count = 0
    for line in _lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        if after.split()[0] in ("cgroup", "cgroup2"):
            for path, _, _ in os.walk(before.split()[4]):
                count += f"/dagseal-{launcher}" in path
    return count


def _launch(callers: list[Client], count: int) -> None:
    share, rest = divmod(count, len(callers))
    shares = [share + (number < rest) for number in range(len(callers))]
    for caller, many in zip(callers, shares, strict=True):
        caller.order(do="many", count=many)
    for caller, many in zip(callers, shares, strict=True):
        assert caller.answer() == many


def _without_memory(counts: Counts) -> Counts:
    return {key: value for key, value in counts.items() if key[1] != _RSS}


def _table(before: Counts, after: Counts) -> str:
    keys = sorted(before.keys() | after.keys())
    width = max(len(f"{role}: {what}") for role, what in keys)
    lines = [f"{'':<{width}}  {'before':>9}  {'after':>9}"]
    for key in keys:
        lines.append(f"{': '.join(key):<{width}}  {before.get(key, 0):>9}  {after.get(key, 0):>9}")
    return "\n".join(lines)
