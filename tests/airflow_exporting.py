"""`airflow connections export` of the real Airflow, with an AIRFLOW_HOME and a SQLite database of its own:

    python tests/airflow_exporting.py FOLDER

It stores `CONNECTIONS` in the database, writes `connections.json`, `.yaml`, `.uri.env` and `.json.env` by the real command's
own entry point, and in `attributes.json` what Airflow itself reads of each connection in its database.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FORMATS = {
    "json": ["--file-format", "json"],
    "yaml": ["--file-format", "yaml"],
    "uri.env": ["--file-format", "env", "--serialization-format", "uri"],
    "json.env": ["--file-format", "env", "--serialization-format", "json"],
}
ATTRIBUTES = ("conn_id", "conn_type", "description", "host", "login", "password", "schema", "port", "extra")
_PASSWORD = "p@ss:/?#[]!$&'()*+,;=%41 \\\"`|~^{}"
_UNICODE = {"login": "jürgen", "password": "pässwörd☃\U0001f511 \u202e", "description": "größe \u2028 zwei"}
_LINES = {"password": " two\nlines\r\n\tand a tab ", "description": "a\nb: c # d"}
_NESTED = {"a": {"b": [1, 2.5, None, True, {"c": "ü"}]}, "e": "", "n": "1", "role_arn": "arn:x"}
_GOOGLE = {"project": "x", "keyfile_dict": json.dumps({"k": "-----BEGIN\nx"})}
_LIKE_YAML = {"login": "&b", "password": "!!python/object:os", "schema": "- x: {y}", "description": "~"}
_LIKE_NUMBERS = {"login": "007", "password": "1e3", "schema": "null", "description": "yes"}
CONNECTIONS: list[dict[str, Any]] = [
    {
        "conn_id": "plain",
        "conn_type": "postgres",
        "host": "h",
        "login": "u",
        "password": "p",
        "schema": "db",
        "port": 5432,
    },
    {"conn_id": "nothing", "conn_type": "sqlite"},
    {"conn_id": "empty_password", "conn_type": "mysql", "host": "h", "login": "u", "password": ""},
    {"conn_id": "empty_texts", "conn_type": "http", "host": "", "login": "", "password": "", "schema": "", "extra": ""},
    {"conn_id": "no_login", "conn_type": "redis", "host": "h", "password": "only"},
    {"conn_id": "special", "conn_type": "mysql", "host": "h", "login": "a:b@c/d?e#f%20", "password": _PASSWORD},
    {"conn_id": "unicode", "conn_type": "http", "host": "münchen.example", **_UNICODE},
    {
        "conn_id": "lines",
        "conn_type": "ssh",
        "host": "h",
        "password": " two\nlines\r\n\tand a tab ",
        "description": "a\nb: c # d",
    },
    {"conn_id": "no_port", "conn_type": "postgres", "host": "db.example", "schema": "s"},
    {"conn_id": "url", "conn_type": "http", "host": "https://h.example/a/b?c=d&e=f%20g#i", "port": 8443, "login": "u"},
    {"conn_id": "slashes", "conn_type": "fs", "host": "/a//b/", "schema": "x/y z"},
    {"conn_id": "ipv6", "conn_type": "http", "host": "[2001:db8::1]", "port": 80},
    {"conn_id": "nested", "conn_type": "aws", "login": "AKIA", "password": "s/+=", "extra": json.dumps(_NESTED)},
    {"conn_id": "flat", "conn_type": "http", "host": "h", "extra": '{"timeout": "10", "empty": "", "sp ace": "a&b=c"}'},
    {"conn_id": "google", "conn_type": "google_cloud_platform", "extra": json.dumps(_GOOGLE)},
    {"conn_id": "number_like", "conn_type": "http", "host": "0123", **_LIKE_NUMBERS},
    {"conn_id": "yaml_like", "conn_type": "http", "host": "*a", **_LIKE_YAML},
    {"conn_id": "a/b-c.d:e", "conn_type": "http", "host": "h"},
]


def export(folder: Path) -> dict[str, dict[str, Any]]:
    """Run it in a process of its own; what Airflow reads of each connection, by conn_id."""
    folder.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__FERNET_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder}/airflow.db",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
    }
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    if done.returncode:
        raise AssertionError(done.stdout[-3000:] + done.stderr[-3000:])
    found: dict[str, dict[str, Any]] = json.loads((folder / "attributes.json").read_text())
    return found


def _inside(folder: Path) -> None:
    from airflow.__main__ import main
    from airflow.models import Connection
    from airflow.models.team import Team
    from airflow.utils.session import create_session
    from sqlalchemy import update

    # Only the table that is exported, and what it refers to: all of `airflow db migrate` would be most of the time.
    with create_session() as session:
        for table in (Team.__table__, Connection.__table__):
            table.create(session.connection())
        session.add_all(Connection(**fields) for fields in CONNECTIONS)
        session.flush()
        # Airflow's own model makes NULL of it; a database that others write to may hold it.
        empty = update(Connection).where(Connection.conn_id == "empty_password")
        session.execute(empty.values(_password="", is_encrypted=False))
    for ending, words in FORMATS.items():
        sys.argv = ["airflow", "connections", "export", str(folder / f"connections.{ending}"), *words]
        main()
    with create_session() as session:
        found = {one.conn_id: _attributes(one) for one in session.query(Connection)}
    (folder / "attributes.json").write_text(json.dumps(found))


def _attributes(connection: Any) -> dict[str, Any]:
    """All that Airflow has of a connection but how its database keeps it."""
    return {
        **{name: getattr(connection, name) for name in ATTRIBUTES},
        "extra_dejson": connection.extra_dejson,
        "uri": connection.get_uri(),
    }


if __name__ == "__main__":
    _inside(Path(sys.argv[1]))
