"""The policy file: every unknown, empty or doubtful answer is refused, and so is a file that others could have written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integrity.errors import SettingsError
from integrity.fields import to_base64
from launcher import policy
from vocabulary.keys import SigningKey

KEY = to_base64(SigningKey(b"k" * 32).public.raw)
GOOD = {
    "trust": f'api_keys = ["{KEY}"]',
    "peers": 'run = ["dagseal-agent"]\ndescribe = ["dagseal-api"]',
    "users": 'allowed = ["etl"]\nparser = "dagseal-parser"',
    "paths": 'socket = "/run/dagseal/launcher.sock"\nstate_dir = "/var/lib/dagseal/launcher"',
}


def text_of(**sections: str | None) -> str:
    """The good file with some sections replaced, added, or (None) left out."""
    merged = {**GOOD, **sections}
    return "\n".join(f"[{name.replace('__', '.')}]\n{body}" for name, body in merged.items() if body is not None)


def test_the_least_file_is_read_with_its_defaults() -> None:
    found = policy.parse(text_of(), "launcher.toml")
    assert found.may_run == {"dagseal-agent"}
    assert found.users.reserved == {"dagseal-agent", "dagseal-api", "dagseal-parser"}
    assert found.users.banned == set(policy.DEFAULT_BANNED)
    assert found.users.min_uid == 1000
    assert found.limits == policy.Limits()
    assert found.pass_environment == () and found.set_environment == {}
    assert found.isolation == policy.Isolation(
        profile="standard",
        describe="strict",
        queues={},
        readable=(),
        writable=(),
        tcp_ports=(),
        cgroup_limits=True,
    )
    assert found.limits.task_cpu_percent is None


def test_a_full_file_is_read() -> None:
    found = policy.parse(
        text_of(
            users='allowed = []\nallowed_groups = ["etl"]\nbanned = []\nmin_uid = 500\nparser = "p"',
            environment='pass = ["AIRFLOW_CONN_LEGACY", "AIRFLOW_VAR_X"]',
            environment__set='AIRFLOW__CORE__DEFAULT_TIMEZONE = "utc"\nTZ = ""',
            limits="max_log_bytes = 7",
        ),
        "launcher.toml",
    )
    assert found.users.allowed_groups == {"etl"} and found.users.banned == frozenset()
    assert found.limits.max_log_bytes == 7
    assert found.pass_environment == ("AIRFLOW_CONN_LEGACY", "AIRFLOW_VAR_X")
    assert found.set_environment == {"AIRFLOW__CORE__DEFAULT_TIMEZONE": "utc", "TZ": ""}


def test_a_full_isolation_section_is_read(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    found = policy.parse(
        text_of(
            isolation=f'profile = "minimal"\ndescribe = "standard"\nqueues = {{secure = "strict", quick = "minimal"}}\n'
            f'readable = ["{one}"]\nwritable = ["{other}"]\ntcp_ports = [1, 5432, 65535]\nunsafe_no_cgroup_limits = true',
            limits="warm_spares = 1\nwarm_max_tasks = 1\ntask_tmp_bytes = 1\ntask_memory_bytes = 1\ntask_pids = 1\n"
            "task_cpu_percent = 150",
        ),
        "launcher.toml",
    )
    assert found.isolation == policy.Isolation(
        profile="minimal",
        describe="standard",
        queues={"secure": "strict", "quick": "minimal"},
        readable=(str(one),),
        writable=(str(other),),
        tcp_ports=(1, 5432, 65535),
        cgroup_limits=False,
    )
    assert (found.limits.task_cpu_percent, found.limits.task_pids, found.limits.warm_spares) == (150, 1, 1)


@pytest.mark.parametrize("key", ["readable", "writable"])
@pytest.mark.parametrize(
    "case", ["absent", "relative", "a link", "through a link", "a file", "a dot", "two dots", "a slash"]
)
def test_a_folder_is_named_by_its_own_path(tmp_path: Path, key: str, case: str) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    path = {
        "absent": tmp_path / "absent",
        "relative": "tmp",
        "a link": tmp_path / "link",
        "through a link": tmp_path / "link" / "inner",
        "a file": tmp_path / "file",
        "a dot": f"{tmp_path}/./folder",
        "two dots": f"{tmp_path}/folder/../folder",
        "a slash": f"{tmp_path}/folder/",
    }[case]
    with pytest.raises(SettingsError) as raised:
        policy.parse(text_of(isolation=f'{key} = ["{path}"]'), "launcher.toml")
    assert str(raised.value) == (
        f"launcher.toml: isolation: '{path}' is to be a folder, by its absolute path without symbolic links"
    )


def test_not_everything_is_opened_to_tasks_at_once() -> None:
    with pytest.raises(SettingsError) as raised:
        policy.parse(text_of(isolation='writable = ["/"]'), "launcher.toml")
    assert "isolation.writable: '/' takes the meaning from a profile" in str(raised.value)


REFUSED: dict[str, tuple[dict[str, str | None], str]] = {
    "no trust": ({"trust": None}, "trust is missing"),
    "no peers": ({"peers": None}, "peers is missing"),
    "no users": ({"users": None}, "users is missing"),
    "no paths": ({"paths": None}, "paths is missing"),
    "unknown section": ({"extra": "a = 1"}, "unknown keys: extra"),
    "unknown key in trust": ({"trust": GOOD["trust"] + '\napi_key = "x"'}, "unknown keys: trust.api_key"),
    "unknown key in peers": ({"peers": GOOD["peers"] + "\nrunn = []"}, "unknown keys: peers.runn"),
    "unknown key in users": ({"users": GOOD["users"] + '\nallow = ["x"]'}, "unknown keys: users.allow"),
    "unknown key in paths": ({"paths": GOOD["paths"] + '\nlog = "x"'}, "unknown keys: paths.log"),
    "unknown key in environment": ({"environment": "keep = []"}, "unknown keys: environment.keep"),
    "unknown limit": ({"limits": "max_log_mib = 1"}, "unknown keys: limits.max_log_mib"),
    "no key": ({"trust": "api_keys = []"}, "trust.api_keys is empty"),
    "empty key": ({"trust": 'api_keys = [""]'}, "list of texts"),
    "key of 31 bytes": ({"trust": f'api_keys = ["{to_base64(b"k" * 31)}"]'}, "32 bytes, not 31"),
    "key of 33 bytes": ({"trust": f'api_keys = ["{to_base64(b"k" * 33)}"]'}, "33 bytes"),
    "key that is no base64": ({"trust": 'api_keys = ["%%%"]'}, "not base64"),
    "key without padding": ({"trust": f'api_keys = ["{KEY[:-1]}"]'}, "not base64"),
    "key in hex": ({"trust": f'api_keys = ["{"ab" * 32}"]'}, "trust.api_keys"),
    "nobody may run": ({"peers": 'run = []\ndescribe = ["a"]'}, "peers.run is empty"),
    "nobody may describe": ({"peers": 'run = ["a"]\ndescribe = []'}, "peers.describe is empty"),
    "run is text": ({"peers": 'run = "a"\ndescribe = ["a"]'}, "peers.run is to be a list"),
    "run has a number": ({"peers": 'run = [1]\ndescribe = ["a"]'}, "peers.run is to be a list"),
    "no user": ({"users": 'allowed = []\nparser = "p"'}, "no task could run"),
    "no user named": ({"users": 'parser = "p"'}, "no task could run"),
    "no parser": ({"users": 'allowed = ["etl"]'}, "users.parser is missing"),
    "empty parser": ({"users": 'allowed = ["etl"]\nparser = ""'}, "users.parser is empty"),
    "min_uid zero": ({"users": GOOD["users"] + "\nmin_uid = 0"}, "the least is 1"),
    "min_uid negative": ({"users": GOOD["users"] + "\nmin_uid = -1"}, "the least is 1"),
    "min_uid true": ({"users": GOOD["users"] + "\nmin_uid = true"}, "whole number"),
    "min_uid text": ({"users": GOOD["users"] + '\nmin_uid = "1000"'}, "whole number"),
    "min_uid float": ({"users": GOOD["users"] + "\nmin_uid = 1e3"}, "whole number"),
    "no socket": ({"paths": 'state_dir = "/x"'}, "paths.socket is missing"),
    "empty socket": ({"paths": 'socket = ""\nstate_dir = "/x"'}, "paths.socket is empty"),
    "relative socket": ({"paths": 'socket = "x.sock"\nstate_dir = "/x"'}, "absolute path"),
    "relative state": ({"paths": 'socket = "/x.sock"\nstate_dir = "x"'}, "absolute path"),
    "unknown key in isolation": ({"isolation": 'profil = "strict"'}, "unknown keys: isolation.profil"),
    "unknown profile": ({"isolation": 'profile = "none"'}, "'none' is not known: choose minimal, standard, strict"),
    "profile in capitals": ({"isolation": 'profile = "Strict"'}, "'Strict' is not known"),
    "empty profile": ({"isolation": 'profile = ""'}, "isolation.profile is empty"),
    "profile is a list": ({"isolation": 'profile = ["strict"]'}, "isolation.profile is to be text"),
    "unknown profile to describe": ({"isolation": 'describe = "off"'}, "'off' is not known"),
    "unknown profile of a queue": ({"isolation": 'queues = {q = "off"}'}, "'off' is not known"),
    "queues is a list": ({"isolation": 'queues = ["strict"]'}, "isolation.queues is to be a table"),
    "a queue's profile is true": ({"isolation": "queues = {q = true}"}, "isolation.queues is to be a table of texts"),
    "readable is text": ({"isolation": 'readable = "/usr"'}, "isolation.readable is to be a list"),
    "readable is empty text": ({"isolation": 'readable = [""]'}, "isolation.readable is to be a list of texts"),
    "port zero": ({"isolation": "tcp_ports = [0]"}, "isolation.tcp_ports is to be a list of ports"),
    "port negative": ({"isolation": "tcp_ports = [-1]"}, "isolation.tcp_ports is to be a list of ports"),
    "port too large": ({"isolation": "tcp_ports = [65536]"}, "isolation.tcp_ports is to be a list of ports"),
    "port as text": ({"isolation": 'tcp_ports = ["5432"]'}, "isolation.tcp_ports is to be a list of ports"),
    "port as a fraction": ({"isolation": "tcp_ports = [5432.0]"}, "isolation.tcp_ports is to be a list of ports"),
    "port true": ({"isolation": "tcp_ports = [true]"}, "isolation.tcp_ports is to be a list of ports"),
    "one port": ({"isolation": "tcp_ports = 5432"}, "isolation.tcp_ports is to be a list of ports"),
    "no limits as a number": ({"isolation": "unsafe_no_cgroup_limits = 1"}, "is to be true or false"),
    "no limits as text": ({"isolation": 'unsafe_no_cgroup_limits = "yes"'}, "is to be true or false"),
    "no limits without unsafe": ({"isolation": "no_cgroup_limits = true"}, "unknown keys: isolation.no_cgroup_limits"),
    "no spares": ({"limits": "warm_spares = 0"}, "limits.warm_spares is 0, the least is 1"),
    "no pids": ({"limits": "task_pids = 0"}, "limits.task_pids is 0, the least is 1"),
    "no memory": ({"limits": "task_memory_bytes = -1"}, "the least is 1"),
    "no room": ({"limits": "task_tmp_bytes = 0"}, "the least is 1"),
    "no processor": ({"limits": "task_cpu_percent = 0"}, "limits.task_cpu_percent is 0, the least is 1"),
    "processor true": ({"limits": "task_cpu_percent = true"}, "limits.task_cpu_percent is to be a whole number"),
    "limit zero": ({"limits": "max_log_bytes = 0"}, "the least is 1"),
    "limit as text": ({"limits": 'max_log_bytes = "1"'}, "whole number"),
    "section is a value": ({"peers": None, "trust": GOOD["trust"]}, "peers is missing"),
    "set a connection": ({"environment__set": 'AIRFLOW_CONN_X = "http://h"'}, "use environment.pass"),
    "set a variable": ({"environment__set": 'AIRFLOW_VAR_X = "1"'}, "use environment.pass"),
    "pass any name": ({"environment": 'pass = ["HOME"]'}, "environment.pass: only"),
    "pass a setting": ({"environment": 'pass = ["AIRFLOW__CORE__FERNET_KEY"]'}, "environment.pass: only"),
    "pass a pattern": ({"environment": 'pass = ["AIRFLOW_CONN_*"]'}, "not a good name"),
    "pass lower case": ({"environment": 'pass = ["AIRFLOW_CONN_x"]'}, "not a good name"),
    "pass with a newline": ({"environment": 'pass = ["AIRFLOW_CONN_X\\n"]'}, "not a good name"),
    "pass with an equals sign": ({"environment": 'pass = ["AIRFLOW_CONN_X=1"]'}, "not a good name"),
    "set a number": ({"environment__set": "TZ = 1"}, "table of texts"),
    "set a bad name": ({"environment__set": 'tz = "utc"'}, "not a good name"),
    "set LD_PRELOAD": ({"environment__set": 'LD_PRELOAD = "/x.so"'}, "before it drops"),
    "set LD_LIBRARY_PATH": ({"environment__set": 'LD_LIBRARY_PATH = "/x"'}, "before it drops"),
    "set PYTHONPATH": ({"environment__set": 'PYTHONPATH = "/x"'}, "before it drops"),
    "set PYTHONHASHSEED": ({"environment__set": 'PYTHONHASHSEED = "0"'}, "before it drops"),
    "set GCONV_PATH": ({"environment__set": 'GCONV_PATH = "/x"'}, "before it drops"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_with_the_reason(case: str) -> None:
    sections, reason = REFUSED[case]
    with pytest.raises(SettingsError, match=r"^launcher\.toml: ") as raised:
        policy.parse(text_of(**sections), "launcher.toml")
    assert reason in str(raised.value)


@pytest.mark.parametrize("text", ["", "= 1", "[trust]\n[trust]", "a = 1\na = 2", "\x00"])
def test_what_is_no_toml_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^launcher\.toml: "):
        policy.parse(text, "launcher.toml")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A good file in a folder of its own."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    path = folder / "launcher.toml"
    path.write_text(text_of(), encoding="utf-8")
    path.chmod(0o644)
    return path


def test_a_trusted_file_is_loaded(place: Path) -> None:
    assert policy.load(str(place)).parser == "dagseal-parser"


def refused(path: Path, reason: str) -> None:
    with pytest.raises(SettingsError) as raised:
        policy.load(str(path))
    assert reason in str(raised.value)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o622, 0o1664])
def test_a_file_that_others_may_write_is_refused(place: Path, mode: int) -> None:
    place.chmod(mode)
    refused(place, "others may write it")


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_folder_that_others_may_write_is_refused(place: Path, mode: int) -> None:
    place.parent.chmod(mode)
    refused(place, f"{place.parent}: others may write it")


def test_a_folder_further_up_that_others_may_write_is_refused(place: Path) -> None:
    place.parent.parent.chmod(0o777)
    refused(place, f"{place.parent.parent}: others may write it")


def test_a_sticky_folder_is_fine_as_nobody_else_can_replace_the_file(place: Path) -> None:
    place.parent.chmod(0o1777)
    assert policy.load(str(place)).parser == "dagseal-parser"


def test_a_link_to_the_file_is_refused(place: Path) -> None:
    link = place.parent / "link.toml"
    link.symlink_to(place)
    refused(link, str(link))


def test_a_link_on_the_way_is_refused(place: Path) -> None:
    link = place.parent.parent / "link"
    link.symlink_to(place.parent)
    refused(link / place.name, "is a symbolic link")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent.toml", "needs its policy file")


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "regular file")


def test_a_fifo_in_its_place_is_refused_without_waiting(place: Path) -> None:
    place.unlink()
    os.mkfifo(place, 0o600)
    refused(place, "regular file")


def test_a_file_that_is_not_utf8_is_refused(place: Path) -> None:
    place.write_bytes(text_of().encode() + b"# \xff\n")
    refused(place, "not UTF-8")


def test_the_largest_file_is_read_and_one_byte_more_is_refused(place: Path) -> None:
    start = text_of().encode() + b"\n#"
    place.write_bytes(start.ljust(policy.MAX_FILE_BYTES, b"x"))
    assert policy.load(str(place)).parser == "dagseal-parser"
    place.write_bytes(start.ljust(policy.MAX_FILE_BYTES + 1, b"x"))
    refused(place, "at most")
