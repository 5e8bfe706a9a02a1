"""The task digest: one SHA-512 over the archive and over what Airflow would serialise of the task.

`sha512("dagseal/task/v1\\n" + archive digest + "\\n" + canonical JSON of {dag_id, task_id, task})`.

Airflow's per-task JSON does not change when a callable's body changes, so the archive digest is bound in. `task` is the
task's entry of `DagSerialization.to_dict`, made equal on every host: floats become text, `template_fields` (a set union
in some operators) are sorted, whatever depends on where the archive lies is replaced by a fixed word, and the default values
of params are left out: they are inputs of a run, which its caller may replace (Airflow's own examples default to today).
"""

from __future__ import annotations

import re
from typing import Any

from integrity import canonical
from integrity.digests import Digest

_DOMAIN = b"dagseal/task/v1\n"
_PATH_DERIVED_MODULE = re.compile(r"unusual_prefix_[0-9a-f]{40}_")
_PARAM_CLASS = "airflow.sdk.definitions.param.Param"
ARCHIVE_ROOT = "/dagseal-archive"


def task_digest(archive: Digest, dag_id: str, task_id: str, entry: Any, *, root: str) -> Digest:
    """`entry` is Airflow's JSON of the task; `root` is the folder that stood for the archive while it was imported."""
    if not root:
        raise ValueError("an empty root would stand for every text")
    text = canonical.dump({"dag_id": dag_id, "task_id": task_id, "task": normalise(entry, root=root)})
    return Digest.of(_DOMAIN + str(archive).encode() + b"\n" + text)


def normalise(value: Any, *, root: str, key: str = "") -> Any:
    """`value` without what differs between two honest readings of the same bytes."""
    match value:
        case bool() | None:
            return value
        case float():
            return f"float:{value.hex()}"
        case int():
            return value if -canonical.INTEGER_LIMIT < value < canonical.INTEGER_LIMIT else f"int:{value}"
        case str():
            return _PATH_DERIVED_MODULE.sub("", value).replace(root, ARCHIVE_ROOT)
        case list() | tuple():
            items = [normalise(item, root=root) for item in value]
            return sorted(items, key=canonical.dump) if key == "template_fields" else items
        case dict():
            if value.get("__class") == _PARAM_CLASS:  # a default is an input of the run, not a part of the task
                value = {name: item for name, item in value.items() if name != "default"}
            return {str(name): normalise(item, root=root, key=str(name)) for name, item in value.items()}
        case _:
            raise TypeError(f"Airflow's JSON of a task holds {type(value).__name__}")
