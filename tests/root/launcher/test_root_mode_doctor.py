"""`dagseal doctor` tries each way to be privileged, and what it finds is what a launcher then meets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mode_host import PROFILES, doctor

# What ProtectKernelTunables= of systemd does: with something mounted over a part of /proc, the kernel lets no user namespace
# mount another one (mount_too_revealing in fs/namespace.c).
COVERED = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc/sys && exec "$@"', "sh"]


@pytest.mark.root
def test_as_root_every_profile_of_root_and_capabilities_is_tried() -> None:
    code, found = doctor()
    assert code == 0
    for way in ("(a) root", "(b) capabilities"):
        assert {found[f"{way}, {profile}"][0] for profile in PROFILES} == {"ok"}, found


@pytest.mark.root
def test_what_the_host_does_not_permit_is_found_with_its_reason() -> None:
    code, found = doctor(*COVERED)
    assert code == 1
    assert found["profiles"][0] == "failed" and "standard" in found["profiles"][1]
    for way in ("(a) root", "(b) capabilities"):
        assert found[f"{way}, minimal"][0] == "ok"
        for profile in ("standard", "strict"):
            state, detail = found[f"{way}, {profile}"]
            assert state == "warning" and "mount on /proc failed" in detail


@pytest.mark.root
def test_capabilities_that_are_not_there_are_found() -> None:
    _, found = doctor("setpriv", "--bounding-set", "-kill", "--inh-caps", "-kill")
    assert "three capabilities cannot be held" in found["(b) capabilities, standard"][1]


@pytest.mark.root
def test_no_setuid_program_works_with_no_new_privs() -> None:
    _, found = doctor("setpriv", "--no-new-privs")
    assert "NoNewPrivileges=no" in found["(c) sudo"][1]


@pytest.mark.root
def test_an_ordinary_account_is_told_what_it_cannot_try() -> None:
    _, found = doctor("setpriv", "--reuid", "uucp", "--regid", "uucp", "--clear-groups")
    assert "run dagseal doctor as root" in found["(a) root"][1]
    assert "docs/sudoers.d/dagseal" in found["(c) sudo"][1]
    assert "usermod --add-subuids" in found["(d) rootless, standard"][1]


@pytest.mark.root
def test_nothing_is_left_of_a_try() -> None:
    def left() -> tuple[set[str], int]:
        folders = {str(path) for path in Path("/sys/fs/cgroup").rglob("dagseal-*")}
        return folders, Path("/proc/self/mountinfo").read_text().count("\n")

    before = left()
    doctor()
    assert left()[1] == before[1]
    assert {path for path in left()[0] - before[0] if not _lives(path)} == set()


def _lives(path: str) -> bool:
    """A launcher of another test may have started meanwhile."""
    number = path.partition("/dagseal-")[2].partition("/")[0]
    return os.path.exists(f"/proc/{number}")
