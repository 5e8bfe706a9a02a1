"""A child of root in which a test tries something, as a drop cannot be undone in the test's own process."""

from __future__ import annotations

import pytest

from tests.forked import InChild, in_fork


@pytest.fixture
def in_child() -> InChild:
    """Run a function in a forked child; what it returned as text, or `ErrorClass: text` of what it raised."""
    return in_fork
