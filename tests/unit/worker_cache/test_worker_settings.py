"""The agent's configuration: what is wrong is named, nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from integrity.errors import SettingsError
from integrity.fields import to_base64
from vocabulary.keys import SigningKey
from worker_cache import settings, transport
from worker_cache.limits import Limits

PUBLIC = SigningKey.generate().public
KEY = to_base64(PUBLIC.raw)
GOOD = f'[agent]\nserver = "http://127.0.0.1:1"\nworker = "w"\napi_key = "{KEY}"\n'


def load(tmp_path: Path, text: str, **environ: str) -> settings.AgentSettings:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return settings.load(str(path), environ)


def test_defaults(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD, DAGSEAL__AGENT__TOKEN_FILE="/x")
    assert (found.queues, found.slots, found.token_file) == (["default"], 4, None)
    assert found.server_key == PUBLIC


def test_the_cache_s_limits_and_mirrors(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD)
    assert found.cache_limits == Limits(max_cache_bytes=10 * 2**30, scrub_bytes_per_second=4 * 2**20)
    assert (found.mirrors.urls, found.mirrors.serve_at()) == ([], None)
    text = '[mirrors]\nurls = ["http://10.0.0.7:8421"]\nfirst = false\nunsafe_serve_address = "[::1]:0"\n'
    found = load(
        tmp_path, GOOD + "max_cache_mib = 0\nmax_fetch_mib_per_second = 0.5\nscrub_mib_per_second = 0\n" + text
    )
    assert found.cache_limits == Limits(max_fetch_bytes_per_second=2**19)
    assert (found.mirrors.first, found.mirrors.serve_at()) == (False, ("::1", 0))


def test_the_accounts_that_may_start_tasks_are_named_and_there(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).task_uids() == frozenset()
    assert load(tmp_path, GOOD + 'tasks_accounts = ["root"]\n').task_uids() == frozenset([0])
    for account in ("nobody-there", "0", ""):
        with pytest.raises(SettingsError, match="tasks_accounts"):
            load(tmp_path, GOOD + f'tasks_accounts = ["{account}"]\n').task_uids()


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSEAL__AGENT__SLOTS", "9")
    assert load(tmp_path, GOOD + "slots = 2\n").slots == 9


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no [agent] table"),
        ("[agent", "agent.toml"),
        ("[agent]\n", "server"),
        (GOOD + "slot = 3\n", "slot"),
        (GOOD + "[other]\n", "other"),
        (GOOD + "slots = 0\n", "slots"),
        (GOOD + 'slots = "many"\n', "slots"),
        (GOOD + "log_sync_seconds = 0\n", "log_sync_seconds"),
        (GOOD + "max_log_age_seconds = 0\n", "max_log_age_seconds"),
        (GOOD + "max_tasks = 0\n", "max_tasks"),
        (GOOD + 'tasks_accounts = "airflow"\n', "tasks_accounts"),
        (GOOD + "queues = []\n", "queues"),
        (GOOD + 'queues = ["a b"]\n', "queue"),
        (GOOD.replace('"w"', '"W!"'), "worker"),
        (GOOD.replace(KEY, "AAAA"), "32 bytes"),
        (GOOD.replace(KEY, "not base64"), "base64"),
        (GOOD.replace("http://127.0.0.1:1", "http://example.com"), "clear text"),
        (GOOD.replace("http://127.0.0.1:1", "ftp://127.0.0.1"), "address of a server"),
        (GOOD + 'token_file = "/t"\nkey_file = "/k"\n', "both set"),
        (GOOD + "max_cache_mib = 63\n", "would not fit"),
        (GOOD + "max_cache_mib = 10\nmax_blob_mib = 11\n", "would not fit"),
        (GOOD + "scrub_mib_per_second = -1\n", "scrub_mib_per_second"),
        (GOOD + "max_fetch_mib_per_second = inf\n", "max_fetch_mib_per_second"),
        (GOOD + '[mirrors]\nurl = "https://m"\n', "mirrors.url"),
        (GOOD + '[mirrors]\nurls = ["ftp://m"]\n', "address of a server"),
        (GOOD + '[mirrors]\nurls = ["https://u:p@m"]\n', "address of a server"),
        (GOOD + '[mirrors]\nurls = ["https://m", "https://m"]\n', "twice"),
        (GOOD + '[mirrors]\nunsafe_serve_address = "8421"\n', "HOST:PORT"),
        (GOOD + '[mirrors]\nunsafe_serve_address = "h:65536"\n', "HOST:PORT"),
        (GOOD + "[agent.mirrors]\nfirst = false\n", "table of its own"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load(tmp_path, text)
    assert named in str(raised.value)


def test_unknown_settings_in_the_environment_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"DAGSEAL__AGENT__SLOT$"):
        load(tmp_path, GOOD, DAGSEAL__AGENT__SLOT="3")


@pytest.mark.parametrize(
    ("mode", "good"), [(0o600, True), (0o440, True), (0o604, False), (0o660, False), (0o602, False)]
)
def test_a_token_file_that_is_open_to_others_is_refused(tmp_path: Path, mode: int, good: bool) -> None:
    path = tmp_path / "token"
    path.write_text("dgs_x\n")
    path.chmod(mode)
    if good:
        assert settings.read_token(str(path)) == "dgs_x"
    else:
        with pytest.raises(SettingsError, match="chmod 600"):
            settings.read_token(str(path))


@pytest.mark.parametrize("content", [b"", b"\n", b"a b", b"a\nb", b"\xff\xfe"])
def test_a_token_file_holds_one_token(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="one token"):
        settings.read_token(str(path))


def test_the_token_may_be_a_systemd_credential(tmp_path: Path) -> None:
    (tmp_path / "agent.token").write_text("dgs_y\n")
    (tmp_path / "agent.token").chmod(0o400)
    found = load(tmp_path, GOOD)
    assert found.token({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "dgs_y"
    with pytest.raises(SettingsError, match="no token"):
        found.token({})


def test_an_agent_with_a_key_signs_and_one_with_a_token_does_not(tmp_path: Path) -> None:
    (tmp_path / "k").write_text("00" * 32 + "\n")
    (tmp_path / "k").chmod(0o600)
    assert load(tmp_path, GOOD).signer() is None
    assert load(tmp_path, GOOD + f'key_file = "{tmp_path}/k"\n').signer() is not None
    with pytest.raises(SettingsError, match="worker join"):
        load(tmp_path, GOOD + f'key_file = "{tmp_path}/absent"\n').signer()


@pytest.mark.parametrize(
    "url", ["https://h", "https://h:1/", "http://localhost:1", "http://127.9.9.9", "http://[::1]:3"]
)
def test_good_addresses(url: str) -> None:
    assert transport.check_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    ["", "h", "http://", "https://u:p@h", "https://h?x", "https://h#x", "http://10.0.0.1", "http://localhost.evil"],
)
def test_bad_addresses(url: str) -> None:
    with pytest.raises(SettingsError):
        transport.check_url(url)
