"""Canonical JSON: each value has one encoding, and only that encoding can be read.

Values are `None`, `bool`, `int` within ±(2**53 - 1), `str` without lone surrogates, `list`, and `dict` with `str` keys.
Floats are refused: two writers print them differently. The encoding is UTF-8 without spaces, keys sorted by code point,
nothing escaped but what JSON demands; for ASCII keys it is RFC 8785 (JCS).

>>> dump({"b": [1, True, None], "a": "é"})
b'{"a":"\\xc3\\xa9","b":[1,true,null]}'
>>> load(b'{"a": 1}', max_bytes=100)
Traceback (most recent call last):
integrity.errors.MalformedError: not canonical JSON: byte 5 differs from the canonical form
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from integrity.errors import MalformedError

INTEGER_LIMIT = 2**53
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def dump(value: Any) -> bytes:
    """Encode `value`. Raises `MalformedError` for a value outside the subset above."""
    try:
        _check(value)
        return _ENCODER.encode(value).encode("utf-8")
    except RecursionError:
        raise MalformedError("not canonical JSON: nested too deeply") from None
    except UnicodeEncodeError:
        raise MalformedError("not canonical JSON: a string holds a lone surrogate") from None


def load(data: bytes, *, max_bytes: int) -> Any:
    """Decode `data`, at most `max_bytes` long. Raises `MalformedError` unless `dump(result) == data`."""
    if len(data) > max_bytes:
        raise MalformedError(f"not canonical JSON: {len(data)} bytes, the limit is {max_bytes}")
    try:
        value = json.loads(data.decode("utf-8"), parse_float=_no_float, parse_constant=_no_float)
    except RecursionError:
        raise MalformedError("not canonical JSON: nested too deeply") from None
    except ValueError as error:  # covers UnicodeDecodeError, JSONDecodeError and over-long integers
        raise MalformedError(f"not canonical JSON: {error}") from None
    again = dump(value)
    if again != data:
        where = next((i for i, (a, b) in enumerate(zip(again, data, strict=False)) if a != b), len(again))
        raise MalformedError(f"not canonical JSON: byte {where} differs from the canonical form")
    return value


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]!r} is a float; only integers have one canonical form")


def _check(value: Any) -> None:
    match value:
        case None | bool() | str():
            return
        case int() if -INTEGER_LIMIT < value < INTEGER_LIMIT:
            return
        case int():
            raise MalformedError("not canonical JSON: an integer does not fit 53 bits")
        case list():
            for item in value:
                if not isinstance(item, str):  # most are, and a call for each would be the dearest part
                    _check(item)
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise MalformedError(f"not canonical JSON: key {key!r} is not a string")
                if not isinstance(item, str):
                    _check(item)
        case _:
            raise MalformedError(f"not canonical JSON: {type(value).__name__} has no canonical form")
