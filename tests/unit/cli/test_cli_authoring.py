"""How an author signs: a key of ours, or ssh-keygen over the statement, and what push does not send.

Seen to fail when weakened: `authoring.load` without its mode, and `authoring.given` without `verify`.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from dagseal.cli import app, authoring
from integrity.digests import Digest
from integrity.errors import MalformedError, SignatureError
from integrity.fields import from_base64
from tests.sshsig import sshsig
from vocabulary import authorship
from vocabulary.keys import SigningKey

SOURCE = b"import datetime\n"
DIGEST = Digest.of(SOURCE)
KEY = SigningKey(bytes([1]) * 32)


class Server(BaseHTTPRequestHandler):
    """Takes whatever is pushed. `sent`: the author's signature of each."""

    sent: ClassVar[list[bytes | None]] = []

    def do_PUT(self) -> None:
        assert (
            Digest.of(self.rfile.read(int(self.headers["Content-Length"]))).repr_digest == self.headers["Repr-Digest"]
        )
        header = self.headers["Author-Signature"]
        self.sent.append(None if header is None else from_base64(header, "it", max_bytes=authorship.MAX_BYTES))
        answer = json.dumps({"archive": self.path.rpartition("/")[2], "number": 1, "state": "active"}).encode()
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[bytes | None]]:
    for name in [name for name in os.environ if name.startswith("DAGSEAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    (tmp_path / "token").write_text("dgs_x")
    (tmp_path / "token").chmod(0o600)
    monkeypatch.setenv("DAGSEAL_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "etl.py").write_bytes(SOURCE)
    (tmp_path / "two.py").write_bytes(SOURCE + b"#\n")
    Server.sent.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        monkeypatch.setenv("DAGSEAL_SERVER", f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Server.sent
        server.shutdown()
        thread.join()


def key_file(mode: int = 0o600, text: str | None = None) -> str:
    path = Path("author.key")
    path.write_text(KEY.seed.hex() + "\n" if text is None else text)
    path.chmod(mode)
    return str(path)


def test_a_new_key_signs_every_path_that_is_pushed(sent: list[bytes | None], capfd: pytest.CaptureFixture[str]) -> None:
    assert app.run(["-o", "json", "key", "author-new", "--out", "ann.key"]) == 0
    shown = capfd.readouterr().out
    assert stat.S_IMODE(os.stat("ann.key").st_mode) == 0o600
    seed = Path("ann.key").read_text().strip()
    key = SigningKey(bytes.fromhex(seed))
    assert seed not in shown and key.public.key_id in shown
    assert app.run(["key", "author-new", "--out", "ann.key"]) == 2, "nothing is written over"
    assert app.run(["push", "etl.py", "two.py", "--sign-key", "ann.key"]) == 0
    for signature, name, data in zip(sent, ("etl.py", "two.py"), (SOURCE, SOURCE + b"#\n"), strict=True):
        assert signature is not None
        authorship.verify(signature, archive=name, digest=Digest.of(data), keys=[key.public])
    assert app.run(["push", "etl.py"]) == 0 and sent[-1] is None


def test_the_archives_name_is_the_one_that_it_is_pushed_under(sent: list[bytes | None]) -> None:
    assert app.run(["push", "etl.py", "--name", "other.py", "--sign-key", key_file()]) == 0
    assert sent == [authorship.sign(KEY, archive="other.py", digest=DIGEST)]


def test_a_signature_that_was_made_before(sent: list[bytes | None]) -> None:
    for made in (sshsig(KEY, archive="etl.py", digest=DIGEST), authorship.sign(KEY, archive="etl.py", digest=DIGEST)):
        Path("etl.sig").write_bytes(made)
        assert app.run(["push", "etl.py", "--author-signature", "etl.sig"]) == 0
        assert sent.pop() == made


def test_one_of_something_else_is_not_sent(sent: list[bytes | None]) -> None:
    Path("etl.sig").write_bytes(sshsig(KEY, archive="etl.py", digest=Digest.of(b"other")))
    with pytest.raises(SignatureError):
        authoring.given("etl.sig", "etl.py", DIGEST)
    assert app.run(["push", "etl.py", "--author-signature", "etl.sig"]) == 7
    Path("etl.sig").write_bytes(b"-----BEGIN SSH SIGNATURE-----\n")
    with pytest.raises(MalformedError):
        authoring.given("etl.sig", "etl.py", DIGEST)
    assert app.run(["push", "etl.py", "--author-signature", "etl.sig"]) == 7
    assert sent == []


def test_what_is_no_key_of_an_author(sent: list[bytes | None], tmp_path: Path) -> None:
    for mode in (0o640, 0o604, 0o620):
        assert app.run(["push", "etl.py", "--sign-key", key_file(mode)]) == 2
    for text in ("", "x", "0" * 63, "0" * 65, "-----BEGIN OPENSSH PRIVATE KEY-----\n"):
        assert app.run(["push", "etl.py", "--sign-key", key_file(text=text)]) == 2
    os.symlink(key_file(), "link")
    for path in ("missing", "link", str(tmp_path)):
        assert app.run(["push", "etl.py", "--sign-key", path]) == 2
    both = ["--sign-key", key_file(), "--author-signature", "etl.sig"]
    assert app.run(["push", "etl.py", *both]) == 2
    assert app.run(["push", "etl.py", "two.py", *both[2:]]) == 2
    assert sent == []


def test_the_statement_is_exactly_what_is_signed(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert app.run(["author-statement", "etl.py"]) == 0
    assert capfdbinary.readouterr().out == authorship.statement("etl.py", DIGEST)
    assert app.run(["author-statement", "etl.py", "--name", "other.py"]) == 0
    assert capfdbinary.readouterr().out == authorship.statement("other.py", DIGEST)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="openssh-client is not installed")
def test_with_ssh_keygen_as_the_help_says(
    sent: list[bytes | None], capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    def ssh_keygen(*arguments: str, data: bytes = b"") -> bytes:
        command = ["ssh-keygen", "-q", *arguments]
        return subprocess.run(command, input=data, capture_output=True, check=True, timeout=30).stdout

    ssh_keygen("-t", "ed25519", "-N", "", "-f", "id")
    assert app.run(["author-statement", "etl.py"]) == 0
    statement = capfdbinary.readouterr().out
    Path("etl.sig").write_bytes(ssh_keygen("-Y", "sign", "-n", "dagseal.dev/author", "-f", "id", data=statement))
    assert app.run(["push", "etl.py", "--author-signature", "etl.sig"]) == 0
    assert sent[0] is not None
    key = authorship.key_of_text(Path("id.pub").read_text())
    assert authorship.verify(sent[0], archive="etl.py", digest=DIGEST, keys=[key]).key == key
