"""Which text a row can hold: the same on every database.

SQLite takes any text at any length; PostgreSQL takes no NUL, and no more characters than the column has. So what is to be
stored or compared is looked at here, before the statement is sent: `InvalidRequestError` names the column, never the text,
and nothing has happened.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.types import String

from submit_api.refusals import InvalidRequestError

REPLACEMENT = "\ufffd"


def storable(text: str) -> str:
    """Words of somebody who need not be refused for a NUL in them: it is replaced."""
    return text.replace("\0", REPLACEMENT)


def guard(engine: Engine) -> None:
    """Look at every statement of this engine."""
    event.listen(engine, "before_cursor_execute", _look)


def _look(_connection: Any, _cursor: Any, _statement: str, _parameters: Any, context: Any, _many: bool) -> None:
    if context is None or context.isddl or context.compiled is None:
        return
    stores = context.isinsert or context.isupdate
    most = {
        name: bind.type.length if stores and isinstance(bind.type, String) else None
        for name, bind in context.compiled.binds.items()
    }
    for row in context.compiled_parameters:
        for name, value in row.items():
            if isinstance(value, str):
                _check(name, value, most.get(name))


def _check(name: str, value: str, most: int | None) -> None:
    if "\0" in value:
        raise InvalidRequestError(f"{name} holds a NUL, which no text here can: leave it out")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidRequestError(
                f"{name} holds half of a surrogate pair, which is no character: leave it out"
            ) from None
    if most is not None and len(value) > most:
        raise InvalidRequestError(f"{name} has {len(value)} characters, at most {most} can be stored: shorten it")
