"""Connections and variables from Airflow's secrets backend classes, each called in a process of its own."""
