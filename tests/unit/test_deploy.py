"""What is in deploy/ is accepted by the code that reads it, and takes from each process what it does not need."""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import dagseal.airflow
import submit_api.settings
import worker_cache.settings
from dagseal.cli.app import run
from integrity.fields import to_base64
from launcher import policy
from vocabulary.keys import SigningKey

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
KEY = to_base64(SigningKey(bytes(32)).public.raw)
AIRFLOW = configparser.RawConfigParser()
AIRFLOW.read(DEPLOY / "config" / "airflow.cfg")
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
START = (DEPLOY / "compose" / "start").read_text()
DOCKERFILE = (DEPLOY / "compose" / "Dockerfile").read_text()
LAUNCHER_UNIT = (DEPLOY.parent / "docs" / "systemd" / "dagseal-launcher.service").read_text()


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


def hosts() -> set[str]:
    """The services that have a launcher, by what their first process starts."""
    starting = set(re.findall(r"^    (\w+)\)\n        launcher$", START, re.MULTILINE))
    return {name for name, service in SERVICES.items() if service["command"][1:] in [[word] for word in starting]}


def environment(service: str, prefix: str) -> dict[str, str]:
    return {name: value for name, value in SERVICES[service]["environment"].items() if name.startswith(prefix)}


def test_what_a_container_starts_is_there() -> None:
    starts = set(re.findall(r"^    (\w+)\)$", START, re.MULTILINE))
    used = {service["command"][1] for service in SERVICES.values() if service["command"][0] == "start"}
    assert used == starts == {"administrator", "airflow", "api", "parsing", "worker"}
    assert SERVICES["postgres"]["command"] == ["database"]
    commands = {
        tuple(words.split()) for words in re.findall(r"\bdagseal ((?:[a-z][a-z-]+ ?)+)(?= |$)", START, re.MULTILINE)
    }
    assert {("agent",), ("serve",), ("dag-processor",), ("worker", "join"), ("key", "show")} <= commands
    for command in commands:
        assert run([*command, "--help"]) == 0, command
    for file in re.findall(r"\$config/([\w.]+)", START):
        assert (DEPLOY / "config" / file).is_file(), file
    for service in SERVICES.values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / "compose" / source).exists(), volume
                assert volume.endswith(":ro"), volume
            else:
                assert source in COMPOSE["volumes"], volume


def test_the_settings_of_its_hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The files of deploy/config, with what compose.yaml sets beside them."""
    for name, value in environment("api-1", "DAGSEAL__").items():
        monkeypatch.setenv(name, value)
    found = submit_api.settings.load(str(DEPLOY / "config" / "api.toml"))
    assert found.api.standby
    assert "host=/run/postgresql" in found.database_url
    assert SERVICES["api-1"] == SERVICES["api-2"]
    assert f"api-state:{found.api.state_folder}" in SERVICES["api-1"]["volumes"]
    file = tmp_path / "agent.toml"
    file.write_text(filled("agent.toml"))
    for service in ("parsing", "worker"):
        given = environment(service, "DAGSEAL__")
        with monkeypatch.context() as set_here:
            for name, value in given.items():
                set_here.setenv(name, value)
            agent = worker_cache.settings.load(str(file), given)
        assert (agent.server, agent.ca_file) == ("https://gate:8420", "/srv/trust/gate.crt")


def test_its_launchers_policy() -> None:
    """As `start` makes it of deploy/config/launcher.toml."""
    text = filled("launcher.toml")
    added = re.search(r"s#\^\\\[isolation\\\]#&\\n(.*)#\"", START)
    assert added is not None
    found = policy.parse(text.replace("[isolation]", f"[isolation]\n{added[1]}"), "launcher.toml")
    assert not found.isolation.cgroup_limits


def test_no_image_is_whatever_is_newest() -> None:
    version = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["version"]
    stages = set(re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, re.MULTILINE))
    assert re.findall(r"^FROM ([^ ]*/[^ ]*)", DOCKERFILE, re.MULTILINE) == ["docker.io/library/debian:bookworm-slim"]
    for name, service in SERVICES.items():
        assert service["image"].rpartition(":")[2] == version, name
        assert service["build"]["target"] in stages, name
    assert "--require-hashes -r /opt/dagseal/requirements.txt" in DOCKERFILE


def test_it_listens_on_this_machine_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"gate", "airflow"}
    for ports in published.values():
        assert all(port.startswith("127.0.0.1:") for port in ports)
    for service in SERVICES.values():
        assert not service.keys() & {"network_mode", "pid", "ipc", "userns_mode", "devices", "privileged"}


def test_no_secret_is_in_it() -> None:
    """Each is made at the first start, into a volume, and read by a command."""
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|TOKEN|KEY|BROKER_URL|BACKEND|SQL_ALCHEMY", key):
                reads = key.endswith(("_CMD", "_FILE"))
                assert reads and (value == "" or value.startswith(("/srv/", "cat /srv/", "echo postgresql"))), (
                    name,
                    key,
                )
            assert not re.search(r"//[^/@]*:[^/@]*@", value), (name, key)
    assert not re.search(r"\b[0-9a-f]{32,}\b|[A-Za-z0-9+/]{43}=", START + DOCKERFILE + str(COMPOSE))


def test_who_has_which_volume() -> None:
    holders: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        for volume in service["volumes"]:
            holders.setdefault(volume.partition(":")[0], set()).add(name)
    apis = {"api-1", "api-2"}
    assert holders["administrator"] == {"administrator"}
    assert holders["api-state"] == {"administrator", *apis}
    assert "worker" not in holders["database"] | holders["airflow"] | holders["gate"] | holders["api-state"]
    assert holders["broker"] == {"administrator", "redis", "airflow", "scheduler", "triggerer", "worker"}
    for name, service in SERVICES.items():
        for secret in ("gate", "broker", "airflow", "trust"):
            for volume in service["volumes"]:
                if volume.startswith(f"{secret}:") and name != "administrator":
                    assert volume.endswith(":ro"), (name, volume)


def test_a_container_has_the_privileges_of_its_unit() -> None:
    """A host's launcher has those of docs/systemd, and its container CAP_CHOWN besides; other containers have none."""
    unit = re.search(r"^CapabilityBoundingSet=(.*)$", LAUNCHER_UNIT, re.MULTILINE)
    given = re.search(r"--bounding-set=-all,(\S+)", START)
    assert unit is not None and given is not None
    allowed = {word.removeprefix("CAP_") for word in unit[1].split()}
    assert {word.removeprefix("+").upper() for word in given[1].split(",")} == allowed
    assert hosts() == {"api-1", "api-2", "parsing", "worker"}
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name
        opened = {option for option in service["security_opt"] if "unconfined" in option}
        assert "no-new-privileges:true" in service["security_opt"], name
        if name in hosts():
            assert set(service["cap_add"]) == {*allowed, "CHOWN"}, name
            assert opened == {"apparmor=unconfined", "systempaths=unconfined"}, name
        else:
            assert not opened, name
            assert name == "administrator" or ("cap_add" not in service and service["user"] not in ("", "root")), name
