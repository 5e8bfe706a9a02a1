"""Every attempt of T19 again, by a task of a launcher that is not root: with three capabilities (b), and rootless (d).

What a profile promises does not depend on the way: every cell of `tests/attacks/promises.py` holds. (c) is (a), once sudo has
started it: the same account, the same code, the same privileges.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from test_root_mode_capabilities import words
from test_root_mode_rootless import AS_ACCOUNT, subordinate_ids

from dagseal.footing import Accounts
from dagseal.stack import Stack
from tests.attacks.promises import EXPECTED, PROFILES, expected
from tests.attacks.scene import Attacked, Scene
from tests.live import running

__all__ = ["subordinate_ids"]
pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
ACCOUNT = "uucp"

WAYS = ("(b) capabilities", "(d) rootless")


@dataclass(slots=True)
class OtherWay(Stack):
    """Its launcher is started by these words, with these options; its socket's folder and its state are that account's."""

    prefix: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    users: str = ""

    def prepare(self) -> None:
        Stack.prepare(self)
        for name in ("run", "launcher"):
            entry = pwd.getpwnam(ACCOUNT)
            os.chown(self.folder / name, entry.pw_uid, entry.pw_gid)

    def _spawn(self, name: str, command: list[str], account: str | None) -> None:
        if name == "launcher":
            command = [*self.prefix, *command, *self.options]
        Stack._spawn(self, name, command, account)

    def _launcher_toml(self) -> str:
        lines = Stack._launcher_toml(self).replace(f'notary = "{self.accounts.notary}"\n', self.users)
        return lines.replace("unsafe_no_cgroup_limits = false", "unsafe_no_cgroup_limits = true")


def ways() -> dict[str, dict[str, Any]]:
    usual = Accounts.choose()
    own = Accounts(api=ACCOUNT, agent=ACCOUNT, parser=usual.parser, notary=usual.notary)
    return {
        "(b) capabilities": {"prefix": words()},
        "(d) rootless": {
            "prefix": AS_ACCOUNT,
            "options": ["--rootless"],
            "accounts": own,
            "users": "unsafe_no_expiry_check = true\n",
        },
    }


@pytest.fixture(scope="module")
def attacked() -> Iterator[Callable[[str, str], Attacked]]:
    """Made once for each way and profile."""
    made: dict[tuple[str, str], Attacked] = {}

    def attack(way: str, profile: str) -> Attacked:
        if (way, profile) not in made:
            with ExitStack() as ending:
                live = ending.enter_context(
                    running(kind=OtherWay, profile=profile, describe="standard", task_user="nobody", **ways()[way])
                )
                made[way, profile] = Scene(live, ending).attack()
        return made[way, profile]

    yield attack


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("way", WAYS)
def test_what_a_task_can_do(attacked: Callable[[str, str], Attacked], way: str, profile: str) -> None:
    found = attacked(way, profile)
    assert found.of_task == {threat: expected(threat, profile, found.of_user[threat]) for threat in EXPECTED}
    assert found.harmed == []
