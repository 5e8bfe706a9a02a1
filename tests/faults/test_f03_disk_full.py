"""A full disk is refused by name, leaves nothing half done, and is over when there is room again (`fault_disk_full.py`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_MAY_MOUNT = ["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]

pytestmark = [pytest.mark.root, pytest.mark.timeout(200)]


@pytest.fixture(scope="module", autouse=True)
def may_mount() -> None:
    answer = subprocess.run(_MAY_MOUNT, capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.skip(f"this root may not mount in a namespace of its own: {answer.stderr.strip()}")


@pytest.mark.parametrize("part", ["api", "agent", "launcher"])
def test_f03_a_full_disk(part: str) -> None:
    answer = subprocess.run(
        ["unshare", "-m", sys.executable, "-m", "tests.faults.fault_disk_full", part],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    print(answer.stdout)
    assert answer.returncode == 0 and f'"told": "{part}"' in answer.stdout, (
        answer.stdout[-3000:] + answer.stderr[-6000:]
    )
