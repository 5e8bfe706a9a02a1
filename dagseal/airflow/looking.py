"""What `dagseal doctor --airflow` sees: Airflow's own configuration and database (names and counts, never a value), and whether
our sockets answer. `findings` judges it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping

from dagseal.airflow import settings
from dagseal.airflow.installation import CELERY, Installation, Stored, executors
from integrity.errors import DagsealError, SettingsError


def look(environment: Mapping[str, str], component: str = "") -> Installation:
    """Of this process's Airflow. Raises `SettingsError` for a word that is neither true nor false."""
    import airflow
    from airflow.configuration import AIRFLOW_CONFIG, conf

    bundles = conf.getjson("dag_processor", "dag_bundle_config_list", fallback=[]) or []
    return Installation(
        version=airflow.__version__,
        executor=conf.get("core", "executor"),
        coordinators=conf.getjson("sdk", "coordinators", fallback={}) or {},
        by_queue=conf.getjson("sdk", "queue_to_coordinator", fallback={}) or {},
        default_queue=conf.get("operators", "default_queue", fallback="default"),
        bundles=tuple((str(entry.get("name")), str(entry.get("classpath"))) for entry in bundles),
        examples=conf.getboolean("core", "load_examples"),
        unversioned=conf.getboolean("dag_processor", "disable_bundle_versioning", fallback=False),
        backend=conf.get("workers", "secrets_backend", fallback="") or "",
        enforced=settings.enforced(conf),
        other_bundles=settings.unsafe_other_bundles(conf),
        processor_timeout=conf.getint("dag_processor", "dag_file_processor_timeout"),
        environment=frozenset(environment),
        config_path=AIRFLOW_CONFIG,
        config_mode=_mode(AIRFLOW_CONFIG),
        reached={
            "tasks socket": _why_not(lambda: _connect(settings.worker(conf).tasks_socket, "the agent's")),
            "releases socket": _why_not(lambda: _connect(settings.releases_socket(conf), "the agent's")),
            "launcher socket": _why_not(lambda: _connect(settings.launcher_socket(conf), "the launcher's")),
            "server": _why_not(lambda: settings.token(settings.scheduler(conf).token_file)),
        },
        unguarded=_unguarded() if CELERY in executors(conf.get("core", "executor")) else "",
        stored=_database(),
        component=component,
    )


def _connect(path: str, whose: str) -> None:
    from dagseal.airflow import asking

    asking.connect(path, whose).close()


def _why_not(tried: Callable[[], object]) -> str:
    try:
        tried()
    except (DagsealError, SettingsError) as error:
        return str(error)
    return ""


def _unguarded() -> str:
    """What Airflow makes of `[celery] celery_config_options`, by the scheduler's own check."""
    try:
        from airflow.exceptions import AirflowConfigException
        from airflow.providers.celery.executors.celery_executor_utils import get_celery_configuration

        from dagseal.airflow import celery_worker
    except ModuleNotFoundError as error:
        return f"Celery is not installed here ({error.name}): pip install 'dagseal[airflow,celery]'"
    try:
        celery_worker.require_guard(get_celery_configuration())
    except (SettingsError, AirflowConfigException) as error:
        return str(error)
    return ""


def _mode(path: str) -> int | None:
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return None


def _database() -> Stored | str:
    """Names only. A database that is away, or is none of this Airflow's, says why."""
    from airflow.jobs.job import Job, JobState
    from airflow.models import Connection, TaskInstance, Variable
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    from dagseal.airflow.dag_processing import MARK

    try:
        with create_session() as session:
            jobs = [job for job in session.scalars(select(Job).where(Job.state == JobState.RUNNING)) if job.is_alive()]
            of_kind = {
                kind: [job for job in jobs if job.job_type == kind] for kind in ("DagProcessorJob", "TriggererJob")
            }
            return Stored(
                connections=tuple(session.scalars(select(Connection.conn_id))),
                variables=tuple(session.scalars(select(Variable.key))),
                queues=frozenset(queue for queue in session.scalars(select(TaskInstance.queue).distinct()) if queue),
                processors=tuple((str(job.hostname), job.executor_class == MARK) for job in of_kind["DagProcessorJob"]),
                triggerers=tuple(str(job.hostname) for job in of_kind["TriggererJob"]),
            )
    except SQLAlchemyError as error:
        return f"{type(error).__name__}"
