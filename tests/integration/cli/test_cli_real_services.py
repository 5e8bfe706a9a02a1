"""The command line against real services: API, launcher and agent as processes, started once for this file."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dagseal.cli import app
from dagseal.footing import free_port
from dagseal.quickstart import default_user
from dagseal.stack import Stack
from integrity.fields import to_base64
from tests import airflow_exporting
from tests.forked_cli import Forked
from tests.live import Live
from vocabulary.keys import SealingKey, SigningKey

DAG = """
import os
from airflow.sdk import dag, task


@dag(dag_id="{dag_id}", schedule=None)
def story():
    @task
    def good():
        print("uid", os.getuid())

    @task
    def bad():
        raise ValueError("as asked")

    good()
    bad()


story()
"""


@dataclass(frozen=True, slots=True)
class Said:
    """What a command ended with."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs commands as a user would, each in its own process."""

    def __init__(self, stack: Stack, folder: Path, program: Forked) -> None:
        self.stack, self.folder, self.program = stack, folder, program

    def __call__(self, *words: str, stdin: str = "", token: Path | None = None) -> Said:
        environment = self.environment()
        if token is not None:
            environment["DAGSEAL_TOKEN_FILE"] = str(token)
        said = Said(*self.program(list(words), environment, stdin))
        assert "Traceback" not in said.err
        return said

    def environment(self) -> dict[str, str]:
        return self.stack.environment(NO_COLOR="1", HOME=str(self.folder))

    def dag(self, name: str, dag_id: str, more: str = "") -> Path:
        path = self.folder / name
        path.write_text(DAG.format(dag_id=dag_id) + more)
        return path


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    base = Path(tempfile.mkdtemp(prefix="dagseal-cli-"))
    base.chmod(0o755)  # the services run under their own accounts
    stack = Stack(folder=base / "stack", port=free_port(), task_user=default_user())
    program = Forked()
    try:
        stack.prepare()
        stack.start()
        (base / "home").mkdir()
        shell = Shell(stack, base / "home", program)
        assert shell("impersonation", "allow", "admin", "--as-user", stack.task_user).code == 0
        assert shell("push", str(shell.dag("story.py", "story"))).code == 0
        yield shell
    finally:
        program.close()
        stack.stop()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def bob(shell: Shell) -> Path:
    """The token of somebody without any right."""
    path = shell.folder / "bob.token"
    assert shell("token", "create", "bob", "--expires-in", "1h", "--out", str(path)).code == 0
    assert path.stat().st_mode & 0o777 == 0o600
    return path


def test_push_twice_is_one_release_with_the_digest_of_sha512sum(shell: Shell) -> None:
    path = shell.folder / "story.py"
    again = shell("push", str(path), "-o", "json")
    assert again.code == 0
    assert "newest release already" in again.err
    assert again.json[0]["digest"] == "sha512:" + hashlib.sha512(path.read_bytes()).hexdigest()
    assert again.json[0]["number"] == 1


def test_a_folder_is_pushed_as_a_zip_and_verified(shell: Shell) -> None:
    folder = shell.folder / "packed"
    folder.mkdir()
    (folder / "flow.py").write_text("import words\n" + DAG.format(dag_id="packed"))
    (folder / "words.py").write_text("hello = 'hi'\n")
    assert shell("push", str(folder)).code == 0
    verified = shell("verify", str(folder))
    assert verified.code == 0, verified
    assert "2 members" in verified.out
    (folder / "words.py").write_text("hello = 'ha'\n")
    assert shell("verify", str(folder)).code == 1


def test_verify_file_name_and_stdin(shell: Shell) -> None:
    path = shell.folder / "story.py"
    for words in (["verify", str(path)], ["verify", "story.py"], ["verify", "story.py@1"]):
        said = shell(*words)
        assert said.code == 0, said
        assert said.out.count("ok ") == 8 and said.out.count("not made") == 2
    text = path.read_text()
    assert shell("verify", "-", "--name", "story.py", stdin=text).code == 0
    changed = shell("verify", "-", "--name", "story.py", "-o", "json", stdin=text.replace("asked", "Asked"))
    assert changed.code == 1
    assert changed.json["verified"] is False
    assert [check["state"] for check in changed.json["checks"]] == ["ok"] * 5 + ["failed"]
    assert changed.json["differences"] == [{"change": "changed", "name": "story.py"}]
    assert shell("verify", "-", "--name", "never.py", stdin=text).code == 1
    assert shell("verify", "never.py").code == 5
    other = to_base64(SigningKey.generate().public.raw)
    assert shell("verify", str(path), "--api-key", other).code == 1


def test_a_proof_is_good_without_the_server(shell: Shell) -> None:
    path, proof = shell.folder / "story.py", shell.folder / "story.proof"
    made = shell("proof", "story.py@1")
    assert made.code == 0, made
    proof.write_text(made.out)
    key = shell.folder / "log.pub"
    key.write_text(shell.stack.environment()["DAGSEAL_API_KEY"] + "\n")
    asked = ("--proof", str(proof), "--trust-root", str(key), "--server", "http://127.0.0.1:9")
    said = shell("verify", str(path), *asked, "--expect-owner", "admin")
    assert said.code == 0 and "not made, whether it was revoked" in said.out, said
    assert shell("verify", str(path), *asked, "--expect-owner", "bob").code == 1
    assert shell("verify", "-", "--name", "story.py", *asked, stdin=path.read_text() + "#").code == 1
    alone = Path(__file__).parents[3] / "docs" / "verify_standalone.py"
    command = [sys.executable, "-I", str(alone), "--trust-root", str(key), "--proof", str(proof), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("ok ")) == (0, 7), done
    for words, code in ((["proof", "story.py"], 2), (["proof", "story.py@9"], 5), (["proof", "never.py@1"], 5)):
        assert shell(*words).code == code
    assert shell("verify", str(path), "--proof", str(path), "--trust-root", str(key)).code == 1


def test_the_servers_whole_log_is_verified(shell: Shell, bob: Path) -> None:
    said = shell("verify", "--server-log")
    assert said.code == 0 and said.out.count("ok ") == 6, said
    assert shell("verify", "--server-log", "-o", "json").json["kind"] == "log"
    limited = shell("verify", "--server-log", token=bob)
    assert limited.code == 0 and "that you may not read" in limited.out, limited
    assert shell("verify", "--server-log", "--api-key", to_base64(SigningKey.generate().public.raw)).code == 1
    assert shell("verify", "--server-log", "--server", "http://127.0.0.1:9").code == 3
    for words in (["verify"], ["verify", "story.py", "--server-log"], ["verify", "--server-log", "--name", "story.py"]):
        assert shell(*words).code == 2


def test_list_show_history_cat(shell: Shell) -> None:
    assert "story.py" in [row["name"] for row in shell("list", "-o", "json").json]
    shown = shell("show", "story.py")
    assert shown.code == 0
    assert "good" in shown.out
    assert shell("show", "story.py@1", "-o", "yaml").code == 0
    assert [row["number"] for row in shell("history", "story.py", "-o", "json").json] == [1]
    assert shell("cat", "story.py").out == (shell.folder / "story.py").read_text()
    for words in (["show", "never.py"], ["show", "story.py@9"], ["history", "never.py"], ["cat", "never.py"]):
        assert shell(*words).code == 5


def test_every_output_format_of_every_list(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first by the program; the others by what it calls, as to start it takes longer than to list."""
    for name, value in shell.environment().items():
        monkeypatch.setenv(name, value)
    lists = (
        ["list"],
        ["history", "story.py"],
        ["launches"],
        ["connection", "list"],
        ["connection", "grants"],
        ["variable", "list"],
        ["token", "list"],
        ["worker", "list"],
        ["key", "list"],
        ["impersonation", "list"],
        ["group", "list"],
        ["audit", "list"],
        ["audit", "tail"],
        ["config", "list"],
    )
    for words in lists:
        said = shell(*words, "-o", "json")
        assert said.code == 0, (words, said)
        assert isinstance(said.json, list)
        for output in ("table", "plain", "yaml"):
            assert app.run([*words, "-o", output]) == 0, (words, output)


def test_follow_ends_as_the_task_ended(shell: Shell) -> None:
    good = shell("launch", "story", "good", "--follow")
    assert good.code == 0, good
    assert "uid" in good.out
    bad = shell("launch", "story", "bad", "--follow", "--timeout", "5m")
    assert bad.code == 8, bad
    assert "as asked" in bad.out
    assert "failed" in bad.err


def test_launches_logs_and_conflicts(shell: Shell) -> None:
    launched = shell("launch", "story", "good", "--run-id", "once", "-o", "json")
    assert launched.code == 0
    identifier = launched.json["id"]
    assert shell("logs", identifier, "--follow").code == 0
    assert "uid" in shell("logs", identifier).out
    assert identifier in [row["id"] for row in shell("launches", "--dag", "story", "-o", "json").json]
    assert shell("launch", "story", "good", "--run-id", "once").code == 6
    assert shell("cancel", identifier).code == 6
    assert shell("logs", "0" * 32).code == 5
    assert shell("launch", "story", "never").code == 5
    assert shell("launch", "never", "good").code == 5
    assert shell("launch", "story", "good", "--run-id", "bad run").code in (2, 7)


def test_policy_refuses_with_7_and_strangers_with_4(shell: Shell, bob: Path) -> None:
    refused = shell("launch", "story", "good", "--as-user", "daemon")
    assert refused.code == 7, refused
    assert shell("push", str(shell.folder / "story.py"), token=bob).code == 4
    assert shell("token", "list", token=bob).code == 4
    assert shell("connection", "set", "x", stdin="http://h", token=bob).code == 4
    broken = shell.folder / "broken.token"
    broken.write_text("dgs_nonsense\n")
    broken.chmod(0o600)
    assert shell("list", token=broken).code == 4


def test_who_owns_what(shell: Shell, bob: Path) -> None:
    """chown, chgrp and chmod as in unix; the queues; and a dag_id that moves to another archive."""
    (shell.folder / "ours.py").write_text(DAG.format(dag_id="ours"))
    assert shell("push", str(shell.folder / "ours.py")).code == 0
    assert (
        shell(
            "list",
            token=bob,
        ).out.count("ours.py")
        == 0
    )
    said = shell("chmod", "o=rx", "ours.py", "-o", "json").json
    assert said == [{"kind": "archive", "name": "ours.py", "owner": "admin", "group": "admin", "mode": "rwxrwxr-x"}]
    assert shell("list", token=bob).out.count("ours.py") == 1
    assert shell("chmod", "777", "ours.py", token=bob).code == 4
    assert shell("chgrp", "nobodys", "ours.py").code == 5
    assert shell("chown", "bob", "ours.py").code == 0
    assert shell("chmod", "-x", "ours.py", token=bob).code == 0
    assert shell("show", "archive:ours.py", "-o", "json").json["mode"] == "rw-rw-r--"
    assert shell("chmod", "rwx", "ours.py").code == 2 and shell("chmod", "700", "folder:x").code == 2
    assert (
        shell("queue", "add", "gpu", "--owner", "bob", "--mode", "u=rwx,go=", "-o", "json").json["mode"] == "rwx------"
    )
    assert [row["name"] for row in shell("queue", "list", "-o", "json", token=bob).json] == ["gpu"]
    assert shell("queue", "add", "gpu").code == 6
    assert shell("queue", "rm", "gpu").code == 0 and shell("queue", "rm", "gpu").code == 5
    (shell.folder / "theirs.py").write_text(DAG.format(dag_id="theirs"))
    assert shell("push", str(shell.folder / "theirs.py")).code == 0
    moved = shell("dag", "transfer", "ours", "theirs.py", "-o", "json").json
    assert moved == {"dag_id": "ours", "archive": "theirs.py", "was": "ours.py"}


def test_refused_archives_end_with_7(shell: Shell) -> None:
    cases = {
        "syntax.py": "def f(:\n",
        "nodag.py": "x = 1\n",
        "raises.py": "raise RuntimeError('no')\n",
        "stolen.py": DAG.format(dag_id="story"),
    }
    codes = {}
    for name, text in cases.items():
        (shell.folder / name).write_text(text)
        codes[name] = shell("push", str(shell.folder / name)).code
    assert codes == {"syntax.py": 7, "nodag.py": 7, "raises.py": 7, "stolen.py": 6}
    assert not {"syntax.py", "nodag.py"} & {row["name"] for row in shell("list", "-o", "json").json}


def test_a_value_goes_in_and_never_comes_out(shell: Shell) -> None:
    secret = "s3cret-value"
    file = shell.folder / "value"
    file.write_text(f"postgres://u:{secret}@h/d\n")
    said = [
        shell("connection", "set", "db", "--file", str(file)),
        shell("variable", "set", "v", stdin=secret),
        shell("connection", "grant", "db", "--to", "admin"),
        shell("connection", "list", "-o", "json"),
        shell("connection", "grants", "-o", "json"),
        shell("variable", "list", "-o", "json"),
        shell("audit", "list", "-o", "json"),
    ]
    assert [s.code for s in said] == [0] * len(said)
    assert all(secret not in s.out + s.err for s in said)
    grant = said[2].out.split()[1]
    assert shell("connection", "ungrant", grant).code == 0
    assert shell("connection", "rm", "db").code == 0
    assert shell("connection", "rm", "db").code == 5
    assert shell("connection", "set", "db", stdin="").code == 2


def test_import_takes_what_airflow_exports(shell: Shell) -> None:
    exported = {
        "json": json.dumps({"one": {"conn_type": "http", "host": "h", "password": "p"}}),
        "yaml": "two:\n  conn_type: http\n  host: h\n",
        "env": "three=http://u:p@h\n",
    }
    for form, text in exported.items():
        file = shell.folder / f"exported.{form}"
        file.write_text(text)
        assert shell("connection", "import", str(file)).code == 0
        assert shell("connection", "import", "-", "--format", form, stdin=text).code == 0
    assert {"one", "two", "three"} <= {row["name"] for row in shell("connection", "list", "-o", "json").json}
    bad = shell("connection", "import", "-", "--format", "json", stdin='{"x": 3}')
    assert bad.code == 2
    assert "x" in bad.err


def test_a_pipelines_token_pushes_its_own_archives_only(shell: Shell) -> None:
    made = shell(
        "token", "create", "pipeline", "--scope", "archive:push:team_a", "--expires-in", "90d", "-o", "json"
    ).json
    token = shell.folder / "pipeline.token"
    token.write_text(made["token"] + "\n")
    token.chmod(0o600)
    listed = shell("token", "list", "-o", "json").json
    assert next(one["scopes"] for one in listed if one["token_id"] == made["token_id"]) == ["archive:push:team_a"]
    assert shell("list", token=token).code == 0
    assert shell("audit", "list", token=token).code == 4
    refused = shell("token", "create", "x", "--scope", "push:team_a")
    assert refused.code != 0 and "write archive:push:PREFIX" in refused.err


def test_tokens_groups_and_rules(shell: Shell, bob: Path) -> None:
    made = shell("token", "create", "carl", "-o", "json").json
    token = shell.folder / "carl.token"
    token.write_text(made["token"] + "\n")
    token.chmod(0o600)
    assert shell("list", token=token).code == 0
    assert shell("token", "revoke", made["token_id"]).code == 0
    assert shell("list", token=token).code == 4
    assert made["token"] not in shell("token", "list", "-o", "json").out
    assert shell("token", "create", "carl", "--out", str(bob)).code == 2, "an existing file is not overwritten"
    assert shell("group", "set", "data", "ann", "carl", "-o", "json").json["members"] == ["ann", "carl"]
    allowed = shell("impersonation", "allow", "data", "--group", "--as-user", "etl", "--dag", "etl*", "-o", "json")
    assert (allowed.json["subject_kind"], allowed.json["effect"]) == ("group", "allow")
    assert shell("impersonation", "explain", "none", "t").code == 5
    why = shell("impersonation", "explain", "story", "good", "-o", "json")
    assert (why.code, why.json["verdict"], why.json["unix_user"]) == (0, "allowed", shell.stack.task_user)
    assert shell("impersonation", "explain", "story", "good", token=bob).code == 4
    never = shell("impersonation", "explain", "story", "good", "--as-user", "nobody-else")
    assert never.code == 7
    assert "verdict" in never.out and "refused" in never.out
    assert "dagseal impersonation allow admin --as-user nobody-else" in never.err
    denied = shell("impersonation", "deny", "data", "--group", "--as-user", "etl", "-o", "json")
    assert denied.json["effect"] == "deny"
    assert shell("impersonation", "rm", denied.json["id"]).code == 0
    assert shell("impersonation", "rm", allowed.json["id"]).code == 0
    assert shell("impersonation", "rm", allowed.json["id"]).code == 5


def test_the_audit_log_is_exported_and_verified(shell: Shell) -> None:
    lines = shell("audit", "export").out.splitlines()
    numbers = [json.loads(line)["seq"] for line in lines]
    assert numbers == list(range(1, len(numbers) + 1))
    path = shell.folder / "audit.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    assert shell("audit", "verify", "--export", str(path)).code == 0
    more = shell("audit", "export", "--format", "cef", "--after", str(numbers[-1]), "--action", "audit.export")
    assert more.out.startswith("CEF:0|dagseal|dagseal|") and f"cs1=audit:1-{numbers[-1]} " in more.out
    recorded = shell("audit", "list", "--after", str(numbers[-1]), "--action", "audit.export", "-o", "json").json
    assert recorded[0]["digest"] == f"sha512:{hashlib.sha512(path.read_bytes()).hexdigest()}"
    whole = shell("audit", "verify")
    assert whole.code == 0 and "ok" in whole.out


def test_a_worker_is_enrolled_only_with_its_own_fingerprint(shell: Shell) -> None:
    asked = shell("worker", "identity", "--launcher-socket", str(shell.stack.launcher_socket), "-o", "json")
    assert asked.code == 0
    identity = {
        "verify_key": to_base64(SigningKey.generate().public.raw),
        "sealing_key": to_base64(SealingKey.generate().public.raw),
    }
    text = json.dumps(identity)
    enroll = ["worker", "enroll", "host-2", "--identity-file", "-", "-o", "json"]
    assert shell(*enroll, "--fingerprint", asked.json["fingerprint"], stdin=text).code == 7
    assert shell(*enroll, "--no-input", stdin=text).code == 2
    enrolled = shell(*enroll, "--yes", stdin=text)
    assert enrolled.code == 0, enrolled
    assert enrolled.json["token"].startswith("dgs_")
    assert shell("worker", "revoke", "host-2").code == 0


def test_a_worker_joins_with_an_invitation_that_is_good_once(shell: Shell) -> None:
    """The fingerprint is the launcher's own; what is not asked for by a name that says so is not done."""
    socket, invitation, key = shell.stack.launcher_socket, shell.folder / "join.token", shell.folder / "request.key"
    found = shell("worker", "identity", "--launcher-socket", str(socket), "-o", "json").json["fingerprint"]
    config = shell.folder / "agent.toml"
    config.write_text(
        f'[agent]\nserver = "{shell.stack.url}"\nworker = "host-3"\nkey_file = "{key}"\nlauncher_socket = "{socket}"\n'
        f'api_key = "{shell.stack.environment()["DAGSEAL_API_KEY"]}"\n'
    )
    join = ("worker", "join", "--config", str(config), "--invitation", str(invitation), "-o", "json")
    assert shell("worker", "invite", "host-3").code == 2
    other = shell("worker", "invite", "host-3", "--fingerprint", "0" * 64, "--out", str(invitation), "-o", "json")
    assert (other.code, other.json["name"], "token" in other.json) == (0, "host-3", False)
    assert invitation.stat().st_mode & 0o777 == 0o600
    refused = shell(*join)
    assert refused.code == 4 and f"is for another launcher than that of {found}" in refused.err
    prepared = (shell.folder / "request.key.new").read_text()
    invitation.unlink()
    invite = (
        "worker",
        "invite",
        "host-3",
        "--queue",
        "big",
        "--fingerprint",
        found,
        "--out",
        str(invitation),
        "-o",
        "json",
    )
    assert shell(*invite).json["queues"] == ["big"]
    assert shell(*invite).code == 2  # the file is there
    joined = shell(*join)
    assert (joined.code, joined.json["fingerprint"], joined.json["queues"]) == (0, found, ["big"]), joined
    assert key.read_text() == prepared and key.stat().st_mode & 0o777 == 0o600
    again = shell(*join)
    assert again.code == 4 and "was used already" in again.err
    assert key.read_text() == prepared
    listed = {worker["name"]: worker for worker in shell("worker", "list", "-o", "json").json}
    assert listed["host-3"]["request_key_id"] == joined.json["request_key_id"]
    assert shell("worker", "revoke", "host-3").code == 0


def test_key_show_and_fingerprint_agree_with_what_is_pinned(shell: Shell) -> None:
    shown = shell("key", "show", "--config", str(shell.stack.folder / "api.toml"), "-o", "json").json
    assert shown["api_key"] == shell.stack.environment()["DAGSEAL_API_KEY"]
    assert shell("key", "fingerprint", "-o", "json").json == shown


def test_revoked_releases_fail_verification(shell: Shell) -> None:
    path = shell.dag("gone.py", "gone")
    assert shell("push", str(path)).code == 0
    shell.dag("gone.py", "gone", more="# second\n")
    assert shell("push", str(path)).code == 0
    assert shell("activate", "gone.py@1").code == 0
    assert shell("verify", "gone.py@2").code == 0
    assert shell("revoke", "gone.py@1").code == 0
    assert shell("verify", "gone.py@1").code == 1
    assert shell("launch", "gone", "good").code == 6


def test_rolling_back_is_asked_for_or_says_from_where(shell: Shell) -> None:
    for number in (1, 2, 3):
        assert shell("push", str(shell.dag("undone.py", "undone", more=f"# {number}\n"))).code == 0
    nobody = shell("rollback", "undone.py")
    assert nobody.code == 2
    assert "Release 3 of undone.py is active. Roll it back to the one before?" in nobody.err
    late = shell("rollback", "undone.py", "--from", "2")
    assert (late.code, late.out) == (6, "")
    assert 'the active release of undone.py is 3, not "2": somebody changed it' in late.err
    done = shell("rollback", "undone.py", "--from", "3", "-o", "json")
    assert (done.code, done.json["number"], done.json["state"]) == (0, 2, "active")
    assert "undone.py: release 3 -> 2" in done.err
    assert shell("activate", "undone.py@3", "--from", "1").code == 6
    assert shell("activate", "undone.py@3", "--from", "none").code == 6
    assert shell("rollback", "undone.py", "--from", "3rd").code == 2
    assert shell("rollback", "undone.py", "3", "--from", "2").code == 6
    assert shell("rollback", "undone.py", "1", "--from", "2").code == 0
    assert shell("revoke", "undone.py@3", "--reason", "deletes customers").code == 0
    history = shell("history", "undone.py", "-o", "json").json
    assert [(row["number"], row["state"], row["revoke_reason"]) for row in history] == [
        (3, "revoked", "deletes customers"), (2, "inactive", ""), (1, "active", ""),
    ]  # fmt: skip
    assert "deletes customers" in shell("history", "undone.py").out
    refused = shell("launch", "undone", "good", "--release", "3")
    assert (refused.code, refused.out) == (6, "")
    assert "undone.py@3 was revoked (deletes customers)" in refused.err


def test_diff_of_releases_and_of_a_file_that_is_not_pushed(shell: Shell) -> None:
    path = shell.dag("differs.py", "differs")
    assert shell("push", str(path)).code == 0
    text = path.read_text().replace("@task\n    def bad", "@task(run_as_user='etl_admin', queue='big')\n    def bad")
    path.write_text(text + "# and more\n")
    unpushed = shell("diff", "differs.py", str(path), "--text", "-o", "json").json
    assert (unpushed["before"], unpushed["same"], "tasks" in unpushed) == (1, False, False)
    assert [change["name"] for change in unpushed["members"]] == [["differs.py"]]
    assert "+# and more" in unpushed["text"]["differs.py"]
    assert len(shell("history", "differs.py", "-o", "json").json) == 1

    assert shell("push", str(path), "--isolation", "minimal").code == 0
    whole = shell("diff", "differs.py", "-o", "json")
    assert (whole.code, whole.json["before"], whole.json["after"], whole.json["same"]) == (0, 1, 2, False)
    assert whole.json["unix_users"] == {"gained": ["etl_admin"], "lost": []}
    assert [(c["name"], c["before"], c["after"]) for c in whole.json["settings"]] == [
        (["isolation"], {"value": None}, {"value": "minimal"})
    ]
    changes = {".".join(c["name"]): c for c in whole.json["tasks"]}
    assert (changes["differs.bad"]["change"], changes["differs.good"]["change"]) == ("changed", "digest")
    assert changes["differs.bad"]["after"]["run_as_user"] == "etl_admin"
    shown = shell("diff", "differs.py", "1", "2", "--text")
    assert shown.code == 0
    assert "gained" in shown.out and "etl_admin" in shown.out and "+# and more" in shown.out
    assert "--- differs.py@1/differs.py" in shown.out
    back = shell("diff", "differs.py", "2", "1", "-o", "json").json
    assert back["unix_users"] == {"gained": [], "lost": ["etl_admin"]}
    assert shell("diff", "differs.py", "2", "2", "-o", "json").json["same"] is True
    assert shell("diff", "differs.py", "9").code == 5
    assert shell("diff", "differs.py", str(path), "1").code == 2
    assert shell("diff", "story.py").code == 6
    assert shell("diff", "absent.py").code == 5


def test_a_release_waits_for_a_second_member(shell: Shell, bob: Path) -> None:
    assert shell("group", "set", "team", "admin", "bob").code == 0
    asked = shell("group", "set", "team", "--approvals", "1", "-o", "json").json
    assert (asked["members"], asked["approvals"]) == (["admin", "bob"], 1)
    path = shell.dag("waits.py", "waits")
    pushed = shell("push", str(path), "--group", "team", "-o", "json")
    assert (pushed.code, pushed.json[0]["state"]) == (0, "pending")
    assert "waits.py@1: submitted, and waits for approval" in pushed.err
    digest = pushed.json[0]["digest"]
    refused = shell("launch", "waits", "good")
    assert (refused.code, refused.out) == (6, "")
    assert "waits.py@1 waits for approval by 1 of group team" in refused.err
    assert shell("activate", "waits.py@1").code == 6
    assert shell("approve", "waits.py@1", "--digest", digest).code == 4
    nobody = shell("approve", "waits.py@1", token=bob)  # nobody can be asked here: it is only shown
    assert nobody.code == 2
    assert f"Approve waits.py@1, {digest}, submitted by admin?" in nobody.err
    assert shell("approve", "waits.py@1", "--digest", "sha512:" + "0" * 128, token=bob).code == 6
    done = shell("approve", "waits.py@1", "--digest", digest, "--reason", "looks good", "-o", "json", token=bob)
    assert (done.code, done.json["state"], done.json["approved_by"]) == (0, "active", ["bob"])
    shell.dag("waits.py", "waits", more="# second\n")
    assert shell("push", str(path)).code == 0
    shown = shell("approve", "waits.py@2", token=bob)
    assert shown.code == 2 and "waits.py: 1 -> 2: differs" in shown.err and "changed" in shown.out
    assert [row["state"] for row in shell("history", "waits.py", "-o", "json").json] == ["pending", "active"]
    assert shell("group", "set", "team", "--approvals", "0").code == 0


def test_fsck_and_doctor(shell: Shell) -> None:
    clean = shell("fsck", "--config", str(shell.stack.folder / "api.toml"), "-o", "json")
    assert clean.code == 0, clean
    assert clean.json["clean"] is True
    assert shell("verify", "--cache", str(shell.stack.cache)).code == 0
    assert shell("fsck", "--cache", str(shell.stack.cache)).code == 0
    found = shell("doctor", "--launcher-config", str(shell.stack.folder / "launcher.toml"), "-o", "json").json
    states = {row["check"]: row["state"] for row in found}
    assert states["server"] == "ok"
    assert states["launcher"] in ("ok", "warning")
    assert shell("doctor", "--launcher-socket", "/nonexistent", "--user", "no-such-account").code == 1


def test_a_server_that_restarts_while_a_log_is_followed(shell: Shell) -> None:
    shell.stack.stop("api")
    assert shell("list").code == 75
    waiting = subprocess.Popen(
        [sys.executable, "-m", "dagseal", "push", "--wait", "60", str(shell.folder / "story.py")],
        env=shell.stack.environment(HOME=str(shell.folder)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    shell.stack.start_api()
    out, err = waiting.communicate(timeout=90)
    assert waiting.returncode == 0, (out, err)
    assert shell("launch", "story", "good", "--follow").code == 0


def test_interrupting_a_follow_ends_with_130(shell: Shell) -> None:
    path = shell.folder / "long.py"
    path.write_text(
        DAG.format(dag_id="long").replace(
            'print("uid", os.getuid())', 'print("here", flush=True); os.read(os.pipe()[0], 1)'
        )
    )
    assert shell("push", str(path)).code == 0
    following = subprocess.Popen(
        [sys.executable, "-u", "-m", "dagseal", "launch", "long", "good", "--follow", "--run-id", "slow"],
        env=shell.stack.environment(HOME=str(shell.folder)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs us in the background may ignore it
    )
    assert following.stdout is not None
    for line in io.TextIOWrapper(following.stdout):
        if "here" in line:
            break
    following.send_signal(2)
    assert following.wait(30) == 130
    assert following.stderr is not None
    hint = following.stderr.read().decode()
    identifier = hint.split("dagseal cancel ")[1].split()[0]
    assert shell("cancel", identifier).code == 0
    assert shell("logs", identifier, "--follow").code == 0
    assert [row["state"] for row in shell("launches", "--dag", "long", "-o", "json").json] == ["cancelled"]


def test_the_row_key_is_rotated_while_the_services_run(shell: Shell, bob: Path) -> None:
    assert shell("connection", "set", "rotated", stdin="http://h").code == 0
    assert shell("key", "rotate", token=bob).code == 4
    (old,) = shell("key", "list", "-o", "json").json
    made = shell("key", "rotate", "-o", "json")
    assert (made.code, made.json["state"]) == (0, "newest") and "back the new key up" in made.err
    assert shell("key", "retire", made.json["key_id"]).code == 6
    assert shell("key", "retire", "0" * 32).code == 5
    for _ in range(60):
        listed = shell("key", "list", "-o", "json").json
        if not listed[0]["connections"] + listed[0]["variables"] + listed[0]["xcoms"]:
            break
    retired = shell("key", "retire", old["key_id"])
    assert retired.code == 0, retired
    assert [key["key_id"] for key in shell("key", "list", "-o", "json").json] == [made.json["key_id"]]
    assert shell("connection", "rm", "rotated").code == 0


SHOWS_DIGESTS = """
import hashlib, json
from airflow.sdk import BaseHook, DAG, task
with DAG("exported", schedule=None):
    @task
    def t():
        for name in {names}:
            found = BaseHook.get_connection(name)
            for key in {keys}:
                text = json.dumps([name, key, getattr(found, key) or None])
                print("digest", hashlib.sha256(text.encode()).hexdigest())
    t()
"""


def test_what_airflow_exports_is_imported_and_reaches_a_launched_task(shell: Shell) -> None:
    """By the real commands of both; what is not in a URI is left out for all. Digests, as the log masks what is secret."""
    folder = shell.folder / "airflow"
    expected = airflow_exporting.export(folder)
    keys = [key for key in airflow_exporting.ATTRIBUTES if key not in ("description", "extra")] + ["extra_dejson"]
    wanted = [
        hashlib.sha256(json.dumps([name, key, found[key] or None]).encode()).hexdigest()
        for name, found in expected.items()
        for key in keys
    ]
    path = shell.folder / "exported.py"
    path.write_text(SHOWS_DIGESTS.format(names=list(expected), keys=keys))
    assert shell("push", str(path)).code == 0
    for number, ending in enumerate(airflow_exporting.FORMATS):
        imported = shell("connection", "import", str(folder / f"connections.{ending}"), "-o", "json")
        assert imported.code == 0, imported
        assert [row["name"] for row in imported.json] == sorted(expected)
        if not number:
            for name in expected:
                grant = {"kind": "connection", "name": name, "to_kind": "principal", "to": "admin"}
                assert Live(shell.stack).http("POST", "/v1/grants", grant).status == 201
        ran = shell("launch", "exported", "t", "--run-id", f"of-{number}", "--follow")
        assert ran.code == 0, ran
        assert [line.split()[1] for line in ran.out.splitlines() if line.startswith("digest ")] == wanted, ending
