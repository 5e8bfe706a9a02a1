"""What is in deploy/ is accepted by the code that reads it, and takes from each process what it does not need."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

import submit_api.settings
from launcher import policy

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
KEY = "A" * 43 + "="


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
