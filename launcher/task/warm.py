"""The warm process: Airflow imported once, by the unix user of the tasks and after the drop; then one fork per task.

It holds no secret and imports no DAG. It is not dumpable, so a task of the same user can neither read nor trace it. What a
fork needs comes as five descriptors beside the `fork` message; the warm process closes its own copies at once, or a
pipe would never end. With namespaces it is process 2 of its own, and each fork process 1 of another. Orphans of its tasks come
back to it (it is a subreaper) and are reaped. It ends with its control socket.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
import warnings
from typing import TYPE_CHECKING, NoReturn

from integrity.errors import MalformedError, PrivilegeError
from launcher import namespaces, privileges
from launcher.isolation import Confinement
from launcher.privileges import Identity
from launcher.task import environment, files, frames, hugepages, seccomp

if TYPE_CHECKING:  # it imports Airflow, which is to find `environment.prepare` done
    from launcher.task import child

FORK_FDS = 5
# Imported ahead for what most DAGs use; one that is not installed is no error.
PRELOADED = (
    "airflow.sdk.execution_time.task_runner",
    "airflow.sdk.execution_time.supervisor",
    "airflow.serialization.serialized_objects",
    "airflow.providers.standard.operators.bash",
    "airflow.providers.standard.operators.branch",
    "airflow.providers.standard.operators.datetime",
    "airflow.providers.standard.operators.empty",
    "airflow.providers.standard.operators.latest_only",
    "airflow.providers.standard.operators.python",
    "airflow.providers.standard.operators.trigger_dagrun",
    "airflow.providers.standard.operators.weekday",
    "airflow.providers.standard.decorators.bash",
    "airflow.providers.standard.decorators.python",
    "airflow.providers.standard.sensors.bash",
    "airflow.providers.standard.sensors.date_time",
    "airflow.providers.standard.sensors.external_task",
    "airflow.providers.standard.sensors.filesystem",
    "airflow.providers.standard.sensors.python",
    "airflow.providers.standard.sensors.time_delta",
    "airflow.providers.standard.sensors.weekday",
    "airflow.providers.common.sql.operators.sql",
    "airflow.providers.common.sql.hooks.sql",
    "airflow.models.variable",
    "airflow.models.connection",
    "airflow.sdk.definitions.asset.metadata",
    "airflow.sdk.execution_time.cache",
    "encodings.idna",
    "jinja2.sandbox",
    "pendulum",
    "yaml",
    "launcher.task.child",
    "launcher.task.comms",
    "launcher.task.describe",
    "launcher.task.discover",
    "launcher.task.importcomms",
    "launcher.task.runner",
    "launcher.task.secrets",
    "launcher.task.serialise",
    "launcher.task.supervised",
)


def serve(control_fd: int, *, purpose: str, confinement: Confinement) -> NoReturn:
    """Import, say `warm`, then fork on demand until the control socket ends. `purpose` is `run` or `describe`."""
    control = socket.socket(fileno=control_fd)
    control.setblocking(True)
    os.set_inheritable(control_fd, False)
    version = warm_up()
    from launcher.task import child

    if confinement.profile.seccomp:
        seccomp.program(confinement.profile.seccomp, os.uname().machine)  # built once, and kept
    privileges.prctl(privileges.PR_SET_DUMPABLE, 0)
    if threading.active_count() != 1:
        raise RuntimeError(f"an import started threads, so nothing may fork: {threading.enumerate()}")
    copies: dict[int, str] = {}
    birth = child.Birth(
        parent=0 if confinement.profile.namespaces else os.getpid(),
        purpose=purpose,
        copy="",
        identity=Identity(os.getuid(), os.getgid(), tuple(os.getgroups())),
        confinement=confinement,
        packages=_packages(),
    )
    try:
        frames.send(control, "warm", airflow_version=version)
        _loop(control, birth, copies)
    except EOFError:
        for path in copies.values():
            files.remove(path)
        os._exit(0)


def warm_up() -> str:
    """Import everything and serialise one DAG, so that the first task does not pay for it. Returns Airflow's version."""
    if "airflow" in sys.modules:
        raise RuntimeError("Airflow was imported before its settings were made")
    environment.prepare()
    gc.disable()  # what is imported stays: to look for garbage in it again and again takes an eighth of the start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # providers deprecate each other; a DAG's own warnings come in its own process
        import airflow

        for name in PRELOADED:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if not (error.name or "").startswith("airflow.providers"):
                    raise
        _serialise_one()
        _load_secrets_backends()
    gc.enable()
    gc.collect()
    gc.freeze()
    hugepages.collapse()
    return str(airflow.__version__)


def _serialise_one() -> None:
    from airflow.providers.standard.operators.bash import BashOperator
    from airflow.providers.standard.operators.python import PythonOperator
    from airflow.sdk import DAG
    from airflow.serialization.serialized_objects import DagSerialization

    with DAG("dagseal_warm_up", schedule=None) as dag:
        BashOperator(task_id="a", bash_command="true") >> PythonOperator(task_id="b", python_callable=print)
    dag.get_template_env()
    DagSerialization.to_dict(dag)


def _load_secrets_backends() -> None:
    """Airflow keeps the backends once they are loaded. Then the setting goes: a Python that a task starts in another
    environment could not import ours, and has the task to ask (`launcher.task.bridge`)."""
    from airflow.sdk.configuration import ensure_secrets_loaded
    from airflow.sdk.execution_time.secrets import DEFAULT_SECRETS_SEARCH_PATH_WORKERS

    from launcher.task.secrets import GrantBackend

    first = ensure_secrets_loaded(default_backends=DEFAULT_SECRETS_SEARCH_PATH_WORKERS)[0]
    if not isinstance(first, GrantBackend):
        raise RuntimeError(f"Airflow asks {type(first).__name__} for secrets before the grant")
    del os.environ["AIRFLOW__WORKERS__SECRETS_BACKEND"], os.environ["AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS"]


def _loop(control: socket.socket, birth: child.Birth, copies: dict[int, str]) -> NoReturn:
    # A signal handler that does nothing, and a pipe that wakes the poll below: no signal is missed between the two.
    own_pids = (
        os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if birth.confinement.profile.namespaces else None
    )
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(woken, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == woken:
                with contextlib.suppress(BlockingIOError):
                    while os.read(woken, 512):
                        pass
                _reap(copies)
            else:
                _fork(control, birth, own_pids, copies)


def _reap(copies: dict[int, str]) -> None:
    """Collect the dead, and what a killed task could not remove itself: its private copy of the archive."""
    with contextlib.suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            if path := copies.pop(pid, None):
                files.remove(path)


def _fork(control: socket.socket, birth: child.Birth, own_pids: int | None, copies: dict[int, str]) -> None:
    message, fds = frames.receive(control, fds=FORK_FDS)
    if message.kind != "fork":
        raise MalformedError(f"a warm process forks and does nothing else: {message.kind!r}")
    message.fields.done()
    birth = dataclasses.replace(birth, copy=files.fresh_path())
    try:
        if own_pids is not None:
            namespaces.next_pid_namespace(own_pids)
        pid = os.fork()
    except (PrivilegeError, OSError) as error:  # too many processes or namespaces: the tasks that there are go on
        frames.close_all(fds)
        frames.send(control, "forked", pid=0, detail=str(error)[:1000])
        return
    if pid == 0:
        from launcher.task import child

        signal.set_wakeup_fd(-1)
        control.detach()  # closed with every other descriptor; this object must not close its number again
        child.main(fds, birth)
    copies[pid] = birth.copy
    frames.close_all(fds)
    frames.send(control, "forked", pid=pid, detail="")


def _packages() -> tuple[str, ...]:
    """Where the interpreter and its modules are: for reading, also below folders that are made private."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    folders = {sys.prefix, sys.base_prefix, root, *sys.path}
    return tuple(sorted(folder for folder in folders if os.path.isabs(folder) and os.path.isdir(folder)))
