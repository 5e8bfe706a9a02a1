"""Author signatures: both forms, what `ssh-keygen` really writes, and every byte bent.

Seen to fail when weakened: `verify` without `_require_known`, without comparing the statement; `_sshsig` without any one of
its comparisons, or of `done`; `_dearmoured` that does not armour again.
"""

from __future__ import annotations

import base64
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from integrity import canonical
from integrity.digests import Digest
from integrity.errors import MalformedError, SecurityError, SignatureError
from integrity.fields import to_base64
from tests.sshsig import sshsig
from vocabulary import authorship, envelopes
from vocabulary.authorship import VerifiedAuthor
from vocabulary.keys import SigningKey

KEY, OTHER = (SigningKey(bytes([number]) * 32) for number in (1, 2))
NAME, DIGEST = "etl.py", Digest.of(b"code")
FORMS: dict[str, Callable[..., bytes]] = {"ours": authorship.sign, "SSHSIG": sshsig}
needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="openssh-client is not installed")


@pytest.mark.parametrize("form", FORMS)
def test_what_an_author_signed(form: str) -> None:
    made = FORMS[form](KEY, archive=NAME, digest=DIGEST)
    assert authorship.key_of(made) == KEY.public
    found = authorship.verify(made, archive=NAME, digest=DIGEST, keys=[OTHER.public, KEY.public])
    assert found == VerifiedAuthor(archive=NAME, digest=DIGEST, key=KEY.public)
    for archive, digest in (("elt.py", DIGEST), (NAME, Digest.of(b"c0de"))):
        with pytest.raises(SignatureError, match=r"signed something else|not one of key"):
            authorship.verify(made, archive=archive, digest=digest, keys=[KEY.public])
    for keys in ([OTHER.public], []):
        with pytest.raises(SignatureError, match=rf"is not one of the {len(keys)} trusted here"):
            authorship.verify(made, archive=NAME, digest=DIGEST, keys=keys)


@pytest.mark.parametrize("form", FORMS)
def test_no_byte_can_be_another_nor_left_out_nor_added(form: str) -> None:
    made = FORMS[form](KEY, archive=NAME, digest=DIGEST)
    for at in range(len(made) + 1):
        for wrong in (
            made[:at],
            made[:at] + bytes([made[at] ^ 1]) + made[at + 1 :] if at < len(made) else b"",
            made[:at] + made[at + 1 :],
            made[:at] + b"A" + made[at:],
            made[:at] + b"\n" + made[at:],
        ):
            if wrong == made:
                continue
            with pytest.raises(SecurityError):
                authorship.verify(wrong, archive=NAME, digest=DIGEST, keys=[KEY.public])


def test_the_largest_fits_and_more_is_not_read() -> None:
    longest = "a" * 191 + ".zip"
    for form in FORMS.values():
        assert len(form(KEY, archive=longest, digest=DIGEST)) <= authorship.MAX_BYTES // 2
    for much in (b" " * (authorship.MAX_BYTES + 1), authorship._BEGIN + b"A" * authorship.MAX_BYTES):
        with pytest.raises(MalformedError, match="the limit is 3072"):
            authorship.key_of(much)


def test_a_statement_is_of_an_archive() -> None:
    for name in ("", "etl", "../etl.py"):
        with pytest.raises(MalformedError, match="not a good name"):
            authorship.statement(name, DIGEST)


def test_an_envelope_of_another_purpose() -> None:
    def wrapped(envelope: bytes) -> bytes:
        return canonical.dump({"envelope": to_base64(envelope), "key": to_base64(KEY.public.raw), "v": 1})

    signed = authorship.statement(NAME, DIGEST)
    other = envelopes.sign(signed, payload_type="application/vnd.dagseal.manifest.v1+json", key=KEY)
    with pytest.raises(MalformedError, match=r"wanted is 'application/vnd\.dagseal\.author"):
        authorship.verify(wrapped(other), archive=NAME, digest=DIGEST, keys=[KEY.public])
    by_another = envelopes.sign(signed, payload_type=authorship.PAYLOAD_TYPE, key=OTHER)
    with pytest.raises(SignatureError, match="is not one of the 1 trusted here"):
        authorship.verify(wrapped(by_another), archive=NAME, digest=DIGEST, keys=[KEY.public, OTHER.public])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"magic": b"SSHSIX"}, "no SSHSIG of version 1"),
        ({"version": 2}, "no SSHSIG of version 1"),
        ({"version": 0}, "no SSHSIG of version 1"),
        ({"namespace": b"file"}, "its namespace is b'file'"),
        ({"namespace": b"git"}, "its namespace is b'git'"),
        ({"namespace": b""}, "its namespace is b''"),
        ({"reserved": b"x"}, "its reserved is b'x'"),
        ({"hash_name": b"sha256"}, "its hash algorithm is b'sha256'"),
        ({"key_type": b"ssh-rsa"}, "an author's key is ssh-ed25519, not b'ssh-rsa'"),
        ({"key_type": b"sk-ssh-ed25519@openssh.com"}, "an author's key is ssh-ed25519, not b'sk-ssh"),
        ({"signature_type": b"ssh-rsa"}, "not of an ssh-ed25519 key"),
        ({"after_key": b"\x00"}, "1 bytes too many"),
        ({"after_signature": b"\x00"}, "1 bytes too many"),
        ({"after": b"\x00"}, "1 bytes too many"),
        ({"cut_signature": 1}, "an Ed25519 signature is 64 bytes, not 63"),
    ],
)
def test_an_sshsig_of_another_kind(changes: dict[str, object], said: str) -> None:
    """Each is signed rightly, as what it is."""
    made = sshsig(KEY, archive=NAME, digest=DIGEST, **changes)
    with pytest.raises(MalformedError, match=said):
        authorship.key_of(made)
    with pytest.raises(MalformedError, match=said):
        authorship.verify(made, archive=NAME, digest=DIGEST, keys=[KEY.public])


def test_other_armour_of_the_same_bytes() -> None:
    made = sshsig(KEY, archive=NAME, digest=DIGEST)
    raw = base64.b64decode(b"".join(made.splitlines()[1:-1]))
    lines = [line + b"\n" for line in made.splitlines()]
    one_line = lines[0] + base64.b64encode(raw) + b"\n" + lines[-1]
    for wrong in (one_line, made.replace(b"\n", b"\r\n"), made + b"\n", b"\n" + made, made[:-1], b"".join(lines[:-1])):
        with pytest.raises(MalformedError):
            authorship.key_of(wrong)
    assert authorship.key_of(made) == KEY.public


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 ",
        "ssh-ed25519 AAAA",
        "ssh-ed25519  AAAAC3NzaC1lZDI1NTE5AAAAIFr+a56xnkgJ+2J+JRGpZPXq/NBzUz82mNJ3zKaLiDpB",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQAB ann",
        to_base64(KEY.public.raw)[:-1],
        to_base64(KEY.public.raw + b"x"),
        to_base64(bytes(32)),
        KEY.public.raw.hex(),
        "ssh-ed25519 " + to_base64(b"\x00\x00\x00\x07ssh-rsa" + struct.pack(">I", 32) + KEY.public.raw),
        "ssh-ed25519 " + to_base64(b"\x00\x00\x00\x0bssh-ed25519" + struct.pack(">I", 32) + KEY.public.raw + b"x"),
    ],
)
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(MalformedError):
        authorship.key_of_text(text)


def test_a_key_of_ours_as_text() -> None:
    assert authorship.key_of_text(to_base64(KEY.public.raw)) == KEY.public


def ssh_keygen(folder: Path, *arguments: str, data: bytes = b"") -> bytes:
    return subprocess.run(
        ["ssh-keygen", *arguments], cwd=folder, input=data, capture_output=True, check=True, timeout=30
    ).stdout


@needs_ssh_keygen
def test_what_ssh_keygen_signs(tmp_path: Path) -> None:
    ssh_keygen(tmp_path, "-q", "-t", "ed25519", "-N", "", "-C", "ann of data", "-f", "id")
    key = authorship.key_of_text((tmp_path / "id.pub").read_text().strip())

    def signed(*options: str, namespace: str = authorship.NAMESPACE) -> bytes:
        statement = authorship.statement(NAME, DIGEST)
        return ssh_keygen(tmp_path, "-q", "-Y", "sign", *options, "-n", namespace, "-f", "id", data=statement)

    made = signed()
    assert authorship.key_of(made) == key
    assert authorship.verify(made, archive=NAME, digest=DIGEST, keys=[key]).key == key
    with pytest.raises(SignatureError, match="not one of key"):
        authorship.verify(made, archive=NAME, digest=Digest.of(b"other"), keys=[key])
    with pytest.raises(MalformedError, match="its namespace is b'file'"):
        authorship.key_of(signed(namespace="file"))
    with pytest.raises(MalformedError, match="its hash algorithm is b'sha256'"):
        authorship.key_of(signed("-O", "hashalg=sha256"))


@needs_ssh_keygen
def test_ssh_keygen_reads_what_the_tests_write(tmp_path: Path) -> None:
    """So what is refused of theirs is refused for what it says, and not for how it is written."""
    blob = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + KEY.public.raw
    (tmp_path / "allowed").write_text(f"ann ssh-ed25519 {to_base64(blob)}\n")
    (tmp_path / "sig").write_bytes(sshsig(KEY, archive=NAME, digest=DIGEST))
    how = ("-Y", "verify", "-f", "allowed", "-I", "ann", "-n", authorship.NAMESPACE, "-s", "sig")
    assert b"Good" in ssh_keygen(tmp_path, *how, data=authorship.statement(NAME, DIGEST))


@needs_ssh_keygen
@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_ssh_keys_of_other_kinds(tmp_path: Path, kind: str) -> None:
    ssh_keygen(tmp_path, "-q", "-t", kind, "-N", "", "-f", "id")
    statement = authorship.statement(NAME, DIGEST)
    made = ssh_keygen(tmp_path, "-q", "-Y", "sign", "-n", authorship.NAMESPACE, "-f", "id", data=statement)
    with pytest.raises(MalformedError, match="an author's key is ssh-ed25519, not"):
        authorship.key_of(made)
