"""What a launcher does not promise in its mode and with its policy: said at start and in `identity`."""

from __future__ import annotations

from launcher.accounts import invoking_account
from launcher.isolation import profile
from launcher.modes import Mode
from launcher.policy import Policy

_NOT_PROMISED_ROOTLESS = (
    "this launcher is rootless: a task runs as a subordinate id of the launcher's account, another for each unix user, and"
    " never as the real account: it owns none of its files",
    "not promised: that the agent cannot read a grant or sign for the launcher: it has the launcher's account, and so its keys",
    "not promised: that expired accounts are refused, as /etc/shadow cannot be read (users.unsafe_no_expiry_check)",
)
_NOT_PROMISED_ALONE = (
    "this launcher may become nobody: every task runs as {user}, the account of the launcher itself",
    "not promised: P2's separate users (a task can signal and read what {user} can), P3 between tasks",
    "asking for any other unix user is refused, never skipped",
)


def warnings(policy: Policy, mine: Mode) -> list[str]:
    """What is not promised here."""
    isolation = policy.isolation
    match mine:
        case "alone":
            lines = [line.format(user=invoking_account().name) for line in _NOT_PROMISED_ALONE]
            if not profile(isolation.describe).namespaces:
                lines.append(
                    "not promised: a description has the network, which only a user namespace or root can take away"
                )
            return lines
        case "rootless":
            return list(_NOT_PROMISED_ROOTLESS)
        case "capabilities" if not all(
            profile(name).namespaces for name in {isolation.profile, *isolation.queues.values()}
        ):
            return [
                "profile minimal keeps its capability bounding set here: only no_new_privs keeps it from being used"
            ]
    return []
