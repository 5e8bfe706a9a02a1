"""Mode (b): a launcher of another account than root, with the three capabilities that the unit file gives it, and no more."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mode_host import PROFILES, ROOT, Mode, conform, host, refused, started

UNIT = ROOT / "docs" / "systemd" / "dagseal-launcher-capabilities.service"
ACCOUNT = "uucp"  # stands for dagseal-launcher
NO_CGROUP = "unsafe_no_cgroup_limits = true\n"
MODE = Mode(bounding={"minimal": f"{1 << 5 | 1 << 6 | 1 << 7:016x}"}, warnings={"minimal": "bounding set"})


def unit_lines() -> dict[str, str]:
    """The unit's settings, by name."""
    return dict(re.findall(r"^([A-Z]\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))


def words(*, capabilities: str = "") -> list[str]:
    """setpriv(1) with exactly what the unit says of ids and capabilities."""
    unit = unit_lines()
    assert unit["User"] == unit["Group"] == "dagseal-launcher"
    ambient = capabilities or unit["AmbientCapabilities"]
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"]
    held = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in ambient.split())
    return [
        *("setpriv", "--reuid", ACCOUNT, "--regid", ACCOUNT, "--groups", unit["SupplementaryGroups"]),
        *("--inh-caps", f"-all,{held}", "--ambient-caps", f"-all,{held}", "--bounding-set", f"-all,{held}"),
        *(["--no-new-privs"] if unit["NoNewPrivileges"] == "yes" else []),
    ]


@pytest.mark.root
@pytest.mark.parametrize("profile", PROFILES)
def test_a_task_of_each_profile(profile: str) -> None:
    with host(owner=ACCOUNT) as place:
        place.write_policy(profile=profile, more=NO_CGROUP)
        with started(place, words()) as process:
            report = place.launch(launcher_pid=process.pid)
    conform(report, profile, MODE, launcher_uid=pwd.getpwnam(ACCOUNT).pw_uid)


@pytest.mark.root
def test_root_differs_in_nothing_but_what_the_table_says() -> None:
    with host(owner="root") as place:
        place.write_policy(profile="minimal")
        with started(place, []) as process:
            report = place.launch(launcher_pid=process.pid)
    conform(report, "minimal", Mode(), launcher_uid=0)


@contextmanager
def delegated(kind: str) -> Iterator[list[str]]:
    """A cgroup that belongs to the launcher's account, in the hierarchies of that kind, as Delegate=yes makes one; the words
    that start a command in it."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    folders = [Path(mount[1]) / f"dagseal-test-delegated-{os.getpid()}" for mount in mounts if mount[2] == kind]
    if kind == "cgroup":
        folders = [folder for folder in folders if folder.parent.name in ("memory", "pids", "cpu")]
    if not folders:
        pytest.skip(f"no {kind} hierarchy is mounted here")
    entry = pwd.getpwnam(ACCOUNT)
    try:
        for folder in folders:
            folder.mkdir()
            for path in (folder, folder / "cgroup.procs"):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        joining = "".join(f"echo $$ > {folder}/cgroup.procs; " for folder in folders)
        yield ["sh", "-c", f'{joining} exec "$@"', "sh"]
    finally:
        for folder in folders:
            folder.rmdir()


@pytest.mark.root
def test_a_delegated_cgroup_ends_what_a_task_left() -> None:
    with delegated("cgroup2") as inside, host(owner=ACCOUNT) as place:
        place.write_policy(profile="minimal", more=NO_CGROUP)
        with started(place, [*inside, *words()]) as process:
            report = place.launch(launcher_pid=process.pid)
    conform(report, "minimal", MODE, launcher_uid=pwd.getpwnam(ACCOUNT).pw_uid)
    assert report["launches"]["nobody"]["attestation"]["limits"] == "v2:kill"


@pytest.mark.root
def test_limits_that_only_root_could_give_are_refused_at_start() -> None:
    with host(owner=ACCOUNT) as place:
        place.write_policy(profile="standard")
        assert "cgroup" in refused(place, words())  # none was delegated
        with delegated("cgroup") as inside:
            assert "in cgroup v1 only root may move" in refused(place, [*inside, *words()])


@pytest.mark.root
def test_a_description_without_a_user_namespace_keeps_its_network_and_is_refused_at_start() -> None:
    with host(owner=ACCOUNT) as place:
        place.write_policy(profile="standard", describe="minimal", more=NO_CGROUP)
        assert "needs CAP_SYS_ADMIN" in refused(place, words())


@pytest.mark.root
@pytest.mark.parametrize("missing", ["CAP_KILL", "CAP_SETUID", "CAP_SETGID"])
def test_two_of_the_three_are_refused_at_start(missing: str) -> None:
    held = unit_lines()["AmbientCapabilities"].replace(missing, "").split()
    with host(owner=ACCOUNT) as place:
        place.write_policy(profile="standard", more=NO_CGROUP)
        assert f"lacks {missing}" in refused(place, words(capabilities=" ".join(held)))


@pytest.mark.root
def test_nobody_becomes_the_launchers_own_account_and_no_expiry_is_guessed() -> None:
    with host(owner=ACCOUNT, users=(ACCOUNT, "nobody")) as place:
        place.write_policy(profile="standard", more=NO_CGROUP)
        command = words()
        command[command.index("--groups") + 1] = ACCOUNT  # without the group shadow
        with started(place, command) as process:
            blind = place.launch(launcher_pid=process.pid)["launches"]["nobody"]
        with started(place, words()) as process:
            own = place.launch(launcher_pid=process.pid)["launches"][ACCOUNT]
    assert (blind["state"], blind["exit_code"]) == ("refused", 77) and "/etc/shadow" in blind["detail"]
    assert (own["state"], own["exit_code"]) == ("refused", 77) and "the launcher's own account" in own["detail"]
    assert "attestation" not in blind and "attestation" not in own  # no claim, so no secret
