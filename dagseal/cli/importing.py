"""How a dags folder becomes archives: each DAG file one, a `.py` alone, or a `.zip` with what it needs of the folder.

What it needs is read from its text, never by running it: the modules of the folder that it imports, and those that they import;
a package comes whole, with its files that are no code; and a file beside it, or below the folder, that a string of it names.
Airflow puts the folder on the path, so `import a.b` means a/b.py of the folder. In the archive the DAG file stands at the top.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from integrity import names
from integrity.errors import InvalidArchiveError, UnsafeArchiveError
from vocabulary import zipwriter

Read = Callable[[str], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """`members`: of the archive, each with its path in the folder."""

    name: str
    source: str
    members: Mapping[str, str]
    owners: frozenset[str] = field(default_factory=frozenset)

    def data(self, read: Read) -> bytes:
        """The archive's bytes: the same for the same files."""
        if self.name.endswith(".py") or self.source.endswith(".zip"):
            return read(self.source)
        return zipwriter.pack({member: read(path) for member, path in self.members.items()})


def files_of(folder: str) -> frozenset[str]:
    """Every file of the folder by its path in it. Left out: what begins with a dot, `__pycache__`, `*.pyc`, and what lies, by a
    symbolic link, outside."""
    top, found = os.path.realpath(folder), set()
    for place, subfolders, files in os.walk(top, followlinks=False):
        subfolders[:] = [name for name in subfolders if _wanted(name)]
        for name in files:
            path = os.path.join(place, name)
            real = os.path.realpath(path)
            if _wanted(name) and os.path.isfile(real) and os.path.commonpath([top, real]) == top:
                found.add(os.path.relpath(path, top))
    return frozenset(found)


def plan(source: str, files: frozenset[str], read: Read, dag_files: frozenset[str] = frozenset()) -> Planned:
    """Raises `InvalidArchiveError`, `UnsafeArchiveError`, `MalformedError` for the archive's name."""
    stem, extension = os.path.splitext(source.replace("/", "_"))
    if source.endswith(".zip"):
        return Planned(name=names.check("archive", source.replace("/", "_")), source=source, members={})
    tree = _parsed(source, read)
    needed = _needed(source, tree, files, read)
    for path in sorted(needed & dag_files):
        if "/" not in path and path.endswith(".py") and _defines_dags(_parsed(path, read)):
            raise InvalidArchiveError(
                "imports-a-dag-file",
                f"imports {path}, which defines DAGs of its own: move what both need to a third",
                source,
            )
    top = os.path.basename(source)
    members = {path: path for path in sorted(needed)}
    members |= _beside(source, tree, files)
    if members.get(top, source) != source:
        raise UnsafeArchiveError(
            "two-of-a-name", f"{top} and {source} would be one file of the archive: rename one", source
        )
    alone = not set(members) - {top}
    name = names.check("archive", stem + (extension if alone else ".zip"))
    return Planned(name=name, source=source, members=members | {top: source}, owners=frozenset(_owners(tree)))


def collisions(planned: list[Planned]) -> dict[str, list[str]]:
    """The names that more than one file would get, whether as a .py or as a .zip."""
    by_name: dict[str, list[str]] = {}
    for one in planned:
        by_name.setdefault(one.name.rpartition(".")[0], []).append(one.source)
    return {name: sources for name, sources in by_name.items() if len(sources) > 1}


def _wanted(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__" and not name.endswith(".pyc")


def _parsed(path: str, read: Read) -> ast.Module:
    try:
        return ast.parse(read(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidArchiveError("not-python", f"cannot be read as Python: {error}", path) from None


def _needed(source: str, tree: ast.Module, files: frozenset[str], read: Read) -> set[str]:
    """Of the folder, without the source itself."""
    found: set[str] = set()
    waiting = [(source, tree)]
    while waiting:
        path, parsed = waiting.pop()
        inside = path if path != source else ""
        for module in _imported(inside, parsed):
            for needed in _files_of_module(module, files) - found - {source}:
                found.add(needed)
                if needed.endswith(".py"):
                    waiting.append((needed, _parsed(needed, read)))
    return found


def _imported(path: str, tree: ast.Module) -> Iterator[str]:
    """The dotted names that a module at `path` imports; the DAG file itself (no path) is in no package."""
    package = path.split("/")[:-1] if path else []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases)
            case ast.ImportFrom(module=module, names=aliases, level=level):
                if level > len(package):
                    continue
                start = package[: len(package) - level + 1] if level else []
                base = ".".join([*start, *([module] if module else [])])
                yield from [base] if module else []
                yield from (f"{base}.{alias.name}" for alias in aliases if alias.name != "*")
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                yield name


def _files_of_module(module: str, files: frozenset[str]) -> set[str]:
    """The first regular package on the way comes whole; nothing for a module that is not the folder's."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        path = "/".join(parts[:count])
        if f"{path}/__init__.py" in files:
            return {name for name in files if name.startswith(f"{path}/")}
        if f"{path}.py" in files:
            return {f"{path}.py"}
    return set()


def _beside(source: str, tree: ast.Module, files: frozenset[str]) -> dict[str, str]:
    """Files that are no code, named by a string: beside the DAG file, or from the folder's top."""
    folder, found = os.path.dirname(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) < 500:
            for start in (folder, ""):
                path = os.path.normpath(os.path.join(start, node.value))
                if path in files and not path.endswith((".py", ".zip")):
                    found[os.path.relpath(path, start or ".")] = path
                    break
    return {member: path for member, path in found.items() if not member.startswith("..")}


def _defines_dags(tree: ast.Module) -> bool:
    called = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    decorators = (one for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for one in node.decorator_list)
    return any(_last_name(node) == "DAG" for node in called) or any(
        _last_name(one.func if isinstance(one, ast.Call) else one) == "dag" for one in decorators
    )


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _owners(tree: ast.Module) -> Iterator[str]:
    """What `default_args` and operators say, where they say it plainly."""
    for node in ast.walk(tree):
        match node:
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    match key, value:
                        case ast.Constant(value="owner"), ast.Constant(value=str(owner)):
                            yield owner
            case ast.keyword(arg="owner", value=ast.Constant(value=str(owner))):
                yield owner
