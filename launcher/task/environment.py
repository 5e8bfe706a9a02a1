"""The settings under which Airflow is imported here, whatever the host's configuration says.

Promise: no metadata database, no API server, no file written, no secrets backend but the launch's own grant. Everything
else (AIRFLOW_HOME, plugins, time zone) is the host's, as the launcher passed it on. Nothing in the table is a secret: a
task can see it.
"""

from __future__ import annotations

import os
import pwd

SETTINGS = {
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite://",  # in memory; the import wants a URL, nothing may use it
    "AIRFLOW__LOGGING__BASE_LOG_FOLDER": "/",  # exists, so that the import creates none; no log file is opened here
    "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
    "AIRFLOW__LOGGING__REMOTE_LOGGING": "False",
    "AIRFLOW__SECRETS__BACKEND": "",
    "AIRFLOW__WORKERS__SECRETS_BACKEND": "launcher.task.secrets.GrantBackend",
    "AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS": "",
}


def prepare() -> None:
    """Set the table above, and the name of the user that this process runs as. To be called before Airflow is imported.

    LOGNAME and USER are what `getpass.getuser` believes, and Airflow asks it whether a task's `run_as_user` still has to
    be reached through sudo: here it never has.
    """
    os.environ.update(SETTINGS)
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    os.environ["LOGNAME"] = os.environ["USER"] = name
