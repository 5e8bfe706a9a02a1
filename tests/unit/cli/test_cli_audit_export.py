"""audit export: whole lines only, and an exit code and a number to go on with when it breaks off."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

LINES = [json.dumps({"seq": seq, "detail": "x" * 50}).encode() + b"\n" for seq in range(5, 105)]
CEF = [
    b"CEF:0|dagseal|dagseal|1|a|a accepted|3|rt=1 externalId=%d act=a externalId\\=9\n" % seq for seq in range(5, 105)
]
JSONL_TYPE, CEF_TYPE = b"application/jsonl", b"text/x-cef"


@contextmanager
def serving(body: bytes, *, whole: bool, media_type: bytes = JSONL_TYPE) -> Iterator[tuple[str, list[bytes]]]:
    """One answer, in chunks; not `whole`: the connection ends without the last one. Yields the URL and what was asked."""
    listening, asked = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        peer, _ = listening.accept()
        with peer:
            head = b""
            while b"\r\n\r\n" not in head:
                head += peer.recv(65536)
            asked.append(head)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n" % media_type)
            with suppress(ConnectionError):  # who has nowhere to write to stops reading
                for at in range(0, len(body), 1000):
                    part = body[at : at + 1000]
                    peer.sendall(b"%x\r\n%s\r\n" % (len(part), part))
                if whole:
                    peer.sendall(b"0\r\n\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        thread.join(10)


def export(tmp_path: Path, url: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    token = tmp_path / "token"
    token.write_text("dgs_x\n")
    token.chmod(0o600)
    command = [sys.executable, "-m", "dagseal", "--server", url, "--token-file", str(token), "audit", "export", *words]
    return subprocess.run(command, capture_output=True, check=False, timeout=60)


def test_all_of_it(tmp_path: Path) -> None:
    with serving(b"".join(LINES), whole=True) as (url, asked):
        found = export(tmp_path, url, "--after", "4", "--verdict", "refused", "--since", "2027-01-15T08:00:00+01:00")
    assert (found.returncode, found.stdout) == (0, b"".join(LINES))
    assert b"100 events, up to 104" in found.stderr
    assert b"Accept: application/jsonl\r\n" in asked[0]
    assert b"GET /v1/audit?after=4&verdict=refused&since=2027-01-15T08:00:00%2B01:00 " in asked[0]


@pytest.mark.parametrize(("lines", "form", "kind"), [(LINES, "jsonl", JSONL_TYPE), (CEF, "cef", CEF_TYPE)])
@pytest.mark.parametrize("cut", [0, 30, 3])
def test_what_breaks_off(tmp_path: Path, lines: list[bytes], form: str, kind: bytes, cut: int) -> None:
    """In the middle of a line, at its end, or before the first."""
    body = b"".join(lines[:60])[: -cut or None] if cut != 3 else b""
    with serving(body, whole=False, media_type=kind) as (url, _):
        found = export(tmp_path, url, "--format", form, "--after", "4")
    count = {0: 60, 30: 59, 3: 0}[cut]
    assert (found.returncode, found.stdout) == (75, b"".join(lines[:count]))
    assert b"the export broke off: go on with --after %d" % (4 + count) in found.stderr


def test_a_line_without_end_is_not_written_though_the_answer_is_whole(tmp_path: Path) -> None:
    with serving(b"".join(LINES)[:-1], whole=True) as (url, _):
        found = export(tmp_path, url)
    assert (found.returncode, found.stdout) == (75, b"".join(LINES[:-1]))
    assert b"go on with --after 103" in found.stderr


def test_a_page_of_something_else_is_no_export(tmp_path: Path) -> None:
    with serving(b"<html>\n</html>\n", whole=True) as (url, _):
        assert export(tmp_path, url).returncode == 75


def test_a_full_disk_and_a_reader_who_goes(tmp_path: Path) -> None:
    for shell, says in (("{} > /dev/full", b"No space left"), ("{} | true; exit ${{PIPESTATUS[0]}}", b"went away")):
        with serving(b"".join(LINES) * 3000, whole=True) as (url, _):
            token = tmp_path / "token"
            token.write_text("dgs_x\n")
            token.chmod(0o600)
            command = f"{sys.executable} -m dagseal --server {url} --token-file {token} audit export"
            found = subprocess.run(["bash", "-c", shell.format(command)], capture_output=True, check=False, timeout=60)
        assert found.returncode == 75, found
        assert says in found.stderr and b"go on with --after" in found.stderr
        assert b"Traceback" not in found.stderr
