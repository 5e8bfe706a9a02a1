"""What a Celery worker runs of all that comes over the broker: task instances that go through dagseal, and nothing else.

    [celery]
    celery_config_options = dagseal.airflow.celery_worker.CONFIG

Airflow's worker runs whatever workload a message holds: a callback, which imports what it names and calls it as the worker's
user; a connection's test; a task of a queue that no coordinator serves. Its executor never sends these, but who can write to
the broker can.

Promise: whichever way a message calls Airflow's one Celery task, what `executors.unsealable` would not have sent is not begun,
and the worker's log says why. With `enforce = false` it is said, and begun.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
from airflow.executors.workloads import ExecutorWorkload
from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG
from airflow.sdk.configuration import conf
from pydantic import TypeAdapter

from dagseal.airflow import settings
from dagseal.airflow.executors import queues, served_queues, unsealable
from integrity.errors import SettingsError, UnauthorizedError

TASK = "execute_workload"
_log = structlog.get_logger("dagseal.airflow")
_workload: TypeAdapter[Any] = TypeAdapter(ExecutorWorkload)


def only_sealed(run: Callable[[str], None]) -> Callable[[str], None]:
    """`run`, of what may be run. Around the function itself, since a message can also name Celery's own `celery.map` and the
    like, which call it. (A partial: Celery puts it into a class, where a function would become a method.)"""
    return partial(_run, run)


def _run(run: Callable[[str], None], input: str) -> None:
    served = served_queues(conf.getjson("sdk", "coordinators", fallback={}), queues(conf))
    reason = unsealable(_workload.validate_json(input), served)
    if reason and settings.enforced():
        raise UnauthorizedError(f"dagseal: not run: {reason}")
    if reason:
        _log.error(f"dagseal (not enforced): {reason}")
    run(input)


# `@run`: Celery's word for "put this around the task's method run".
CONFIG = {**DEFAULT_CELERY_CONFIG, "task_annotations": {TASK: {"@run": only_sealed}}}


def require_guard(config: Any) -> None:
    """Of Celery's configuration, as the scheduler has it and its workers should. Raises `SettingsError`."""
    annotations = config.get("task_annotations") or {}
    if annotations.get(TASK, {}).get("@run") is not only_sealed:
        raise SettingsError(
            "Celery's workers would run whatever lies in the broker; add below [celery] in every airflow.cfg, or take CONFIG "
            "into your own configuration of Celery:\ncelery_config_options = dagseal.airflow.celery_worker.CONFIG"
        )
