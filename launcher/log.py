"""One line of JSON on stderr for each event of the launcher's processes: no logging library runs there."""

from __future__ import annotations

import json
import sys
from typing import Any


def log(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, "process": "launcher", **fields}), file=sys.stderr, flush=True)  # noqa: T201
