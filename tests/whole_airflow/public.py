"""Airflow's public REST API, as its users call it: switch a DAG on, trigger a run, wait for its end, see what that is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx

_ENDED = ("success", "failed")
_PAUSE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class TaskEnd:
    """What one task instance ended in."""

    task_id: str
    map_index: int
    state: str
    tries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """What one DAG run ended in; `xcoms` maps (task, map index, key) to the value."""

    state: str
    tasks: tuple[TaskEnd, ...]
    xcoms: dict[tuple[str, int, str], Any]


class PublicApi:
    """One client, who is an administrator. Every call that is refused raises."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=60)

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, **query: Any) -> Any:
        return self._asked("GET", path, params=query)

    def post(self, path: str, body: Any) -> Any:
        return self._asked("POST", path, json=body)

    def patch(self, path: str, body: Any) -> Any:
        return self._asked("PATCH", path, json=body)

    def put(self, path: str) -> Any:
        return self._asked("PUT", path)

    def delete(self, path: str) -> None:
        self._asked("DELETE", path)

    def healthy(self, *parts: str) -> bool:
        """Whether the API answers and each of these reports a heart beat."""
        try:
            health = self._client.get("/api/v2/monitor/health").json()
        except httpx.TransportError:
            return False
        return all((health.get(part) or {}).get("status") == "healthy" for part in parts)

    def dags(self) -> set[str]:
        return {dag["dag_id"] for dag in self.rows("dags", "dags", exclude_stale=True)}

    def rows(self, path: str, key: str, **query: Any) -> list[dict[str, Any]]:
        """All rows of a list that comes by pages."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.get(path, limit=100, offset=len(found), **query)
            found += page[key]
            if len(found) >= page["total_entries"] or not page[key]:
                return found

    def switch_on(self, dag_id: str) -> None:
        self.patch(f"dags/{dag_id}", {"is_paused": False})

    def trigger(
        self, dag_id: str, run_id: str, conf: dict[str, Any] | None = None, *, logical_date: str | None = None
    ) -> None:
        body = {"dag_run_id": run_id, "logical_date": logical_date, "conf": conf or {}}
        self.post(f"dags/{dag_id}/dagRuns", body)

    def run(self, dag_id: str, run_id: str, conf: dict[str, Any] | None = None, *, seconds: float = 120) -> RunEnd:
        """Switch on, trigger and wait for the end."""
        self.switch_on(dag_id)
        self.trigger(dag_id, run_id, conf)
        return self.wait(dag_id, run_id, seconds=seconds)

    def run_state(self, dag_id: str, run_id: str) -> str:
        return str(self.get(f"dags/{dag_id}/dagRuns/{run_id}")["state"])

    def task(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}")
        return found

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        return self.rows(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances", "task_instances")

    def wait(self, dag_id: str, run_id: str, *, seconds: float = 120) -> RunEnd:
        self.until(lambda: self.run_state(dag_id, run_id) in _ENDED, f"the end of {dag_id} {run_id}", seconds)
        return self.end(dag_id, run_id)

    def wait_all(self, runs: Iterable[tuple[str, str]], *, seconds: float) -> set[tuple[str, str]]:
        """Those that have not ended by then."""
        left, deadline = set(runs), time.monotonic() + seconds
        while left and time.monotonic() < deadline:
            left = {run for run in left if self.run_state(*run) not in _ENDED}
            time.sleep(_PAUSE)
        return left

    def end(self, dag_id: str, run_id: str) -> RunEnd:
        ends = sorted(
            TaskEnd(
                task_id=row["task_id"], map_index=row["map_index"], state=str(row["state"]), tries=row["try_number"]
            )
            for row in self.tasks(dag_id, run_id)
        )
        return RunEnd(state=self.run_state(dag_id, run_id), tasks=tuple(ends), xcoms=self.xcoms(dag_id, run_id))

    def xcoms(self, dag_id: str, run_id: str) -> dict[tuple[str, int, str], Any]:
        base = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        return {
            (row["task_id"], row["map_index"], row["key"]): self.get(
                f"{base}/{row['task_id']}/xcomEntries/{row['key']}", map_index=row["map_index"]
            )["value"]
            for row in self.rows(f"{base}/~/xcomEntries", "xcom_entries")
        }

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """The task's log as text, one event a line."""
        content = self.get(
            f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}",
            map_index=map_index,
            full_content=True,
        )["content"]
        return "\n".join(str(line) for line in content)

    def until(self, true: Callable[[], bool], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
            time.sleep(_PAUSE)

    def _asked(self, method: str, path: str, **more: Any) -> Any:
        if "Authorization" not in self._client.headers:
            token = self._client.get("/auth/token").raise_for_status().json()["access_token"]
            self._client.headers["Authorization"] = f"Bearer {token}"
        answer = self._client.request(method, f"/api/v2/{path}", **more)
        assert answer.is_success, (method, path, answer.status_code, answer.text[:1000])
        return answer.json() if answer.content else None
