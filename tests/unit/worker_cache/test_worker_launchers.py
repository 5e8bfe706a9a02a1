"""How the agent reaches its launcher: exactly one way, and errors that say which and what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from integrity.errors import FetchError, SettingsError
from integrity.fields import to_base64
from vocabulary.keys import SigningKey
from worker_cache import launcher_link, settings
from worker_cache.launchers import AtSocket, OnDemand


def load(folder: Path, more: str) -> settings.AgentSettings:
    path = folder / "agent.toml"
    path.write_text(
        '[agent]\nserver = "http://127.0.0.1:1"\nworker = "host-1"\n'
        f'api_key = "{to_base64(SigningKey.generate().public.raw)}"\n{more}\n'
    )
    return settings.load(str(path), {})


def test_by_default_it_is_the_usual_socket(tmp_path: Path) -> None:
    assert isinstance(load(tmp_path, "").launcher(), AtSocket)


def test_a_command_is_another_way(tmp_path: Path) -> None:
    assert isinstance(load(tmp_path, 'launcher_command = ["sudo", "-n", "x"]').launcher(), OnDemand)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('launcher_socket = "/run/l.sock"\nlauncher_command = ["sudo"]', "both set"),
        ('launcher_command = ["sudo", ""]', "empty word"),
        ("launcher_command = []", "launcher_command"),
        ('launcher_command = "sudo -n"', "launcher_command"),
    ],
)
def test_what_cannot_be_meant_is_refused(more: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=words):
        load(tmp_path, more)


async def test_an_absent_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="is the launcher running"):
        await AtSocket(str(tmp_path / "l.sock")).connection()


async def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(FetchError, match="/nonexistent/sudo"):
        await OnDemand(["/nonexistent/sudo"]).connection()


async def test_a_command_that_ends_at_once_is_an_error_and_started_again(tmp_path: Path) -> None:
    count = tmp_path / "count"
    launcher = OnDemand([sys.executable, "-c", f"open({str(count)!r}, 'a').write('x')"])
    try:
        for _ in range(5):  # the connection after one that died may still find the old one, and says so
            with pytest.raises(FetchError):
                async with launcher_link.connect(launcher) as link:
                    await link.identity()
    finally:
        await launcher.close()
    assert len(count.read_text()) >= 3
    assert launcher.pid is None
