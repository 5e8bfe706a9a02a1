"""Airflow's dag processor, with the launcher in place of its parsing processes: `dagseal dag-processor`.

Promise: no file of a `SealedBundle` is imported in this process or in a child of it; each is parsed by the launcher as the
parser user, from the bytes that the agent verified, and stored with the version of the set that they belong to. The agent says
when there is another set: nobody waits for a refresh interval. Where agent or launcher are away nothing is parsed, and nothing
that Airflow has is taken from it. What Airflow would run here as its own user is refused, in the log: files of other bundles
(unless `[dagseal] unsafe_other_bundles = true`), and callbacks and e-mails of a DAG. With `enforce = false` it is reported, and
runs.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import attrs
from airflow.cli.commands.daemon_utils import run_command_with_daemon_option
from airflow.dag_processing.manager import DagFileInfo, DagFileProcessorManager
from airflow.jobs.dag_processor_job_runner import DagProcessorJobRunner
from airflow.jobs.job import Job, run_job
from airflow.providers_manager import ProvidersManager
from airflow.utils import cli as cli_utils
from airflow.utils.process_utils import set_component_mp_start_method

from dagseal.airflow import settings
from dagseal.airflow.asking import Watch, unreachable
from dagseal.airflow.bundle import SealedBundle, enter_sealed_processor
from dagseal.airflow.serialising import Serialising
from integrity.digests import Digest
from integrity.errors import DagsealError, FetchError, SettingsError
from worker_cache import askreleases

# In the table of jobs, by which `dagseal doctor --airflow` knows this kind of dag processor from Airflow's.
MARK = "dagseal.airflow.dag_processing"
_PAUSE_SECONDS = 2.0
# The launcher's own limit is to be heard first: its words say what was wrong.
_LEAST_TIMEOUT_SECONDS = 120


@attrs.define(kw_only=True, slots=False)
class SealedDagFileProcessorManager(DagFileProcessorManager):  # type: ignore[misc]
    """`_looked_into`: each bundle's set, and its folder, whose files were queued where they had no outcome; `_digests`: of
    these files; `_parsed`: the latest outcome of each."""

    _sealed: dict[str, SealedBundle] = attrs.field(factory=dict, init=False)
    _watches: list[Watch] = attrs.field(factory=list, init=False)
    _looked_into: dict[str, tuple[Any, Path]] = attrs.field(factory=dict, init=False)
    _digests: dict[tuple[str, Path], Digest] = attrs.field(factory=dict, init=False)
    _parsed: dict[tuple[str, Path], Serialising] = attrs.field(factory=dict, init=False)
    _not_before: float = attrs.field(default=0.0, init=False)
    _launcher_socket: str = attrs.field(factory=settings.launcher_socket, init=False)
    _enforced: bool = attrs.field(factory=settings.enforced, init=False)
    _others_allowed: bool = attrs.field(factory=settings.unsafe_other_bundles, init=False)

    def before_run(self) -> None:
        enter_sealed_processor()
        self.processor_timeout: float = max(self.processor_timeout, _LEAST_TIMEOUT_SECONDS)
        super().before_run()

    def load_dag_bundles(self) -> None:
        """Raises `SettingsError` where nothing is left."""
        super().load_dag_bundles()
        self._sealed = {bundle.name: bundle for bundle in self._dag_bundles if isinstance(bundle, SealedBundle)}
        others = [bundle.name for bundle in self._dag_bundles if bundle.name not in self._sealed]
        if others and not self._enforced:
            self.log.error(
                "dagseal (not enforced): Airflow imports the files of %s here, unverified", ", ".join(others)
            )
        elif others and self._others_allowed:
            self.log.warning(
                "unsafe_other_bundles: Airflow imports the files of %s here, unverified", ", ".join(others)
            )
        elif others:
            self.log.error(
                "refused: the files of %s would be imported here as Airflow's own user: push them to dagseal and take the"
                " bundle (or load_examples) out of airflow.cfg",
                ", ".join(others),
            )
            self._dag_bundles: list[Any] = list(self._sealed.values())
        if not self._dag_bundles:
            raise SettingsError(
                "there is no bundle to parse: add dagseal.airflow.SealedBundle to [dag_processor] dag_bundle_config_list"
            )
        self._watches = [self._watch(bundle) for bundle in self._sealed.values()]

    def _watch(self, bundle: SealedBundle) -> Watch:
        def changed(digest: str) -> None:
            if digest != self._bundle_versions.get(bundle.name):
                self.request_bundle_refresh(bundle.name)

        return Watch(bundle.releases_socket, bundle.archives, changed)

    def _queue_requested_files_for_parsing(self) -> None:
        for watch in self._watches:
            watch.tend(self.selector)
        super()._queue_requested_files_for_parsing()

    def claim_priority_files(self) -> list[DagFileInfo]:
        """They wait in Airflow's table until each bundle has a folder."""
        if not all(bundle.is_initialized for bundle in self._sealed.values()):
            return []
        return list(super().claim_priority_files())

    def _refresh_dag_bundles(self, known_files: dict[str, set[DagFileInfo]]) -> None:
        """A set whose folder was cleaned away meanwhile is asked for again, and as if it were another one."""
        versions: dict[str, Any] = self._bundle_versions
        before = _only(versions, set(self._sealed))
        try:
            super()._refresh_dag_bundles(known_files=known_files)
            self._look_into(known_files)
        except FetchError as error:
            self.log.warning("%s: it is asked for again", error)
            for name in self._sealed:
                versions.pop(name, None)
                self.request_bundle_refresh(name)
            versions.update(before)

    def _look_into(self, known_files: dict[str, set[DagFileInfo]]) -> None:
        """The agent may have made the same set's folder anew: Airflow forgets those that are queued in a folder that is gone.
        Raises `FetchError`."""
        for name, bundle in self._sealed.items():
            found = known_files.get(name)
            if not found:
                continue
            files = {DagFileInfo(rel_path=info.rel_path, bundle_name=name, bundle_path=bundle.path) for info in found}
            known_files[name] = files
            state = self._bundle_versions.get(name), bundle.path
            if self._looked_into.get(name) != state:
                self._look_through(files)
                self._looked_into[name] = state

    def _look_through(self, files: set[DagFileInfo]) -> None:
        """What is new in this set is parsed before anything else. Raises `FetchError`."""
        for info in files:
            try:
                self._digests[info.presence_key] = Digest.of(info.absolute_path.read_bytes())
            except OSError as error:
                raise FetchError(f"the set's folder has lost {info.rel_path} ({error.strerror})") from None
        new = [info for info in files if not self._is_outcome_of(info, self._digests[info.presence_key])]
        self._add_files_to_queue(new, mode="frontprio")

    def _is_outcome_of(self, info: DagFileInfo, digest: Digest | None) -> bool:
        parsed = self._parsed.get(info.presence_key)
        return parsed is not None and parsed.digest == digest

    def _find_files_in_bundle(self, bundle: Any) -> list[Path]:
        """Every file of a set is an archive that defines dags: what it says is not searched for words. Raises `FetchError`."""
        if isinstance(bundle, SealedBundle):
            try:
                return [Path(name) for name in sorted(os.listdir(bundle.path))]
            except OSError as error:
                raise FetchError(f"the set's folder is gone ({error.strerror})") from None
        return list(super()._find_files_in_bundle(bundle))

    def _get_observed_filelocs(self, present: set[DagFileInfo]) -> set[str]:
        """Besides a zip's members the zip, by whose name its import errors stand."""
        own = {str(info.rel_path) for info in present if info.bundle_name in self._sealed}
        return set(super()._get_observed_filelocs(present)) | own

    def _start_new_processes(self) -> None:
        if time.monotonic() >= self._not_before:
            super()._start_new_processes()

    def _create_process(self, dag_file: DagFileInfo) -> Any:
        bundle = self._sealed.get(dag_file.bundle_name)
        if bundle is None or dag_file in self._callback_to_execute:
            return super()._create_process(dag_file)
        digest = self._digests.get(dag_file.presence_key)
        job = Serialising(archive=str(dag_file.rel_path), digest=digest, folder=str(bundle.path))
        if digest is None:
            self._looked_into.pop(dag_file.bundle_name, None)
            job.fail(FetchError("the set that it is of was not looked through"))
            return job
        earlier = self._parsed.get(dag_file.presence_key)
        if earlier and earlier.digest == digest and job.start_time - earlier.asked_at < self._file_process_interval:
            job.repeat(earlier)  # other archives changed: this one is only stored with the new version
            return job
        try:
            self._ask(job, bundle)
        except DagsealError as error:
            job.fail(error)
        return job

    def _ask(self, job: Serialising, bundle: SealedBundle) -> None:
        """Raises `FetchError`, `NotFoundError`, `SettingsError`."""
        try:
            message, fd = askreleases.ask(bundle.releases_socket, job.archive)
        except OSError as error:
            raise unreachable(error, bundle.releases_socket, "the agent's") from None
        if fd is None:
            raise FetchError(f"the agent gave no descriptor of {job.archive}")
        try:
            if message.fields.digest("digest") != job.digest:
                self.request_bundle_refresh(bundle.name)
                raise FetchError(f"another release of {job.archive} became active meanwhile")
            job.ask(self._launcher_socket, fd, self.selector)
        finally:
            os.close(fd)

    def handle_parsing_result(self, file: DagFileInfo, proc: Any, **kwargs: Any) -> None:
        """Raises `SettingsError` for what only an administrator can change."""
        if isinstance(proc, Serialising):
            # Its code is read from there when it is stored: where the set is by now.
            folder = self._sealed[file.bundle_name].path
            proc.folder = str(folder)
            current = proc.digest == self._digests.get(file.presence_key)
            if proc.problem is None and current and not (folder / file.rel_path).exists():
                self._looked_into.pop(file.bundle_name, None)
                proc.fail(FetchError("the set's folder is gone"))
            if isinstance(proc.problem, SettingsError):
                raise proc.problem
            if proc.problem is not None:
                self.log.warning("%s of bundle %s is not parsed now: %s", file.rel_path, file.bundle_name, proc.problem)
                self._not_before = time.monotonic() + _PAUSE_SECONDS
                self.request_bundle_refresh(file.bundle_name)
                return
            if not current:
                self.log.info("%s was replaced while it was parsed", file.rel_path)
                return
            self._parsed[file.presence_key] = proc
        super().handle_parsing_result(file, proc, **kwargs)

    def remove_orphaned_file_stats(self, present: set[DagFileInfo]) -> None:
        super().remove_orphaned_file_stats(present)
        keys = {info.presence_key for info in present}
        self._parsed = _only(self._parsed, keys)
        self._digests = _only(self._digests, keys)

    def _add_callback_to_queue(self, request: Any) -> None:
        if request.bundle_name not in self._sealed or not self._enforced:
            super()._add_callback_to_queue(request)
        if request.bundle_name not in self._sealed:
            return
        self.log.error(
            "%s: a %s of %s, bundle %s, run %s: the DAG's code would run here, as Airflow's own user",
            "refused" if self._enforced else "dagseal (not enforced)",
            type(request).__name__,
            request.filepath,
            request.bundle_name,
            getattr(request, "run_id", None) or request.ti.run_id,
        )


def _only(table: dict[Any, Any], keys: set[Any]) -> dict[Any, Any]:
    return {key: value for key, value in table.items() if key in keys}


def start(*, num_runs: int = -1, bundle_names: list[str] | None = None) -> None:
    """As `airflow dag-processor` does. Returns when each file was parsed `num_runs` times, or at SIGTERM."""
    enter_sealed_processor()
    # Else a dag stored less than 30 s ago is stored with its new set and its old tasks, which the scheduler's check refuses.
    os.environ["AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL"] = "0"
    ProvidersManager().initialize_providers_configuration()
    set_component_mp_start_method("dag_processor")
    if bundle_names:
        cli_utils.validate_dag_bundle_arg(bundle_names)
    options: dict[str, Any] = {"max_runs": num_runs, "bundle_names_to_parse": bundle_names or None}
    processor = SealedDagFileProcessorManager(**options)
    runner = DagProcessorJobRunner(
        job=Job(executor_class=MARK),
        processor=processor,
    )
    run_command_with_daemon_option(
        args=Namespace(daemon=False),
        process_name="dag-processor",
        callback=lambda: run_job(job=runner.job, execute_callable=runner._execute),
    )
