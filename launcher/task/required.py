"""What a task is known to need before it runs: the release's owner must have it when the task is launched.

Connections are the texts in its fields, and those of its class, whose names end in `conn_id`: a template among them is resolved
where it says all by itself, from the defaults of the task's params and the ids of dag and task; and what its author
declares: `executor_config={"dagseal": {"connections": ["warehouse"]}}`, of the task or in the dag's `default_args`.
`{"dagseal": {"xcom_dags": ["upstream"]}}` declares the other dags whose XComs of the same run it reads.
What nobody can know before the run (an argument, an XCom, a template of the run) is asked for then, and refused then.

Promise: no property, macro or filter of the archive is called to find a name; what is not plain text is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jinja2
from airflow.sdk import DAG
from airflow.sdk.definitions.mappedoperator import MappedOperator
from jinja2.sandbox import ImmutableSandboxedEnvironment

from integrity import names
from integrity.errors import InvalidArchiveError, MalformedError

MAX_CONNECTIONS = MAX_DECLARED = 100  # as vocabulary.manifest reads
_SUFFIX = "conn_id"
_TEMPLATES = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, cache_size=0, autoescape=False)
_TEMPLATES.globals.clear()
_RULES = {"connections": "connection", "xcom_dags": "dag_id"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What the author says of a task; sorted, each once."""

    connections: tuple[str, ...]
    xcom_dags: tuple[str, ...]


def connections(dag: DAG, task: Any, member: str) -> list[str]:
    """Sorted. Raises `InvalidArchiveError` for a declaration that cannot be read, and for more than a manifest holds."""
    templated, found = set(task.template_fields), set(declared(dag, task, member).connections)
    for name, value in _fields(task):
        if name.endswith(_SUFFIX):
            for text in value if isinstance(value, list | tuple | set | frozenset) else [value]:
                known = _resolved(dag, task, text) if name in templated else text
                if _is_name("connection", known):
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


def declared(dag: DAG, task: Any, member: str) -> Declared:
    """Raises `InvalidArchiveError` for what cannot be read."""
    config = task.executor_config
    ours = config.get("dagseal", {}) if isinstance(config, dict) else {}
    given = (
        {key: ours.get(key, ()) for key in _RULES} if isinstance(ours, dict) and ours.keys() <= _RULES.keys() else {}
    )
    good = all(
        isinstance(items, list | tuple)
        and len(items) <= MAX_DECLARED
        and all(_is_name(_RULES[key], item) for item in items)
        for key, items in given.items()
    )
    if not given or not good:
        raise InvalidArchiveError(
            "declared-needs",
            f"task {task.task_id!r} of dag {dag.dag_id!r}: executor_config['dagseal'] is to be written "
            "{'connections': ['a_conn_id', …], 'xcom_dags': ['a_dag_id', …]}, either or both",
            member,
        )
    return Declared(**{key: tuple(sorted(set(items))) for key, items in given.items()})


def _is_name(kind: str, text: Any) -> bool:
    if not isinstance(text, str):
        return False
    try:
        names.check(kind, text)
    except MalformedError:
        return False
    return True
