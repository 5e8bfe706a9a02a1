"""Where the installed packages are: `cryptography`, which the notary imports, and all that warm processes do."""

from __future__ import annotations

import os
import sys


def add_to_path() -> None:
    """Started without `site`, as a launcher is, there is nothing third-party on the path before."""
    if sys.flags.no_site:
        sys.path.append(folder())


def folder() -> str:
    """The site-packages of the interpreter, or of the virtual environment that it belongs to (PEP 405)."""
    prefix = os.path.dirname(os.path.dirname(os.path.abspath(sys.executable)))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if os.path.exists(os.path.join(prefix, "pyvenv.cfg")):
        return os.path.join(prefix, "lib", version, "site-packages")
    import sysconfig

    return sysconfig.get_paths()["purelib"]
