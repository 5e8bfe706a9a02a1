"""What a stack finds on its host: accounts for its processes, free names and ports, who listens, what may be confined."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from integrity.errors import SettingsError

_API_ACCOUNTS = ("dagseal-api", "www-data", "daemon")
_AGENT_ACCOUNTS = ("dagseal-agent", "proxy", "uucp")
_NOTARY_ACCOUNTS = ("dagseal-launcher", "list", "news")
_PARSER_ACCOUNTS = ("dagseal-parser", "games", "irc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """Which existing account plays which part."""

    api: str
    agent: str
    parser: str
    notary: str

    @classmethod
    def choose(cls) -> Accounts:
        """Four different ones when root, else the invoking account for all. Raises `SettingsError`."""
        if os.geteuid() != 0:
            own = pwd.getpwuid(os.geteuid()).pw_name
            return cls(api=own, agent=own, parser=own, notary=own)
        return cls(
            api=_first_existing(_API_ACCOUNTS),
            agent=_first_existing(_AGENT_ACCOUNTS),
            parser=_first_existing(_PARSER_ACCOUNTS),
            notary=_first_existing(_NOTARY_ACCOUNTS),
        )


def free_port() -> int:
    """A TCP port on loopback that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def new_folder(parent: Path) -> Path:
    """A fresh name below `parent`."""
    return parent / f"dagseal-{secrets.token_hex(4)}"


def service_environment() -> dict[str, str]:
    """What a service finds in its environment: nothing of who starts it."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}


def confines() -> bool:
    """Whether this account may make the namespaces of a task: tried, in a child."""
    tried = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    return (
        shutil.which("unshare") is not None and subprocess.run(tried, capture_output=True, check=False).returncode == 0
    )


def _first_existing(names: tuple[str, ...]) -> str:
    for name in names:
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise SettingsError(
        f"none of the accounts {', '.join(names)} exists: create the first, or start the services by hand"
    )


def connects(path: Path) -> bool:
    """Whether somebody listens on this unix socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
    return True


def answers(port: int) -> bool:
    """Whether somebody listens on this port of loopback."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
