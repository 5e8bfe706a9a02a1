"""A zip's files where its author expects them: a private, read-only copy of the verified bytes.

For data: `open` beside `__file__`, `importlib.resources.files()`, `template_ext` and `template_searchpath`. Modules are not
imported from it (`launcher.task.loader`). Folders are 0500 and files 0400, in a fresh folder that only this user can enter.
Another process of the same user could still change it: what must not be changed is code, and that is in memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile

from integrity.archives import Archive


class PrivateCopy:
    """The copy; `root` is its absolute path without symbolic links."""

    def __init__(self, archive: Archive) -> None:
        self.root = os.path.realpath(tempfile.mkdtemp(prefix="dagseal-"))
        folders = {self.root}
        try:
            for member in archive.members:
                path = os.path.join(self.root, member.name)
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
        """Delete the copy, as far as it is still there."""
        for folder, _, _ in os.walk(self.root):
            with contextlib.suppress(OSError):
                os.chmod(folder, 0o700)
        shutil.rmtree(self.root, ignore_errors=True)
