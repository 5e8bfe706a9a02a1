"""Which text a row can hold: the same on every database.

SQLite takes any text at any length; PostgreSQL takes no NUL, and no more characters than the column has. So what is to be
stored or compared is looked at here, before the statement is sent: `InvalidRequestError` names the column, never the text,
and nothing has happened.
"""

from __future__ import annotations

import sys
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, event
from sqlalchemy.types import String

from submit_api.refusals import InvalidRequestError

REPLACEMENT = "\ufffd"
_limits: WeakKeyDictionary[Any, dict[str, int]] = WeakKeyDictionary()  # of statements, which are compiled once


def storable(text: str) -> str:
    """Words of somebody who need not be refused for a NUL in them: it is replaced."""
    return text.replace("\0", REPLACEMENT)


def guard(engine: Engine) -> None:
    """Look at every statement of this engine."""
    event.listen(engine, "before_cursor_execute", _look)


def _look(_connection: Any, _cursor: Any, _statement: str, _parameters: Any, context: Any, _many: bool) -> None:
    if context is None or context.isddl or context.compiled is None:
        return
    most = _limits.get(context.compiled)
    if most is None:
        most = _limits[context.compiled] = _most(context.compiled)
    for row in context.compiled_parameters:
        for name, value in row.items():
            if isinstance(value, str):
                limit = most.get(name, sys.maxsize)
                if "\0" in value or not value.isascii() or len(value) > limit:
                    _check(name, value, limit)


def _most(compiled: Any) -> dict[str, int]:
    """How long each text of a statement that stores may be."""
    stored = compiled.binds.items() if compiled.isinsert or compiled.isupdate else ()
    return {name: bind.type.length for name, bind in stored if isinstance(bind.type, String) and bind.type.length}


def _check(name: str, value: str, most: int) -> None:
    if "\0" in value:
        raise InvalidRequestError(f"{name} holds a NUL, which no text here can: leave it out")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            f"{name} holds half of a surrogate pair, which is no character: leave it out"
        ) from None
    if len(value) > most:
        raise InvalidRequestError(f"{name} has {len(value)} characters, at most {most} can be stored: shorten it")
