"""What the cache may take of a host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """0 is no quota, no limit, and no scrubbing."""

    max_cache_bytes: int = 0
    max_fetch_bytes_per_second: int = 0
    scrub_bytes_per_second: int = 0
