"""Exec'd by the launcher, as root, to become a warm process: drop first, import afterwards.

Run with `python -s -P -S`: until the drop is proved, `sys.path` is the standard library and this project, no `.pth` file was
read and no third-party module imported. Only then `site` runs and Airflow is imported, as the dropped user.

Arguments: control descriptor, purpose (`run` or `describe`), parent pid, and `uid gid comma-separated-groups`, or `-`
where the launcher has no privileges and everything runs as one user.
"""

from __future__ import annotations

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from launcher import privileges
from launcher.privileges import Identity


def main(arguments: list[str]) -> None:
    """Never returns: serves forks until the control socket closes."""
    control_fd, purpose, parent, who = int(arguments[0]), arguments[1], int(arguments[2]), arguments[3:]
    os.setsid()
    if who != ["-"]:
        uid, gid, groups = int(who[0]), int(who[1]), tuple(int(group) for group in who[2].split(",") if group)
        if purpose == "describe":
            privileges.leave_network()
        privileges.drop(Identity(uid, gid, groups))
    privileges.harden(parent=parent)

    import site

    site.main()
    from launcher.task.warm import serve

    serve(control_fd, purpose=purpose)


if __name__ == "__main__":
    main(sys.argv[1:])
