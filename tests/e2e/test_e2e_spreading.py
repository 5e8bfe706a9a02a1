"""A push reaches the worker before anything is launched, the worker says so, and what was changed while it was down is found
and fetched again when it comes back."""

from __future__ import annotations

import hashlib
import json
import time

from dagseal.stack import WORKER
from tests.live import Live, running

DAG = "from airflow.sdk import DAG\n\nwith DAG('spread'):\n    pass\n"


def workers(live: Live) -> list[dict[str, object]]:
    found: list[dict[str, object]] = live.http("GET", "/v1/workers").json["workers"]
    return found


def until_verified(live: Live) -> dict[str, object]:
    """At most twenty seconds; each question waits for a report that is due within that time."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done = live.cli("worker", "drift", "-o", "json")
        (worker,) = json.loads(done.stdout)
        if worker["state"] == "verified":
            assert done.returncode == 0
            return dict(worker)
    raise AssertionError(f"the worker is {worker['state']}: {worker['why']}")


def test_a_push_is_held_by_every_worker_before_a_launch(tmp_path: object) -> None:
    with running(more_agent_toml="report_seconds = 1.0\n") as live:
        archive = live.stack.folder.parent / "spread.py"
        archive.write_text(DAG)
        done = live.cli("push", str(archive), "--wait-workers", "20s")
        assert done.returncode == 0, done.stderr
        assert "workers: 1 of 1 hold it" in done.stderr
        digest = hashlib.sha512(DAG.encode()).hexdigest()
        cached = live.stack.cache / "sha512" / digest[:2] / digest
        assert cached.read_text() == DAG
        assert until_verified(live)["missing"] == 0
        done = live.cli("verify", "--workers")
        assert (done.returncode, done.stdout) == (0, f"ok     1. {WORKER} is verified\n"), done.stderr

        live.stack.stop("agent")
        cached.chmod(0o600)
        cached.write_text(DAG.replace("spread", "sprout"))
        live.stack.start_agent()
        size = live.http("GET", "/v1/workers").json["workers"][0]["log_size"]
        live.push("other.py", DAG.replace("spread", "other"))
        while workers(live)[0]["log_size"] == size:  # until it reported anew; the test's own limit ends this
            time.sleep(0.05)
        until_verified(live)
        assert cached.read_text() == DAG
        assert len(list((live.stack.cache / "quarantine").iterdir())) == 1


def test_nobody_waits_for_a_release_that_waits_for_approval_or_longer_than_he_said(live: Live) -> None:
    archive = live.stack.folder.parent / "patient.py"
    archive.write_text(DAG.replace("spread", "patient"))
    assert live.cli("push", str(archive), "--wait-workers", "soon").returncode == 2
    assert live.http("GET", "/v1/archives/patient.py").status == 404
