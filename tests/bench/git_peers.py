"""What dagseal's distribution replaces: git and rsync bringing a repository of DAGs to a worker. For
`python -m tests.bench.distributing`.

git is served over HTTP by nginx and git's own http-backend. The sequences of commands are those that git-sync (v4) and
Airflow's GitDagBundle (git provider 1.0) run; their own processes and waits are left out, in their favour.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagseal.footing import free_port

PACKAGES = {"nginx": "nginx-light", "fcgiwrap": "fcgiwrap", "git": "git", "rsync": "rsync"}
_NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error;
events {{ worker_connections 256; }}
http {{
    access_log off; client_body_temp_path {folder}/body; fastcgi_temp_path {folder}/fastcgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            fastcgi_pass unix:{folder}/fcgi.sock;
            fastcgi_param SCRIPT_FILENAME /usr/lib/git-core/git-http-backend;
            fastcgi_param GIT_HTTP_EXPORT_ALL "";
            fastcgi_param GIT_PROJECT_ROOT {root};
            fastcgi_param PATH_INFO $uri;
            fastcgi_param QUERY_STRING $query_string;
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param CONTENT_TYPE $content_type;
            fastcgi_param CONTENT_LENGTH $content_length;
            fastcgi_param HTTP_GIT_PROTOCOL $http_git_protocol;
        }}
    }}
}}
"""
_ENV = {
    "PATH": os.environ.get("PATH", ""),
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "bench",
    "GIT_AUTHOR_EMAIL": "bench@localhost",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@localhost",
}


def missing() -> list[str]:
    """Programs that are not here. As root on Debian they are installed first."""
    wanted = [program for program in PACKAGES if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")]
    if wanted and os.geteuid() == 0 and (apt := shutil.which("apt-get")):
        command = [apt, "install", "-q", "-y", "--no-install-recommends", *(PACKAGES[program] for program in wanted)]
        more = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(command, env=more, capture_output=True, check=False)
    return [program for program in PACKAGES if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")]


def git(*arguments: str | Path, cwd: Path) -> None:
    subprocess.run(["git", "-c", "safe.directory=*", *arguments], cwd=cwd, env=_ENV, check=True, capture_output=True)


class Origin:
    """The repository that everybody follows, and the tree that its author works in."""

    def __init__(self, folder: Path) -> None:
        self.bare, self.tree = folder / "served" / "dags.git", folder / "author"
        self.bare.mkdir(parents=True)
        self.tree.mkdir()
        git("init", "-q", "--bare", "-b", "main", ".", cwd=self.bare)
        git("config", "http.uploadpack", "true", cwd=self.bare)
        git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=self.bare)
        git("init", "-q", "-b", "main", ".", cwd=self.tree)
        git("remote", "add", "origin", self.bare, cwd=self.tree)

    def change(self, files: dict[str, bytes]) -> None:
        """One commit with these files as they are now, pushed."""
        for name, data in files.items():
            (self.tree / name).write_bytes(data)
        git("add", "-A", cwd=self.tree)
        git("commit", "-q", "-m", "a change", cwd=self.tree)
        git("push", "-q", "origin", "main", cwd=self.tree)


@contextmanager
def served(origin: Origin, folder: Path) -> Iterator[str]:
    """The repository's address."""
    folder.mkdir()
    port = free_port()
    config = folder / "conf"
    config.write_text(_NGINX.format(folder=folder, port=port, root=origin.bare.parent))
    if os.geteuid() == 0:
        config.write_text("user root;" + config.read_text())
    wrap = shutil.which("fcgiwrap", path=f"{os.environ['PATH']}:/usr/sbin")
    assert wrap is not None
    # Two workers, as there are two cores; git's processes see no settings of this account.
    with (
        subprocess.Popen([wrap, "-c", "2", "-s", f"unix:{folder}/fcgi.sock"], env=_ENV, start_new_session=True) as cgi,
        subprocess.Popen(["nginx", "-c", str(config)], stderr=subprocess.DEVNULL) as nginx,
    ):
        try:
            url = f"http://127.0.0.1:{port}/dags.git"
            subprocess.run(
                ["git", "ls-remote", url], env=_ENV, check=False, capture_output=True
            )  # until it listens: a first request may come too early
            yield url
        finally:
            nginx.terminate()
            os.killpg(cgi.pid, signal.SIGKILL)  # its workers end at SIGTERM only when another request comes


class Fetch:
    """git alone: a clone that follows."""

    def __init__(self, url: str, folder: Path) -> None:
        self.tree = folder
        git("clone", "-q", url, folder, cwd=folder.parent)

    def sync(self) -> None:
        git("fetch", "-q", "origin", "main", cwd=self.tree)
        git("reset", "-q", "--hard", "FETCH_HEAD", cwd=self.tree)

    def poll(self) -> None:
        git("fetch", "-q", "origin", "main", cwd=self.tree)


class GitSync:
    """git-sync's commands: a shallow fetch, a worktree for the commit, and a link that is swapped."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.root, self.link = url, folder, folder / "current"
        self.last = ""
        folder.mkdir()
        git("init", "-q", ".", cwd=folder)
        git("config", "gc.auto", "0", cwd=folder)

    def sync(self) -> None:
        said = subprocess.run(
            ["git", "ls-remote", "-q", self.url, "main"], cwd=self.root, env=_ENV, check=True, capture_output=True
        )
        commit = said.stdout.split()[0].decode()
        if commit == self.last:
            return
        git("fetch", "-q", self.url, commit, "--depth", "1", "--no-tags", "--no-auto-gc", cwd=self.root)
        tree = self.root / ".worktrees" / commit
        git("worktree", "add", "-f", "--no-checkout", tree, commit, cwd=self.root)
        git("reset", "-q", "--hard", commit, "--", cwd=tree)
        git("fsck", "--no-progress", "--connectivity-only", cwd=tree)
        new = self.root / "new-link"
        new.symlink_to(tree)
        new.rename(self.link)
        if self.last:
            git("worktree", "remove", "-f", self.root / ".worktrees" / self.last, cwd=self.root)
        self.last = commit


class Bundle:
    """GitDagBundle's commands: a bare copy that is fetched, and for each version a clone of it without its `.git`."""

    def __init__(self, url: str, folder: Path) -> None:
        self.bare, self.versions, self.number = folder / "bare", folder / "versions", 0
        self.versions.mkdir(parents=True)
        git("clone", "-q", "--bare", url, self.bare, cwd=folder)

    def sync(self) -> None:
        self.number += 1
        git("fetch", "-q", "origin", "+refs/heads/*:refs/heads/*", cwd=self.bare)
        tree = self.versions / str(self.number)
        git("clone", "-q", "--no-checkout", self.bare, tree, cwd=self.versions)
        git("checkout", "-q", "main", cwd=tree)
        shutil.rmtree(tree / ".git")


def rsync(source: Path, target: Path) -> None:
    """By checksum: what `-a` alone believes of size and time can be wrong."""
    command = ["rsync", "-ac", "--delete", "--exclude=.git", f"{source}/", f"{target}/"]
    subprocess.run(command, check=True, capture_output=True)


def clone(url: str, folder: Path) -> None:
    git("clone", "-q", "--depth", "1", url, folder, cwd=folder.parent)
