"""T33 fail-open: something is misconfigured, away, or answers otherwise than agreed, so that a task would run outside dagseal
or count as done without having run.

Seen to fail when weakened: workloads that are sent before the answer; a callback, a queue or a run without a version let
through; an `enforce` that takes any word for false; an end that is believed by its exit code alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integrity.errors import SettingsError
from tests.scheduled import SCHEDULER, Celery, Local, callback, connected, queue, task
from tests.scheduled import Api as Dagseal
from tests.supervised import Api, Conversation, agent, configured, supervise


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with configured(SCHEDULER, tmp_path, monkeypatch):
        yield


WAYS: dict[str, Callable[[Any], Any]] = {
    "a queue that no coordinator serves": lambda executor: task(executor, queue="elsewhere"),
    "no queue of its own, where the default is served by nobody": lambda executor: task(executor, queue="Default"),
    "a callback, which Airflow runs as the worker's user": lambda executor: callback(),
    "a run without a version": lambda executor: task(executor, version=None),
    "a version of another kind of bundle": lambda executor: task(executor, version="a1b2c3"),
}


@pytest.mark.parametrize("kind", [Local, Celery])
@pytest.mark.parametrize("way", WAYS)
def test_it_is_not_sent(way: str, kind: type, tmp_path: Path) -> None:
    api = Dagseal()
    executor = connected(kind(), api)
    queue(executor, WAYS[way](executor))
    executor.heartbeat()
    assert executor.sent == [] and api.batches == []
    ((state, why),) = executor.get_event_buffer().values()
    assert state.value == "failed" and why


@pytest.mark.parametrize("kind", [Local, Celery])
@pytest.mark.parametrize("trouble", ["away", "no token", "nonsense"])
def test_while_nothing_can_be_reserved_nothing_is_sent(trouble: str, kind: type) -> None:
    api = Dagseal()
    executor = connected(kind(), api)
    api.down = trouble == "away"
    if trouble == "no token":
        executor._reserver._token = _no_token
    if trouble == "nonsense":
        api.bend = lambda answer: {"reservations": "all of them"}
    queue(executor, task(executor))
    executor.heartbeat()
    assert executor.sent == [] and len(executor.queued_tasks) == 1 and executor.event_buffer == {}


def _no_token() -> str:
    raise SettingsError("[dagseal] token_file cannot be read")


@pytest.mark.parametrize("word", ["no", "0", "off", "FALSE!", ""])
def test_enforce_is_not_turned_off_by_a_slip(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DAGSEAL__ENFORCE", word)
    api = Api()
    with pytest.raises(SettingsError, match="enforce"):
        supervise(api, tmp_path / "log")
    assert api.calls == []


ENDS = {
    "the agent goes away": None,
    "success, and no word of the task": {"state": "success", "error": "", "exit_code": 0},
    "cancelled, with the code of a success": {"state": "cancelled", "error": "cancelled", "exit_code": 0},
    "refused, with the code of a success": {"state": "refused", "error": "digest-mismatch", "exit_code": 0},
    "lost, with the code of a success": {"state": "lost", "error": "lost", "exit_code": 0},
    "success with an error": {"state": "success", "error": "task-died", "exit_code": 0},
}


@pytest.mark.parametrize("case", ENDS)
def test_nothing_counts_as_done_that_was_not(case: str, tmp_path: Path) -> None:
    api = Api()

    def script(talk: Conversation) -> None:
        talk.begin()
        if (said := ENDS[case]) is not None:
            talk.end(said["state"], error=said["error"], exit_code=said["exit_code"])

    with agent(tmp_path / "tasks.sock", script):
        assert supervise(api, tmp_path / "log") != 0
    assert api.states() == ["failed"]
