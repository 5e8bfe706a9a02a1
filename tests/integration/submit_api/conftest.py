"""One running API for each test."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator

import pytest
from api_rig import Api


@pytest.fixture
def folder() -> Iterator[str]:
    # A unix socket's path has at most 107 characters: pytest's own folders are too deep.
    with tempfile.TemporaryDirectory(prefix="dagseal-") as made:
        yield made


@pytest.fixture
async def api(folder: str) -> AsyncIterator[Api]:
    async with Api(folder) as running:
        yield running
