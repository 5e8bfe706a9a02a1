"""Where the time of a launch goes, from records that are kept anyway: the API's audit log, the launcher's journal and its
signed timings. All processes are on one host, so their clocks agree."""

from __future__ import annotations

from tests.bench.figures import Row
from tests.bench.measures import Launches
from tests.live import Live

_AUDIT = {"launch.create": "reserved", "launch.offer": "offered", "launch.claim": "claimed", "launch.end": "ended"}
STAGES = (
    ("sent", "reserved", "caller → API: request, checks"),
    ("reserved", "offered", "API: commit, wake the agent, re-hash the blob, sign the ticket"),
    ("offered", "received", "API → agent → launcher: commit, open and hash the cached blob"),
    ("received", "verified", "launcher: ticket, manifest, SHA-512 into a sealed memfd"),
    ("verified", "warm", "launcher: mark the ticket used, find the warm process"),
    ("warm", "forked", "launcher: journal, fork, hello, process tree"),
    ("forked", "ready", "task: hash, import the DAG, task digest"),
    ("ready", "claimed", "launcher → agent → API: attest, journal, sign, check the claim"),
    ("claimed", "granted", "API → agent → launcher: commit, grant, open it, journal"),
    ("granted", "finished", "task: secrets, Airflow's task runner, the function"),
    ("finished", "journaled", "launcher: kill the tree, rest of the log, journal"),
    ("journaled", "ended", "launcher → agent → API: result to the spool, log and result sent"),
    ("ended", "seen", "API → caller: commit, long poll answers"),
)


def stages(live: Live, done: Launches) -> list[Row]:
    """One row per stage, in order; together they are the whole launch."""
    journal: dict[str, dict[str, float]] = {}
    for entry in live.journal():
        journal.setdefault(str(entry.get("launch_id", "")), {})[entry["event"]] = entry["at"] / 1e6
    seconds: dict[str, list[float]] = {label: [] for _, _, label in STAGES}
    for sent_at, seen_at, shown in zip(done.sent_at, done.seen_at, done.shown, strict=True):
        events = live.audit(object=f"launch:{shown['id']}")
        at = {_AUDIT[event["action"]]: event["at"] / 1e6 for event in events if event["action"] in _AUDIT}
        marks = {name: value / 1e6 for name, value in shown["timings_us"].items()}
        # The journal's line `claim` is written right after the mark `ready`: it ties the launcher's marks to the clock.
        received = journal[shown["id"]]["claim"] - marks["ready"]
        at |= {name: received + value for name, value in marks.items()}
        at |= {"sent": sent_at, "received": received, "journaled": journal[shown["id"]]["result"], "seen": seen_at}
        for begin, end, label in STAGES:
            seconds[label].append(at[end] - at[begin])
    return [Row(what=label, seconds=values) for label, values in seconds.items()]
