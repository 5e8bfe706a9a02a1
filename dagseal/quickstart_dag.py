"""The DAG of the quickstart: says who runs it and that its connection came, without saying the password."""

import os
import pwd

from airflow.sdk import DAG, BaseHook, task

with DAG("quickstart", schedule=None, catchup=False):

    @task
    def hello() -> str:
        connection = BaseHook.get_connection("warehouse")
        user = pwd.getpwuid(os.getuid()).pw_name
        print(f"I am {user} (uid {os.getuid()}, groups {os.getgroups()})")
        print(
            f"connection warehouse: {connection.login}@{connection.host}, password of {len(connection.password)} characters"
        )
        return user

    hello()
