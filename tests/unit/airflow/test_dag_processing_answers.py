"""What the launcher's answers become, and what no answer may be: they come from a process that ran the author's code."""

from __future__ import annotations

import json
import os
import selectors
import socket
from typing import Any

import pytest
from airflow import __version__

from dagseal.airflow.asking import Incoming, send
from dagseal.airflow.serialising import Serialising
from integrity import messages
from integrity.digests import Digest
from integrity.errors import DagsealError, FetchError, SettingsError

DIGEST = Digest.of(b"bytes")


def dag(dag_id: str = "etl", member: str = "etl.py", data: Any = None) -> dict[str, Any]:
    document = {"dag": {"dag_id": dag_id, "tasks": []}} if data is None else data
    return {"dag_id": dag_id, "member": member, "data": document if isinstance(document, str) else json.dumps(document)}


def answered(tmp_path: Any, *frames: bytes, archive: str = "etl.py") -> tuple[Serialising, messages.Message]:
    """A job at its end, and what the launcher was asked."""
    path = str(tmp_path / "launcher.sock")
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as selector:
        listening.bind(path)
        listening.listen()
        fd = os.memfd_create("bytes")
        job = Serialising(archive=archive, digest=DIGEST, folder="/sets/a")
        job.ask(path, fd, selector)
        peer, _ = listening.accept()
        data, fds, _, _ = socket.recv_fds(peer, 65536, 1)
        assert len(fds) == 1
        assert not job.is_ready and job.parsing_result is None
        for frame in frames:
            peer.sendall(frame)
        peer.close()
        while not job.is_ready:
            for key, _ in selector.select(5):
                handler, on_close = key.data
                if not handler(key.fileobj):
                    on_close(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
        assert not selector.get_map()
        os.close(fd)
        os.close(fds[0])
    return job, messages.decode(data[messages.HEADER_BYTES :])


def serialised(*dags: Any, version: str = __version__) -> bytes:
    return messages.encode("serialised", airflow_version=version, dags=list(dags))


def test_an_answer_in_pieces_is_airflows_own_result(tmp_path: Any) -> None:
    frame = serialised(dag(), dag("other"))
    job, asked = answered(tmp_path, *(frame[i : i + 7] for i in range(0, len(frame), 7)))
    assert (asked.kind, asked.fields.text("name"), asked.fields.digest("digest")) == ("serialise", "etl.py", DIGEST)
    result = job.parsing_result
    assert job.problem is None and result is not None and result.import_errors == {}
    assert [(one.dag_id, one.relative_fileloc, one.fileloc) for one in result.serialized_dags] == [
        ("etl", "etl.py", "/sets/a/etl.py"),
        ("other", "etl.py", "/sets/a/etl.py"),
    ]


def test_a_zips_dag_has_its_members_place(tmp_path: Any) -> None:
    job, _ = answered(tmp_path, serialised(dag(member="flow.py")), archive="m.zip")
    result = job.parsing_result
    assert result is not None and result.serialized_dags[0].relative_fileloc == "m.zip/flow.py"
    assert result.serialized_dags[0].fileloc == "/sets/a/m.zip/flow.py"


@pytest.mark.parametrize(
    ("frame", "kind", "words"),
    [
        (b"", FetchError, "closed the connection"),
        (b"\xff\xff\xff\xff", FetchError, "cannot be used"),
        (serialised(dag())[:-1], FetchError, "closed the connection"),
        (messages.encode("described", airflow_version=__version__, dags=[]), FetchError, "described"),
        (messages.encode("serialised", fds=1, airflow_version=__version__, dags=[]), FetchError, "answered"),
        (serialised(dag(), version="3.3.1"), SettingsError, "install the same"),
        (serialised(dag(), dag(data={"dag": {"dag_id": "etl", "tasks": [1]}})), FetchError, "twice"),
        (serialised(dag("../etl")), FetchError, "good name"),
        (serialised(dag(data={"dag": {"dag_id": "another", "tasks": []}})), FetchError, "no serialised dag"),
        (serialised(dag(data="[1]")), FetchError, "no serialised dag"),
        (serialised(dag(data="not json")), FetchError, "no serialised dag"),
        (serialised(dag(data="[" * 100_000)), FetchError, "no serialised dag"),
        (serialised({**dag(), "more": 1}), FetchError, "has dag_id, member and data"),
        (serialised({**dag(), "member": 1}), FetchError, "texts"),
        (serialised("dag"), FetchError, "has dag_id, member and data"),
        (messages.encode("refused", error="out-of-scope", detail="no"), SettingsError, "peers.describe"),
        (messages.encode("refused", error="fetch", rule="", entry="", detail="try again"), FetchError, "try again"),
        (messages.encode("refused", error="digest-mismatch", rule="", entry="", detail="bits"), FetchError, "bits"),
    ],
)
def test_nothing_is_known_after_any_other_answer(
    tmp_path: Any, frame: bytes, kind: type[DagsealError], words: str
) -> None:
    job, _ = answered(tmp_path, frame)
    assert job.parsing_result is None
    assert isinstance(job.problem, kind) and words in str(job.problem)


@pytest.mark.parametrize("member", ["", "..", "../x.py", "/etc/passwd", "a//b.py", "a/./b.py"])
def test_a_member_that_is_none_is_no_place_to_read(tmp_path: Any, member: str) -> None:
    job, _ = answered(tmp_path, serialised(dag(member=member)), archive="m.zip")
    assert job.parsing_result is None and "no member" in str(job.problem)


@pytest.mark.parametrize("slug", ["invalid-archive", "unsafe-archive"])
def test_what_the_archive_is_refused_for_is_its_import_error(tmp_path: Any, slug: str) -> None:
    frame = messages.encode("refused", error=slug, rule="import-error", entry="a.py", detail="why", exit_code=77)
    job, _ = answered(tmp_path, frame, archive="m.zip")
    result = job.parsing_result
    assert result is not None and result.serialized_dags == []
    assert result.import_errors == {"m.zip": "dagseal: import-error\na.py\nwhy"}


def test_a_killed_job_is_no_outcome(tmp_path: Any) -> None:
    path = str(tmp_path / "launcher.sock")
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as selector:
        listening.bind(path)
        listening.listen()
        fd = os.memfd_create("bytes")
        job = Serialising(archive="etl.py", digest=DIGEST, folder="/sets/a")
        job.ask(path, fd, selector)
        job.kill()
        job.close()
        assert job.is_ready and job.parsing_result is None and isinstance(job.problem, FetchError)
        assert not selector.get_map()
        os.close(fd)


def test_what_is_announced_too_long_is_refused_before_it_is_kept() -> None:
    with pytest.raises(DagsealError, match="is announced"):
        list(Incoming().feed(b"\x7f\xff\xff\xff"))


def test_a_peer_that_answered_and_closed_at_the_first_byte_is_still_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, peer = socket.socketpair()
    passing = socket.send_fds

    def answered_at_once(sock: socket.socket, *rest: Any) -> int:
        sent = passing(sock, *rest)
        assert len(peer.recv(65536)) == sent
        peer.sendall(serialised(dag()))
        peer.close()
        return sent

    monkeypatch.setattr(socket, "send_fds", answered_at_once)
    fd = os.memfd_create("bytes")
    with ours:
        send(ours, messages.encode("serialise", fds=1), fd)
        assert [message.kind for message in Incoming().feed(ours.recv(65536))] == ["serialised"]
    os.close(fd)
