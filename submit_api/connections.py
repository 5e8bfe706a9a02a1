"""Connections and variables: what a value may look like, and how it rests in the database.

Promise: a value is encrypted with AES-256-GCM before it is stored (`submit_api.rowkeys`); the associated data is the
canonical JSON of `["dagseal/secret/v1", kind, name, version]` (for an XCom: its run and key), so a ciphertext opens only in
its own row.
A value is never part of a message, a log line or an audit event.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from integrity import canonical, names
from integrity.errors import MalformedError
from submit_api import modes
from submit_api.refusals import InvalidRequestError
from submit_api.registry.records import Launch, Secret, StoredXcom
from submit_api.rowkeys import RowKeys
from vocabulary.grants import MAX_SECRET_BYTES

KINDS = ("connection", "variable")
CONNECTION_FIELDS = frozenset(
    {
        "conn_type",
        "description",
        "login",
        "password",
        "host",
        "port",
        "schema",
        "extra",
        "extra_dejson",
        "uri",
        "conn_id",
    }
)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+._-]*:(?://|/?\?|$)")


def seal(keys: RowKeys, kind: str, name: str, value: str, *, earlier: Secret | None, at: int, by: str) -> Secret:
    """The next version of a secret's row; a new secret is of who stored it. Raises `MalformedError` for a bad name,
    `InvalidRequestError` for a bad value."""
    names.check(kind, name)
    plaintext = check_text(value)
    version = earlier.version + 1 if earlier else 1
    row = _row(kind, name, version)
    return Secret(
        kind=kind,
        name=name,
        version=version,
        ciphertext=keys.encrypt(plaintext, row=row),
        updated_at=at,
        updated_by=by,
        owner=earlier.owner if earlier else by,
        group=earlier.group if earlier else by,
        mode=earlier.mode if earlier else modes.NEW[kind],
    )


def open_secret(keys: RowKeys, secret: Secret) -> str:
    """The value. Raises `SignatureError` when the ciphertext is not the one of exactly this row and version."""
    return keys.decrypt(secret.ciphertext, row=_row(secret.kind, secret.name, secret.version)).decode()


def seal_again(keys: RowKeys, secret: Secret) -> Secret:
    """The same value under the newest key."""
    row = _row(secret.kind, secret.name, secret.version)
    return replace(secret, ciphertext=keys.encrypt(keys.decrypt(secret.ciphertext, row=row), row=row))


def seal_xcom(keys: RowKeys, launch: Launch, name: str, value: str) -> StoredXcom:
    """XComs rest like secrets: a task may have pushed one."""
    return StoredXcom(
        dag_id=launch.dag_id,
        run_id=launch.run_id,
        task_id=launch.task_id,
        map_index=launch.map_index,
        key=name,
        launch_id=launch.id,
        ciphertext=keys.encrypt(
            value.encode(), row=_xcom_row(launch.dag_id, launch.run_id, launch.task_id, launch.map_index, name)
        ),
    )


def open_xcom(keys: RowKeys, xcom: StoredXcom) -> str:
    row = _xcom_row(xcom.dag_id, xcom.run_id, xcom.task_id, xcom.map_index, xcom.key)
    return keys.decrypt(xcom.ciphertext, row=row).decode()


def seal_xcom_again(keys: RowKeys, xcom: StoredXcom) -> StoredXcom:
    row = _xcom_row(xcom.dag_id, xcom.run_id, xcom.task_id, xcom.map_index, xcom.key)
    return replace(xcom, ciphertext=keys.encrypt(keys.decrypt(xcom.ciphertext, row=row), row=row))


def check_connection(value: str | dict[str, Any]) -> str:
    """The text to keep: Airflow's connection JSON or its URI. Raises `InvalidRequestError`, never showing the value."""
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        if not _URI.match(value):
            raise InvalidRequestError("a connection is Airflow's JSON object or a URI, as postgres://user@host:5432/db")
        return value
    if isinstance(value, str):
        try:
            fields = json.loads(value, object_pairs_hook=unique)
        except (ValueError, RecursionError):
            raise InvalidRequestError("the connection begins as a JSON object but is not one") from None
    else:
        fields = value
    unknown = sorted(str(name)[:40] for name in set(fields) - CONNECTION_FIELDS)
    if unknown:
        raise InvalidRequestError(f"a connection has no field {', '.join(unknown)[:200]}")
    if "uri" not in fields and not (isinstance(fields.get("conn_type"), str) and fields["conn_type"]):
        raise InvalidRequestError("a connection needs conn_type")
    for name, content in fields.items():
        if not _fits(name, content):
            raise InvalidRequestError(f"the connection's {name} has a type that Airflow does not read")
    return value if isinstance(value, str) else json.dumps(fields, ensure_ascii=False)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object that names a key twice is refused (`ValueError`)."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is there twice")
    return made


def _fits(name: str, content: Any) -> bool:
    match name:
        case "port":
            return content is None or (isinstance(content, int | str) and not isinstance(content, bool))
        case "extra" | "extra_dejson":
            return content is None or isinstance(content, str | dict)
        case _:
            return content is None or isinstance(content, str)


def check_text(value: str) -> bytes:
    """As UTF-8. Raises `InvalidRequestError` for what no grant could hold."""
    try:
        plaintext = value.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("the value holds a lone surrogate: send text") from None
    if len(plaintext) > MAX_SECRET_BYTES // 2:
        raise InvalidRequestError(f"the value has {len(plaintext)} bytes, the limit is {MAX_SECRET_BYTES // 2}")
    return plaintext


def _row(kind: str, name: str, version: int) -> bytes:
    if kind not in KINDS:
        raise MalformedError(f"a secret is a connection or a variable, not {kind!r}")
    return canonical.dump(["dagseal/secret/v1", kind, name, version])


def _xcom_row(dag_id: str, run_id: str, task_id: str, map_index: int, key: str) -> bytes:
    return canonical.dump(["dagseal/xcom/v1", dag_id, run_id, task_id, map_index, key])
