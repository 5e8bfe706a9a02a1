"""`python -s -P -S …/launcher/__main__.py --config FILE [--on-stdin | --rootless]`: the launcher.

It makes what takes privileges to make, forks the notary, which drops before it imports anything but the standard library, and
serves it as its monitor. Started without `site`: no `.pth` file is read, and no third-party module can be imported, as the
folder that holds `cryptography` is put on the path in the notary only. SIGTERM and SIGINT end both, with every task.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
import time

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_STOP_SECONDS = 15.0

if sys.flags.no_site:
    sys.path.append(_ROOT)

from integrity.errors import DagsealError, SettingsError
from launcher import cgroups, modes, policy, privileges, rootless
from launcher.accounts import Account
from launcher.channel import Channel, wait_readable
from launcher.isolation import profile
from launcher.kinds import Kind, clean_environment
from launcher.listening import bind
from launcher.monitor import FRAME_BYTES, Monitor
from launcher.policy import Policy
from launcher.powers import LocalPowers
from launcher.separation import Place, fork_notary
from launcher.trees import Trees, WalkTrees


def prepare(rules: Policy, *, on_stdin: bool, owner: Account | None) -> tuple[Place, Trees]:
    """Raises `SettingsError` or `PrivilegeError` for what the policy asks for and this host or account cannot do."""
    mode = modes.mode(owner)
    notary = modes.notary_identity(rules, mode)
    stdin = modes.stdin_socket() if on_stdin else None
    caller = modes.caller_of(stdin) if stdin is not None else None
    if not os.path.isdir(rules.state_dir):
        os.makedirs(rules.state_dir, mode=0o700)
        if notary is not None:
            os.chown(rules.state_dir, notary.uid, notary.gid)
    kept = keep_trees(rules, owner)
    try:
        door = stdin or bind(rules.socket)
    except BaseException:
        kept.close()
        raise
    limits = kept.describe()
    return Place(
        policy=rules, mode=mode, owner=owner, notary=notary, trees=kept.name, limits=limits, door=door, caller=caller
    ), kept


def keep_trees(rules: Policy, owner: Account | None) -> Trees:
    """The best that this host and account allow. Raises `PrivilegeError` where the policy's limits cannot be kept."""
    wanted, limits = rules.isolation.cgroup_limits, rules.limits
    asked = cgroups.Limits(
        memory_max_bytes=limits.task_memory_bytes if wanted else None,
        pids_max=limits.task_pids if wanted else None,
        cpu_percent=limits.task_cpu_percent if wanted else None,
    )
    found = cgroups.CgroupTrees.find(asked)
    chosen = {rules.isolation.profile, rules.isolation.describe, *rules.isolation.queues.values()}
    kept: Trees = found if found is not None else WalkTrees()
    try:
        if found is not None and not found.kills and not all(profile(name).namespaces for name in chosen):
            raise SettingsError(
                "this host has no cgroup.kill (cgroup v2, Linux 5.14): use no profile without namespaces here"
            )
        modes.require(rules, kept, owner)
    except BaseException:
        kept.close()
        raise
    return kept


async def be_monitor(place: Place, kept: Trees, notary: int, ours: socket.socket) -> int:
    """Serve the notary for as long as it lives; its exit code. Nothing that was started is left then."""
    pidfd = os.pidfd_open(notary)
    loop = asyncio.get_running_loop()
    passed = {name: os.environ[name] for name in place.policy.pass_environment if name in os.environ}

    def environment(kind: Kind) -> dict[str, str]:
        # A description must be the same everywhere and gets no secret: nothing is passed on to it.
        return clean_environment(kind, place.policy.set_environment | (passed if kind.purpose == "run" else {}))

    privileged = place.mode != "alone"
    powers = LocalPowers(privileged=privileged, trees=kept, environment=environment)
    monitor = Monitor(place.policy, powers, privileged=privileged, owner=place.owner, now=lambda: int(time.time()))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signal.pidfd_send_signal, pidfd, signal.SIGTERM)
    try:
        channel = Channel(ours, limit=FRAME_BYTES)
        await monitor.serve(channel)  # its end is the notary's, or what the notary said was out of the table
        channel.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await wait_readable(pidfd)
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await wait_readable(pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(notary, 0)[1])  # noqa: ASYNC222 - it is dead
        await powers.close()
        if place.caller is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(place.policy.socket)
    return code if code >= 0 else 128 - code


def main() -> int:
    parser = argparse.ArgumentParser(prog="dagseal launcher", description="the privileged launcher of dagseal")
    parser.add_argument("--config", default="/etc/dagseal/launcher.toml", help="its policy file, owned by root")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--on-stdin", action="store_true", help="started by sudo: serve the caller's connections only")
    way.add_argument("--rootless", action="store_true", help="as an ordinary user, with subordinate ids (newuidmap)")
    arguments = parser.parse_args()
    os.umask(0o077)
    try:
        rules = policy.load(arguments.config)  # before the numbers of its owners change
        owner = rootless.enter() if arguments.rootless else None
        privileges.prctl(privileges.PR_SET_DUMPABLE, 0)
        place, kept = prepare(rules, on_stdin=arguments.on_stdin, owner=owner)
        return asyncio.run(be_monitor(place, kept, *fork_notary(place)))
    except DagsealError as error:
        print(f"dagseal launcher: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
