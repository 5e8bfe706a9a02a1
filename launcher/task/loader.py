"""Imports an archive's modules from its verified bytes, and from nowhere else.

Promise: every module below the archive's root is compiled from a member of the verified archive, or was so by another process
that never ran it (`expect`), found by the SHA-512 of the member's own bytes. `zipimport` is not used
(it loads what `zipfile` refuses), no `.pyc` is read or written, and a file that appears below the root later cannot be
imported: the hook answers for every path there, also where a DAG puts one on `sys.path` itself. Packages, namespace
packages (PEP 420), `inspect.getsource` and tracebacks work; `__file__` is a path below the root.
"""

from __future__ import annotations

import _imp
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import marshal
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.readers import FileReader
from types import CodeType, ModuleType

from integrity.errors import UnsafeArchiveError
from vocabulary.archives import Archive

spent_ns = {"compile": 0, "unmarshal": 0}
_compiled: dict[str, CodeType] = {}
_marshalled: dict[bytes, bytes] = {}


def expect(codes: dict[bytes, bytes]) -> None:
    """Take these (`launcher.task.compiling`) instead of compiling, for the life of this process. What was spent counts anew."""
    _marshalled.update(codes)
    spent_ns.update(compile=0, unmarshal=0)


def compile_ahead(path: str, data: bytes) -> None:
    """For the import that follows, so that what the compiler raises is told from what the source raises."""
    _compiled[path] = _code_of(path, data)


def _code_of(path: str, data: bytes) -> CodeType:
    begin = time.perf_counter_ns()
    marshalled = _marshalled.get(hashlib.sha512(data).digest()) if _marshalled else None
    if marshalled is None:
        code = compile(data, path, "exec", dont_inherit=True)
    else:
        code = marshal.loads(marshalled)  # noqa: S302 - from our own fork, by `compiling.read`
        _imp._fix_co_filename(code, path)  # type: ignore[attr-defined]  # in place and all within it: so does importlib
    spent_ns["compile" if marshalled is None else "unmarshal"] += time.perf_counter_ns() - begin
    return code


class MemberLoader(importlib.abc.InspectLoader):
    """One module. `path` is what its `__file__` says; its bytes are `data`."""

    def __init__(self, fullname: str, path: str, data: bytes, *, package: bool) -> None:
        self.name = fullname
        self.path = path
        self._data = data
        self._package = package

    def is_package(self, fullname: str) -> bool:
        return self._package

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._data)

    def get_data(self, path: str) -> bytes:
        """The module's own bytes, or a file of the private copy."""
        if path == self.path:
            return self._data
        with open(path, "rb") as file:
            return file.read()

    def get_code(self, fullname: str) -> CodeType:
        return _compiled.pop(self.path, None) or _code_of(self.path, self._data)

    def get_resource_reader(self, fullname: str) -> FileReader:
        return FileReader(self)  # type: ignore[arg-type]  # it wants `.path`, which the stubs call a FileLoader


class MemberFinder:
    """A path entry finder: the modules of one folder of the archive."""

    def __init__(self, files: Mapping[str, bytes], folders: frozenset[str], root: str, folder: str) -> None:
        self._files = files
        self._folders = folders
        self._root = root
        self._prefix = f"{folder}/" if folder else ""

    def find_spec(self, fullname: str, target: ModuleType | None = None) -> ModuleSpec | None:
        base = self._prefix + fullname.rpartition(".")[2]
        for member, package in ((f"{base}/__init__.py", True), (f"{base}.py", False)):
            if member in self._files:
                return spec_for(fullname, f"{self._root}/{member}", self._files[member], package=package)
        if base in self._folders:
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [f"{self._root}/{base}"]
            return spec
        return None

    def iter_modules(self, prefix: str = "") -> Iterator[tuple[str, bool]]:
        """For `pkgutil`."""
        names = {member[len(self._prefix) :] for member in self._files if member.startswith(self._prefix)}
        for name in sorted(names):
            head, _, rest = name.partition("/")
            if rest == "__init__.py":
                yield prefix + head, True
            elif not rest and head.endswith(".py") and head != "__init__.py":
                yield prefix + head.removesuffix(".py"), False

    def invalidate_caches(self) -> None:
        """The members never change."""


def spec_for(fullname: str, path: str, data: bytes, *, package: bool = False) -> ModuleSpec:
    loader = MemberLoader(fullname, path, data, package=package)
    spec = importlib.util.spec_from_file_location(
        fullname, path, loader=loader, submodule_search_locations=[os.path.dirname(path)] if package else None
    )
    if spec is None:
        raise RuntimeError(f"no spec for {fullname}")
    return spec


def install(archive: Archive, root: str) -> None:
    """Make the modules of a zip importable by their own names, ahead of installed ones. For the life of this process."""
    files = {member.name: member.data for member in archive.members}
    folders = frozenset(
        "/".join(parts[:depth]) for parts in (name.split("/") for name in files) for depth in range(1, len(parts))
    )
    sys.path_hooks.insert(0, _hook(files, folders, root))
    sys.path_importer_cache.clear()
    sys.path.insert(0, root)


def _hook(files: Mapping[str, bytes], folders: frozenset[str], root: str) -> Callable[[str], MemberFinder]:
    def finder_for(entry: str) -> MemberFinder:
        path = os.path.realpath(entry)
        folder = os.path.relpath(path, root)
        if folder.startswith("..") or os.path.isabs(folder):
            raise ImportError("not below the archive")
        folder = "" if folder == "." else folder
        return MemberFinder(files, folders, root, folder)

    return finder_for


def import_single(name: str, path: str, data: bytes) -> ModuleType:
    """Import one source as the module `name`, as `import` would."""
    spec = spec_for(name, path, data)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def module_name(stem: str) -> str:
    """The name under which a lone `.py` is imported: its stem, where that is an identifier."""
    return stem if stem.isidentifier() else "dag_" + re.sub(r"\W", "_", stem)


def refuse_shadowing(names: Sequence[tuple[str, str]]) -> None:
    """Raise `UnsafeArchiveError` where a top-level module (name, member) would hide an installed one, or be hidden by it."""
    for name, member in names:
        if name in sys.modules or importlib.machinery.PathFinder.find_spec(name) is not None:
            raise UnsafeArchiveError(
                "shadows-module", f"its module {name!r} would hide the installed one: rename it", member
            )
