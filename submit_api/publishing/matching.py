"""Which publisher a run belongs to: a rule without I/O.

Promise: everything that a publisher names agrees, and the ids that it was pinned to; where two fit, the one that names more.
Whoever has no publisher learns what it presented, and of publishers of its own repository which fields differ: never their
values, and nothing of other repositories'. A repository of another id is another repository, whatever its name.
"""

from __future__ import annotations

from collections.abc import Sequence

from submit_api.publishing.runs import Run
from submit_api.refusals import NoPublisherError
from submit_api.registry.records import Publisher

MAX_NEAR = 5


def match(publishers: Sequence[Publisher], run: Run) -> Publisher:
    """Raises `NoPublisherError`."""
    near = [publisher for publisher in publishers if publisher.repository == run.repository]
    fitting = [publisher for publisher in near if not differences(publisher, run)]
    if fitting:
        return max(fitting, key=lambda publisher: (bool(publisher.environment), bool(publisher.ref)))
    hints = [f"{found.id} differs in {', '.join(differences(found, run))}" for found in near[:MAX_NEAR]]
    told = f"of its publishers {'; '.join(hints)}" if hints else "it has none"
    raise NoPublisherError(
        f"no publisher is this run: {run}; {told}: an administrator adds one by 'dagseal publisher add'"
    )


def differences(publisher: Publisher, run: Run) -> list[str]:
    """The fields in which they differ. What the publisher leaves open agrees with everything."""
    ids = [name for name in ("repository_id", "owner_id") if getattr(publisher, name) not in ("", getattr(run, name))]
    if ids:
        return ids
    names = [name for name in ("environment", "ref") if getattr(publisher, name) not in ("", getattr(run, name))]
    return [*(["workflow"] if publisher.workflow != run.workflow else []), *names]
