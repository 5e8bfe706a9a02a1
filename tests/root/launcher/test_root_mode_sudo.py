"""Mode (c): a launcher that the agent's account starts through sudo, by the one line of docs/sudoers.d/dagseal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from mode_host import ENVIRONMENT, MAIN, PROFILES, PYTHON, ROOT, Host, Mode, become, conform, doctor, gone, host, until

from integrity import messages
from integrity.errors import FetchError
from launcher.privileges import status_of
from launcher.trees import descendants
from tests.attacks.attacker import acting_as
from worker_cache import launcher_link
from worker_cache.launchers import OnDemand

RULE = ROOT / "docs" / "sudoers.d" / "dagseal"


@pytest.fixture
def sudo() -> Iterator[Callable[[Host], list[str]]]:
    """Installs the rule for a host's paths and caller; the agent's `launcher_command`."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if shutil.which("sudo") is None:
        subprocess.run(["apt-get", "install", "-q", "-y", "sudo"], check=True, capture_output=True)
    installed = Path(f"/etc/sudoers.d/dagseal-test-{os.getpid()}")

    def install(place: Host) -> list[str]:
        text = RULE.read_text()
        for name, value in (
            ("/opt/dagseal/bin/python", sys.executable),
            ("/opt/dagseal/lib/launcher/__main__.py", str(MAIN)),
            ("/etc/dagseal/launcher.toml", str(place.config)),
            ("\ndagseal-agent ", f"\n{place.caller} "),
        ):
            assert name in text
            text = text.replace(name, value)
        installed.write_text(text)
        installed.chmod(0o440)
        subprocess.run(["visudo", "-cf", str(installed)], check=True, capture_output=True)
        return ["sudo", "-n", *PYTHON, str(MAIN), "--on-stdin", "--config", str(place.config)]

    try:
        yield install
    finally:
        installed.unlink(missing_ok=True)


def launchers(place: Host) -> list[int]:
    """The live launchers of this policy: sudo, their notaries and all else that runs below them not among them."""
    found: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if str(place.config).encode() in words and words[4].decode() == str(MAIN):
                found[int(folder.name)] = int(status_of(folder.name)["PPid"])
    return [pid for pid, parent in found.items() if parent not in found]


@pytest.mark.root
@pytest.mark.parametrize("profile", PROFILES)
def test_a_task_of_each_profile(profile: str, sudo: Callable[[Host], list[str]]) -> None:
    with host(owner="root") as place:
        place.write_policy(profile=profile)
        report = place.launch(command=sudo(place))
        assert report["uid"] == pwd.getpwnam(place.caller).pw_uid
        assert launchers(place) == []
        assert not place.socket.exists()
    conform(report, profile, Mode(), launcher_uid=0)


@pytest.mark.root
def test_sudo_permits_exactly_that_command(sudo: Callable[[Host], list[str]]) -> None:
    with host(owner="root") as place:
        place.write_policy(profile="standard")
        command = sudo(place)
        other = place.folder / "other.toml"
        shutil.copy(place.config, other)
        for refused in (
            [*command[:-1], str(other)],
            [*command, "--config", str(other)],
            [word for word in command if word != "-S"],
            ["sudo", "-n", sys.executable],
            ["sudo", "-n", "PYTHONPATH=/tmp", *command[2:]],
            ["sudo", "-n", "-u", "nobody", *command[2:]],
        ):
            done = subprocess.run(
                refused, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", **become(place.caller)
            )
            assert done.returncode == 1 and "sudo: " in done.stderr, (refused, done)


@pytest.mark.root
def test_doctor_finds_the_line(sudo: Callable[[Host], list[str]]) -> None:
    with host(owner="root") as place:
        place.write_policy(profile="standard")
        sudo(place)
        _, found = doctor("setpriv", "--reuid", place.caller, "--regid", place.caller, "--clear-groups")
    assert "sudo has a line for this account" in found["(c) sudo"][1]


def asked_as_root(place: Host, body: Callable[[OnDemand], Awaitable[None]], command: list[str]) -> None:
    async def run() -> None:
        launcher = OnDemand(command)
        try:
            await body(launcher)
        finally:
            await launcher.close()

    asyncio.run(run())
    assert launchers(place) == []


async def identified(launcher: OnDemand) -> launcher_link.Identity:
    async with launcher_link.connect(launcher) as link:
        return await link.identity()


@pytest.mark.root
def test_one_launcher_serves_all_and_is_started_again_when_it_died(sudo: Callable[[Host], list[str]]) -> None:
    async def body(launcher: OnDemand) -> None:
        first, again = await asyncio.gather(identified(launcher), identified(launcher))
        assert first == again
        (pid,) = launchers(place)
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid))
        for _ in range(100):
            with contextlib.suppress(FetchError):
                assert (await identified(launcher)).verify_key == first.verify_key
                break
        (other,) = launchers(place)
        assert other != pid

    with host(owner="root", caller="root") as place:
        place.write_policy(profile="standard")
        asked_as_root(place, body, sudo(place))


@pytest.mark.root
def test_with_sudo_killed_the_launcher_ends_as_well(sudo: Callable[[Host], list[str]]) -> None:
    async def body(launcher: OnDemand) -> None:
        await identified(launcher)
        (pid,) = launchers(place)
        assert launcher.pid is not None
        os.kill(launcher.pid, signal.SIGKILL)
        until(lambda: gone(launcher.pid or 0))
        await launcher.close()
        until(lambda: gone(pid))

    with host(owner="root", caller="root") as place:
        place.write_policy(profile="standard")
        asked_as_root(place, body, sudo(place))


@pytest.mark.root
def test_an_agent_that_is_killed_takes_the_launcher_and_its_task_along(sudo: Callable[[Host], list[str]]) -> None:
    with host(owner="root") as place:
        place.write_policy(profile="standard")
        with place.calling(command=sudo(place), hold=True) as (agent, answers):
            assert answers.readline() == "claimed\n"  # its task waits for the grant
            (pid,) = launchers(place)
            below = descendants(pid)
            assert len(below) >= 4  # at least two warm processes and what they forked
            agent.kill()
            agent.wait()
            until(lambda: all(gone(one) for one in (pid, *below)))


@contextlib.contextmanager
def by_hand(command: list[str], *, account: str) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """The launcher with our end of its stdin, which `account` made."""
    with acting_as(account):
        control, stdin = socket.socketpair()
    process = subprocess.Popen(
        command, stdin=stdin, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd="/", **become(account)
    )
    stdin.close()
    try:
        yield process, control
    finally:
        control.close()
        process.wait(30)


@pytest.mark.root
def test_a_socket_that_another_account_made_is_not_served(sudo: Callable[[Host], list[str]]) -> None:
    """The agent passes on a socket at whose other end is root: it does not get root's rights by that."""
    with host(owner="root") as place:
        place.write_policy(profile="standard")
        with by_hand(sudo(place), account=place.caller) as (process, control):
            ours, theirs = socket.socketpair()  # made by root
            socket.send_fds(control, [messages.encode("connect", fds=1)], [theirs.fileno()])
            theirs.close()
            ours.sendall(messages.encode("identity"))
            _, said = process.communicate(timeout=30)
            with pytest.raises(ConnectionResetError):  # closed, with our question unread
                ours.recv(1)
    assert "another account made" in said and process.returncode == 0


@pytest.mark.root
@pytest.mark.parametrize("wrong", ["no descriptor", "a file", "another word", "an unconnected socket"])
def test_stdin_takes_connections_and_nothing_else(wrong: str, sudo: Callable[[Host], list[str]]) -> None:
    with host(owner="root") as place:
        place.write_policy(profile="standard")
        with by_hand(sudo(place), account=place.caller) as (process, control), socket.socket(socket.AF_UNIX) as alone:
            with open(os.devnull) as file:
                match wrong:
                    case "no descriptor":
                        control.sendall(messages.encode("connect"))
                    case "a file":
                        socket.send_fds(control, [messages.encode("connect", fds=1)], [file.fileno()])
                    case "another word":
                        control.sendall(messages.encode("identity"))
                    case _:
                        socket.send_fds(control, [messages.encode("connect", fds=1)], [alone.fileno()])
            _, said = process.communicate(timeout=30)
    assert '"event": "refused"' in said and process.returncode == 0, said


@pytest.mark.root
def test_without_sudo_there_is_no_caller() -> None:
    with host(owner="root") as place:
        place.write_policy(profile="standard")
        command = [*PYTHON, str(MAIN), "--on-stdin", "--config", str(place.config)]
        for environment in (ENVIRONMENT, ENVIRONMENT | {"SUDO_UID": "4242"}):
            ours, theirs = socket.socketpair()
            done = subprocess.run(
                command, stdin=theirs, env=environment, capture_output=True, text=True, timeout=30, cwd="/"
            )
            ours.close()
            theirs.close()
            assert done.returncode == 2 and "is not whom sudo names" in done.stderr, done
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, env=ENVIRONMENT, capture_output=True, text=True, cwd="/"
        )
        assert done.returncode == 2 and "--on-stdin" in done.stderr, done
