"""A zip of 21 modules: imported by `zipimport`, by ours at a release's first launch, and by ours once its code is kept.

The modules are the standard library's own sources below another name; the one that defines the DAG says how long the other
twenty took. Each round uploads new bytes, so its first launch compiles; `zipimport` has its turn in a fork of a process that
has imported Airflow as well. The whole step in the task is bytes, hashes, the zip, its private copy and every import.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import os
import re
import secrets
import sys
import tempfile
import time
import traceback
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.bench.launch_table import Row, table
from tests.live import Live, running

PACKAGE = "bench_library"
TAKEN = (
    "bisect",
    "calendar",
    "cmd",
    "colorsys",
    "csv",
    "filecmp",
    "fileinput",
    "fnmatch",
    "getopt",
    "gettext",
    "graphlib",
    "heapq",
    "mimetypes",
    "netrc",
    "pprint",
    "reprlib",
    "shlex",
    "string",
    "textwrap",
    "zipapp",
)
ATTEMPTS = 50
_TIMED = re.compile(r"imported in (\d+) ns")
_IMPORTS = "\n".join(f"import {PACKAGE}.{name}" for name in TAKEN)
_LOADED = "\n".join(f"import {name}" for name in TAKEN)  # what they import themselves is there before
_DAG = f"""\
import time
from airflow.sdk import DAG, task
{_LOADED}
BEGIN_NS = time.perf_counter_ns()
{_IMPORTS}
TOOK_NS = time.perf_counter_ns() - BEGIN_NS
with DAG("bench_modules", schedule=None, catchup=False):
    @task
    def noop():
        print(f"imported in {{TOOK_NS}} ns")
    noop()
"""


def modules(rounds: int, profile: str) -> str:
    """The table. Every round is an upload and some launches."""
    found: dict[str, list[float]] = defaultdict(list)
    importlib.import_module("airflow.sdk")
    with running(profile=profile) as live, tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            data = _zip()
            path = Path(folder) / f"{number}.zip"
            path.write_bytes(data)
            made = live.push("bench_modules.zip", data)
            if made.status != 201:
                raise RuntimeError(f"the archive was not accepted: {made.body!r}")
            first, later = _launch(live), _until_kept(live)
            if number:  # the first round starts warm processes
                found["zipimport"].append(_by_zipimport(path))
                for name, (took, step) in (("first", first), ("later", later)):
                    found[name].append(took)
                    found[f"{name}, step"].append(step)
    rows = [
        Row(what="zipimport", seconds=found["zipimport"]),
        Row(what="dagseal, first launch of a release: compiled", seconds=found["first"]),
        Row(what="dagseal, later launches: code kept", seconds=found["later"]),
        Row(what="whole import step, first launch", seconds=found["first, step"]),
        Row(what="whole import step, later launches", seconds=found["later, step"]),
    ]
    sizes = sum(len(_source(name)) for name in TAKEN)
    return table(f"import of {len(TAKEN)} modules, {sizes >> 10} KiB, in the 21st", rows, found["later"])


def _zip() -> bytes:
    members = {f"{PACKAGE}/{name}.py": _source(name) for name in TAKEN}
    members |= {
        f"{PACKAGE}/__init__.py": b"",
        "bench_modules.py": _DAG.encode() + f"# {secrets.token_hex(8)}\n".encode(),
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(members.items()):
            archive.writestr(name, data)
    return out.getvalue()


def _source(name: str) -> bytes:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"this interpreter has no source of {name}")
    return Path(spec.origin).read_bytes()


def _launch(live: Live) -> tuple[float, float]:
    """Seconds that the twenty took, and the whole step."""
    return _seconds(live, _ended(live))


def _until_kept(live: Live) -> tuple[float, float]:
    for _ in range(ATTEMPTS):
        ended = _ended(live)
        if not ended["timings_us"]["task_compile"]:
            return _seconds(live, ended)
    raise RuntimeError(f"after {ATTEMPTS} launches the archive is still compiled by each task")


def _ended(live: Live) -> dict[str, Any]:
    ended = live.launch("bench_modules", "noop", secrets.token_hex(8))
    if ended["state"] != "success":
        raise RuntimeError(f"the launch ended as {ended['state']}: {ended['detail']} {live.log(ended['id'])}")
    return ended


def _seconds(live: Live, ended: dict[str, Any]) -> tuple[float, float]:
    said = _TIMED.search(live.log(ended["id"]))
    if said is None:
        raise RuntimeError("the task did not say how long its imports took")
    return int(said[1]) / 1e9, ended["timings_us"]["task_import"] / 1e6


def _by_zipimport(path: Path) -> float:
    """The same imports in a fork, which has the zip on its path."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for name in TAKEN:
                importlib.import_module(name)
            sys.path.insert(0, str(path))
            begin = time.perf_counter_ns()
            for name in TAKEN:
                importlib.import_module(f"{PACKAGE}.{name}")
            os.write(write, json.dumps(time.perf_counter_ns() - begin).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(said) / 1e9
