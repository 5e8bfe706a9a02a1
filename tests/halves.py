"""The real monitor, in this process, and the other end of its socket pair, for tests of what is asked over it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from dagseal.footing import Accounts
from integrity.fields import to_base64
from launcher import policy
from launcher.cgroups import CgroupTrees, Limits
from launcher.channel import Channel
from launcher.kinds import clean_environment
from launcher.monitor import FRAME_BYTES, Monitor
from launcher.powers import LocalPowers
from launcher.trees import Trees, WalkTrees, children
from vocabulary.keys import SigningKey

USER = "nobody"


@dataclass(slots=True)
class Halves:
    """`theirs` is the monitor's end, which `serving` answers on; `ours` the notary's."""

    policy: policy.Policy
    powers: LocalPowers
    ours: Channel
    theirs: Channel
    serving: asyncio.Task[None]


def rules(folder: Path) -> policy.Policy:
    """`USER` may run, and two who may not are listed all the same; profiles `standard` and, for a queue, `strict`."""
    accounts, key = Accounts.choose(), SigningKey.generate()
    return policy.parse(
        f'[trust]\napi_keys = ["{to_base64(key.public.raw)}"]\n'
        f'[peers]\nrun = ["{accounts.agent}"]\ndescribe = ["{accounts.api}"]\n'
        f'[users]\nallowed = ["{USER}", "root", "bin"]\nbanned = ["bin"]\nmin_uid = 1\n'
        f'parser = "{accounts.parser}"\nnotary = "{accounts.notary}"\n'
        f'[paths]\nsocket = "{folder}/launcher.sock"\nstate_dir = "{folder}/state"\n'
        '[isolation]\nprofile = "standard"\nqueues = {secure = "strict"}\n',
        "the policy",
    )


@asynccontextmanager
async def halves(folder: Path) -> AsyncIterator[Halves]:
    """Afterwards nothing of it is left."""
    before, chosen = children(os.getpid()), rules(folder)
    trees: Trees = CgroupTrees.find(Limits()) or WalkTrees()
    powers = LocalPowers(privileged=True, trees=trees, environment=lambda kind: clean_environment(kind, {}))
    monitor = Monitor(chosen, powers, privileged=True, owner=None, now=lambda: 1_700_000_000)
    here, there = socket.socketpair()
    theirs, ours = Channel(here, limit=FRAME_BYTES), Channel(there, limit=FRAME_BYTES)
    found = Halves(chosen, powers, ours, theirs, asyncio.create_task(monitor.serve(theirs)))
    yield found
    ours.close()
    await asyncio.wait_for(found.serving, 10)
    await powers.close()
    assert children(os.getpid()) == before
