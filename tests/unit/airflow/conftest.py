"""Airflow is imported here as the tasks import it: with no database and no file of the developer's."""

from launcher.task import environment

environment.prepare()
