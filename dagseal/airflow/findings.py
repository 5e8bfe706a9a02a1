"""Does this Airflow run everything through dagseal? `dagseal doctor --airflow`, on the host of each of its components.

The rules, over what `looking` read, without any I/O. Whatever would let something run beside dagseal is failed, and says the
line of airflow.cfg that ends it. What another host's configuration says is not seen from here.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dagseal.airflow.installation import CELERY, LOCAL, Installation, Stored, executors

VERSION = "3.3"
EXECUTORS = (LOCAL, CELERY)
COORDINATOR = "dagseal.airflow.SealedCoordinator"
BUNDLE = "dagseal.airflow.SealedBundle"
BACKEND = "dagseal.airflow.GrantBackend"
BUNDLE_LINE = (
    f'dag_bundle_config_list = [{{"name": "dagseal", "classpath": "{BUNDLE}", "kwargs": {{"archives": ["*"]}}}}]'
)
_MAX_NAMED = 5
_SECRET = re.compile(
    r"AIRFLOW__(CORE__FERNET_KEY|API_AUTH__JWT_SECRET|API_AUTH__JWT_PRIVATE_KEY_PATH|API__SECRET_KEY|DATABASE__SQL_ALCHEMY_CONN"
    r"|CELERY__BROKER_URL|CELERY__RESULT_BACKEND)|AIRFLOW_(CONN|VAR)_.+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`state` is ok, warning or failed; `section` and `line`: what to write into airflow.cfg."""

    name: str
    state: str
    detail: str
    section: str = ""
    line: str = ""


def findings(found: Installation) -> list[Finding]:
    """In the order in which they are best mended."""
    return [finding for rule in _RULES for finding in rule(found)]


def lines(found: list[Finding]) -> str:
    """What is to be added to airflow.cfg, by section."""
    by_section: dict[str, list[str]] = {}
    for finding in found:
        if finding.line and finding.line not in by_section.setdefault(finding.section, []):
            by_section[finding.section].append(finding.line)
    return "\n".join("\n".join([f"[{section}]", *added]) for section, added in by_section.items())


def _version(found: Installation) -> Iterator[Finding]:
    if found.version.split(".")[:2] == VERSION.split("."):
        yield _ok("version", f"Airflow {found.version}")
    else:
        yield _failed(
            "version", f"Airflow {found.version}: dagseal runs with {VERSION}, the first that has coordinators"
        )


def _enforced(found: Installation) -> Iterator[Finding]:
    if found.enforced:
        yield _ok("enforce", "what is refused does not run")
    else:
        yield _failed(
            "enforce", "NOT ENFORCED: what would be refused is reported, and runs", "dagseal", "enforce = true"
        )


def _executor(found: Installation) -> Iterator[Finding]:
    named = executors(found.executor)
    others = [name for name in named if name not in EXECUTORS]
    if others or not named:
        celery = any("celery" in name.lower() for name in others)
        yield _failed(
            "executor",
            f"{', '.join(others) or 'none'} sends tasks that nobody reserved",
            "core",
            f"executor = {EXECUTORS[celery]}",
        )
    else:
        yield _ok("executor", ", ".join(named))


def _celery(found: Installation) -> Iterator[Finding]:
    if CELERY not in executors(found.executor):
        return
    if found.unguarded:
        detail, _, line = found.unguarded.partition("\n")
        yield _failed("celery workers", detail.rstrip(":"), "celery" if line else "", line)
    else:
        yield _ok("celery workers", "run what goes through dagseal, and nothing else that a message names")


def _queues(found: Installation) -> Iterator[Finding]:
    ours = {name for name, spec in found.coordinators.items() if dict(spec).get("classpath") == COORDINATOR}
    if not ours:
        line = f'coordinators = {{"dagseal": {{"classpath": "{COORDINATOR}"}}}}'
        yield _failed("coordinator", "Airflow starts every task itself", "sdk", line)
    used = {found.default_queue, *(found.stored.queues if isinstance(found.stored, Stored) else ())}
    unserved = sorted(queue for queue in used if found.by_queue.get(queue) not in (ours or {"dagseal"}))
    if unserved:
        wanted = ", ".join(
            f'"{queue}": "{min(ours, default="dagseal")}"' for queue in sorted(used | set(found.by_queue))
        )
        yield _failed(
            "queues",
            f"no coordinator of dagseal serves {_few(unserved)}",
            "sdk",
            f"queue_to_coordinator = {{{wanted}}}",
        )
    else:
        yield _ok("queues", f"a coordinator of dagseal serves {_few(sorted(used))}")


def _bundles(found: Installation) -> Iterator[Finding]:
    sealed = [name for name, path in found.bundles if path in (BUNDLE, "dagseal.airflow.bundle.SealedBundle")]
    others = [name for name, _ in found.bundles if name not in sealed]
    if not sealed:
        yield _failed("bundles", "none of them comes from dagseal", "dag_processor", BUNDLE_LINE)
    elif others:
        yield _failed(
            "bundles", f"{_few(others)}: their runs are refused; push their DAGs", "dag_processor", BUNDLE_LINE
        )
    else:
        yield _ok("bundles", _few(sealed))
    if found.examples:
        yield _failed(
            "examples", "Airflow's example DAGs are a bundle that is refused", "core", "load_examples = False"
        )
    if found.unversioned:
        yield _failed(
            "versioning",
            "runs have no version, and are refused",
            "dag_processor",
            "disable_bundle_versioning = False",
        )
    if found.other_bundles:
        yield _failed(
            "other bundles",
            "UNSAFE: the dag processor imports files of other bundles as its own user",
            "dagseal",
            "unsafe_other_bundles = false",
        )


def _backend(found: Installation) -> Iterator[Finding]:
    if found.backend == BACKEND:
        yield _ok("secrets backend", BACKEND)
    else:
        yield _failed(
            "secrets backend",
            f"workers look up secrets by {found.backend or 'what [secrets] backend says'}",
            "workers",
            f"secrets_backend = {BACKEND}",
        )


def _reached(found: Installation) -> Iterator[Finding]:
    for what, fault in found.reached.items():
        if found.is_reached(what):
            yield _failed(what, fault) if fault else _ok(what, "can be used")


def _environment(found: Installation) -> Iterator[Finding]:
    named = sorted(name for name in found.environment if _SECRET.fullmatch(name))
    if named:
        yield _failed(
            "environment",
            f"{_few(named)}: what is in a worker's environment a process of its user can read: keep it in airflow.cfg"
            " (mode 0640), or name its _CMD or _SECRET",
        )
    else:
        yield _ok("environment", "no secret of Airflow's is in the environment of this process")
    if found.config_mode is not None and found.config_mode & stat.S_IROTH:
        yield _failed("airflow.cfg", f"{found.config_path} can be read by every task's user: chmod o-r it")


def _stored(found: Installation) -> Iterator[Finding]:
    if isinstance(found.stored, str):
        if found.is_reached("database"):
            yield _failed("database", f"it cannot be read from here: {found.stored}")
        return
    for what, named, instead in (
        ("connections", found.stored.connections, "dagseal connection import"),
        ("variables", found.stored.variables, "dagseal variable set"),
    ):
        if named:
            yield _failed(
                f"Airflow's {what}",
                f"{_few(sorted(named))}: whoever has a task's token reads them: '{instead}' them, then delete them here",
            )
        else:
            yield _ok(f"Airflow's {what}", "there is none")
    own = [host for host, sealed in found.stored.processors if sealed]
    plain = [host for host, sealed in found.stored.processors if not sealed]
    if plain:
        yield _failed(
            "dag processor", f"'airflow dag-processor' runs on {_few(plain)}: stop it, start 'dagseal dag-processor'"
        )
    elif own:
        yield _ok("dag processor", f"dagseal's, on {_few(own)}")
    else:
        yield _warning("dag processor", "none is running: start 'dagseal dag-processor'")
    if found.stored.triggerers:
        yield _warning(
            "triggerer",
            f"on {_few(found.stored.triggerers)}: triggers run there as its own user, from installed packages, with what"
            " Airflow's own secrets backends give",
        )


def _timeout(found: Installation) -> Iterator[Finding]:
    if found.processor_timeout < 60:
        yield _warning(
            "dag_file_processor_timeout",
            f"{found.processor_timeout} s is raised to what the launcher needs to say what was wrong",
        )


_RULES: tuple[Callable[[Installation], Iterator[Finding]], ...] = (
    _version,
    _enforced,
    _executor,
    _celery,
    _queues,
    _bundles,
    _backend,
    _reached,
    _environment,
    _stored,
    _timeout,
)


def _few(named: Any) -> str:
    shown = list(named)
    return ", ".join(shown[:_MAX_NAMED]) + (f" and {len(shown) - _MAX_NAMED} more" if len(shown) > _MAX_NAMED else "")


def _ok(name: str, detail: str) -> Finding:
    return Finding(name=name, state="ok", detail=detail)


def _warning(name: str, detail: str) -> Finding:
    return Finding(name=name, state="warning", detail=f"warning: {detail}")


def _failed(name: str, detail: str, section: str = "", line: str = "") -> Finding:
    return Finding(name=name, state="failed", detail=detail, section=section, line=line)
