"""Where the command line gets its settings, and from which source each came.

Order: flag, `DAGSEAL_SERVER` (and the like), `DAGSEAL__CLI__KEY`, the `[cli]` table of the TOML file given by --config
or else of ~/.config/dagseal/config.toml or else of /etc/dagseal/config.toml, then the default. Unknown keys are refused.

    [cli]
    server = "https://dagseal.example:8420"
    token_file = "~/.config/dagseal/token"
    api_key = "<base64 of the API's public key>"     # what `verify` believes; `dagseal key show` prints it
    ca_file = "/etc/dagseal/ca.pem"
    unsafe_http = false                               # true sends the token in clear text to another host
    output = "table"
    color = "auto"
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from integrity.errors import SettingsError

DEFAULTS: dict[str, Any] = {
    "server": "http://127.0.0.1:8420",
    "token_file": None,
    "api_key": None,
    "ca_file": None,
    "unsafe_http": False,
    "output": "table",
    "color": "auto",
}
OUTPUTS = ("table", "json", "yaml", "plain")
COLORS = ("auto", "on", "off")
SYSTEM_FILE = "/etc/dagseal/config.toml"
_CHOICES = {"output": OUTPUTS, "color": COLORS}


@dataclass(frozen=True, slots=True, kw_only=True)
class CliSettings:
    """The values, and for each key the source that it came from."""

    server: str
    token_file: str | None
    api_key: str | None
    ca_file: str | None
    unsafe_http: bool
    output: str
    color: str
    sources: dict[str, str]


def load(flags: Mapping[str, Any], environ: Mapping[str, str], config: str | None) -> CliSettings:
    """Merge the sources. Raises `SettingsError` that names the source and the key."""
    values, sources = dict(DEFAULTS), dict.fromkeys(DEFAULTS, "default")
    layers = [_file(config, environ), _environment(environ, "DAGSEAL__CLI__"), _environment(environ, "DAGSEAL_")]
    layers.append({key: (value, "flag") for key, value in flags.items() if value is not None})
    for layer in layers:
        for key, (value, source) in layer.items():
            values[key], sources[key] = _checked(key, value, source), source
    for key in ("token_file", "ca_file"):
        if values[key] is not None:
            values[key] = os.path.expanduser(values[key])
    return CliSettings(**values, sources=sources)


def _file(config: str | None, environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    candidates = [config] if config else [user_file(environ), SYSTEM_FILE]
    path = next((candidate for candidate in candidates if os.path.exists(candidate)), None)
    if path is None:
        if config:
            raise SettingsError(f"there is no configuration file {config}")
        return {}
    import tomllib

    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"the configuration {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
    table = document.pop("cli", {})
    unknown = [*document, *(key for key in table if key not in DEFAULTS)] if isinstance(table, dict) else ["cli"]
    if unknown:
        raise SettingsError(f"{path} has unknown keys: {', '.join(sorted(unknown))}; known in [cli] are {_known()}")
    return {key: (value, path) for key, value in table.items()}


def user_file(environ: Mapping[str, str]) -> str:
    """The caller's own file."""
    base = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME", "/nonexistent"), ".config")
    return os.path.join(base, "dagseal", "config.toml")


def _environment(environ: Mapping[str, str], prefix: str) -> dict[str, tuple[Any, str]]:
    found = {
        key: (environ[prefix + key.upper()], prefix + key.upper())
        for key in DEFAULTS
        if prefix + key.upper() in environ
    }
    if prefix == "DAGSEAL__CLI__":
        unknown = [name for name in environ if name.startswith(prefix) and name[len(prefix) :].lower() not in DEFAULTS]
        if unknown:
            raise SettingsError(
                f"unknown settings in the environment: {', '.join(sorted(unknown))}; known are {_known()}"
            )
    return found


def _checked(key: str, value: Any, source: str) -> Any:
    if isinstance(DEFAULTS[key], bool):
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
        value = words.get(value.lower(), value) if isinstance(value, str) else value
        if not isinstance(value, bool):
            raise SettingsError(f"{source}: {key} is to be true or false, not {value!r}")
        return value
    if not isinstance(value, str) or not value:
        raise SettingsError(f"{source}: {key} is to be a text that is not empty")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise SettingsError(f"{source}: {key} is to be one of {', '.join(_CHOICES[key])}, not {value!r}")
    return value


def _known() -> str:
    return ", ".join(sorted(DEFAULTS))
