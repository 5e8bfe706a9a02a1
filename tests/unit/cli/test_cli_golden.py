"""docs/verifying.md: what stands there is what the command says, byte for byte; and the standalone verifier agrees.

DAGSEAL_WRITE_GOLDEN=1 writes the page anew. Seen to fail when weakened: `_compared` without its digests; `proofs.chain` that
verifies no signature; `report.tell` that ends with 0 where nothing was verified; `compare` without unexpected files.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dagseal.cli import app
from integrity.errors import SecurityError
from tests import golden_verify
from tests.golden_verify import CASES, FIRST, MALLORY, ORIGIN, SECOND, Case
from vocabulary import leaves, manifest, merkle, proofs
from vocabulary.checkpoints import Checkpoint, origin_of, sign
from vocabulary.leaves import Keyed
from vocabulary.proofs import Proof

DOCS = Path(__file__).parents[3] / "docs"
PAGE, STANDALONE = DOCS / "verifying.md", DOCS / "verify_standalone.py"
ASKED = ("verify", "etl", "--proof", "etl.proof", "--trust-root", "log.pub")
NOWHERE = ("verify", "etl", "--server", "http://127.0.0.1:9", "--trust-root", "log.pub")
COMMANDS: dict[str, tuple[Case, tuple[str, ...], int]] = {
    **{name: (case, (*ASKED, *case.options), case.code) for name, case in CASES.items()},
    "No network": (CASES["A good tree"], NOWHERE, 3),
    "No key": (CASES["A good tree"], ASKED[:4], 3),
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but those given, in a folder of its own."""
    for name in [name for name in os.environ if name.startswith("DAGSEAL_") and name != "DAGSEAL_WRITE_GOLDEN"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (tmp_path / "token").write_text("dgs_x")
    (tmp_path / "token").chmod(0o600)
    monkeypatch.setenv("DAGSEAL_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.chdir(tmp_path)


def blocks() -> dict[str, str]:
    return dict(re.findall(r"### ([^\n]+)\n\n(?:[^#`]+\n\n)?```console\n(.*?)```", PAGE.read_text(), re.DOTALL))


def test_the_page_shows_each_case() -> None:
    assert list(blocks()) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_the_page_shows_is_what_is_said(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case, words, code = COMMANDS[name]
    golden_verify.lay(case, tmp_path)
    assert app.run(words) == code
    out, err = capfd.readouterr()
    said = f"$ dagseal {' '.join(words)}\n{out}{err}exit code {code}\n"
    if os.environ.get("DAGSEAL_WRITE_GOLDEN"):
        page = PAGE.read_text()
        PAGE.write_text(
            re.sub(
                rf"(### {name}\n.*?```console\n).*?```", lambda m: m[1] + said + "```", page, count=1, flags=re.DOTALL
            )
        )
    assert blocks()[name] == said
    for one in case.wrong if "--proof" in words and code == 1 else ():
        assert f"FAILED {one}\n" in out


@pytest.mark.parametrize("name", CASES)
def test_the_document_says_the_same(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case, words, code = COMMANDS[name]
    golden_verify.lay(case, tmp_path)
    assert app.run(("-o", "json", *words)) == code
    found = json.loads(capfd.readouterr().out)
    assert (found["schema"], found["kind"], found["subject"]) == ("dagseal/verify/v1", "archive", "etl.zip")
    assert found["verdict"] == ("verified" if code == 0 else "failed") and found["verified"] == (code == 0)
    assert tuple(f"{one['change']}: {one['name']}" for one in found["differences"]) == case.wrong
    assert [one["number"] for one in found["checks"]] == list(range(1, len(found["checks"]) + 1))
    assert {one["state"] for one in found["checks"][:-1]} <= {"ok", "not-made"}


def test_without_network_the_document_says_what_was_not_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    golden_verify.lay(CASES["A good tree"], tmp_path)
    assert app.run(("-o", "json", *NOWHERE)) == 3
    found = json.loads(capfd.readouterr().out)
    assert (found["verdict"], found["verified"]) == ("not-verified", False)
    assert [one["state"] for one in found["checks"]] == ["ok"] + ["not-made"] * 9


@pytest.mark.parametrize("what", ["etl", "etl.zip"])
def test_a_folder_its_zip_and_stdin_are_the_same(what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    golden_verify.lay(CASES["A good tree"], tmp_path)
    assert app.run(("verify", what, *ASKED[2:])) == 0
    assert "ok     6." in capfd.readouterr().out


@pytest.mark.parametrize("keys", [[FIRST], [SECOND], [MALLORY, SECOND], [FIRST, SECOND]])
def test_any_key_of_the_log_is_a_trust_root(keys: list[Any], tmp_path: Path) -> None:
    golden_verify.lay(CASES["A good tree"], tmp_path, *(key.public for key in keys))
    assert app.run(ASKED) == 0 and standalone(tmp_path, "etl.zip")[0] == 0


def test_another_key_or_one_of_later_is_none(tmp_path: Path) -> None:
    """What only the first key signed is not believed by who trusts the second: it may have been replaced for a reason."""
    golden_verify.lay(CASES["A good tree"], tmp_path / "a", MALLORY.public)
    old = golden_verify.proof_of(golden_verify.TWO, golden_verify.LEAVES, signed_by=FIRST)
    golden_verify.lay(Case(golden_verify.FILES, old), tmp_path / "b", SECOND.public)
    for folder in ("a", "b"):
        os.chdir(tmp_path / folder)
        assert app.run(ASKED) == 1 and standalone(tmp_path / folder, "etl.zip")[0] == 1


def test_a_key_file_that_is_none(tmp_path: Path) -> None:
    golden_verify.lay(CASES["A good tree"], tmp_path)
    for text in ("", "# none\n", "xyz\n", "0" * 64 + "\n", "00" * 33):
        (tmp_path / "log.pub").write_text(text)
        assert app.run(ASKED) == 2
    assert app.run((*ASKED[:5], "missing.pub")) == 2


def test_what_cannot_be_read_is_not_verified(tmp_path: Path) -> None:
    golden_verify.lay(CASES["A good tree"], tmp_path)
    assert app.run((*ASKED[:3], "missing.proof", *ASKED[4:])) == 3
    assert standalone(tmp_path, "missing.zip")[0] == 3
    (tmp_path / "etl.proof").write_bytes(b"{}")
    assert app.run(ASKED) == 1 and standalone(tmp_path, "etl")[0] == 1


# the standalone verifier


def standalone(folder: Path, path: str, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-I", str(STANDALONE), "--trust-root", "log.pub", "--proof", "etl.proof", *options, path]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def test_the_standalone_verifier_is_short_and_imports_nothing_of_ours() -> None:
    text = STANDALONE.read_text()
    assert len(text.splitlines()) < 200
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported - sys.stdlib_module_names == {"cryptography"}


@pytest.mark.parametrize("what", ["etl", "etl.zip"])
@pytest.mark.parametrize("name", CASES)
def test_the_standalone_verifier_agrees(name: str, what: str, tmp_path: Path) -> None:
    case = CASES[name]
    golden_verify.lay(case, tmp_path)
    asks = (
        "--require-author" in case.options
    )  # it knows of no authors: what such a proof says besides is the same to it
    code, said = standalone(tmp_path, what, *(() if asks else case.options))
    assert code == (0 if asks else case.code), said
    if case.wrong and what == "etl":
        assert said.splitlines()[-1] == f"FAILED {'; '.join(case.wrong)}"
    assert len(re.findall(r"^ok +\d\.", said, re.MULTILINE)) == 7 or code == 1


def crafted() -> dict[str, Proof]:
    """What whoever has the log's key, or some of it, could make: each lacks one thing."""
    good, hashes = golden_verify.PROOF, [merkle.leaf_hash(leaves.to_bytes(leaf)) for leaf in golden_verify.LEAVES]
    point = Checkpoint(origin=ORIGIN, size=len(hashes), root=merkle.root_of(hashes), time=golden_verify.AT)
    below = replace(point, root=merkle.root_of(hashes[4:]))
    above = merkle.node_hash(bytes(32), point.root)
    other = replace(point, origin=origin_of(MALLORY.public))
    said = golden_verify.stated(golden_verify.FILES, 2, airflow_version="3.0.0")
    signed = leaves.to_bytes(Keyed.handed_on(ORIGIN, FIRST.public, by=SECOND, at=golden_verify.AT))
    path = tuple(merkle.inclusion_proof(1, len(hashes), lambda a, b: merkle.root_of(hashes[a:b])))
    return {
        "a path that ends too soon": replace(good, path=good.path[:-1], checkpoint=sign(below, SECOND)),
        "a path that goes on": replace(good, path=(*good.path, good.path[0])),
        "a path that goes on above the root": replace(
            good, path=(*good.path, bytes(32)), checkpoint=sign(replace(point, root=above), SECOND)
        ),
        "another log's name": replace(good, checkpoint=sign(other, SECOND)),
        "a manifest that the log does not name": replace(good, manifest=manifest.sign(said, FIRST)),
        "a first key that somebody signed": replace(good, keys=(signed, *good.keys[1:])),
        "a key that nobody handed on": replace(
            good,
            keys=(
                good.keys[0],
                leaves.to_bytes(Keyed.handed_on(ORIGIN, MALLORY.public, by=MALLORY, at=golden_verify.AT)),
            ),
            checkpoint=sign(point, MALLORY),
        ),
        "a key without a signature": replace(good, keys=(good.keys[0], good.keys[0])),
        "no key": replace(good, keys=()),
        "a leaf that is no release": replace(good, entry=leaves.to_bytes(golden_verify.LEAVES[1]), index=1, path=path),
        "an index that is not there": replace(good, index=99),
    }


@pytest.mark.parametrize("name", crafted())
def test_what_lacks_one_thing_is_refused_by_both(name: str, tmp_path: Path) -> None:
    golden_verify.lay(Case(golden_verify.FILES, crafted()[name]), tmp_path)
    assert app.run(ASKED) == 1
    code, said = standalone(tmp_path, "etl.zip")
    assert code == 1 and "FAILED" in said, said


def test_whatever_is_bent_of_a_proof_both_refuse_it(tmp_path: Path) -> None:
    """Every byte, in process: the standalone file is run as a module. But for what a key's entry says of its time, which
    nothing depends on."""
    golden_verify.lay(CASES["A good tree"], tmp_path)
    module: dict[str, Any] = {"__name__": "standalone", "print": lambda text: None}
    exec(compile(STANDALONE.read_text(), str(STANDALONE), "exec"), module)
    refused = (module["Failed"], LookupError, TypeError, AttributeError, ValueError)
    proof, trusted = (tmp_path / "etl.proof").read_bytes(), [FIRST.public]
    assert proofs.verify(Proof.from_bytes(proof), trusted).manifest == golden_verify.TWO
    module["verify"](proof, [FIRST.public.raw], "etl", None)
    times = 0
    for at in range(len(proof)):
        bent = proof[:at] + bytes([proof[at] ^ 1]) + proof[at + 1 :]
        try:
            found = Proof.from_bytes(bent)
            proofs.verify(found, trusted)
        except SecurityError:
            with pytest.raises(refused):
                module["verify"](bent, [FIRST.public.raw], "etl", None)
            continue
        assert replace(found, keys=golden_verify.PROOF.keys) == golden_verify.PROOF
        assert proofs.chain(found.keys) == proofs.chain(golden_verify.PROOF.keys)
        times += 1
    assert times < 30
