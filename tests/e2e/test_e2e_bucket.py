"""The whole of dagseal, in its own processes, with its archives in a bucket: pushed, launched, tampered with, refused."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagseal.footing import Accounts
from integrity.digests import Digest
from tests import s3
from tests.live import Live, running

DAG = """
from airflow.sdk import DAG, task

with DAG("bucketed", schedule=None):

    @task
    def hello():
        print("read from a bucket")

    hello()
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[s3.Bucket]:
    """Its credentials are the API's account's, which as root is another one than the test's."""
    with tempfile.TemporaryDirectory(prefix="dagseal-s3-") as folder, s3.running() as server:
        made = server.make(folder)
        os.chmod(folder, 0o755)
        if os.geteuid() == 0:
            shutil.chown(made.credentials_file, Accounts.choose().api)
        yield made


@pytest.fixture(scope="module")
def live(bucket: s3.Bucket) -> Iterator[Live]:
    lines = "".join(f"{name} = {value!r}\n" for name, value in bucket.section().items())
    with running(more_api_toml=f"[blobs]\n{lines}") as started:
        yield started


def test_what_is_in_the_bucket_runs_and_what_was_changed_there_does_not(
    live: Live, bucket: s3.Bucket, tmp_path: Path
) -> None:
    file = tmp_path / "bucketed.py"
    file.write_text(DAG)
    pushed = live.cli("push", str(file))
    assert pushed.returncode == 0, pushed.stderr
    hexadecimal = Digest.of(DAG.encode()).hex
    name = f"{hexadecimal[:2]}/{hexadecimal}"
    assert bucket.keys() == [name] and bucket.get(name) == DAG.encode()
    ended = live.launch("bucketed", "hello", "r1")
    assert ended["state"] == "success" and "read from a bucket" in live.log(ended["id"])
    bucket.put(name, DAG.replace("hello", "jello").encode())
    refused = live.launch("bucketed", "hello", "r2")
    assert (refused["state"], refused["error"]) == ("refused", "digest-mismatch")
    config = str(live.stack.folder / "api.toml")
    checked = live.cli("--config", config, "fsck")
    assert checked.returncode == 1 and "blob-damaged" in checked.stdout + checked.stderr
    again = live.cli("push", str(file))
    assert again.returncode == 0 and bucket.get(name) == DAG.encode()
    assert live.cli("--config", config, "fsck").returncode == 0
    assert live.launch("bucketed", "hello", "r3")["state"] == "success"
    doctor = live.http("GET", "/readyz")
    assert doctor.json["checks"]["blobs"] == "ok"
