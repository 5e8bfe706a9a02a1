"""A process's memory in huge pages, by the kernel's own count."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.task import hugepages

PROGRAM = f"""
import sys
sys.path.insert(0, {str(Path(hugepages.__file__).parents[2])!r})
from launcher.task import hugepages
kept = bytearray(b"x" * (32 << 20))
def huge():
    with open("/proc/self/smaps_rollup") as rollup:
        return sum(int(line.split()[1]) for line in rollup if line.startswith("AnonHugePages:")) << 10
before = huge()
taken = hugepages.collapse()
assert kept == b"x" * (32 << 20)
print(before, taken, huge())
"""


@pytest.mark.skipif(
    tuple(int(part) for part in os.uname().release.split(".")[:2]) < (6, 1), reason="MADV_COLLAPSE came with Linux 6.1"
)
def test_what_is_collapsed_is_in_huge_pages_and_unchanged() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, taken, after = (int(word) for word in done.stdout.split())
    assert taken >= 28 << 20
    assert after - before >= 28 << 20
