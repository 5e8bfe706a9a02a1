"""The section [dagseal]: what is missing is named as the line to add, and nothing unsafe is taken for a default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dagseal.airflow import settings
from integrity.errors import SettingsError


class Cfg(dict[str, str]):
    """As much of Airflow's configuration as is asked for."""

    def get(self, section: str, key: str, fallback: Any = None) -> Any:  # type: ignore[override]
        return super().get(f"{section}.{key}", fallback)


FULL = {
    "dagseal.server": "https://dagseal.example/",
    "dagseal.token_file": "/etc/dagseal/scheduler.token",
    "scheduler.task_queued_timeout": "600.0",
}


def test_a_whole_section() -> None:
    found = settings.scheduler(Cfg(FULL))
    assert (found.server, found.valid_seconds, found.enforce) == ("https://dagseal.example", 600, True)
    assert settings.worker(Cfg(FULL)).tasks_socket == "/run/dagseal/tasks.sock"


@pytest.mark.parametrize("key", ["server", "token_file"])
def test_what_is_missing_is_named_as_the_line_to_add(key: str) -> None:
    cfg = Cfg(FULL)
    del cfg[f"dagseal.{key}"]
    with pytest.raises(SettingsError, match=rf"\[dagseal\].*\n{key} = "):
        settings.scheduler(cfg)


@pytest.mark.parametrize(
    "server", ["http://dagseal.example", "dagseal.example", "ftp://dagseal.example", "http://127.0.0.1.evil"]
)
def test_a_server_that_others_could_stand_for(server: str) -> None:
    with pytest.raises(SettingsError, match="only https"):
        settings.scheduler(Cfg(FULL | {"dagseal.server": server}))


def test_a_server_on_this_host() -> None:
    assert settings.scheduler(Cfg(FULL | {"dagseal.server": "http://127.0.0.1:8420"})).server == "http://127.0.0.1:8420"


@pytest.mark.parametrize(("word", "enforced"), [("true", True), ("False", False), (" TRUE ", True)])
def test_enforce(word: str, enforced: bool) -> None:
    assert settings.enforced(Cfg({"dagseal.enforce": word})) is enforced


@pytest.mark.parametrize("word", ["", "no", "0", "off", "flase"])
def test_enforce_is_only_ever_turned_off_by_one_word(word: str) -> None:
    with pytest.raises(SettingsError, match="enforce"):
        settings.enforced(Cfg({"dagseal.enforce": word}))


@pytest.mark.parametrize("content", ["", "\n", "two words", "a\nb", "x" * 9000])
def test_a_token_file_without_one_token(content: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(SettingsError, match="token"):
        settings.token(str(file))
    with pytest.raises(SettingsError, match="cannot be read"):
        settings.token(str(tmp_path / "none"))


def test_a_relative_socket() -> None:
    with pytest.raises(SettingsError, match="absolute"):
        settings.worker(Cfg({"dagseal.tasks_socket": "tasks.sock"}))
