"""A zip's files where its author expects them: a private, read-only copy of the verified bytes.

For data: `open` beside `__file__`, `importlib.resources.files()`, `template_ext` and `template_searchpath`. Modules are not
imported from it (`launcher.task.loader`). Folders are 0500 and files 0400, in a fresh folder that only this user can enter.
Another process of the same user could still change it: what must not be changed is code, and that is in memory.
A task removes its copy when it ends, its warm process the copy of a task that was killed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile

from vocabulary.archives import Archive


def fresh_path() -> str:
    """A path for a copy that nobody can guess, in the folder for temporary files; nothing is created."""
    return os.path.join(os.path.realpath(tempfile.gettempdir()), f"dagseal-{secrets.token_hex(12)}")


class PrivateCopy:
    """The copy; `root` is its absolute path without symbolic links, and is to be new."""

    def __init__(self, archive: Archive, root: str) -> None:
        self.root = root
        os.mkdir(root, 0o700)
        folders = {root}
        try:
            for member in archive.members:
                path = os.path.join(root, member.name)
                parent = os.path.dirname(path)
                os.makedirs(parent, mode=0o700, exist_ok=True)
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400)
                with open(fd, "wb") as file:
                    file.write(member.data)
                while parent not in folders:
                    folders.add(parent)
                    parent = os.path.dirname(parent)
            for folder in folders:
                os.chmod(folder, 0o500)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        remove(self.root)


def remove(root: str) -> None:
    """Delete the copy at `root`, as far as there is one."""
    if os.path.islink(root) or not os.path.isdir(root):
        return
    with contextlib.suppress(OSError):
        os.chmod(root, 0o700)
    for folder, below, _ in os.walk(root):
        for name in below:
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
    shutil.rmtree(root, ignore_errors=True)
