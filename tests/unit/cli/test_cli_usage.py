"""The user's mistakes: a sentence on stderr and an exit code, never a traceback; and a start that is quick."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dagseal.cli.app import build, run

GOOD_DAG = "import datetime\n"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of whoever runs the tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    for name in ("DAGSEAL_SERVER", "DAGSEAL_TOKEN_FILE", "DAGSEAL_API_KEY", "DAGSEAL_OUTPUT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["--nonsense"],
        ["list", "--nonsense"],
        ["push"],
        ["launch", "dag"],
        ["launch", "dag", "task", "--map-index", "x"],
        ["launch", "dag", "task", "--timeout", "soon"],
        ["list"],
        ["list", "-o", "xml"],
        ["--color", "red", "list"],
        ["--config", "/nonexistent", "config", "list"],
        ["show", "../etc/passwd"],
        ["show", "etl.py@0"],
        ["activate", "etl.py"],
        ["history", "etl.py@1"],
        ["verify"],
        ["verify", "x.py", "--cache", "/tmp"],
        ["check", "/nonexistent.py"],
        ["agent"],
        ["launcher"],
        ["connection", "grant", "db"],
        ["connection", "grant", "db", "--to", "a", "--to-group", "b"],
        ["connection", "import", "x.json", "--format", "xml"],
        ["token", "create", "ann", "--expires-in", "never"],
        ["token", "create", "ann", "--out", "/"],
        ["key", "fingerprint"],
        ["key", "fingerprint", "AAAA"],
        ["worker", "enroll", "w", "--identity-file", "/dev/null"],
        ["worker", "invite", "w"],
        ["worker", "invite", "w", "--fingerprint", "a", "--unsafe-any-launcher"],
        ["worker", "invite", "w", "--unsafe-any-launcher", "--expires-in", "soon"],
        ["worker", "join"],
        ["worker", "join", "--invitation", "/dev/null"],
        ["impersonation", "allow", "ann"],
        ["impersonation", "deny", "ann"],
        ["impersonation", "explain", "dag"],
        ["audit", "export", "--format", "xml"],
        ["audit", "verify", "--offline"],
        ["audit", "verify", "--journal", "x", "--export", "y"],
        ["publisher", "add", "octo/etl", "--workflow", "publish.yml"],
        ["token", "exchange"],
        ["token", "exchange", "--out", "/"],
        ["verify", "etl.py", "--api-key", "AAAA"],
        ["--server", "http://example.com", "list", "--token-file", "/nonexistent"],
    ],
)
def test_a_mistake_ends_with_2_and_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dagseal: ")
    assert len(captured.err.strip().splitlines()) == 1


def test_no_server_is_75_and_verify_says_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = tmp_path / "token"
    token.write_text("t\n")
    token.chmod(0o600)
    where = ["--server", "http://127.0.0.1:1", "--token-file", str(token)]
    assert run([*where, "list"]) == 75
    assert "cannot be reached" in capsys.readouterr().err
    dag = tmp_path / "etl.py"
    dag.write_text(GOOD_DAG)
    assert run([*where, "verify", str(dag), "--unsafe-trust-server"]) == 3
    assert run([*where, "verify", str(dag)]) == 3
    assert run([*where, "verify", "--cache", str(tmp_path / "none")]) == 3


def test_check_judges_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.zip"
    good.write_text(GOOD_DAG)
    bad.write_bytes(b"PK\x03\x04nonsense")
    assert run(["check", str(good)]) == 0
    capsys.readouterr()
    assert run(["-o", "json", "check", str(good), str(bad)]) == 7
    first, second = json.loads(capsys.readouterr().out)
    assert (first["verdict"], first["members"]) == ("ok", ["good.py"])
    assert second["verdict"] == "refused"
    assert second["rule"]


def test_config_list_says_where_values_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "list", "--sources", "-o", "json", "--server", "http://127.0.0.1:5"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["server"] == {"key": "server", "value": "http://127.0.0.1:5", "source": "flag"}
    assert rows["color"]["source"] == "default"


def test_fsck_of_a_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from worker_cache.store import Store

    folder = tmp_path / "cache"
    Store.open(str(folder)).close()
    assert run(["fsck", "--cache", str(folder)]) == 0
    (folder / "incoming" / ".tmp-1").write_bytes(b"")
    assert run(["fsck", "--cache", str(folder)]) == 0, "what a crash leaves is no damage"
    (folder / "stray").write_bytes(b"")
    capsys.readouterr()
    assert run(["fsck", "--cache", str(folder), "-o", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["clean"], {f["rule"] for f in found["findings"]}) == (False, {"leftover", "unexpected"})
    assert run(["verify", "--cache", str(folder)]) == 1
    assert run(["fsck", "--cache", str(folder), "--repair"]) == 0
    assert run(["verify", "--cache", str(folder)]) == 0


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    group = typer.main.get_command(build())
    names = list(group.commands)  # type: ignore[attr-defined]
    assert len(names) > 25
    for name in names:
        assert run([name, "--help"]) == 0
        assert "Usage: dagseal" in capsys.readouterr().out
        assert group.commands[name].help, name  # type: ignore[attr-defined]


def test_a_secret_is_never_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["connection", "set", "db", "postgres://u:p@h/d"]) == 2
    assert "unexpected" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from dagseal.cli.app import run; run(['--help']); "
        "heavy = {'aiohttp', 'sqlalchemy', 'airflow', 'pydantic', 'rich', 'cryptography', 'yaml', 'asyncio'}; "
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_an_output_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    words = f"{sys.executable} -m dagseal config list --sources | true"
    found = subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("service", ["serve", "agent", "launcher"])
def test_a_service_takes_the_place_of_the_command(service: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "dagseal", service, "--config", str(tmp_path / "none.toml")]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "none.toml" in found.stderr
    assert "Traceback" not in found.stderr
