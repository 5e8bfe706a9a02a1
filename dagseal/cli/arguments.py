"""Global options may stand anywhere before `--`: they are moved to the front, where the parser wants them."""

from __future__ import annotations

from collections.abc import Sequence

_WITH_VALUE = ("-o", "--output", "--color", "--config", "--server", "--token-file")
_FLAGS = ("-q", "--quiet", "-v", "--verbose", "--no-input")


def globals_first(argv: Sequence[str]) -> list[str]:
    """`argv` in the order that the parser understands.

    >>> globals_first(["list", "-o", "json", "--", "-q"])
    ['-o', 'json', 'list', '--', '-q']
    """
    front: list[str] = []
    rest: list[str] = []
    left = list(argv)
    while left:
        word = left.pop(0)
        if word == "--":
            return [*front, *rest, word, *left]
        if word in _FLAGS or word.startswith(tuple(f"{name}=" for name in _WITH_VALUE if name.startswith("--"))):
            front.append(word)
        elif word in _WITH_VALUE:
            front += [word, *left[:1]]
            del left[:1]
        elif word.startswith("-o") and not word.startswith("--"):
            front += ["-o", word[2:].removeprefix("=")]
        else:
            rest.append(word)
    return [*front, *rest]
