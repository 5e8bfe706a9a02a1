"""What a live launcher has loaded after real work: every import of its life, as the interpreter itself tells it."""

from __future__ import annotations

import re
import sys

import pytest

from tests.bench.launch_client import clients
from tests.bench.launch_daemon import daemon

pytestmark = pytest.mark.root
# One line on stderr for each module that this process imports, and for none of a warm process, which gets another environment.
TOLD = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPROFILEIMPORTTIME": "1"}
IMPORTED = re.compile(r"^import time: +[0-9]+ \| +[0-9]+ \| *([\w.]+)$", re.MULTILINE)
# cryptography's compiled part is linked against cffi's runtime, which it imports by this name; `copy` looks for Jython's `org`,
# in vain, and the interpreter tells of that too.
PERMITTED = {"launcher", "integrity", "cryptography", "_cffi_backend", "org"}


@pytest.mark.parametrize("profile", ["standard", "minimal"])
def test_a_launcher_at_work_has_loaded_no_third_party_module_but_cryptography(profile: str) -> None:
    with daemon(profile, TOLD) as started, clients(started, 2) as callers:  # it described an archive for them
        for caller in callers:
            caller.order(do="many", count=10)  # of which some are denied or abandoned
            assert caller.answer() == 10
        loaded = set(IMPORTED.findall(started.log))
    assert {"launcher.running", "launcher.describing", "integrity.grants", "cryptography.exceptions"} <= loaded
    assert {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names <= PERMITTED
    assert not [name for name in loaded if name.startswith("launcher.task.")]
