"""`dagseal quickstart` as a newcomer meets it, and `--keep` with nothing but curl and the command line."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import airflow
import pytest

from dagseal.footing import free_port

COMMAND = [sys.executable, "-s", "-P", "-m", "dagseal.cli.app", "quickstart"]
TUTORIAL = Path(airflow.__file__).with_name("example_dags") / "tutorial.py"


@pytest.fixture
def folder() -> Iterator[Path]:
    parent = Path(tempfile.mkdtemp(prefix="dagseal-quickstart-"))
    parent.chmod(0o755)
    yield parent / "quickstart"
    shutil.rmtree(parent)


def test_the_story_is_told_and_ends_with_zero(folder: Path) -> None:
    done = subprocess.run([*COMMAND, "--dir", str(folder)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    story = done.stdout
    steps = [
        r"\$ dagseal push",
        r"quickstart.py@1: submitted",
        r"\$ dagseal verify .*quickstart\.py",
        r"ok +5\. its manifest is signed by key [0-9a-f]{64}",
        r"\$ dagseal launch quickstart hello --run-id first",
        r"connection warehouse: etl@db\.example\.com, password of 28 characters",
        r"flipped bit 0 of byte 100",
        r"\$ dagseal verify --cache",
        r"verification FAILED",
        r"exit code 1\b",
        r"--run-id second",
        r"refused: digest-mismatch",
        r"exit code 7\b",
        r"--run-id third",
        r"secret\.deliver .* connection:warehouse",
    ]
    at = 0
    for step in steps:
        found = re.compile(step).search(story, at)
        assert found, f"after position {at} there is no {step!r} in:\n{story}"
        at = found.end()
    assert "correct-horse" not in story + done.stderr
    assert not folder.exists() or not list((folder / "run").glob("*.sock")), "the launcher's socket is left"


def test_keep_serves_until_sigterm_with_curl_alone(folder: Path) -> None:
    port = free_port()
    command = [*COMMAND, "--dir", str(folder), "--port", str(port), "--keep"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as kept:
        assert kept.stdout is not None
        try:
            for line in kept.stdout:
                if line.startswith("ready "):
                    break
            assert line == f"ready http://127.0.0.1:{port}\n"
            _with_curl_alone(folder, port)
        finally:
            kept.send_signal(signal.SIGTERM)
            kept.wait(60)
        assert kept.returncode == 0, kept.stderr.read() if kept.stderr else ""
    assert not list((folder / "run").iterdir())


def _with_curl_alone(folder: Path, port: int) -> None:
    token_file = folder / "admin.token"
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    token = token_file.read_text().strip()
    digest = hashlib.sha512(TUTORIAL.read_bytes()).hexdigest()
    url = f"http://127.0.0.1:{port}/v1/archives/tutorial.py"
    upload = _shell(f'curl -sS -w "\\n%{{http_code}}\\n" -T {TUTORIAL} -H "Authorization: Bearer {token}" {url}')
    body, status = upload.rstrip("\n").rsplit("\n", 1)
    assert status == "201", upload
    assert f"sha512:{digest}" in body
    assert _shell(f"sha512sum {TUTORIAL}").split()[0] == digest

    user = "--as-user nobody" if os.geteuid() == 0 else ""
    dagseal = f"{sys.executable} -s -P -m dagseal.cli.app"
    shown = _shell(f". {folder}/env && {dagseal} launch tutorial print_date {user} --follow")
    assert "Running command: ['/usr/bin/bash', '-c', 'date']" in shown or "Running command" in shown
    assert "Command exited with return code 0" in shown
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/docs", timeout=10) as page:
        text = page.read().decode()
    assert "/v1/archives/{name}" in text
    assert not re.search(r"(src|href)=[\"']https?://", text), "the page loads something from elsewhere"


def test_a_folder_in_use_is_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / "mine").write_text("keep me")
    done = subprocess.run([*COMMAND, "--dir", str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "is not empty: choose a new folder with --dir" in done.stderr
    assert (folder / "mine").read_text() == "keep me"


def _shell(line: str) -> str:
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
