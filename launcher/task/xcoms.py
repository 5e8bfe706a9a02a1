"""The XComs of one launch: what earlier launches of the run pushed, and what this one pushes.

Values are Airflow's serialised JSON. The grant holds those of this run only: of its own dag, and of the other dags that the
task declares. Pushes are kept here until the task ends, within what a result may hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from vocabulary.claims import MAX_XCOMS

MAX_KEY_CHARS = 512
MAX_PUSHED_BYTES = 1024 * 1024
OWN_DAG = ""


class XComLimitError(ValueError):
    """A push that a result cannot hold."""


class XComs:
    """`task_id` and `map_index` are those of the task that runs."""

    def __init__(self, granted: Iterable[dict[str, Any]], *, task_id: str, map_index: int) -> None:
        self._own = (task_id, map_index)
        self._pushed: dict[str, str] = {}
        self._granted: dict[tuple[str, str, str], dict[int, str]] = {}
        for xcom in granted:
            dag_id = xcom.get("dag_id", OWN_DAG)
            if (dag_id, xcom["task_id"], xcom["map_index"]) != (
                OWN_DAG,
                *self._own,
            ):  # a new try begins without the last one's
                self._granted.setdefault((dag_id, xcom["task_id"], xcom["key"]), {})[xcom["map_index"]] = xcom["value"]

    def one(self, task_id: str, key: str, map_index: int | None, *, dag_id: str = OWN_DAG) -> Any:
        """The value, or None."""
        text = self._texts(dag_id, task_id, key).get(-1 if map_index is None else map_index)
        return None if text is None else json.loads(text)

    def all(self, task_id: str, key: str, *, dag_id: str = OWN_DAG) -> list[Any]:
        """The values of every map index, in order."""
        return [json.loads(text) for _, text in sorted(self._texts(dag_id, task_id, key).items())]

    def push(self, key: str, value: Any) -> None:
        """Raises `XComLimitError`."""
        text = json.dumps(value)
        if not key or len(key) > MAX_KEY_CHARS or not key.isprintable():
            raise XComLimitError(f"an XCom's key is 1 to {MAX_KEY_CHARS} printable characters, not {key!r:.80}")
        pushed = {**self._pushed, key: text}
        size = sum(len(value) for value in pushed.values())
        if len(pushed) > MAX_XCOMS or size > MAX_PUSHED_BYTES:
            raise XComLimitError(
                f"XCom {key!r} makes {len(pushed)} XComs of {size} bytes; a task may push {MAX_XCOMS} "
                f"of {MAX_PUSHED_BYTES} bytes together: push a reference instead"
            )
        self._pushed = pushed

    def delete(self, key: str) -> None:
        self._pushed.pop(key, None)

    def pushed(self) -> list[dict[str, str]]:
        """As the result states them."""
        return [{"key": key, "value": text} for key, text in sorted(self._pushed.items())]

    def _texts(self, dag_id: str, task_id: str, key: str) -> dict[int, str]:
        texts = dict(self._granted.get((dag_id, task_id, key), {}))
        if dag_id == OWN_DAG and task_id == self._own[0] and key in self._pushed:
            texts[self._own[1]] = self._pushed[key]
        return texts
