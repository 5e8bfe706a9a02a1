"""T14 hostile-archive: the table of `tests/bad_uploads.py`, row by row, over a socket against the running service.

Each row is sent twice and answered alike, exactly as the table says: status, type, entry. Of a refused one nothing is left:
no row but its audit event, no file, and no descriptor of it in the service. What only an import can find out is found out by
the real describing process, and costs neither the service nor the launcher any memory.

Seen to fail when weakened: `Upload.__exit__` that keeps its descriptor; `child._describe` without `check_identifiers`.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.attacker import notary_pid, until
from tests.attacks.test_t14_hostile_archive import files, newest_event, refusals, rows
from tests.bad_uploads import CASES, Case
from tests.live import Live


def api_pid(live: Live) -> int:
    return live.stack.processes["api"].pid


def put(live: Live, name: str, data: bytes) -> tuple[int, dict[str, str], Any]:
    """One PUT, byte by byte as written here: status, headers, JSON."""
    port = int(live.stack.url.rpartition(":")[2])
    head = f"PUT /v1/archives/{name} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {live.token}\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
        peer.sendall(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
        answer = b"".join(iter(lambda: peer.recv(65536), b""))
    lines, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = lines.decode().split("\r\n")
    headers = {key.lower(): value for key, _, value in (field.partition(": ") for field in fields)}
    return int(status.split(" ")[1]), headers, json.loads(body)


def descriptors(live: Live) -> list[str]:
    """What the service has open of its stores, and its connections."""
    folder, found = f"/proc/{api_pid(live)}/fd", []
    for number in os.listdir(folder):
        try:
            target = os.readlink(f"{folder}/{number}")
        except FileNotFoundError:
            continue
        if "/blobs/" in target or target.startswith("socket:"):
            found.append(target)
    return sorted(found)


def peak_kib(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1])


def test_the_table_has_every_row_once_in_order() -> None:
    assert sorted({case.row for case in CASES}) == list(range(1, 63)) and [c.row for c in CASES] == sorted(
        c.row for c in CASES
    )
    assert len({(case.row, case.case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.row}-{case.case}".replace(" ", "-"))
def test_row(live: Live, case: Case) -> None:
    data = case.data()
    before, there, last = rows(live), files(live), newest_event(live)
    if case.status == 201:
        assert put(live, case.name, data)[0] in (201, 200)
        return
    answers = [put(live, case.name, data) for _ in range(2)]
    for status, headers, problem in answers:
        assert (status, headers["content-type"].partition(";")[0]) == (case.status, "application/problem+json"), problem
        assert problem["type"] == f"https://dagseal.dev/problems/{case.problem}"
        (finding,) = problem["errors"]
        assert (finding["rule"], finding["entry"]) == (case.problem, case.entry)
        assert finding["detail"] and problem["status"] == status
    assert answers[0][2] == answers[1][2], "the same bytes have the same answer"
    assert (rows(live), files(live) - there) == (before, set())
    events = [event for event in refusals(live, last) if event["action"] == "archive.submit"]
    assert [(event["object"], event["verdict"]) for event in events] == [(f"archive:{case.name}", "refused")] * 2
    assert all(event["detail"].startswith(f"{case.problem}: ") for event in events)
    assert not [target for target in descriptors(live) if "/blobs/" in target]


def test_a_bomb_of_syntax_costs_only_the_process_that_reads_it(live: Live) -> None:
    """256 KiB of statements are 156 MiB to the compiler. It runs in the describing child; the service and the launcher, which
    never parse, stay as they are."""
    bomb = next(case for case in CASES if case.case == "256 KiB of them")
    put(live, bomb.name, bomb.data())
    pids = api_pid(live), notary_pid(live)
    before = [peak_kib(pid) for pid in pids]
    assert put(live, bomb.name, bomb.data())[0] == 422
    assert [peak_kib(pid) - was < 16 * 1024 for pid, was in zip(pids, before, strict=True)] == [True, True]


def test_no_connection_is_left_of_all_that(live: Live) -> None:
    live.http("GET", "/healthz")
    before = len(descriptors(live))
    for _ in range(20):
        put(live, "x.zip", b"PK")
    until("the connections are closed", lambda: len(descriptors(live)) <= before)
