"""T09 unlisted-code: a `.pyc` that Python would take for a verified module's own.

Seen to fail when weakened: `loader.install` without its hook.
"""

from __future__ import annotations

from tests.attacks.attacker import PROBES, Traces, dag
from tests.attacks.test_t09_unlisted_code import zipped
from tests.live import Live

PROFILES = ("standard", "minimal", "strict")


def test_bytecode_forged_for_a_listed_module(live: Live, traces: Traces) -> None:
    """Of its very time and size, of its hash, and of any hash, unchecked: each where Python would take it for the module's own
    (PEP 552). What runs is compiled from the verified bytes."""
    names = ("t09timed", "t09hashed", "t09unchecked")
    body = f"""
        import importlib, importlib.util, json, marshal, sys
        root = os.path.dirname(os.path.abspath(t09near.__file__))
        os.chmod(root, 0o700)
        cache = f"{{root}}/__pycache__"
        os.mkdir(cache)
        evil = marshal.dumps(compile("VALUE = 'forged'", "evil", "exec"))
        for name in {names!r}:
            found = os.stat(f"{{root}}/{{name}}.py")
            with open(f"{{root}}/{{name}}.py", "rb") as file:
                hashed = importlib.util.source_hash(file.read())
            numbers = int(found.st_mtime).to_bytes(4, "little") + found.st_size.to_bytes(4, "little")
            flags, rest = {{"t09timed": (0, numbers), "t09hashed": (3, hashed), "t09unchecked": (1, bytes(8))}}[name]
            data = importlib.util.MAGIC_NUMBER + flags.to_bytes(4, "little") + rest + evil
            for path in (f"{{cache}}/{{name}}.{{sys.implementation.cache_tag}}.pyc", f"{{root}}/{{name}}.pyc"):
                with open(path, "wb") as file:
                    file.write(data)
        importlib.invalidate_caches()
        trace("found", json.dumps([importlib.import_module(name).VALUE for name in {names!r}]))
        # As another Python does it that runs in that folder.
        import subprocess
        code = "import sys; sys.path.insert(0, sys.argv[1]); import " + ", ".join({names!r})
        code += "; print(" + ", ".join(name + ".VALUE" for name in {names!r}) + ")"
        done = subprocess.run([sys.executable, "-I", "-S", "-c", code, root], capture_output=True, text=True)
        trace("plain", done.stdout)
    """
    files = {f"{name}.py": "VALUE = 'verified'\n" for name in names}
    top = PROBES + traces.source() + "import t09near"
    data = zipped(**files, **{"t09near.py": "VALUE = 1\n"}, **{"t09forge.py": dag("t09forge", body, top=top)})
    assert live.push("t09forge.zip", data).status == 201
    ended = live.launch("t09forge", "t", "r")
    assert ended["state"] == "success", live.log(ended["id"])
    assert traces.json("found") == ["verified"] * 3
    assert traces.text("plain").split() == ["forged"] * 3, "for a plain import they are good"
