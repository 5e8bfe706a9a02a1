"""The parts of the command line that judge: exit codes, arguments, settings, printing, folders."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from dagseal.cli import archive_input, exits, printing, settings
from dagseal.cli.arguments import globals_first
from dagseal.cli.context import Run
from dagseal.cli.exits import UsageError
from integrity import errors
from integrity.errors import SettingsError, UnsafeArchiveError
from worker_cache.problems import RequestError

CODES = {
    errors.DigestMismatchError: 7,
    errors.MalformedError: 7,
    errors.SignatureError: 7,
    errors.ReplayError: 7,
    errors.ExpiredError: 7,
    errors.PrivilegeError: 7,
    errors.UnsafeArchiveError: 7,
    errors.InvalidArchiveError: 7,
    errors.UnauthorizedError: 4,
    errors.NotOwnerError: 4,
    errors.OutOfScopeError: 4,
    errors.NotFoundError: 5,
    errors.ConflictError: 6,
    errors.FetchError: 75,
    errors.SettingsError: 2,
    RequestError: 2,
    exits.UsageError: 2,
    exits.VerificationFailedError: 1,
    exits.NotVerifiedError: 3,
    exits.TaskFailedError: 8,
    exits.PolicyError: 7,
}


@pytest.mark.parametrize(("kind", "code"), CODES.items(), ids=lambda value: getattr(value, "__name__", str(value)))
def test_each_error_has_its_exit_code(kind: type[errors.DagsealError], code: int) -> None:
    error = kind("rule", "why") if issubclass(kind, errors.ArchiveError) else kind("why")
    assert exits.code_of(error) == code


def test_no_error_ends_with_zero() -> None:
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.DagsealError):
            error = kind("rule", "why") if issubclass(kind, errors.ArchiveError) else kind("why")
            assert exits.code_of(error) in (2, 4, 5, 6, 7, 75)


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("success", 0),
        ("skipped", 0),
        ("refused", 7),
        ("failed", 8),
        ("up_for_retry", 8),
        ("cancelled", 8),
        ("lost", 8),
        ("deferred", 75),
        ("up_for_reschedule", 75),
        ("unheard-of", 8),
    ],
)
def test_how_a_launch_ended_decides_the_exit_code(state: str, code: int) -> None:
    assert exits.code_of_launch(state) == code


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        (["list"], ["list"]),
        (["list", "-o", "json"], ["-o", "json", "list"]),
        (["list", "-ojson", "-q"], ["-o", "json", "-q", "list"]),
        (["list", "--output=yaml"], ["--output=yaml", "list"]),
        (["agent", "--config", "f"], ["--config", "f", "agent"]),
        (["a", "--", "-q", "-o"], ["a", "--", "-q", "-o"]),
        (["list", "-o"], ["-o", "list"]),
        (["verify", "-"], ["verify", "-"]),
        ([], []),
    ],
)
def test_global_options_may_stand_anywhere(given: list[str], ordered: list[str]) -> None:
    assert globals_first(given) == ordered


def loaded(tmp_path: Path, flags: dict[str, Any], text: str | None, **environ: str) -> settings.CliSettings:
    path = tmp_path / "config.toml"
    if text is not None:
        path.write_text(text)
    return settings.load(flags, environ, str(path) if text is not None else None)


def test_the_order_of_the_sources(tmp_path: Path) -> None:
    text = '[cli]\nserver = "http://file"\ntoken_file = "~/t"\noutput = "yaml"\ncolor = "off"\n'
    found = loaded(tmp_path, {"server": "http://flag"}, text, DAGSEAL_OUTPUT="plain", DAGSEAL__CLI__COLOR="on")
    assert (found.server, found.output, found.color) == ("http://flag", "plain", "on")
    assert found.token_file == os.path.expanduser("~/t")
    assert found.sources["server"] == "flag"
    assert found.sources["output"] == "DAGSEAL_OUTPUT"
    assert found.sources["color"] == "DAGSEAL__CLI__COLOR"
    assert found.sources["token_file"] == str(tmp_path / "config.toml")
    assert found.sources["api_key"] == "default"


def test_the_users_own_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "dagseal").mkdir()
    (tmp_path / "dagseal" / "config.toml").write_text("[cli]\nunsafe_http = true\n")
    assert settings.load({}, {"XDG_CONFIG_HOME": str(tmp_path)}, None).unsafe_http is True


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("[cli]\nservr = 'x'\n", {}),
        ("[other]\n", {}),
        ("cli = 3\n", {}),
        ("[cli", {}),
        ("[cli]\nserver = 3\n", {}),
        ("[cli]\noutput = 'xml'\n", {}),
        ("[cli]\nunsafe_http = 'perhaps'\n", {}),
        ("", {"DAGSEAL_OUTPUT": "xml"}),
        ("", {"DAGSEAL__CLI__SERVR": "x"}),
        ("", {"DAGSEAL_SERVER": ""}),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, text: str, environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError):
        loaded(tmp_path, {}, text, **environ)


ROWS = [
    {"name": "a", "digest": "sha512:" + "ab" * 64, "at": 1_700_000_000_000_000, "dags": ["x", "y"], "note": None},
    {"name": "b\x1b[2J\n", "digest": "", "at": None, "dags": [], "note": "\u202eevil"},
]


def printed(output: str, capsys: pytest.CaptureFixture[str], columns: tuple[str, ...] = tuple(ROWS[0])) -> str:
    printing.rows(Run(output=output, color="off"), ROWS, columns)
    return capsys.readouterr().out


def test_json_and_yaml_hold_everything_unshortened(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(printed("json", capsys)) == ROWS
    assert yaml.safe_load(printed("yaml", capsys)) == ROWS


@pytest.mark.parametrize("output", ["table", "plain"])
def test_what_a_terminal_would_obey_is_shown_as_text(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(output, capsys)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "sha512:abababababababab…" in text
    assert "2023-11-14 22:13:20.000Z" in text
    assert len(text.splitlines()) == (4 if output == "table" else 3)


def test_an_empty_list_is_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    for output in ("json", "yaml", "table", "plain"):
        printing.rows(Run(output=output, color="off"), [], ("name",))
    assert capsys.readouterr().out.splitlines()[:2] == ["[]", "[]"]


def test_a_folder_is_zipped_to_the_same_bytes_whatever_its_times_and_order(tmp_path: Path) -> None:
    made = []
    for order in (1, -1):
        folder = tmp_path / f"{order}" / "etl"
        (folder / "sql").mkdir(parents=True)
        for name in ["dag.py", "helper.py", "sql/q.sql"][::order]:
            (folder / name).write_text(f"# {name}\n")
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "dag.cpython-311.pyc").write_bytes(b"x")
        (folder / ".git").mkdir()
        (folder / ".git" / "config").write_text("secret")
        os.utime(folder / "dag.py", (order + 10, order + 10))
        made.append(archive_input.read(str(folder)))
    assert made[0] == made[1]
    assert made[0].name == "etl.zip"
    assert b"secret" not in made[0].data


@pytest.mark.parametrize("inside", ["link.py", "sub"])
def test_a_symbolic_link_in_a_folder_is_refused_by_name(tmp_path: Path, inside: str) -> None:
    (tmp_path / "etl").mkdir()
    (tmp_path / "etl" / "dag.py").write_text("x = 1\n")
    (tmp_path / "etl" / inside).symlink_to("/etc")
    with pytest.raises(UnsafeArchiveError) as raised:
        archive_input.read(str(tmp_path / "etl"))
    assert raised.value.entry == inside


def test_an_empty_or_missing_path_is_a_usage_error(tmp_path: Path) -> None:
    for path in (str(tmp_path), str(tmp_path / "none.py"), "-"):
        with pytest.raises(UsageError):
            archive_input.read(path)
