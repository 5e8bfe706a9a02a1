"""`python -s -P -S …/launcher/__main__.py --config FILE`: the launcher daemon.

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

from integrity.errors import DagsealError
from integrity.keys import fingerprint
from launcher import context as contexts
from launcher import policy as policies
from launcher import trees
from launcher.journal import Journal
from launcher.replay import UsedTickets
from launcher.server import Server, log, warnings
from launcher.warmpool import Kind, WarmPool, clean_environment


def build(policy: policies.Policy) -> contexts.Context:
    """Everything that lives as long as the daemon. Raises `SettingsError`."""
    os.makedirs(policy.state_dir, mode=0o700, exist_ok=True)
    state_fd = contexts.open_private(policy.state_dir)
    privileged = os.geteuid() == 0
    passed = {name: os.environ[name] for name in policy.pass_environment if name in os.environ}

    def environment(kind: Kind) -> dict[str, str]:
        # A description must be the same everywhere and gets no secret: nothing is passed on to it.
        return clean_environment(kind, policy.set_environment | (passed if kind.purpose == "run" else {}))

    def now_us() -> int:
        return time.time_ns() // 1000

    return contexts.Context(
        policy=policy,
        keys=contexts.load_keys(contexts.open_folder(state_fd, "keys")),
        journal=Journal(contexts.open_folder(state_fd, "journal"), "journal.jsonl", now_us=now_us),
        used=UsedTickets(contexts.open_folder(state_fd, "used-tickets")),
        pool=WarmPool(
            privileged=privileged,
            environment=environment,
            start_timeout_seconds=policy.limits.warm_start_timeout_seconds,
            idle_seconds=policy.limits.warm_idle_seconds,
        ),
        trees=trees.choose(),
        privileged=privileged,
        now_us=now_us,
    )


async def serve(policy: policies.Policy) -> None:
    """Run until a signal."""
    context = build(policy)
    server = Server(context)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    context.journal.write("start", privileged=context.privileged, trees=context.trees.name)
    shown = fingerprint(context.keys.signing.public, context.keys.sealing.public)
    log("ready", socket=policy.socket, fingerprint=shown, privileged=context.privileged, warnings=warnings(context))
    await server.serve()
    context.journal.write("stop")


def main() -> int:
    parser = argparse.ArgumentParser(prog="dagseal launcher", description="the privileged launcher of dagseal")
    parser.add_argument("--config", default="/etc/dagseal/launcher.toml", help="its policy file, owned by root")
    arguments = parser.parse_args()
    os.umask(0o077)
    try:
        asyncio.run(serve(policies.load(arguments.config)))
    except DagsealError as error:
        print(f"dagseal launcher: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
