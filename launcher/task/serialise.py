"""An archive's dags as Airflow's dag processor stores them: the JSON of each, whole.

The file that a dag says it comes from is the archive, or its member in it: `pack.zip/etl/load.py`. Of this process's own
folders nothing is said: a text that names a zip's files names them below `taskdigest.ARCHIVE_ROOT`, as in the task's digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import airflow
from airflow.serialization.serialized_objects import DagSerialization

from integrity.errors import InvalidArchiveError
from launcher.task import refusals
from launcher.task.discover import FoundDag
from vocabulary import taskdigest

MAX_BYTES = 11 * 1024 * 1024  # together, as they stand in the frame, where a quote and a backslash take two


def serialise(dags: Mapping[str, FoundDag], archive: str, *, root: str) -> dict[str, Any]:
    """`{airflow_version, dags}`, sorted. Raises `InvalidArchiveError` (not-serialisable, serialised-too-large)."""
    serialised, left = [], MAX_BYTES
    for dag_id, found in sorted(dags.items()):
        data = _serialised(found, archive, root)
        left -= len(data) + data.count('"') + data.count("\\")
        if left < 0:
            raise InvalidArchiveError(
                "serialised-too-large", f"its dags are over {MAX_BYTES >> 20} MiB as Airflow stores them", found.member
            )
        serialised.append({"dag_id": dag_id, "member": found.member, "data": data})
    return {"airflow_version": airflow.__version__, "dags": serialised}


def _serialised(found: FoundDag, archive: str, root: str) -> str:
    place = f"{archive}/{found.member}" if archive.endswith(".zip") else archive
    try:
        document = DagSerialization.to_dict(found.dag)
        document["dag"]["fileloc"] = document["dag"]["relative_fileloc"] = place
        document["dag"]["_processor_dags_folder"] = ""
        return json.dumps(document).replace(json.dumps(root)[1:-1], taskdigest.ARCHIVE_ROOT)
    except Exception as error:  # the author's classes are asked to serialise themselves
        raise InvalidArchiveError(
            "not-serialisable", refusals.shorten(f"dag {found.dag.dag_id!r}: {refusals.describe(error)}"), found.member
        ) from error
