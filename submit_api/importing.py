"""Read what `airflow connections export` writes: JSON, YAML or env. All of it, or nothing.

Promise: a file that two readers could read differently is refused (a name or a key twice, a YAML alias); every bad
entry is named, none is shown.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from integrity import names
from integrity.errors import MalformedError
from submit_api.connections import check_connection, unique
from submit_api.refusals import Finding, InvalidRequestError

FORMATS = ("json", "yaml", "env")
MAX_CONNECTIONS = 10_000
_MEDIA_TYPES = {
    "application/json": "json",
    "application/yaml": "yaml",
    "application/x-yaml": "yaml",
    "text/yaml": "yaml",
    "text/x-yaml": "yaml",
}
_ENV_LINE = re.compile(r"[^\s=:{\"'-](?:[^=:]|:(?=\S))*=")


def format_of(media_type: str, wanted: str | None, text: str) -> str:
    """`?format=` decides, then the media type, then how the text begins. Raises `InvalidRequestError`."""
    if wanted is not None:
        if wanted not in FORMATS:
            raise InvalidRequestError(f"format is to be one of {', '.join(FORMATS)}")
        return wanted
    if media_type in _MEDIA_TYPES:
        return _MEDIA_TYPES[media_type]
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and lines[0].lstrip().startswith("{"):
        return "json"
    return "env" if lines and all(_ENV_LINE.match(line) for line in lines) else "yaml"


def read(body: bytes, form: str) -> dict[str, str]:
    """Connection id to the text to keep. Raises `InvalidRequestError` that names every entry that is not usable."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the file is not UTF-8: byte {error.start}") from None
    entries = {"json": _json, "yaml": _yaml, "env": _env}[form](text)
    if not entries:
        raise InvalidRequestError("the file holds no connection")
    if len(entries) > MAX_CONNECTIONS:
        raise InvalidRequestError(f"the file holds {len(entries)} connections, the limit is {MAX_CONNECTIONS}")
    found: dict[str, str] = {}
    findings: list[Finding] = []
    for name, value in entries.items():
        try:
            found[names.check("connection", name)] = check_connection(_entry(name, value))
        except (MalformedError, InvalidRequestError) as error:
            findings.append(Finding(rule="connection", entry=str(name)[:250], detail=str(error)))
    if findings:
        shown = ", ".join(finding.entry for finding in findings[:5])
        raise InvalidRequestError(
            f"{len(findings)} of {len(entries)} connections cannot be used: {shown}", tuple(findings)
        )
    return found


def _entry(name: str, value: Any) -> str | dict[str, Any]:
    """One exported connection: absent fields (null) are left out, an empty password stays."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise InvalidRequestError("a connection is an object or a URI")
    fields = {key: content for key, content in value.items() if content is not None}
    if fields.pop("conn_id", name) != name:
        raise InvalidRequestError("conn_id says another name than its key")
    if "extra_dejson" in fields:
        if "extra" in fields:
            raise InvalidRequestError("extra and extra_dejson exclude each other")
        fields["extra"] = fields.pop("extra_dejson")
    return fields


def _json(text: str) -> dict[str, Any]:
    try:
        entries = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise InvalidRequestError("the file is not usable JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"the file is not JSON: {error.msg}, line {error.lineno}") from None
    except ValueError as error:
        raise InvalidRequestError(f"the file is not usable JSON: {error}") from None
    return _object(entries)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without aliases and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise InvalidRequestError("the file holds a YAML alias: write each value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        made = super().construct_mapping(node, deep=deep)
        if len(made) != len(node.value):
            raise InvalidRequestError(f"a key is there twice in the mapping at line {node.start_mark.line + 1}")
        return made


def _yaml(text: str) -> dict[str, Any]:
    try:
        entries = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise InvalidRequestError(f"the file is not YAML: {error.problem}, line {line}") from None
    except (yaml.YAMLError, ValueError):
        raise InvalidRequestError("the file is not YAML: it holds a character or value that YAML has not") from None
    except RecursionError:
        raise InvalidRequestError("the file is not usable YAML: nested too deeply") from None
    return _object(entries)


def _env(text: str) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for number, line in enumerate(re.split(r"\r\n|\n", text), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, separator, value = line.partition("=")
        if not separator or not name or not value:
            raise InvalidRequestError(f"line {number} is not written CONN_ID=URI")
        if name in entries:
            raise InvalidRequestError(f"line {number} names {name[:250]!r} a second time")
        entries[name] = value
    return entries


def _object(entries: Any) -> dict[str, Any]:
    if not isinstance(entries, dict) or not all(isinstance(key, str) for key in entries):
        raise InvalidRequestError("the file is to hold one object: connection ids with their connections")
    return entries
