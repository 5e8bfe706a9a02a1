"""Accounts with the C library's own answers: the files in /etc are replaced in a private mount namespace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

NOW = 1_700_000_000
DAY = NOW // 86_400
PASSWD = """\
root:x:0:0:root:/root:/bin/sh
toor:x:0:0::/root:/bin/sh
etl:x:2001:2001::/home/etl:/usr/sbin/nologin
alias:x:2002:2002::/:/bin/sh
agent:x:2002:2002::/:/bin/sh
ended:x:2003:2003::/:/bin/sh
lastday:x:2004:2004::/:/bin/sh
longago:x:2005:2005::/:/bin/sh
minus:x:4294967295:2001::/:/bin/sh
rootgroup:x:2006:0::/:/bin/sh
diskgroup:x:2007:6::/:/bin/sh
noshadow:x:2008:2008::/:/bin/sh
"""
SHADOW = f"""\
root:!:19000:0:99999:7:::
etl:!:19000:0:99999:7:::
alias:*:19000:0:99999:7:::
agent:*:19000:0:99999:7:::
ended:*:19000:0:99999:7::{DAY}:
lastday:*:19000:0:99999:7::{DAY + 1}:
longago:*:19000:0:99999:7::0:
"""
GROUP = """\
root:x:0:etl
disk:x:6:etl
aka:x:77:etl
docker:x:77:
etl:x:2001:
batch:x:3000:etl
"""
PROGRAM = """
import sys
from integrity.errors import DagsealError
from launcher.accounts import AccountRules, resolve
names = sys.argv[2:]
rules = AccountRules(allowed=frozenset(names), allowed_groups=frozenset(), banned=frozenset(),
                     reserved=frozenset(("agent",)), min_uid=1000)
for name in names:
    try:
        account = resolve(name, rules, now=int(sys.argv[1]))
        print(account.name, account.uid, account.gid, *account.groups)
    except DagsealError as error:
        print(type(error).__name__, error)
"""


def answers(folder: Path, *names: str, shadow: str | None = SHADOW) -> list[str]:
    """What `resolve` says of each name, with our files over those of /etc."""
    script = "set -e; mount --make-rprivate /\n"
    files = {"passwd": PASSWD, "group": GROUP, "nsswitch.conf": "passwd: files\ngroup: files\n"}
    for name, text in files.items() | ({("shadow", shadow)} if shadow is not None else set()):
        (folder / name).write_text(text)
        script += f'mount --bind "{folder / name}" /etc/{name}\n'
    script += 'exec "$@"\n'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", PROGRAM, str(NOW), *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_the_c_library_says(tmp_path: Path) -> None:
    expected = {
        "etl": "etl 2001 2001 2001 3000",  # a locked password is normal; root, disk and docker stay behind
        "lastday": "lastday 2004 2004 2004",
        "noshadow": "noshadow 2008 2008 2008",
        "toor": "PrivilegeError unix user toor is uid or gid 0",
        "root": "PrivilegeError unix user root is uid or gid 0",
        "rootgroup": "PrivilegeError unix user rootgroup is uid or gid 0",
        "diskgroup": "PrivilegeError the primary group of unix user diskgroup",
        "alias": "PrivilegeError unix user alias is one of dagseal's own",
        "ended": "PrivilegeError unix user ended has expired",
        "longago": "PrivilegeError unix user longago has expired",
        "minus": "PrivilegeError unix user minus",
        "absent": "PrivilegeError unix user absent does not exist",
        "2001": "MalformedError",
        "#2001": "MalformedError",
        "+2001": "MalformedError",
        "-1": "MalformedError",
        "etl ": "MalformedError",
        "": "MalformedError",
    }
    found = answers(tmp_path, *expected)
    for (name, start), answer in zip(expected.items(), found, strict=True):
        assert answer.startswith(start), name


def test_the_files_of_this_host_are_untouched(tmp_path: Path) -> None:
    before = {name: Path("/etc", name).read_bytes() for name in ("passwd", "shadow", "group", "nsswitch.conf")}
    answers(tmp_path, "etl")
    assert before == {name: Path("/etc", name).read_bytes() for name in before}
