"""The launcher's two halves, as the kernel sees them: who holds what after the fork, and what a settings error does to both."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

import pytest

from dagseal.footing import Accounts
from launcher.privileges import status_of
from tests.attacks.attacker import notary_pid_of, until
from tests.bench.launch_client import clients
from tests.bench.launch_daemon import Daemon, daemon
from tests.root.launcher.mode_host import Host, host, refused, started

pytestmark = pytest.mark.root

NONE = "0" * 16
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def work(launcher: Daemon) -> None:
    with clients(launcher, 1) as (caller,):
        caller.order(do="many", count=5)
        assert caller.answer() == 5


def test_the_notary_has_dropped_and_the_monitor_holds_nothing_else() -> None:
    with daemon("standard") as launcher:
        work(launcher)
        monitor = launcher.process.pid
        notary = notary_pid_of(monitor)
        account = pwd.getpwnam(Accounts.choose().notary)
        status = status_of(notary)
        assert status["Uid"].split() == [str(account.pw_uid)] * 4
        assert status["Gid"].split() == [str(account.pw_gid)] * 4
        assert (status["Groups"], status["NoNewPrivs"]) == ("", "1")
        assert {status[name] for name in CAPABILITIES} == {NONE}
        for pid in (monitor, notary):
            assert os.stat(f"/proc/{pid}/environ").st_uid == 0, "not dumpable (proc(5))"
        # No cryptography in the process that can become others, and no way of its own to what the notary keeps open.
        assert "cryptography" in Path(f"/proc/{notary}/maps").read_text()
        assert "site-packages" not in Path(f"/proc/{monitor}/maps").read_text()
        holds(monitor, launcher, {"cgroup", "eventpoll", "log", "null", "pidfd", "socket"})
        holds(
            notary,
            launcher,
            {"eventpoll", "journal", "keys", "log", "null", "pidfd", "pipe", "socket", "state"},
        )


def holds(pid: int, launcher: Daemon, kinds: set[str]) -> None:
    """These, all the time. For an instant also a file of /proc: a spare that comes to it is looked at there."""

    def at_rest() -> bool:
        found = kinds_of_fds(pid, launcher)
        assert kinds <= found <= kinds | {"proc"}
        return found == kinds

    until("nothing of /proc is open", at_rest)


def kinds_of_fds(pid: int, launcher: Daemon) -> set[str]:
    """What there is of each sort; warm processes' and tasks' own among it."""
    names = {
        str(launcher.folder / "launcher"): "state",
        str(launcher.folder / "launcher" / "keys"): "keys",
        str(launcher.folder / "launcher.log"): "log",
        "/dev/null": "null",
    }
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(path)
        except FileNotFoundError:
            continue  # closed since it was listed
        if "/journal" in target:
            found.add("journal")
        elif target.startswith("/sys/fs/cgroup"):
            found.add("cgroup")
        else:
            found.add(names.get(target) or re.sub(r"^(anon_inode:)?/?\[?(\w+).*", r"\2", target))
    return found


def test_what_is_the_notarys_belongs_to_it_alone() -> None:
    with daemon("standard") as launcher:
        work(launcher)
        uid = pwd.getpwnam(Accounts.choose().notary).pw_uid
        state = launcher.folder / "launcher"
        paths = [state, *state.rglob("*")]
        assert {path.name for path in paths} >= {"keys", "journal", "signing.key", "sealing.key"}
        assert {(path.stat().st_uid, path.stat().st_mode & 0o077) for path in paths} == {(uid, 0)}


@pytest.mark.parametrize(
    ("notary", "why"),
    [
        ("", "users.notary is missing: name an account that nothing else runs as"),
        ("root", "is uid or gid 0"),
        ("missing-account", "does not exist"),
        (Accounts.choose().agent, "is a peer or the parser too"),
        (Accounts.choose().parser, "is a peer or the parser too"),
    ],
)
def test_an_account_that_the_notary_cannot_have(notary: str, why: str) -> None:
    with host(owner="root") as place:
        wrong = Host(
            folder=place.folder,
            key=place.key,
            caller=place.caller,
            parser=place.parser,
            users=place.users,
            notary=notary,
        )
        wrong.write_policy(profile="standard")
        said = refused(wrong, [])
        assert why in said
        assert not place.socket.exists() and not list((place.folder / "state").iterdir())


def test_a_state_folder_of_somebody_else() -> None:
    with host(owner="root") as place:
        place.write_policy(profile="standard")
        os.chown(place.folder / "state", 0, 0)
        uid = pwd.getpwnam(place.notary).pw_uid
        assert f"Permission denied: it is to belong to uid {uid} alone" in refused(place, [])
        assert not place.socket.exists() and not list((place.folder / "state").iterdir())


def test_a_state_folder_that_is_not_there_is_made_for_it() -> None:
    with host(owner="root") as place:
        place.write_policy(profile="standard")
        (place.folder / "state").rmdir()
        with started(place, []):
            found = (place.folder / "state").stat()
            assert (found.st_uid, found.st_mode & 0o777) == (pwd.getpwnam(place.notary).pw_uid, 0o700)


def test_a_launcher_that_is_not_root_keeps_its_account() -> None:
    with host(owner="uucp") as place:
        Host(
            folder=place.folder, key=place.key, caller="uucp", parser="uucp", users=place.users, notary="news"
        ).write_policy(profile="standard")
        said = refused(place, ["setpriv", "--reuid", "uucp", "--regid", "uucp", "--clear-groups"])
        assert "keeps its own account: remove it" in said
