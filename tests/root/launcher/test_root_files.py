"""What only root can try: files of other owners, and a sealed copy in the hands of the dropped child."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from integrity.digests import Digest
from integrity.errors import SettingsError
from integrity.fields import to_base64
from launcher import policy
from launcher.privileges import Identity, drop
from notary.sealed import verify_and_seal
from vocabulary.keys import SigningKey

pytestmark = pytest.mark.root

TEXT = f"""
[trust]
api_keys = ["{to_base64(SigningKey(b"k" * 32).public.raw)}"]
[peers]
run = ["a"]
describe = ["b"]
[users]
allowed = ["etl"]
parser = "p"
[paths]
socket = "/run/x.sock"
state_dir = "/var/lib/x"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "etc" / "launcher.toml"
    path.parent.mkdir(mode=0o755)
    path.write_text(TEXT)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("foreign", ["file", "folder", "folder above"])
def test_a_foreign_owner_is_refused(place: Path, foreign: str) -> None:
    assert policy.load(str(place)).parser == "p"
    target = {"file": place, "folder": place.parent, "folder above": place.parent.parent}[foreign]
    os.chown(target, 65534, 65534)
    with pytest.raises(SettingsError, match="belongs to uid 65534; it is to belong to root"):
        policy.load(str(place))


def test_a_foreign_file_in_a_sticky_folder_is_refused(place: Path) -> None:
    place.parent.chmod(0o1777)
    os.chown(place, 65534, 65534)
    with pytest.raises(SettingsError, match="belongs to uid 65534"):
        policy.load(str(place))


def test_the_dropped_child_reads_the_sealed_copy_and_cannot_change_it(
    tmp_path: Path, in_child: Callable[[Callable[[], object]], str]
) -> None:
    path = tmp_path / "etl.py"
    path.write_bytes(b"import x\n")
    path.chmod(0o600)
    fd = os.open(path, os.O_RDONLY)
    with verify_and_seal(fd, Digest.of(b"import x\n"), max_bytes=100) as code:
        os.close(fd)

        def body() -> str:
            drop(Identity(65534, 65534, ()))
            with pytest.raises(PermissionError):
                os.pwrite(code.fd, b"X", 0)
            return os.pread(code.fd, 100, 0).decode()

        assert in_child(body) == "import x\n"
        assert os.pread(code.fd, 100, 0) == b"import x\n"
