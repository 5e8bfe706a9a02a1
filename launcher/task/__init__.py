"""What runs after the privilege drop: the warm process, and the task that is forked from it.

Everything here runs as the unix user of the task and may import Airflow; nothing here is trusted by the launcher, which
believes only what the kernel says of these processes and what it can check itself.
"""
