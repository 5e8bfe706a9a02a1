"""What a launcher has loaded after real work: its monitor, which keeps the privileges, and its notary, which has dropped.

The first is its own `sys.modules` at the end of its life, the second every import of both, as the interpreter tells them. The
monitor's are all of two folders, `launcher` and `integrity`, which are short enough to be read.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.bench.launch_client import clients
from tests.bench.launch_daemon import MAIN, daemon, end

pytestmark = pytest.mark.root
# One line on stderr for each module that these two import, and for none of a warm process, which gets another environment.
TOLD = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPROFILEIMPORTTIME": "1"}
IMPORTED = re.compile(r"^import time: +[0-9]+ \| +[0-9]+ \| *([\w.]+)$", re.MULTILINE)
# The launcher, whose monitor says at its end what it has loaded.
SAYING = f"""
import json, sys
scope = {{"__name__": "launcher", "__file__": {MAIN!r}}}
exec(compile(open({MAIN!r}).read(), {MAIN!r}, "exec"), scope)
scope["main"]()
print("loaded", json.dumps(sorted(sys.modules)), file=sys.stderr, flush=True)
"""
PRIVILEGED = {"launcher", "integrity"}
# cryptography's compiled part is linked against cffi's runtime, which it imports by this name; `copy` looks for Jython's `org`,
# in vain, and the interpreter tells of that too.
PERMITTED = PRIVILEGED | {"notary", "vocabulary", "cryptography", "_cffi_backend", "org"}
MOST_LINES = 3000


def at_work(profile: str) -> str:
    """The log of a launcher that has described an archive, and run it many times."""
    with daemon(profile, TOLD, ["-c", SAYING]) as started:
        with clients(started, 2) as callers:
            for caller in callers:
                caller.order(do="many", count=10)  # of which some are denied or abandoned
                assert caller.answer() == 10
        end(started.process)
        return started.log


@pytest.mark.parametrize("profile", ["standard", "minimal"])
def test_what_is_loaded(profile: str) -> None:
    log = at_work(profile)
    (said,) = re.findall(r"^loaded (.*)$", log, re.MULTILINE)
    monitor, both = set(json.loads(said)) - {"__main__", "__mp_main__"}, set(IMPORTED.findall(log))

    assert {"launcher.monitor", "launcher.powers"} <= monitor
    assert {name.partition(".")[0] for name in monitor} - sys.stdlib_module_names == PRIVILEGED
    assert not [name for name in monitor if name.startswith("launcher.task")]

    assert {"notary.running", "notary.describing", "vocabulary.grants", "cryptography.exceptions"} <= both
    assert {name.partition(".")[0] for name in both} - sys.stdlib_module_names <= PERMITTED
    assert not [name for name in both if name.startswith("launcher.task.")]


def test_what_may_run_with_privileges_is_short() -> None:
    """Comments and all: the whole of both folders, but for what runs as the tasks' users."""
    folders = [Path(__file__).parents[3] / name for name in sorted(PRIVILEGED)]
    files = [path for folder in folders for path in folder.rglob("*.py") if folder / "task" not in path.parents]
    assert {folder / "__init__.py" for folder in folders} <= set(files)
    assert sum(path.read_text().count("\n") for path in files) < MOST_LINES
