"""A real S3-speaking server for tests: moto's, in a process of its own on loopback, for as long as the test session lasts.

It honours If-None-Match, ranges and error codes as S3 does. It differs from S3 in what no test here may rely on: signatures,
credentials and policies are not checked (`tests.s3_faults` answers for those), nothing is durable, and there is one process,
so every listing sees every write. What is in a bucket is put and looked at by boto3, which is none of ours.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

from dagseal.footing import free_port

KEY_ID, SECRET = "AKIATESTTESTTEST", "secret-of-the-tests"
_START_SECONDS = 60


class Bucket:
    """One of its own for each test, and the settings that lead there."""

    def __init__(self, server: Server, name: str, folder: str) -> None:
        self.server, self.name = server, name
        self.credentials_file = os.path.join(folder, f"{name}.credentials")
        Path(self.credentials_file).touch(0o600)
        Path(self.credentials_file).write_text(
            f"[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n"
        )

    def section(self, **changes: Any) -> dict[str, Any]:
        given = {"url": f"s3://{self.name}/p/q", "endpoint": self.server.url, "credentials_file": self.credentials_file}
        return {**given, "rest_seconds": 0, **changes}

    def put(self, key: str, data: bytes) -> None:
        """At a key below the prefix."""
        self.server.client.put_object(Bucket=self.name, Key=f"p/q/{key}", Body=data)

    def get(self, key: str) -> bytes | None:
        try:
            found = self.server.client.get_object(Bucket=self.name, Key=f"p/q/{key}")
        except ClientError as error:
            assert error.response["Error"]["Code"] == "NoSuchKey"
            return None
        return bytes(found["Body"].read())

    def delete(self, key: str) -> None:
        self.server.client.delete_object(Bucket=self.name, Key=f"p/q/{key}")

    def keys(self) -> list[str]:
        """All but the owner's object."""
        pages = self.server.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix="p/q/")
        found = [item["Key"].removeprefix("p/q/") for page in pages for item in page.get("Contents", ())]
        return sorted(key for key in found if key != ".dagseal-owner")


class Server:
    """A running one. `make` gives a new bucket."""

    def __init__(self, log: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._count = 0
        command = ["setpriv", "--pdeathsig=KILL", sys.executable, "-m", "moto.server"]
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                [*command, "-H", "127.0.0.1", "-p", str(self.port)], stdout=file, stderr=file, cwd="/"
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                break
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, Path(log).read_text()
                time.sleep(0.02)
        self.client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
        )

    def make(self, folder: str) -> Bucket:
        self._count += 1
        name = f"bucket-{self._count}"
        self.client.create_bucket(Bucket=name)
        return Bucket(self, name, folder)


@contextmanager
def running() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="dagseal-s3-") as folder:
        server = Server(f"{folder}/log")
        try:
            yield server
        finally:
            server.process.kill()
            server.process.wait()
