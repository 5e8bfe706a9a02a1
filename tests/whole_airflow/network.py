"""A network of our own: this process and what it starts go into a new network namespace; three more stand for worker hosts.

    this process ── bridge 10.213.77.1 ──┬── w1 10.213.77.11
                                         ├── w2 10.213.77.12
                                         └── w3 10.213.77.13

There is no way out of it. The bridge goes with this process; the named namespaces are removed, what was left too.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

HUB = "10.213.77.1"
HOSTS = {"w1": "10.213.77.11", "w2": "10.213.77.12", "w3": "10.213.77.13"}
NETWORK = "10.213.77.0/24"
_NEW_NETWORK = 0x40000000
_BRIDGE = "dse2e"


@contextmanager
def entered() -> Iterator[None]:
    """For the rest of this process: the namespace that it leaves is not come back to."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NETWORK) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _ip("link", "set", "lo", "up")
    _ip("link", "add", _BRIDGE, "type", "bridge")
    _ip("address", "add", f"{HUB}/24", "dev", _BRIDGE)
    _ip("link", "set", _BRIDGE, "up")
    _remove()
    try:
        for name, address in HOSTS.items():
            _ip("netns", "add", namespace(name))
            _ip("link", "add", f"ds-{name}", "type", "veth", "peer", "name", "eth0", "netns", namespace(name))
            _ip("link", "set", f"ds-{name}", "master", _BRIDGE, "up")
            _ip("-n", namespace(name), "link", "set", "lo", "up")
            _ip("-n", namespace(name), "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", namespace(name), "link", "set", "eth0", "up")
        yield
    finally:
        _remove()


def namespace(host: str) -> str:
    return f"dagseal-e2e-{host}"


def inside(host: str) -> list[str]:
    """The words before a command of that host. Not `ip netns exec`, which hides /sys/fs/cgroup."""
    return ["nsenter", f"--net=/run/netns/{namespace(host)}", "--"]


def _remove() -> None:
    for name in HOSTS:
        subprocess.run(["ip", "netns", "delete", namespace(name)], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, env={"PATH": os.environ["PATH"]})
