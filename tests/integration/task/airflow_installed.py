"""Where Airflow is installed, found without importing it: that would take seconds and read the developer's settings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.find_spec("airflow")
assert _spec is not None and _spec.origin is not None, "Airflow is not installed: install dagseal[airflow]"
FOLDER = Path(_spec.origin).parent
