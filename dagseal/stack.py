"""A whole dagseal on one machine: API, launcher and agent as separate processes, under separate accounts when root.

Used by `dagseal quickstart` and by the end-to-end tests. It makes folders and configuration below one folder and creates no
account: it takes existing ones. As an ordinary user everything runs as that user, and `missing` says what that costs.
"""

from __future__ import annotations

import base64
import json
import os
import pwd
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import launcher
from dagseal.footing import Accounts, answers, confines, connects, service_environment
from integrity.errors import SettingsError

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
WORKER = "quickstart"


@dataclass(slots=True)
class Stack:
    """`prepare` once, then `start`. `stop` ends what was started, by pid, and nothing else."""

    folder: Path
    port: int
    task_user: str
    accounts: Accounts = field(default_factory=Accounts.choose)
    log: Callable[[str], None] = lambda line: None
    more_api_toml: str = ""
    more_launcher_toml: str = ""
    more_agent_toml: str = ""
    slots: int = 4
    worker: str = WORKER
    # the accounts that may start tasks of Airflow's here: none, and there is no tasks.sock
    supervisors: tuple[str, ...] = ()
    more_users: tuple[str, ...] = ()
    profile: str = "standard"
    describe: str = "strict"
    writable: tuple[Path, ...] = ()
    launcher_environment: dict[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_token(self) -> Path:
        return self.folder / "admin.token"

    @property
    def releases_socket(self) -> Path:
        return self.folder / "handed-out" / "releases.sock"

    @property
    def tasks_socket(self) -> Path:
        return self.folder / "handed-out" / "tasks.sock"

    @property
    def cache(self) -> Path:
        return self.folder / "agent" / "cache"

    @property
    def launcher_socket(self) -> Path:
        return self.folder / "run" / "launcher.sock"

    @property
    def privileged(self) -> bool:
        return os.geteuid() == 0

    def __post_init__(self) -> None:
        if not self.privileged and not confines():
            self.profile = self.describe = "minimal"

    def missing(self) -> list[str]:
        """What is not promised here, in words."""
        if self.privileged:
            return []
        lines = [
            f"not root: API, agent, launcher and tasks all run as {self.accounts.api}; another unix user is refused",
            "no limits on a task's memory and processes: only root may make cgroups here",
        ]
        if self.profile == "minimal":
            lines.append(f"no namespaces: {self.accounts.api} may not make any here, so tasks run in profile minimal")
        return lines

    def environment(self, **more: str) -> dict[str, str]:
        """For the command line against this stack."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TERM") if name in os.environ}
        return (
            kept
            | {
                "DAGSEAL_SERVER": self.url,
                "DAGSEAL_TOKEN_FILE": str(self.admin_token),
                "DAGSEAL_API_KEY": self._api_key(),
            }
            | more
        )

    def prepare(self) -> None:
        """Folders, configuration, keys, database, first token. Raises `SettingsError` for a folder that is in use."""
        if self.folder.exists() and any(self.folder.iterdir()):
            raise SettingsError(f"{self.folder} is not empty: choose a new folder with --dir")
        self._make_folder("", 0o755, None)
        self._make_folder("run", 0o755, None)
        self._make_folder("launcher", 0o700, self.accounts.notary)
        self._make_folder("api", 0o700, self.accounts.api)
        self._make_folder("agent", 0o700, self.accounts.agent)
        self._make_folder("handed-out", 0o755, self.accounts.agent)
        self._write("api.toml", self._api_toml(), owner=self.accounts.api)
        bootstrap = self._python("-m", "submit_api", "--config", str(self.folder / "api.toml"), "--bootstrap")
        token = self._as(self.accounts.api, bootstrap)
        self._write("admin.token", token.strip() + "\n", mode=0o600)
        names = ("DAGSEAL_SERVER", "DAGSEAL_TOKEN_FILE", "DAGSEAL_API_KEY")
        exports = [f"export {name}={shlex.quote(self.environment()[name])}\n" for name in names]
        self._write("env", "".join(exports))
        self._write("launcher.toml", self._launcher_toml(), mode=0o644)

    def start(self) -> None:
        """All three, enrolling the worker between. Raises `SettingsError` when one does not come up."""
        self.start_launcher()
        self.start_api()
        if not (self.folder / "agent" / "request.key").exists():
            self.join_worker()
        self.start_agent()

    def start_launcher(self) -> None:
        main = Path(launcher.__file__).with_name("__main__.py")
        command = [sys.executable, "-s", "-P", "-S", str(main), "--config", str(self.folder / "launcher.toml")]
        self._spawn("launcher", command, None)
        self._until("launcher", lambda: connects(self.launcher_socket))

    def start_api(self) -> None:
        self._spawn(
            "api", self._python("-m", "submit_api", "--config", str(self.folder / "api.toml")), self.accounts.api
        )
        self._until("api", lambda: answers(self.port))

    def start_agent(self) -> None:
        command = self._python("-m", "worker_cache", "--config", str(self.folder / "agent.toml"))
        self._spawn("agent", command, self.accounts.agent)

    def stop(self, *names: str, number: int = signal.SIGTERM) -> None:
        """End these, or all: agent first, so that nothing new is taken."""
        for name in names or ("agent", "api", "launcher"):
            process = self.processes.pop(name, None)
            if process is None:
                continue
            process.send_signal(number)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if name == "launcher":
                # Its notary, which listens, is ended by the kernel a moment later: until then the next launcher would take this
                # one for alive, and so would we for the next.
                deadline = time.monotonic() + _STOP_SECONDS
                while connects(self.launcher_socket) and time.monotonic() < deadline:
                    time.sleep(0.02)

    def log_of(self, name: str) -> str:
        """What that process wrote to its log."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def join_worker(self) -> None:
        """Also anew, for another key. The fingerprint is read from the launcher's own log, not through the agent."""
        ready = json.loads(self.log_of("launcher").splitlines()[-1])
        invitation = self.folder / "agent" / "invitation"
        command = ["worker", "invite", self.worker, "--fingerprint", ready["fingerprint"], "--out", str(invitation)]
        answer = subprocess.run(
            self._python("-m", "dagseal.cli.app", *command),
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode != 0:
            raise SettingsError(f"the worker could not be invited: {answer.stderr.strip()}")
        self._give(invitation, self.accounts.agent)
        self._write("agent.toml", self._agent_toml(), owner=self.accounts.agent)
        join = ["worker", "join", "--config", str(self.folder / "agent.toml"), "--invitation", str(invitation)]
        self._as(self.accounts.agent, self._python("-m", "dagseal.cli.app", *join))
        invitation.unlink()

    def _api_toml(self) -> str:
        return (
            f'[api]\nhost = "127.0.0.1"\nport = {self.port}\nstate_folder = "{self.folder}/api"\n'
            f'launcher_socket = "{self.launcher_socket}"\n'
            f'[launches]\ndefault_impersonation = "{self.task_user}"\n{self.more_api_toml}'
        )

    def _launcher_toml(self) -> str:
        accounts = self.accounts
        return (
            f'[trust]\napi_keys = ["{self._api_key()}"]\n'
            f'[peers]\nrun = ["{accounts.agent}"]\ndescribe = ["{accounts.api}"]\n'
            f'[users]\nallowed = {json.dumps([self.task_user, *self.more_users])}\nbanned = ["root"]\n'
            f'{"min_uid = 1" if self.more_users else ""}\nparser = "{accounts.parser}"\n'
            f'notary = "{accounts.notary}"\n'
            f'[paths]\nsocket = "{self.launcher_socket}"\nstate_dir = "{self.folder}/launcher"\n'
            f'[isolation]\nprofile = "{self.profile}"\ndescribe = "{self.describe}"\n'
            f"unsafe_no_cgroup_limits = {'false' if self.privileged else 'true'}\n"
            f"writable = {json.dumps([str(path) for path in self.writable])}\n{self.more_launcher_toml}"
        )

    def _agent_toml(self) -> str:
        return (
            f'[agent]\nserver = "{self.url}"\nkey_file = "{self.folder}/agent/request.key"\nworker = "{self.worker}"\n'
            f'queues = ["default"]\napi_key = "{self._api_key()}"\ncache_dir = "{self.cache}"\n'
            f'spool_dir = "{self.folder}/agent/spool"\nlauncher_socket = "{self.launcher_socket}"\nslots = {self.slots}\n'
            f'releases_socket = "{self.releases_socket}"\ntrees_dir = "{self.folder}/handed-out/trees"\n'
            f"{self._tasks_toml()}{self.more_agent_toml}"
        )

    def _tasks_toml(self) -> str:
        if not self.supervisors:
            return ""
        return f'tasks_socket = "{self.tasks_socket}"\ntasks_accounts = {json.dumps(self.supervisors)}\n'

    def _api_key(self) -> str:
        raw = bytes.fromhex((self.folder / "api" / "keys" / "signing.pub").read_text(encoding="ascii").strip())
        return base64.b64encode(raw).decode()

    def _python(self, *arguments: str) -> list[str]:
        return [sys.executable, "-s", "-P", *arguments]

    def _make_folder(self, name: str, mode: int, owner: str | None) -> None:
        path = self.folder / name
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)
        self._give(path, owner)

    def _write(self, name: str, text: str, *, mode: int = 0o644, owner: str | None = None) -> None:
        path = self.folder / name
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        path.chmod(mode)
        self._give(path, owner)

    def _give(self, path: Path, owner: str | None) -> None:
        if self.privileged and owner is not None:
            entry = pwd.getpwnam(owner)
            os.chown(path, entry.pw_uid, entry.pw_gid)

    def _who(self, account: str | None) -> Mapping[str, object]:
        if not self.privileged or account is None:
            return {}
        entry = pwd.getpwnam(account)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def _as(self, account: str, command: list[str]) -> str:
        answer = subprocess.run(  # type: ignore[call-overload]
            command,
            env=service_environment(),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            **self._who(account),
        )
        if answer.returncode != 0:
            raise SettingsError(f"{' '.join(command[3:])} failed: {answer.stderr.strip()[-2000:]}")
        return str(answer.stdout)

    def _spawn(self, name: str, command: list[str], account: str | None) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(  # type: ignore[call-overload]
                command,
                env=service_environment() | (self.launcher_environment if name == "launcher" else {}),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._who(account),
            )
        self.log(f"{name} is pid {self.processes[name].pid}" + (f", account {account}" if account else ""))

    def _until(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not ready():
            if self.processes[name].poll() is not None or time.monotonic() > deadline:
                raise SettingsError(f"{name} did not start; its log ends: {self.log_of(name)[-2000:]}")
            time.sleep(0.02)
