"""Exec'd by the launcher to become a warm process: drop first, import afterwards.

Run with `python -s -P -S`: until the drop is proved, `sys.path` is the standard library and this project, no `.pth` file was
read and no third-party module imported. Only then `site` runs and Airflow is imported, as the dropped user.

Arguments: control descriptor, parent pid, purpose (`run` or `describe`), the confinement as JSON, and `uid gid
comma-separated-groups`, or `-` where the launcher has no privileges and everything runs as one user.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from launcher import namespaces, privileges
from launcher.isolation import Confinement
from launcher.privileges import Identity

_FIRST_TO_DIE = 500  # oom_score_adj: before anything of the host


def main(arguments: list[str]) -> NoReturn:
    """Serves forks until the control socket closes."""
    control_fd, parent, purpose = int(arguments[0]), int(arguments[1]), arguments[2]
    confinement, who = Confinement.from_json(arguments[3]), arguments[4:]
    identity = None
    if who != ["-"]:
        identity = Identity(int(who[0]), int(who[1]), tuple(int(group) for group in who[2].split(",") if group))
    os.setsid()
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write(str(_FIRST_TO_DIE))
    inner = confinement.profile.namespaces
    if inner:
        namespaces.enter_user_namespace(identity)
    elif identity is not None:
        if not confinement.network:
            namespaces.unshare(namespaces.CLONE_NEWNET)
        privileges.empty_bounding_set()
    if identity is not None:
        privileges.drop(identity, keep_capabilities=inner)
    elif not inner:
        privileges.shed_capabilities()
    privileges.harden(parent=parent)
    if inner:
        _continue_inside(control_fd)

    import site

    site.main()
    from launcher.task.warm import serve

    serve(control_fd, purpose=purpose, confinement=confinement)


def _continue_inside(control_fd: int) -> None:
    """Return in a fork that is process 2 of the new pid namespace. Who called and process 1 wait for its end, and take it along
    when they are killed; with process 1 dies everything that was ever forked in there.

    Not as process 1 itself, as each task is that in its own namespace: that they were forked, OpenSSL (before it goes on with
    its random numbers), `tempfile` and others know only by a number that is not the one they had.
    """
    for parent in (0, 1):
        pid = os.fork()
        if pid:
            os.close(control_fd)
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        privileges.die_with(parent)


if __name__ == "__main__":
    main(sys.argv[1:])
