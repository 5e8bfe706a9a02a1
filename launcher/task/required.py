"""Which connections a task is known to need before it runs: the release's owner must have them when it is launched.

They are the texts in its fields, and those of its class, whose names end in `conn_id`: a template among them is resolved
where it says all by itself, from the defaults of the task's params and the ids of dag and task; and what its author
declares: `executor_config={"dagseal": {"connections": ["warehouse"]}}`, of the task or in the dag's `default_args`.
What nobody can know before the run (an argument, an XCom, a template of the run) is asked for then, and refused then.

Promise: no property, macro or filter of the archive is called to find a name; what is not plain text is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import jinja2
from airflow.sdk import DAG
from airflow.sdk.definitions.mappedoperator import MappedOperator
from jinja2.sandbox import ImmutableSandboxedEnvironment

from integrity import names
from integrity.errors import InvalidArchiveError, MalformedError

MAX_CONNECTIONS = 100  # as integrity.manifest reads
_SUFFIX = "conn_id"
_TEMPLATES = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, cache_size=0, autoescape=False)
_TEMPLATES.globals.clear()


def connections(dag: DAG, task: Any, member: str) -> list[str]:
    """Sorted. Raises `InvalidArchiveError` for a declaration that cannot be read, and for more than a manifest holds."""
    templated, found = set(task.template_fields), set(_declared(dag, task, member))
    for name, value in _fields(task):
        if name.endswith(_SUFFIX):
            for text in value if isinstance(value, list | tuple | set | frozenset) else [value]:
                known = _resolved(dag, task, text) if name in templated else text
                if _is_conn_id(known):
                    found.add(str(known))
    if len(found) > MAX_CONNECTIONS:
        raise InvalidArchiveError(
            "too-many-connections",
            f"task {task.task_id!r} of dag {dag.dag_id!r} names {len(found)} connections, the limit is {MAX_CONNECTIONS}",
            member,
        )
    return sorted(found)


def _fields(task: Any) -> Iterator[tuple[str, Any]]:
    """Names and values as they lie there; of a mapped task those that all its instances get, and those it is mapped over."""
    if not isinstance(task, MappedOperator):
        yield from ({**_of_class(type(task)), **vars(task)}).items()
        return
    yield from ({**_of_class(task.operator_class), **task.partial_kwargs}).items()
    expanded = getattr(task.expand_input, "value", None)
    for kwargs in [expanded] if isinstance(expanded, Mapping) else expanded if isinstance(expanded, list) else []:
        if isinstance(kwargs, Mapping):
            yield from kwargs.items()


def _of_class(found: Any) -> dict[str, Any]:
    """What an operator's class says once for all its tasks."""
    classes = reversed(found.__mro__) if isinstance(found, type) else ()
    return {name: value for one in classes for name, value in vars(one).items() if name.endswith(_SUFFIX)}


def _resolved(dag: DAG, task: Any, text: Any) -> Any:
    """What a template says whatever the run; None where that is not known."""
    if type(text) is not str:
        return None
    if "{" not in text:
        return text
    if dag.jinja_environment_kwargs or dag.user_defined_filters or dag.user_defined_macros:
        return None  # another language than ours
    known = {"dag": SimpleNamespace(dag_id=dag.dag_id), "task": SimpleNamespace(task_id=task.task_id)}
    try:
        return _TEMPLATES.from_string(text).render(params=_defaults(task), **known)
    except (jinja2.TemplateError, RecursionError, MemoryError):
        return None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # what an expression can raise
        return None


def _defaults(task: Any) -> dict[str, Any]:
    """Of the task's params and its dag's, those that are plain."""
    values = {name: vars(param).get("value") for name, param in task.params.items() if hasattr(param, "__dict__")}
    return {name: value for name, value in values.items() if type(value) in (str, int, float, bool, list, dict)}


def _declared(dag: DAG, task: Any, member: str) -> list[str]:
    config = task.executor_config
    ours = config.get("dagseal") if isinstance(config, dict) else None
    if ours is None:
        return []
    given = ours.get("connections", []) if isinstance(ours, dict) and ours.keys() <= {"connections"} else None
    if not isinstance(given, list | tuple) or not all(map(_is_conn_id, given)):
        raise InvalidArchiveError(
            "declared-connections",
            f"task {task.task_id!r} of dag {dag.dag_id!r}: executor_config['dagseal'] is to be written "
            "{'connections': ['a_conn_id', …]}",
            member,
        )
    return list(given)


def _is_conn_id(text: Any) -> bool:
    if not isinstance(text, str):
        return False
    try:
        names.check("connection", text)
    except MalformedError:
        return False
    return True
