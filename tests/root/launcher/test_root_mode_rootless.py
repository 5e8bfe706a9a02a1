"""Mode (d): a launcher of an ordinary account, root only in its own user namespace; "as U" is a subordinate id."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mode_host import PROFILES, Host, Mode, conform, doctor, gone, host, refused, started, until

from launcher.trees import descendants

ACCOUNT, OTHER = "uucp", "proxy"
START = 2_000_000_000
AS_ACCOUNT = ["setpriv", "--reuid", ACCOUNT, "--regid", ACCOUNT, "--clear-groups"]
MORE = {"more": "unsafe_no_cgroup_limits = true\n", "users": "unsafe_no_expiry_check = true\n"}
MODE = Mode(warnings=dict.fromkeys(PROFILES, "never as the real account"))
USERS = ("nobody", "irc")


@pytest.fixture(autouse=True)
def subordinate_ids() -> Iterator[None]:
    """newuidmap, and a range for the account, which is taken away again."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if shutil.which("newuidmap") is None:
        subprocess.run(["apt-get", "install", "-q", "-y", "uidmap"], check=True, capture_output=True)
    line = f"{ACCOUNT}:{START}:65536\n"
    files = [Path("/etc/subuid"), Path("/etc/subgid")]
    with open("/run/dagseal-test-subordinate-ids", "w") as lock:  # one run at a time changes the host's files
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in files:
            with path.open("a") as file:
                file.write(line)
        try:
            yield
        finally:
            for path in files:
                path.write_text(path.read_text().replace(line, ""))


def rootless(place: Host, profile: str) -> Host:
    place.write_policy(profile=profile, **MORE)
    return place


@pytest.mark.root
@pytest.mark.parametrize("profile", PROFILES)
def test_a_task_of_each_profile(profile: str) -> None:
    with (
        host(owner=ACCOUNT, caller=ACCOUNT, users=USERS) as place,
        started(rootless(place, profile), AS_ACCOUNT, "--rootless") as process,
    ):
        report = place.launch(launcher_pid=process.pid)
    conform(report, profile, MODE, launcher_uid=0)


@pytest.mark.root
@pytest.mark.parametrize("profile", PROFILES)
def test_on_the_host_each_user_is_another_subordinate_id(profile: str) -> None:
    with (
        host(owner=ACCOUNT, caller=ACCOUNT, users=USERS) as place,
        started(rootless(place, profile), AS_ACCOUNT, "--rootless") as process,
    ):
        seen, own = set(), pwd.getpwnam(ACCOUNT).pw_uid
        for user in USERS:
            with place.calling(users=(user,), hold=True) as (_, answers):
                assert answers.readline() == "claimed\n"
                below = {pid: host_ids(pid) for pid in descendants(process.pid)}
                (notary,) = [pid for pid in below if b"become.py" not in command_line(pid)]
                assert set(below.pop(notary)) == {own}
                seen |= {ids for found in below.values() for ids in found}
        expected = {START + pwd.getpwnam(name).pw_uid - 1 for name in (*USERS, place.parser)}
        assert seen == expected and own not in seen
        assert set(host_ids(process.pid)) == {own}


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def host_ids(pid: int) -> list[int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [int(word) for line in lines if line.startswith("Uid:") for word in line.split()[1:]]


@pytest.mark.root
@pytest.mark.parametrize("prefix", [[], AS_ACCOUNT], ids=["as root", "as the account"])
def test_doctor_tries_it(prefix: list[str]) -> None:
    _, found = doctor(*prefix)
    assert {found[f"(d) rootless, {profile}"][0] for profile in PROFILES} == {"ok"}, found


@pytest.mark.root
def test_only_the_account_itself_is_heard() -> None:
    """Every other caller has one and the same number in there: that of an account which is called nobody."""
    with host(owner=ACCOUNT, caller=ACCOUNT) as place, started(rootless(place, "standard"), AS_ACCOUNT, "--rootless"):
        for caller in ("nobody", OTHER, "root"):
            report = place.launch(caller=caller)
            assert report["described"]["error"] == "out-of-scope", report
        assert place.launch()["launches"]["nobody"]["state"] == "success"


@pytest.mark.root
def test_an_account_outside_of_the_range_is_refused() -> None:
    name = "dagseal-far"
    subprocess.run(["useradd", "--system", "--uid", "70001", "--gid", "nogroup", "--no-create-home", name], check=True)
    try:
        with (
            host(owner=ACCOUNT, caller=ACCOUNT, users=(name,)) as place,
            started(rootless(place, "standard"), AS_ACCOUNT, "--rootless"),
        ):
            launch = place.launch()["launches"][name]
    finally:
        subprocess.run(["userdel", name], check=True)
    assert (launch["state"], launch["exit_code"]) == ("refused", 77) and "has no such id" in launch["detail"]
    assert "attestation" not in launch


@pytest.mark.root
def test_what_a_rootless_launcher_cannot_promise_is_refused_at_start() -> None:
    with host(owner=ACCOUNT, caller=ACCOUNT) as place:
        place.write_policy(profile="standard", more=MORE["more"])
        assert "whether an account has expired" in refused(place, AS_ACCOUNT, "--rootless")
        rootless(place, "standard")
        assert "for an ordinary account" in refused(place, [], "--rootless")
        place.write_policy(profile="standard", users=MORE["users"])
        assert "cgroup" in refused(place, AS_ACCOUNT, "--rootless")
        rootless(place, "standard")
        for path in ("/etc/subuid", "/etc/subgid"):
            text = Path(path).read_text()
            Path(path).write_text(text.replace(f"{START}:65536", f"{START}:65535"))
            try:
                assert "usermod --add-subuids" in refused(place, AS_ACCOUNT, "--rootless")
            finally:
                Path(path).write_text(text)
        assert "newuidmap" in refused(place, [*AS_ACCOUNT, "--no-new-privs"], "--rootless")
    with host(owner="root") as place:
        assert "unsafe_no_expiry_check is for a rootless launcher" in refused(rootless(place, "standard"), [])
    with host(owner=ACCOUNT, caller=OTHER) as place:
        assert "are to name this account only" in refused(rootless(place, "standard"), AS_ACCOUNT, "--rootless")


@pytest.mark.root
def test_killed_it_leaves_nothing() -> None:
    with (
        host(owner=ACCOUNT, caller=ACCOUNT) as place,
        started(rootless(place, "standard"), AS_ACCOUNT, "--rootless", ends=-signal.SIGKILL) as process,
        place.calling(hold=True) as (_, answers),
    ):
        assert answers.readline() == "claimed\n"
        pids = descendants(process.pid)
        assert len(pids) >= 4
        process.kill()
        process.wait()
        until(lambda: all(gone(pid) for pid in pids))
