"""Which backend a name belongs to, and what it gives for the names that were granted.

A backend with `prefixes` has the names that begin so, alone: of two that fit the longer prefix wins. One without is asked for
what the built-in store does not have, in the order of the names of the backends. Who may have a name is decided before
anybody is asked for it: `fetch` is called with granted names only. Values are kept for `cache_seconds`, in memory only.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping

from integrity.errors import ConflictError, MalformedError
from submit_api import connections
from submit_api.backends.process import BackendProcess
from submit_api.refusals import InvalidRequestError
from submit_api.settings import BackendSection, Settings

Name = tuple[str, str]  # kind, name
MAX_KEPT = 10_000


class Backends:
    """`now` is a clock that only goes forward, in seconds."""

    def __init__(
        self, settings: Settings, *, now: Callable[[], float], environ: Mapping[str, str] = os.environ
    ) -> None:
        hidden = (settings.api.state_folder, settings.signing_key_file, settings.row_key_file)
        self._sections = dict(sorted(settings.backends.items()))
        self._processes = {
            name: BackendProcess(name, section, hidden=hidden, environ=environ)
            for name, section in self._sections.items()
        }
        self._now = now
        self._kept: OrderedDict[tuple[str, Name], tuple[float, str | None]] = OrderedDict()

    @property
    def configured(self) -> bool:
        return bool(self._sections)

    def owns(self, kind: str, name: str) -> bool:
        """Whether the name is a backend's alone, so that the built-in store has none of it."""
        return self._owner(kind, name) is not None

    def covers(self, kind: str, name: str) -> bool:
        """Whether some backend would be asked for it."""
        return self.owns(kind, name) or bool(self._fallbacks(kind))

    async def fetch(self, granted: Iterable[Name], *, built_in: Collection[Name]) -> dict[Name, str]:
        """The values of these names that are the backends' to give; what none has is absent. Raises `FetchError`, and
        `ConflictError` for a value that cannot be used."""
        found: dict[Name, str] = {}
        for kind, name in sorted(granted):
            owner = self._owner(kind, name)
            asked = [owner] if owner else [] if (kind, name) in built_in else self._fallbacks(kind)
            for backend in asked:
                value = await self._ask(backend, kind, name)
                if value is not None:
                    found[kind, name] = self._checked(backend, kind, name, value)
                    break
        return found

    async def close(self) -> None:
        self._kept.clear()
        for process in self._processes.values():
            await process.close()

    def _owner(self, kind: str, name: str) -> str | None:
        fitting = [
            (len(prefix), backend)
            for backend, section in self._sections.items()
            for prefix in section.prefixes
            if kind in section.kinds and name.startswith(prefix)
        ]
        return max(fitting)[1] if fitting else None

    def _fallbacks(self, kind: str) -> list[str]:
        return [name for name, section in self._sections.items() if not section.prefixes and kind in section.kinds]

    async def _ask(self, backend: str, kind: str, name: str) -> str | None:
        key, now = (backend, (kind, name)), self._now()
        kept = self._kept.get(key)
        if kept is not None and now < kept[0]:
            return kept[1]
        value = await self._processes[backend].ask(kind, name)
        section: BackendSection = self._sections[backend]
        if section.cache_seconds:
            self._kept[key] = (now + section.cache_seconds, value)
            self._kept.move_to_end(key)
            while self._kept and (len(self._kept) > MAX_KEPT or next(iter(self._kept.values()))[0] <= now):
                self._kept.popitem(last=False)
        return value

    def _checked(self, backend: str, kind: str, name: str, value: str) -> str:
        try:
            connections.check_text(value)
            return connections.check_connection(value) if kind == "connection" else value
        except (InvalidRequestError, MalformedError):
            raise ConflictError(
                f"what secrets backend {backend} has as {kind} {name!r} cannot be used: a connection is Airflow's JSON or URI, "
                "and no value is over half of a grant"
            ) from None
