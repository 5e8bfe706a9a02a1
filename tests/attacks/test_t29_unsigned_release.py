"""T29 forged-release, second half: what a launch makes of it, with the real API, agent, launcher and command line.

Whoever has the API needs no forgery to record what he likes: here an administrator's token pushes without an author. The
refusal is in the API's audit log, and no byte ran.

Seen to fail when weakened: `__main__` that does not load `authors_file`; `launching.carry_out` without `authors.require`.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integrity.fields import to_base64
from tests.attacks.attacker import Traces, new_traces, traced_dag
from tests.live import Live, running
from vocabulary.keys import SigningKey

OURS = SigningKey.generate()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """What the agent's account may read, and change nothing in."""
    with tempfile.TemporaryDirectory(prefix="dagseal-t29-") as name:
        found = Path(name)
        found.chmod(0o755)
        (found / "ours.key").write_text(OURS.seed.hex() + "\n")
        (found / "ours.key").chmod(0o600)
        yield found


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[Live]:
    keys = [to_base64(OURS.public.raw)]
    if shutil.which("ssh-keygen"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "id"], check=True, timeout=30)
        keys.append((folder / "id.pub").read_text().strip())
    authors = folder / "authors.toml"
    authors.write_text(f'"t29*" = {json.dumps(keys)}\n')
    authors.chmod(0o644)
    with running(more_agent_toml=f'log_sync_seconds = 0.05\nauthors_file = "{authors}"\n') as found:
        yield found


@pytest.fixture
def traces(live: Live) -> Iterator[Traces]:
    with new_traces(live) as fresh:
        yield fresh


@pytest.fixture
def name() -> str:
    return f"t29{secrets.token_hex(4)}"


def written(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.py"
    path.write_text(text)
    return str(path)


def test_what_nobody_signed_is_refused_audited_and_does_not_run(live: Live, traces: Traces, name: str) -> None:
    assert live.push(f"{name}.py", traced_dag(name, traces)).json["author_key_id"] is None
    launch = live.launch(name, "t", "r")
    assert (launch["state"], launch["error"], launch["started_at"]) == ("refused", "author", None)
    event = live.audit(object=f"launch:{launch['id']}")[-1]
    assert (event["action"], event["verdict"], event["rule"]) == ("launch.state", "refused", "author")
    assert f"{name}.py@1 is not signed by an author" in event["detail"]
    assert not traces.of("ran") and not list(live.stack.cache.rglob(launch["digest"].removeprefix("sha512:")))


def test_what_an_author_signed_runs_and_what_comes_after_it_does_not(
    live: Live, traces: Traces, name: str, folder: Path
) -> None:
    path = written(folder, name, traced_dag(name, traces))
    pushed = live.cli("push", path, "--sign-key", str(folder / "ours.key"), "-o", "json")
    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(pushed.stdout)[0]["author_key_id"] == OURS.public.key_id
    assert live.launch(name, "t", "r1")["state"] == "success"
    asked = live.cli("verify", path, "--require-author", str(folder / "authors.toml"))
    assert asked.returncode == 0 and "ok     10." in asked.stdout, asked.stdout + asked.stderr
    other = written(folder, name, traced_dag(name, traces) + "# more\n")
    assert live.cli("push", other).returncode == 0
    assert live.launch(name, "t", "r2")["error"] == "author"
    assert live.cli("verify", other, "--require-author", str(folder / "authors.toml")).returncode == 1
    assert len(traces.of("ran")) == 1


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="openssh-client is not installed")
def test_an_author_with_an_ssh_key(live: Live, traces: Traces, name: str, folder: Path) -> None:
    path = written(folder, name, traced_dag(name, traces))
    signing = ["ssh-keygen", "-q", "-Y", "sign", "-n", "dagseal.dev/author", "-f", str(folder / "id")]
    statement = live.cli("author-statement", path)
    made = subprocess.run(signing, input=statement.stdout.encode(), capture_output=True, check=True, timeout=30).stdout
    (folder / "sig").write_bytes(made)
    pushed = live.cli("push", path, "--author-signature", str(folder / "sig"))
    assert pushed.returncode == 0, pushed.stderr
    assert live.launch(name, "t", "r")["state"] == "success"
    assert len(traces.of("ran")) == 1


def test_an_archive_that_the_file_does_not_name(live: Live, traces: Traces) -> None:
    name = f"free{secrets.token_hex(4)}"
    assert live.push(f"{name}.py", traced_dag(name, traces)).status == 201
    assert live.launch(name, "t", "r")["state"] == "success"
