"""`python airflow_supervisor.py FD`: Airflow's own supervisor for a task that somebody else started, one after the other.

It is `ActivitySubprocess` as Airflow has it: its frames, its answers, its HTTP client. Only Airflow's API server is not there:
what would be asked of it is answered out of `Api`, which notes every call. FD is a SOCK_SEQPACKET socket: each request is JSON
with one descriptor, the supervisor's end of the requests' socket; its answer comes when the task has closed the other end.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

from launcher.task import environment

environment.prepare()
del os.environ["AIRFLOW__WORKERS__SECRETS_BACKEND"], os.environ["AIRFLOW__WORKERS__SECRETS_BACKEND_KWARGS"]

import httpx  # noqa: E402 - Airflow is to find the settings made
import msgspec  # noqa: E402
import structlog  # noqa: E402
from airflow.sdk.api.client import Client  # noqa: E402
from airflow.sdk.api.datamodels._generated import BundleInfo, TaskInstance  # noqa: E402
from airflow.sdk.execution_time import comms  # noqa: E402
from airflow.sdk.execution_time.supervisor import ActivitySubprocess  # noqa: E402

MOMENT = "2026-01-31T00:00:00Z"


class Api:
    """The Execution API, as far as these tasks reach it. XComs stay from one task to the next."""

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}
        self.context: dict[str, Any] = {}
        self.calls: list[list[Any]] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/execution/")
        body = json.loads(request.content) if request.content else None
        self.calls.append([request.method, path, body])
        if path.endswith("/run"):
            return httpx.Response(200, json=self.context)
        if path.startswith("xcoms/"):
            return self._xcom(request.method, path, request.url.params.get("map_index", "-1"), body)
        if path.endswith(("/state", "/rtif", "/skip-downstream", "/rendered-map-index")):
            return httpx.Response(204)
        if path.endswith("/validate-inlets-and-outlets"):
            return httpx.Response(200, json={"inactive_assets": []})
        return httpx.Response(404, json={"detail": {"reason": "not_found", "message": path}})

    def _xcom(self, method: str, path: str, map_index: str, body: Any) -> httpx.Response:
        if path.endswith("/slice"):
            pushed = [place for place in sorted(self.xcoms) if place.startswith(path.removesuffix("slice"))]
            return httpx.Response(200, json=[self.xcoms[place] for place in pushed])
        place, key = f"{path}/{map_index}", path.rsplit("/", 1)[1]
        if method == "POST":
            self.xcoms[place] = body
            return httpx.Response(201, json={"message": "set"})
        if method == "DELETE":
            self.xcoms.pop(place, None)
            return httpx.Response(200, json={"message": "deleted"})
        if place not in self.xcoms:
            return httpx.Response(404, json={"detail": {"reason": "not_found", "message": "no such XCom"}})
        return httpx.Response(200, json={"key": key, "value": self.xcoms[place]})


def dag_run(dag_id: str, run_id: str) -> dict[str, Any]:
    return {
        "dag_id": dag_id, "run_id": run_id, "logical_date": MOMENT, "data_interval_start": MOMENT,
        "data_interval_end": MOMENT, "run_after": MOMENT, "start_date": MOMENT, "end_date": None, "run_type": "scheduled",
        "state": "running", "conf": {"size": 7}, "consumed_asset_events": [], "partition_key": None,
    }  # fmt: skip


def supervise(api: Api, told: dict[str, Any], sock: socket.socket) -> dict[str, Any]:
    """What it was asked and told, and what it says became of the task."""
    ti = TaskInstance(**told["ti"])
    api.calls.clear()
    api.context = {
        "dag_run": dag_run(ti.dag_id, ti.run_id), "task_reschedule_count": 0, "max_tries": 1, "should_retry": True,
        **told["context"],
    }  # fmt: skip
    log = structlog.get_logger()
    supervisor = ActivitySubprocess(
        id=ti.id,
        pid=os.getpid(),
        stdin=sock,
        process=None,
        process_log=log,
        client=Client(base_url="http://airflow.test/execution/", token="t", transport=httpx.MockTransport(api.answer)),
    )
    supervisor._on_child_started(
        ti=ti, dag_rel_path="d.py", bundle_info=BundleInfo(name="dagseal", version="1"), sentry_integration=""
    )
    handling, decoder = supervisor.handle_requests(log), msgspec.msgpack.Decoder(comms._RequestFrame)
    next(handling)
    asked = []
    with sock, sock.makefile("rb") as reading:
        while not told["leaves"] and (header := reading.read(4)):
            request = decoder.decode(reading.read(int.from_bytes(header, "big")))
            asked.append(request.body["type"])
            handling.send(request)
    return {"asked": asked, "calls": api.calls, "state": supervisor._terminal_state}


def main() -> None:
    api, control = Api(), socket.socket(fileno=int(sys.argv[1]))
    control.send(b"ready")
    while True:
        data, fds, _, _ = socket.recv_fds(control, 1 << 20, 1)
        if not data:
            return
        report = supervise(api, json.loads(data), socket.socket(fileno=fds[0]))
        control.send(json.dumps(report, default=str).encode())


if __name__ == "__main__":
    main()
