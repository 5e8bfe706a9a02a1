"""What `dagseal doctor --airflow` says of an installation: each way around dagseal is failed, by a line that ends it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from airflow.providers.celery.executors import celery_executor_utils

from dagseal.airflow import celery_worker, looking
from dagseal.airflow.findings import BACKEND, BUNDLE, COORDINATOR, EXECUTORS, findings, lines
from dagseal.airflow.installation import CELERY, REACHES, Installation, Stored

SOUND = Installation(
    version="3.3.2",
    executor=EXECUTORS[0],
    coordinators={"dagseal": {"classpath": COORDINATOR}},
    by_queue={"default": "dagseal", "gpu": "dagseal"},
    default_queue="default",
    bundles=(("dagseal", BUNDLE),),
    examples=False,
    unversioned=False,
    backend=BACKEND,
    enforced=True,
    other_bundles=False,
    processor_timeout=60,
    environment=frozenset({"PATH", "AIRFLOW_HOME", "AIRFLOW__CORE__FERNET_KEY_CMD"}),
    config_path="/etc/airflow.cfg",
    config_mode=0o640,
    reached={"tasks socket": "", "server": ""},
    stored=Stored(queues=frozenset({"gpu"}), processors=(("a", True),)),
)


def test_a_sound_installation_has_nothing_to_add() -> None:
    found = findings(SOUND)
    assert {finding.state for finding in found} == {"ok"}, found
    assert lines(found) == ""


@pytest.mark.parametrize(
    ("change", "name", "line"),
    [
        ({"version": "3.2.1"}, "version", ""),
        ({"version": "3.30.0"}, "version", ""),
        ({"enforced": False}, "enforce", "enforce = true"),
        ({"executor": "LocalExecutor"}, "executor", f"executor = {EXECUTORS[0]}"),
        ({"executor": "CeleryExecutor"}, "executor", f"executor = {EXECUTORS[1]}"),
        ({"executor": f"{EXECUTORS[0]},KubernetesExecutor"}, "executor", f"executor = {EXECUTORS[0]}"),
        ({"coordinators": {}}, "coordinator", 'coordinators = {"dagseal": {"classpath": "' + COORDINATOR + '"}}'),
        ({"by_queue": {"gpu": "dagseal"}}, "queues", 'queue_to_coordinator = {"default": "dagseal", "gpu": "dagseal"}'),
        (
            {"by_queue": {"default": "java", "gpu": "dagseal"}},
            "queues",
            'queue_to_coordinator = {"default": "dagseal", "gpu": "dagseal"}',
        ),
        ({"bundles": (("dags-folder", "airflow.dag_processing.bundles.local.LocalDagBundle"),)}, "bundles", BUNDLE),
        ({"bundles": (("dagseal", BUNDLE), ("git", "x.GitDagBundle"))}, "bundles", BUNDLE),
        ({"examples": True}, "examples", "load_examples = False"),
        ({"unversioned": True}, "versioning", "disable_bundle_versioning = False"),
        ({"other_bundles": True}, "other bundles", "unsafe_other_bundles = false"),
        ({"backend": ""}, "secrets backend", f"secrets_backend = {BACKEND}"),
        ({"reached": {"server": "no token"}}, "server", ""),
        ({"environment": frozenset({"AIRFLOW__CORE__FERNET_KEY"})}, "environment", ""),
        ({"environment": frozenset({"AIRFLOW__API_AUTH__JWT_SECRET"})}, "environment", ""),
        ({"environment": frozenset({"AIRFLOW_CONN_DB"})}, "environment", ""),
        ({"config_mode": 0o644}, "airflow.cfg", ""),
        ({"stored": "OperationalError"}, "database", ""),
        ({"stored": Stored(connections=("db",))}, "Airflow's connections", ""),
        ({"stored": Stored(variables=("k",))}, "Airflow's variables", ""),
        ({"stored": Stored(queues=frozenset({"big"}))}, "queues", '"big": "dagseal"'),
        ({"stored": Stored(processors=(("a", True), ("b", False)))}, "dag processor", ""),
    ],
)
def test_each_way_around_is_failed(change: dict[str, Any], name: str, line: str) -> None:
    found = findings(replace(SOUND, **change))
    failed = [finding for finding in found if finding.state == "failed"]
    assert [finding.name for finding in failed] == [name]
    assert line in failed[0].line and bool(line) == bool(failed[0].line)


def test_what_is_only_to_be_known_is_a_warning() -> None:
    for stored in (Stored(), Stored(processors=(("a", True),), triggerers=("t",))):
        assert [f.state for f in findings(replace(SOUND, stored=stored)) if f.state != "ok"] == ["warning"]


def test_the_lines_stand_below_their_sections() -> None:
    found = findings(replace(SOUND, executor="LocalExecutor", examples=True, enforced=False))
    assert lines(found) == (f"[dagseal]\nenforce = true\n[core]\nexecutor = {EXECUTORS[0]}\nload_examples = False")


@pytest.mark.parametrize("executor", [CELERY, f"team:{CELERY}", f"{EXECUTORS[0]},{CELERY}"])
def test_celery_workers_are_to_be_guarded(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
    wanted = "celery_config_options = dagseal.airflow.celery_worker.CONFIG"
    for options, line in (
        ("airflow.providers.celery.executors.default_celery.DEFAULT_CELERY_CONFIG", wanted),
        (f"{celery_worker.__name__}.CONFIG", ""),
    ):
        monkeypatch.setenv("AIRFLOW__CELERY__CELERY_CONFIG_OPTIONS", options)
        celery_executor_utils.get_celery_configuration.cache_clear()
        seen = looking.look({}).unguarded
        found = [f for f in findings(replace(SOUND, executor=executor, unguarded=seen)) if f.name == "celery workers"]
        assert [(f.state, f.section, f.line) for f in found] == [("failed", "celery", line) if line else ("ok", "", "")]
    celery_executor_utils.get_celery_configuration.cache_clear()


def test_without_celery_nobody_asks_for_its_guard() -> None:
    assert not [f for f in findings(replace(SOUND, unguarded="x")) if f.name == "celery workers"]


@pytest.mark.parametrize(
    ("component", "executor", "needed"),
    [
        ("scheduler", EXECUTORS[0], ["tasks socket", "server", "database"]),
        ("scheduler", CELERY, ["server", "database"]),
        ("worker", CELERY, ["tasks socket"]),
        ("dag-processor", CELERY, ["releases socket", "launcher socket", "database"]),
        ("triggerer", EXECUTORS[0], ["database"]),
        ("api-server", EXECUTORS[0], ["database"]),
        ("", EXECUTORS[0], ["tasks socket", "releases socket", "launcher socket", "server", "database"]),
    ],
)
def test_only_what_a_component_needs_is_asked_for(component: str, executor: str, needed: list[str]) -> None:
    away = dict.fromkeys(("tasks socket", "releases socket", "launcher socket", "server"), "nobody is there")
    found = findings(replace(SOUND, component=component, executor=executor, reached=away, stored="OperationalError"))
    assert [finding.name for finding in found if finding.state == "failed"] == needed


@pytest.mark.parametrize("component", REACHES)
def test_what_would_run_beside_dagseal_is_failed_for_each_component(component: str) -> None:
    open_ways = replace(SOUND, component=component, executor="LocalExecutor", enforced=False, bundles=(), backend="")
    failed = {finding.name for finding in findings(open_ways) if finding.state == "failed"}
    assert failed == {"executor", "enforce", "bundles", "secrets backend"}
