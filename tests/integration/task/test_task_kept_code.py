"""A fork that compiles and does nothing else; and tasks that are given what it wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from task_rig import Answer, Task, Warm, gone, receive, sealed, wait_until, zipped

from integrity.digests import Digest
from launcher.isolation import PROFILES

DAG = """
import inspect, os
from airflow.sdk import DAG, task
import helper, lib.deep
from lib import twin
def fds():
    there = [f"/proc/self/fd/{fd}" for fd in range(64) if os.path.lexists(f"/proc/self/fd/{fd}")]
    return sorted(os.readlink(path).partition(":")[0] for path in there)
AT_IMPORT = fds()
with DAG("d", schedule=None):
    @task
    def look():
        import late
        codes = [helper.f.__code__, lib.deep.g().__code__, twin.g().__code__, late.h.__code__]
        return {
            "at_import": AT_IMPORT,
            "files": [os.path.relpath(code.co_filename, os.path.dirname(__file__)) for code in codes],
            "source": inspect.getsource(late.h),
        }
    @task
    def breaks():
        helper.f()
    look(); breaks()
"""
DEEP = "def g():\n    def inner():\n        pass\n    return inner\n"
MEMBERS: dict[str, str | bytes] = {
    "d.py": DAG,
    "helper.py": "def f():\n    return 1 / 0  # airless\n",
    "late.py": "def h():\n    return 'late'\n",
    "lib/__init__.py": "",
    "lib/deep.py": DEEP,
    "lib/twin.py": DEEP,
    "broken.py": "def f(:\n",
    "said.py": "print('RAN')\nraise SystemExit\n",
}
ARCHIVE = zipped(MEMBERS)


def bomb(depth: int, number: int) -> str:
    """Each `finally` is compiled twice, so nested ones double the code: at 17 it takes seconds, at 19 over a GiB."""
    nested = "".join(f"{' ' * deep}try: a()\n{' ' * deep}finally:\n" for deep in range(depth))
    return f"{nested}{' ' * depth}b({number})\n"


@pytest.fixture(scope="module", params=list(PROFILES))
def warm(request: pytest.FixtureRequest) -> Iterator[Warm]:
    found = Warm("run", request.param)
    yield found
    assert found.close() == 0


@pytest.fixture
def code(warm: Warm) -> Iterator[int]:
    answer, fd = warm.compile("d.zip", ARCHIVE)
    assert answer.kind == "compiled" and answer.fields == {}, answer
    assert "RAN" not in answer.log
    yield fd
    os.close(fd)


def compiled_itself(ran: Answer) -> bool:
    assert ran.state == "success", ran
    spent = ran.fields["timings_us"]
    assert (spent["compile"] > 0) is not (spent["unmarshal"] > 0), spent
    return bool(spent["compile"])


def test_a_task_that_has_the_code_compiles_nothing_and_sees_no_difference(warm: Warm, code: int) -> None:
    plain, given = warm.run("d.zip", ARCHIVE, "d", "look"), warm.run("d.zip", ARCHIVE, "d", "look", code=code)
    assert compiled_itself(plain) and not compiled_itself(given)
    assert plain.task_digest == given.task_digest
    assert plain.xcom() == given.xcom()
    assert given.xcom()["files"] == ["helper.py", "lib/deep.py", "lib/twin.py", "late.py"]
    assert given.xcom()["source"] == MEMBERS["late.py"]


def test_it_has_no_descriptor_of_the_code_when_the_archive_runs(warm: Warm, code: int) -> None:
    found = warm.run("d.zip", ARCHIVE, "d", "look", code=code).xcom()
    assert found["at_import"] == sorted(["/dev/null", "pipe", "pipe", "socket", "/memfd", "pipe", "pipe"])


def test_tracebacks_show_the_source(warm: Warm, code: int) -> None:
    ran = warm.run("d.zip", ARCHIVE, "d", "breaks", code=code)
    assert ran.fields["detail"] == "ZeroDivisionError: division by zero"
    assert "helper.py" in ran.log and "return 1 / 0  # airless" in ran.log


@pytest.mark.parametrize("how", ["other archive", "damaged", "cut", "empty", "not sealed"])
def test_code_that_does_not_fit_is_as_none(warm: Warm, code: int, how: str) -> None:
    good = os.pread(code, os.fstat(code).st_size, 0)
    archive, seals = ARCHIVE, 0xF
    if how == "other archive":
        archive = zipped(MEMBERS | {"more.txt": "x"})
    elif how == "not sealed":
        seals = 0
    else:
        good = {"damaged": good[:-1] + bytes([good[-1] ^ 1]), "cut": good[:-1], "empty": b""}[how]
    fd = sealed(good, seals=seals)
    assert compiled_itself(warm.run("d.zip", archive, "d", "look", code=fd))
    os.close(fd)


def ask_to_compile(warm: Warm, data: bytes, **changes: object) -> tuple[Task, int]:
    task, fd = Task(warm), os.memfd_create("code", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    job = {"job": "compile", "name": "d.zip", "digest": str(Digest.of(data)), "members": None}
    task.ask(data, code=fd, **(job | changes))
    return task, fd


@pytest.mark.parametrize("warm", ["standard"], indirect=True)
def test_what_the_compiler_does_not_survive_is_bounded_and_over(warm: Warm) -> None:
    """While it compiles it can get no descriptor and no process; its time is over before a launcher would lose patience."""
    bombs = {f"bomb{number}.py": bomb(17, number) for number in range(40)}
    task, fd = ask_to_compile(warm, zipped(MEMBERS | bombs))
    limits = Path(f"/proc/{task.pid}/limits")

    def bound(name: str) -> list[str]:
        return next(line[len(name) :].split()[:2] for line in limits.read_text().splitlines() if line.startswith(name))

    wait_until(lambda: bound("Max open files") == ["0", "0"], "its limits are not there")
    assert bound("Max processes") == ["0", "0"]
    assert bound("Max cpu time") == ["10", "10"]
    assert bound("Max address space") == [str(1 << 30)] * 2
    assert bound("Max file size") == [str(16 << 20)] * 2
    with pytest.raises(EOFError):
        receive(task.control)
    task.close()
    wait_until(lambda: gone(task.pid), "it was not reaped")
    assert os.fstat(fd).st_size == 0
    os.close(fd)
    assert compiled_itself(warm.run("d.zip", ARCHIVE, "d", "look"))


def test_a_source_that_takes_too_much_memory_is_left_out(warm: Warm) -> None:
    archive = zipped(MEMBERS | {"bomb.py": bomb(19, 1)})
    answer, fd = warm.compile("d.zip", archive)
    assert answer.kind == "compiled" and os.fstat(fd).st_size < 1 << 16
    assert not compiled_itself(warm.run("d.zip", archive, "d", "look", code=fd))
    os.close(fd)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"digest": "sha512:" + "0" * 128}, "digest-mismatch"),
        ({"members": [{"name": "other.py", "size": 1, "digest": "sha512:" + "0" * 128}]}, "malformed"),
        ({"name": "d.py"}, "invalid-archive"),
    ],
)
def test_what_is_not_the_verified_archive_is_not_compiled(warm: Warm, changes: dict[str, object], error: str) -> None:
    task, fd = ask_to_compile(warm, ARCHIVE, **changes)
    kind, fields = receive(task.control)
    task.close()
    assert (kind, fields["error"]) == ("refused", error)
    assert os.fstat(fd).st_size == 0
    os.close(fd)


def test_a_process_for_descriptions_does_not_compile(describer: Warm) -> None:
    answer, fd = describer.compile("d.zip", ARCHIVE)
    assert answer.kind == "eof" and "was started to describe, not to compile" in answer.log
    assert os.fstat(fd).st_size == 0
    os.close(fd)
