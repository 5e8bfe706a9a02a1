"""How many instances a mapped task has: what Airflow's scheduler knows from its database, worked out from the archive and
the XComs that were granted. Without the XCom that a task is mapped over the number is not known."""

from __future__ import annotations

import math
from collections.abc import Sized
from typing import Any

from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.definitions.xcom_arg import PlainXComArg

from launcher.task.xcoms import XComs


def instances(task: Any, xcoms: XComs) -> int | None:
    """The product over the task's own mapping and those of the task groups around it; None where it is not known."""
    inputs = [group._expand_input for group in task.iter_mapped_task_groups()]
    if isinstance(task, MappedOperator):
        inputs.append(task._get_specified_expand_input())
    counts = [_length(one.value, xcoms) for one in inputs]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def _length(value: Any, xcoms: XComs) -> int | None:
    """Of `expand(a=[…], b=[…])` the product, of `expand_kwargs([…])` the length."""
    if not isinstance(value, dict):
        return _one_length(value, xcoms)
    lengths = [_one_length(one, xcoms) for one in value.values()]
    return None if None in lengths else math.prod(length for length in lengths if length is not None)


def _one_length(value: Any, xcoms: XComs) -> int | None:
    if isinstance(value, PlainXComArg):
        task_id = value.operator.task_id
        if instances(value.operator, xcoms) != 1 or isinstance(value.operator, MappedOperator):
            return len(xcoms.all(task_id, value.key))
        pushed = xcoms.one(task_id, value.key, -1)
        return len(pushed) if isinstance(pushed, Sized) else None
    return len(value) if isinstance(value, Sized) else None
