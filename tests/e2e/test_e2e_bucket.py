"""The whole of dagseal, in its own processes, with its archives in a bucket: pushed, launched, tampered with, refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Bucket]:
    with s3.running() as server:
        yield server.make(str(tmp_path_factory.mktemp("s3")))


@pytest.fixture(scope="module")
def live(bucket: s3.Bucket) -> Iterator[Live]:
    """The API's account is another one than the test's: it takes its credentials from the environment."""
    told = f'[blobs]\nurl = "s3://{bucket.name}/p/q"\nendpoint = "{bucket.server.url}"\n'
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", s3.KEY_ID)
        environment.setenv("AWS_SECRET_ACCESS_KEY", s3.SECRET)
        with running(more_api_toml=told) as started:
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
    environment = {"AWS_ACCESS_KEY_ID": s3.KEY_ID, "AWS_SECRET_ACCESS_KEY": s3.SECRET}
    checked = live.cli("--config", config, "fsck", **environment)
    assert checked.returncode == 1 and "blob-damaged" in checked.stdout + checked.stderr
    again = live.cli("push", str(file))
    assert again.returncode == 0 and bucket.get(name) == DAG.encode()
    assert live.cli("--config", config, "fsck", **environment).returncode == 0
    assert live.launch("bucketed", "hello", "r3")["state"] == "success"
    doctor = live.http("GET", "/readyz")
    assert doctor.json["checks"]["blobs"] == "ok"
