"""The routes of the table, each with a path that somebody could ask for."""

from __future__ import annotations

import re

from submit_api.http.routes import Route

_PART = re.compile(r"\{(\w+)(?::(?:[^{}]|\{[0-9,]+\})+)?\}")
_VALUES = {
    "name": "x.py",
    "secret": "x",
    "kind": "archive",
    "number": "1",
    "hex": "0" * 128,
    "dag_id": "x",
    "launch_id": "0" * 32,
    "id": "0" * 32,
    "path": "0/000",
}


def path_of(route: Route, **values: str) -> str:
    """Each part filled with what fits there: a good name, mostly of what is not there, unless one is given."""
    own = {"id": "a" * 12} if route.path.startswith("/v1/tokens/") else {}
    return _PART.sub(lambda part: (_VALUES | own | values)[part[1]], route.path)
