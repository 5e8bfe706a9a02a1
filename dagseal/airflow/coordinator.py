"""The hook by which Airflow's supervisor runs a task through dagseal: `[sdk] coordinators` and `queue_to_coordinator`.

    ask the agent → offered → Airflow: may it run? → start → … → ended

Promise: no byte of a DAG is read here, and the task's token stays here. What was refused writes its reason to the task's log
and ends as failed, without a retry; when the agent does not answer, nothing is told to Airflow, whose scheduler knows what to
do with a task that its executor could not run.

With `[dagseal] enforce = false` a task that would be refused before its start runs the plain Airflow way instead, as the
worker's user, and its log says so.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog
from airflow.sdk.api.datamodels._generated import TaskInstanceState
from airflow.sdk.execution_time.coordinator import BaseCoordinator, _PythonCoordinator

from dagseal.airflow import settings
from dagseal.airflow.agentlink import AgentLink, Offered, Question, Refused
from dagseal.airflow.filtering import Asker
from dagseal.airflow.supervising import SealedActivity
from integrity.errors import FetchError

ASK_AGAIN_SECONDS = 1.0


class SealedCoordinator(BaseCoordinator):  # type: ignore[misc]
    """One for each worker process. It takes no arguments: see the section [dagseal]."""

    def __init__(self) -> None:
        self._settings = settings.worker()

    def execute_task(
        self,
        *,
        what: Any,
        dag_rel_path: Any,
        bundle_info: Any,
        client: Any,
        logger: Any = None,
        sentry_integration: str = "",
        subprocess_logs_to_stdout: bool,
        **more: Any,
    ) -> BaseCoordinator.ExecutionResult:
        """Raises `FetchError` when the agent gave no answer, and what Airflow's API says against the start."""
        logger = logger or structlog.get_logger(logger_name="task").bind()
        details = {"dag_rel_path": dag_rel_path, "bundle_info": bundle_info, "sentry_integration": sentry_integration}
        answer: Offered | Refused
        try:
            link, requests, answer = ask(
                question(what), self._settings.tasks_socket, seconds=self._settings.wait_seconds
            )
        except FetchError as error:
            logger.error(f"dagseal: {error}")
            if self._settings.enforce:
                raise
            link, requests, answer = None, None, Refused(error.slug, str(error))
        if isinstance(answer, Refused):
            if not self._settings.enforce:
                logger.error(
                    f"dagseal (not enforced): {answer.error}: {answer.detail}. The task runs as plain Airflow runs it"
                )
                return _PythonCoordinator().execute_task(
                    what=what,
                    client=client,
                    logger=logger,
                    subprocess_logs_to_stdout=subprocess_logs_to_stdout,
                    **details,
                    **more,
                )
            if answer.error == FetchError.slug:
                raise FetchError(answer.detail)
            return self._fail(what, client, logger, answer)
        logger.info(
            f"dagseal: {answer.archive} release {answer.release} ({answer.digest}) as {answer.unix_user}",
            launch_id=answer.launch_id,
        )
        activity = SealedActivity.supervise(
            link,
            requests,
            asker=asker(what, answer),
            what=what,
            details=details,
            client=client,
            process_log=logger,
            subprocess_logs_to_stdout=subprocess_logs_to_stdout,
        )
        exit_code = activity.wait()
        return self.ExecutionResult(exit_code, activity.final_state)

    def _fail(self, what: Any, client: Any, logger: Any, refused: Refused) -> BaseCoordinator.ExecutionResult:
        """Airflow takes an end only of what has started."""
        client.task_instances.start(what.id, os.getpid(), datetime.now(tz=UTC))
        logger.error(f"dagseal: refused: {refused.error}: {refused.detail}")
        client.task_instances.finish(
            id=what.id, state=TaskInstanceState.FAILED, when=datetime.now(tz=UTC), rendered_map_index=None
        )
        return self.ExecutionResult(1, TaskInstanceState.FAILED)


def question(what: Any) -> Question:
    """Of Airflow's workload."""
    return Question(
        task_instance=str(what.id),
        dag_id=what.dag_id,
        task_id=what.task_id,
        run_id=what.run_id,
        map_index=_index(what),
        try_number=what.try_number,
    )


def asker(what: Any, offered: Offered) -> Asker:
    """Whose requests the supervisor will judge."""
    return Asker(
        id=str(what.id),
        dag_id=what.dag_id,
        run_id=what.run_id,
        task_id=what.task_id,
        map_index=_index(what),
        xcom_dags=offered.xcom_dags,
    )


def ask(
    asked: Question,
    path: str,
    *,
    seconds: float,
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[Any, Any, Offered | Refused]:
    """The agent's answer; where it is an offer, the connection and our end of the task's requests besides.

    An agent that is away (it is restarted, say) is asked again. Raises `FetchError` after `seconds`."""
    until = now() + seconds
    while True:
        ours, theirs = socket.socketpair()
        link = None
        try:
            with theirs:
                link = AgentLink(path)
                answer = link.ask(asked, theirs, timeout=until - now())
            if isinstance(answer, Offered):
                taken, ours, link = (link, ours), None, None  # type: ignore[assignment]
                return *taken, answer
            return None, None, answer
        except FetchError:
            if now() + ASK_AGAIN_SECONDS >= until:
                raise
        finally:
            if ours is not None:
                ours.close()
            if link is not None:
                link.close()
        pause(ASK_AGAIN_SECONDS)


def _index(what: Any) -> int:
    return -1 if what.map_index is None else int(what.map_index)
