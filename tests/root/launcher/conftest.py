"""A child of root in which a test tries something, as a drop cannot be undone in the test's own process."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

import pytest

InChild = Callable[[Callable[[], object]], str]


@pytest.fixture
def in_child() -> InChild:
    """Run a function in a forked child; what it returned as text, or `ErrorClass: text` of what it raised."""

    def run(body: Callable[[], object]) -> str:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(read)
                answer = str(body())
            except BaseException as error:
                answer = f"{type(error).__name__}: {error}"
                if isinstance(error, AssertionError):
                    answer += traceback.format_exc()
            os.write(write, answer.encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
        return answer

    return run
