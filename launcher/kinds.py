"""What a warm process is for, and what it finds in its environment. The monitor makes it so; the notary only names it."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from integrity.errors import OutOfScopeError
from launcher.accounts import Account
from launcher.isolation import Confinement, profile
from launcher.policy import Policy

_PATH = "/usr/local/bin:/usr/bin:/bin"
VARIANTS = (0, 1)
# A description imports one archive: more than this is an attack or a mistake.
_DESCRIBE_LIMITS = (
    (resource.RLIMIT_CPU, 60),
    (resource.RLIMIT_AS, 2 << 30),
    (resource.RLIMIT_FSIZE, 64 << 20),
    (resource.RLIMIT_NOFILE, 256),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """`purpose` is `run` or `describe`. `variant` tells the two interpreters of a description apart."""

    account: Account
    purpose: str
    confinement: Confinement
    variant: int = 0


def of_run(policy: Policy, account: Account, profile_name: str) -> Kind:
    """Raises `OutOfScopeError` for a profile that the policy chose for no queue."""
    isolation = policy.isolation
    if profile_name not in (isolation.profile, *isolation.queues.values()):
        raise OutOfScopeError(f"the launcher's policy runs nothing in profile {profile_name!r}")
    confinement = Confinement(
        profile=profile(profile_name),
        network=True,
        readable=isolation.readable,
        writable=isolation.writable,
        tcp_ports=isolation.tcp_ports,
        tmp_bytes=policy.limits.task_tmp_bytes,
    )
    return Kind(account=account, purpose="run", confinement=confinement)


def of_description(policy: Policy, account: Account, variant: int) -> Kind:
    """Descriptions see nothing of what the operator opened to tasks, and have no network."""
    if variant not in VARIANTS:
        raise OutOfScopeError(f"a description has no variant {variant}")
    confinement = Confinement(
        profile=profile(policy.isolation.describe),
        network=False,
        readable=(),
        writable=(),
        tcp_ports=(),
        tmp_bytes=policy.limits.task_tmp_bytes,
        rlimits=_DESCRIBE_LIMITS,
    )
    return Kind(account=account, purpose="describe", confinement=confinement, variant=variant)


def clean_environment(kind: Kind, given: Mapping[str, str]) -> dict[str, str]:
    """All that a warm process and its tasks find in their environment: an allow list, nothing of the launcher's own.

    The two variants of a description differ in hash seed and home, so that a description which depends on them is found out.
    """
    account = kind.account
    environment = {
        "PATH": f"{os.path.dirname(sys.executable)}:{_PATH}",
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "AIRFLOW_HOME": "/nonexistent/dagseal",
        **given,
    }
    if kind.purpose == "describe":
        environment["PYTHONHASHSEED"] = str(1 + kind.variant)
        environment["HOME"] = f"/nonexistent/dagseal-{kind.variant}"
    return environment
