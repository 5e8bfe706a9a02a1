"""No third-party code runs as root: what is loaded when the privileges go, and what the daemon loads at all."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import sysconfig

import pytest

from launcher.isolation import PROFILES, Confinement

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
BECOME = os.path.join(ROOT, "launcher", "become.py")
MAIN = os.path.join(ROOT, "launcher", "__main__.py")
OURS = ("integrity", "launcher", "notary", "vocabulary")
FLAGS = ["-s", "-P", "-S"]

# Runs become.py's `main` up to the instant of the drop, where it prints what is loaded instead.
AT_THE_DROP = """
import json, os, sys
sys.argv = [{path!r}]
scope = {{"__name__": "become", "__file__": {path!r}}}
exec(compile(open({path!r}).read(), {path!r}, "exec"), scope)
def stop(identity, **_):
    files = {{name: getattr(module, "__file__", None) for name, module in sys.modules.items()}}
    print(json.dumps({{"files": files, "path": sys.path, "uid": os.geteuid(), "identity": list(identity.groups)}}))
    sys.stdout.flush()
    os._exit(0)
scope["privileges"].drop = stop
scope["main"](["3", str(os.getppid()), "run", {confinement!r}, "65534", "65534", "65534,100"])
"""

# Imports what the daemon imports, without running it.
OF_THE_DAEMON = """
import json, sys
scope = {{"__name__": "daemon", "__file__": {path!r}}}
exec(compile(open({path!r}).read(), {path!r}, "exec"), scope)
print(json.dumps({{name: getattr(module, "__file__", None) for name, module in sys.modules.items()}}))
"""


def confinement(profile: str) -> str:
    chosen = PROFILES[profile]
    return Confinement(
        profile=chosen, network=True, readable=(), writable=(), tcp_ports=(), tmp_bytes=1 << 20
    ).to_json()


def ask(program: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, *FLAGS, "-c", program], capture_output=True, text=True, check=False, cwd="/", env={}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def outside(files: dict[str, str | None]) -> dict[str, str]:
    """Modules that are neither of the standard library nor of this project."""
    stdlib = sysconfig.get_paths()["stdlib"]
    ours = tuple(os.path.join(ROOT, name, "") for name in OURS)
    found = {}
    for name, file in files.items():
        if file is None or file.startswith(ours):
            continue
        if not file.startswith(stdlib + os.sep) or "-packages" in file:
            found[name] = file
    return found


@pytest.mark.root
@pytest.mark.parametrize("profile", PROFILES)
def test_at_the_drop_nothing_third_party_is_loaded(profile: str) -> None:
    found = ask(AT_THE_DROP.format(path=BECOME, confinement=confinement(profile)))
    assert outside(found["files"]) == {}  # type: ignore[arg-type]
    # In its user namespace root has no number: the kernel shows it as the overflow uid.
    assert found["uid"] == (65534 if PROFILES[profile].namespaces else 0)
    assert found["identity"] == [65534, 100]
    packages = {*site.getsitepackages(), sysconfig.get_paths()["purelib"]}
    assert not packages & set(found["path"])  # type: ignore[call-overload]
    ours = sorted(name for name in found["files"] if name.split(".")[0] in OURS)  # type: ignore[attr-defined]
    assert ours == [
        "integrity",
        "integrity.errors",
        "launcher",
        *(f"launcher.{name}" for name in ("isolation", "namespaces", "privileges")),
    ]


def test_the_daemon_loads_only_cryptography_beside_the_standard_library() -> None:
    third_party = outside(ask(OF_THE_DAEMON.format(path=MAIN)))  # type: ignore[arg-type]
    # cryptography's compiled part is linked against cffi's runtime, which it imports by this name
    assert {name.split(".")[0] for name in third_party} <= {"cryptography", "_cffi_backend"}


def test_the_daemon_never_loads_what_runs_after_the_drop() -> None:
    loaded = ask(OF_THE_DAEMON.format(path=MAIN))
    assert not [
        name for name in loaded if f"{name}.".startswith(("launcher.task.", "airflow.", "dagseal.", "submit_api."))
    ]


def become(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *FLAGS, BECOME, "3", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env={})


@pytest.mark.root
@pytest.mark.parametrize("profile", PROFILES)
def test_a_become_whose_parent_is_gone_ends_before_anything_is_imported(profile: str) -> None:
    done = become("1", "run", confinement(profile), "65534", "65534", "65534")
    assert done.returncode == 1
    assert "PrivilegeError: the parent is gone already" in done.stderr
    assert "warm" not in done.stderr


@pytest.mark.root
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    "who", [["0", "65534", ""], ["65534", "0", ""], ["65534"], ["-1", "65534", ""], ["nobody", "1", ""]]
)
def test_a_become_for_nobody_in_particular_ends(profile: str, who: list[str]) -> None:
    done = become(str(os.getpid()), "run", confinement(profile), *who)
    assert done.returncode == 1
    assert "Error" in done.stderr and "warm" not in done.stderr


@pytest.mark.root
@pytest.mark.parametrize("text", ["", "{}", "minimal", confinement("minimal").replace("minimal", "none")])
def test_a_become_without_a_whole_confinement_ends(text: str) -> None:
    done = become(str(os.getpid()), "run", text, "65534", "65534", "65534")
    assert done.returncode == 1
    assert "Error" in done.stderr and "warm" not in done.stderr
