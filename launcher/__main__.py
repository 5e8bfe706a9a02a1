"""`python -s -P -S …/launcher/__main__.py --config FILE [--on-stdin | --rootless]`: the launcher.

Started without `site`: no `.pth` file is read and no third-party module but `cryptography` can be imported, as only the
folder that holds it is put on the path. SIGTERM and SIGINT end it, with every task.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from functools import partial

_DESCRIPTION_LOG_BYTES = 64 * 1024
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _packages_folder() -> str:
    """The site-packages of the interpreter, or of the virtual environment that it belongs to (PEP 405)."""
    prefix = os.path.dirname(os.path.dirname(os.path.abspath(sys.executable)))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if os.path.exists(os.path.join(prefix, "pyvenv.cfg")):
        return os.path.join(prefix, "lib", version, "site-packages")
    import sysconfig

    return sysconfig.get_paths()["purelib"]


if sys.flags.no_site:
    sys.path += [_ROOT, _packages_folder()]

from integrity.errors import DagsealError, SettingsError
from integrity.keys import fingerprint
from launcher import cgroups, modes, privileges, rootless
from launcher import context as contexts
from launcher import policy as policies
from launcher.accounts import Account
from launcher.isolation import profile
from launcher.journal import Journal
from launcher.server import Server, log
from launcher.tasklog import TaskLog
from launcher.taskprocess import TaskProcess
from launcher.trees import Trees, WalkTrees
from launcher.warmpool import PoolRules, WarmPool
from launcher.warmprocess import Kind, WarmProcess, clean_environment


def build(policy: policies.Policy, owner: Account | None) -> contexts.Context:
    """Everything that lives as long as the daemon. Raises `SettingsError`."""
    os.makedirs(policy.state_dir, mode=0o700, exist_ok=True)
    state_fd = contexts.open_private(policy.state_dir)
    privileged, limits, packages = modes.mode(owner) != "alone", policy.limits, _packages_folder()
    passed = {name: os.environ[name] for name in policy.pass_environment if name in os.environ}

    def environment(kind: Kind) -> dict[str, str]:
        # A description must be the same everywhere and gets no secret: nothing is passed on to it.
        return clean_environment(kind, policy.set_environment | (passed if kind.purpose == "run" else {}))

    def now_us() -> int:
        return time.time_ns() // 1000

    async def fork(warm: WarmProcess) -> TaskProcess:
        open_log = partial(
            TaskLog,
            max_bytes=limits.max_log_bytes if warm.kind.purpose == "run" else _DESCRIPTION_LOG_BYTES,
            bytes_per_second=limits.log_bytes_per_second,
            now_us=now_us,
        )
        return await TaskProcess.fork(warm, kept, open_log=open_log, max_frame=limits.max_task_frame_bytes)

    kept = trees(policy, owner)
    return contexts.Context(
        policy=policy,
        keys=contexts.load_keys(contexts.open_folder(state_fd, "keys")),
        journal=Journal(contexts.open_folder(state_fd, "journal"), now_us=now_us),
        pool=WarmPool(
            privileged=privileged,
            rules=PoolRules(
                spares=limits.warm_spares,
                max_tasks=limits.warm_max_tasks,
                idle_seconds=limits.warm_idle_seconds,
                start_timeout_seconds=limits.warm_start_timeout_seconds,
            ),
            environment=environment,
            fork=fork,
            stamp=lambda: os.stat(packages).st_mtime_ns,
        ),
        trees=kept,
        privileged=privileged,
        owner=owner,
        now_us=now_us,
    )


def trees(policy: policies.Policy, owner: Account | None) -> Trees:
    """The best that this host and account allow. Raises `PrivilegeError` where the policy's limits cannot be kept."""
    wanted, limits = policy.isolation.cgroup_limits, policy.limits
    asked = cgroups.Limits(
        memory_max_bytes=limits.task_memory_bytes if wanted else None,
        pids_max=limits.task_pids if wanted else None,
        cpu_percent=limits.task_cpu_percent if wanted else None,
    )
    found = cgroups.CgroupTrees.find(asked)
    chosen = {policy.isolation.profile, policy.isolation.describe, *policy.isolation.queues.values()}
    kept: Trees = found if found is not None else WalkTrees()
    try:
        if found is not None and not found.kills and not all(profile(name).namespaces for name in chosen):
            raise SettingsError(
                "this host has no cgroup.kill (cgroup v2, Linux 5.14): use no profile without namespaces here"
            )
        modes.require(policy, kept, owner)
    except BaseException:
        kept.close()
        raise
    return kept


async def serve(policy: policies.Policy, *, on_stdin: bool, owner: Account | None) -> None:
    """Run until a signal, or the end of stdin."""
    stdin = modes.stdin_socket() if on_stdin else None
    caller = modes.caller_of(stdin) if stdin is not None else None
    context = build(policy, owner)
    server = Server(context)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    context.journal.write(
        "start",
        privileged=context.privileged,
        trees=context.trees.name,
        limits=context.trees.describe(),
        memory_locked=privileges.lock_memory(),
    )
    log(
        "ready",
        socket=policy.socket if stdin is None else "stdin",
        fingerprint=fingerprint(context.keys.signing.public, context.keys.sealing.public),
        privileged=context.privileged,
        mode=modes.mode(owner),
        warnings=modes.warnings(context),
    )
    if stdin is not None and caller is not None:
        await server.serve_caller(stdin, caller)
    else:
        await server.listen()
    context.journal.write("stop")


def main() -> int:
    parser = argparse.ArgumentParser(prog="dagseal launcher", description="the privileged launcher of dagseal")
    parser.add_argument("--config", default="/etc/dagseal/launcher.toml", help="its policy file, owned by root")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--on-stdin", action="store_true", help="started by sudo: serve the caller's connections only")
    way.add_argument("--rootless", action="store_true", help="as an ordinary user, with subordinate ids (newuidmap)")
    arguments = parser.parse_args()
    os.umask(0o077)
    try:
        policy = policies.load(arguments.config)  # before the numbers of its owners change
        owner = rootless.enter() if arguments.rootless else None
        privileges.prctl(privileges.PR_SET_DUMPABLE, 0)  # its keys are nobody's, also where it is not root
        asyncio.run(serve(policy, on_stdin=arguments.on_stdin, owner=owner))
    except DagsealError as error:
        print(f"dagseal launcher: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
