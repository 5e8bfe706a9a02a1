"""What is in deploy/ is accepted by the code that reads it, and takes from each process what it does not need."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path

import pytest

import dagseal.airflow
import submit_api.settings
import worker_cache.settings
from integrity.fields import to_base64
from integrity.keys import SigningKey
from launcher import policy

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
KEY = to_base64(SigningKey(bytes(32)).public.raw)
AIRFLOW = configparser.RawConfigParser()
AIRFLOW.read(DEPLOY / "config" / "airflow.cfg")


def filled(name: str) -> str:
    """The file as it is once its places were filled in."""
    lines = (DEPLOY / "config" / name).read_text().splitlines()
    return "\n".join(
        line.replace(line.partition('"')[2].partition('"')[0], KEY) if "REPLACE" in line else line for line in lines
    )


def test_the_apis_settings() -> None:
    found = submit_api.settings.load(str(DEPLOY / "config" / "api.toml"))
    assert found.api.standby
    assert found.api.host == "127.0.0.1"


def test_the_launchers_policy() -> None:
    found = policy.parse(filled("launcher.toml"), "launcher.toml")
    assert found.may_run == {"dagseal-agent"}
    assert found.notary == "dagseal-launcher"


def test_the_agents_settings(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(filled("agent.toml"))
    found = worker_cache.settings.load(str(file), {})
    assert found.tasks_accounts == ["airflow"]
    assert found.tasks_socket in AIRFLOW.get("dagseal", "tasks_socket")
    assert found.releases_socket in AIRFLOW.get("dagseal", "releases_socket")


def test_airflows_lines() -> None:
    """Every class that they name is there."""
    named = re.findall(r"dagseal\.airflow\.(\w+)", (DEPLOY / "config" / "airflow.cfg").read_text())
    assert set(named) == {*dagseal.airflow.__all__, "celery_worker"} - {"SealedLocalExecutor"}
    assert json.loads(AIRFLOW.get("sdk", "queue_to_coordinator")).keys() == {"default"}


@pytest.mark.parametrize("unit", UNITS, ids=[unit.stem for unit in UNITS])
def test_no_unit_here_holds_a_privilege(unit: Path) -> None:
    parsed = configparser.RawConfigParser(strict=False, comment_prefixes=("#",))
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read_string(unit.read_text())
    service = parsed["Service"]
    assert service["User"] not in ("", "root")
    assert service["CapabilityBoundingSet"] == ""
    for line in ("NoNewPrivileges", "ProtectHome", "PrivateDevices", "RestrictSUIDSGID", "RestrictNamespaces"):
        assert service[line] == "yes", line
    assert service["ProtectSystem"] == "strict"
