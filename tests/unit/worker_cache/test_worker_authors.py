"""The file of authors: what it may say, who may write it, and which of its lines decides.

Seen to fail when weakened: `guarded.read` without its owner and mode; `of` that takes the last glob; `parse` of an empty file.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integrity.digests import Digest
from integrity.errors import SettingsError
from integrity.fields import to_base64
from tests.sshsig import string
from vocabulary import authorship
from vocabulary.keys import SigningKey
from vocabulary.logview import LoggedRelease
from worker_cache import authors
from worker_cache.authors import ANYBODY, AuthorError, Authors

ANN, BOB, EVE = (SigningKey(bytes([number]) * 32) for number in (1, 2, 66))
DIGEST = Digest.of(b"code")
SSH_LINE = "ssh-ed25519 " + to_base64(string(b"ssh-ed25519") + string(BOB.public.raw)) + " bob@desk"


def written(folder: Path, text: str, mode: int = 0o644) -> str:
    path = folder / "authors.toml"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def release(archive: str, by: SigningKey | None) -> LoggedRelease:
    signed = authorship.sign(by, archive=archive, digest=DIGEST) if by is not None else None
    return LoggedRelease(
        archive=archive, number=1, digest=DIGEST, size=4, manifest=DIGEST, index=1, waits=False, author=signed
    )


def test_both_kinds_of_key_in_the_files_order(tmp_path: Path) -> None:
    text = f'"pay-*" = ["{to_base64(ANN.public.raw)}", "{SSH_LINE}"]\n"*" = ["{SSH_LINE}"]\n'
    found = authors.load(written(tmp_path, text))
    assert found == Authors(rules=(("pay-*", (ANN.public, BOB.public)), ("*", (BOB.public,))))


@pytest.mark.parametrize(
    ("globs", "archive", "may"),
    [
        (("pay-*", "*"), "pay-1.py", {"ann"}),
        (("pay-*", "*"), "PAY-1.py", {"bob"}),
        (("*", "pay-*"), "pay-1.py", {"ann"}),
        (("*", "pay-*"), "other.py", {"ann"}),
        (("pay-?.py", "pay-*"), "pay-10.py", {"bob"}),
        (("pay-*", "x*"), "other.py", {"ann", "bob", "eve", "nobody"}),
    ],
)
def test_the_first_glob_that_fits_decides(globs: tuple[str, str], archive: str, may: set[str]) -> None:
    found = Authors(rules=tuple(zip(globs, ((ANN.public,), (BOB.public,)), strict=True)))
    signers = {"ann": ANN, "bob": BOB, "eve": EVE, "nobody": None}
    assert {name for name, by in signers.items() if found.permit(release(archive, by))} == may
    assert ANYBODY.permit(release(archive, None))


def test_what_is_said_of_a_release_that_lacks_its_author() -> None:
    found = Authors(rules=(("*", (ANN.public,)),))
    with pytest.raises(AuthorError, match=r"^etl\.py@1 is not signed by an author, and this host asks for one"):
        found.require(release("etl.py", None))
    with pytest.raises(
        AuthorError, match=rf"who is trusted here: author key {EVE.public.key_id[:16]}… is not one of the 1"
    ):
        found.require(release("etl.py", EVE))
    assert AuthorError.slug == "author"


def test_a_verdict_is_of_one_archive_digest_and_list_of_keys() -> None:
    """It is remembered: never for another question."""
    found, signed = Authors(rules=(("*", (ANN.public,)),)), release("etl.py", ANN)
    found.require(signed)
    for changes in ({"archive": "elt.py"}, {"digest": Digest.of(b"c0de")}, {"author": release("etl.py", EVE).author}):
        fields = {name: getattr(signed, name) for name in signed.__slots__}
        assert not found.permit(LoggedRelease(**fields | changes))
    assert not Authors(rules=(("*", (BOB.public,)),)).permit(signed)
    found.require(signed)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "not toml",
        '"*" = []',
        '"*" = "ssh-ed25519 AAAA"',
        '"*" = [1]',
        '"*" = [""]',
        '"*" = ["ssh-rsa AAAA"]',
        f'"*" = ["{to_base64(bytes(32))}"]',
        f'"" = ["{SSH_LINE}"]',
        f'"a/b" = ["{SSH_LINE}"]',
        f'"a b" = ["{SSH_LINE}"]',
        f'["etl.py"]\nkeys = ["{SSH_LINE}"]',
        f'"*" = ["{SSH_LINE}"]\n"*" = ["{SSH_LINE}"]',
        f'"*" = [{", ".join([repr(SSH_LINE)] * 101)}]',
    ],
)
def test_what_is_no_file_of_authors(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match=r"authors\.toml"):
        authors.load(written(tmp_path, text))


def test_a_file_that_others_could_write(tmp_path: Path) -> None:
    good = f'"*" = ["{SSH_LINE}"]\n'
    for mode in (0o664, 0o646, 0o666):
        with pytest.raises(SettingsError, match="others can change"):
            authors.load(written(tmp_path, good, mode))
    path = written(tmp_path, good)
    os.symlink(path, tmp_path / "link")
    for other in (str(tmp_path / "link"), str(tmp_path), str(tmp_path / "missing")):
        with pytest.raises(SettingsError):
            authors.load(other)
    authors.load(path)


@pytest.mark.root
def test_a_file_of_somebody_elses(tmp_path: Path) -> None:
    path = written(tmp_path, f'"*" = ["{SSH_LINE}"]\n')
    os.chown(path, 12345, 0)
    with pytest.raises(SettingsError, match="chown root it"):
        authors.load(path)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is over 1048576 bytes"):
        authors.load(written(tmp_path, "#" * 1048577))
