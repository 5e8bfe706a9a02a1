"""Made the archives of this folder: `bad/`, each refused by one rule, and `good/`. Standard library only.

`python tests/vectors/archives/make.py` writes them again, with `index.json`: file, name under which it is uploaded,
rule, and the entry that the refusal names. The bytes of deflated content are those of the zlib at hand.
"""

from __future__ import annotations

import io
import json
import pathlib
import shutil
import struct
import zipfile
import zlib

from zipbuild import DAG, Entry, build, deflate, local_header

HERE = pathlib.Path(__file__).parent


def quoted_overlap() -> bytes:
    """Fifield: the first member's deflate stream quotes the second's local header, and both share the kernel."""
    kernel_data = b"a" * 1000
    kernel = deflate(kernel_data)
    inner = Entry(name=b"b.txt", data=kernel_data, method=8, packed=kernel)
    quoted = local_header(inner, kernel)
    packed = b"\0" + struct.pack("<HH", len(quoted), len(quoted) ^ 0xFFFF) + quoted + kernel
    outer = Entry(name=b"a.txt", data=quoted + kernel_data, method=8, packed=packed)
    at = 30 + len(outer.name) + 5
    return build(Entry(name=b"a.txt", data=outer.data, method=8, packed=packed),
                 Entry(name=b"b.txt", data=kernel_data, method=8, packed=kernel, offset=at, written=False))


def two_readings() -> bytes:
    """A zip64 directory record and locator inside the last extra field: `zipfile` of some versions follows it."""
    hidden = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 0, 0, 0, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    blob = hidden + locator
    return build(Entry(central_extra=struct.pack("<HH", 0x5455, len(blob)) + blob))


def streamed() -> bytes:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, b) -> int:
            self.data += b
            return len(b)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        archive.writestr(zipfile.ZipInfo("etl.py"), DAG)
    return bytes(pipe.data)


def by_zipfile(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("pkg")
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name.replace("__", "/", 1).replace("_DOT_", ".")), data)
    return out.getvalue()


def named(name: str | bytes, **fields) -> bytes:
    raw = name if isinstance(name, bytes) else name.encode()
    flags = fields.pop("flags", 0 if raw.isascii() else 0x800)
    return build(Entry(), Entry(name=raw, data=b"x = 1\n", flags=flags, **fields))


def both(first: str, second: str) -> bytes:
    return build(Entry(), *(Entry(name=n.encode(), data=b"1", flags=0 if n.isascii() else 0x800) for n in (first, second)))


def source(data: bytes) -> bytes:
    return build(Entry(data=data, method=8))


times = struct.pack("<HHBL", 0x5455, 5, 1, 0)
owner = struct.pack("<HHBBLBL", 0x7875, 11, 1, 4, 1000, 4, 1000)
ntfs = struct.pack("<HHLHHQQQ", 0x000A, 32, 0, 1, 24, 0, 0, 0)
one = build(Entry())
zeros = b"\0" * (33 << 20)
many = build(Entry(), *(Entry(name=b"%d" % n, data=b"") for n in range(1000)))

# case, upload name, rule, entry named by the refusal, bytes
BAD: list[tuple[str, str, str, str, bytes]] = [
    ("parent", "x.zip", "zip-path-traversal", "../evil.py", named("../evil.py")),
    ("parent-inside", "x.zip", "zip-path-traversal", "a/../../evil.py", named("a/../../evil.py")),
    ("absolute", "x.zip", "zip-absolute-path", "/tmp/x.py", named("/tmp/x.py")),
    ("drive", "x.zip", "zip-drive-letter", "C:/x.py", named("C:/x.py")),
    ("backslash", "x.zip", "zip-backslash", "a\\b.py", named("a\\b.py")),
    ("drive-backslash", "x.zip", "zip-backslash", "C:\\x.py", named("C:\\x.py")),
    ("symlink", "x.zip", "zip-symlink", "l", build(Entry(), Entry(name=b"l", data=b"/etc/passwd", mode=0o120777))),
    ("symlink-folder", "x.zip", "zip-symlink", "l/", build(Entry(), Entry(name=b"l/", data=b"", mode=0o120777), Entry(name=b"l/x", data=b"1"))),
    ("fifo", "x.zip", "zip-special-file", "p", build(Entry(), Entry(name=b"p", data=b"", mode=0o010644))),
    ("device", "x.zip", "zip-special-file", "d", build(Entry(), Entry(name=b"d", data=b"", mode=0o020644))),
    ("folder-mode-on-file", "x.zip", "zip-special-file", "d", build(Entry(), Entry(name=b"d", data=b"", mode=0o040755))),
    ("setuid", "x.zip", "zip-mode", "s", build(Entry(), Entry(name=b"s", data=b"", mode=0o104755))),
    ("setgid-folder", "x.zip", "zip-mode", "s/", build(Entry(), Entry(name=b"s/", data=b"", mode=0o042755))),
    ("bomb-member", "x.zip", "zip-expanded-too-large", "z", build(Entry(), Entry(name=b"z", data=zeros, method=8))),
    ("bomb-ratio", "x.zip", "zip-expanded-too-large", "z", build(Entry(), Entry(name=b"z", data=zeros[: 2 << 20], method=8))),
    ("bomb-total", "x.zip", "zip-expanded-too-large", "", build(*(Entry(name=b"%03d.py" % n, data=b"", size=999 << 10) for n in range(70)))),
    ("bomb-that-lies", "x.zip", "zip-size-lie", "z", build(Entry(), Entry(name=b"z", data=zeros, method=8, size=10))),
    ("two-names-one-content", "x.zip", "zip-overlap", "", build(Entry(), Entry(name=b"b.py", offset=0, written=False))),
    ("quoted-overlap", "x.zip", "zip-overlap", "b.txt", quoted_overlap()),
    ("into-directory", "x.zip", "zip-overlap", "etl.py", build(Entry(packed_size=len(DAG) + 9, size=len(DAG) + 9))),
    ("duplicate", "x.zip", "zip-duplicate", "etl.py", build(Entry(), Entry(data=b"import os\n"))),
    ("duplicate-folder", "x.zip", "zip-duplicate", "d/", build(Entry(), *(Entry(name=b"d/", data=b"", mode=0o040755) for _ in "12"))),
    ("case", "x.zip", "zip-case-collision", "README", both("readme", "README")),
    ("case-folder", "x.zip", "zip-case-collision", "D/b", both("d/a", "D/b")),
    ("decomposed", "x.zip", "zip-unicode-collision", "e\u0301.txt", both("\u00e9.txt", "e\u0301.txt")),
    ("compatible", "x.zip", "zip-unicode-collision", "\ufb01.txt", both("fi.txt", "\ufb01.txt")),
    ("nul-name", "x.zip", "zip-name-control-char", "a\\x00.txt", named(b"a\0.txt")),
    ("newline-name", "x.zip", "zip-name-control-char", "a\\n.txt", named(b"a\n.txt")),
    ("escape-name", "x.zip", "zip-name-control-char", "a\\x1b[2J", named(b"a\x1b[2J")),
    ("line-separator-name", "x.zip", "zip-name-control-char", "a\\u2028b", named("a\u2028b")),
    ("bidi-name", "x.zip", "zip-name-bidi", "a\\u202eyp.txt", named("a\u202eyp.txt")),
    ("zero-width-name", "x.zip", "zip-name-bidi", "a\\u200bb.py", named("a\u200bb.py")),
    ("encrypted", "x.zip", "zip-encrypted", "etl.py", build(Entry(flags=1))),
    ("strong-encryption", "x.zip", "zip-encrypted", "etl.py", build(Entry(flags=0x40))),
    ("masked-headers", "x.zip", "zip-encrypted", "etl.py", build(Entry(flags=0x2000))),
    ("patched-data", "x.zip", "zip-flags", "etl.py", build(Entry(flags=0x20))),
    ("crc", "x.zip", "zip-crc", "etl.py", build(Entry(crc=1))),
    ("crc-deflated", "x.zip", "zip-crc", "etl.py", build(Entry(crc=1, method=8))),
    ("cut-deflate", "x.zip", "zip-corrupt", "etl.py", build(Entry(method=8, packed=deflate(DAG)[:-2]))),
    ("not-deflate", "x.zip", "zip-corrupt", "etl.py", build(Entry(method=8, packed=b"\xff" * 9))),
    ("after-deflate", "x.zip", "zip-hidden-entry", "etl.py", build(Entry(method=8, packed=deflate(DAG) + b"hidden"))),
    ("larger-than-said", "x.zip", "zip-size-lie", "etl.py", build(Entry(method=8, size=10))),
    ("smaller-than-said", "x.zip", "zip-size-lie", "etl.py", build(Entry(method=8, size=9999))),
    ("stored-size", "x.zip", "zip-size-lie", "etl.py", build(Entry(size=10))),
    ("leading", "x.zip", "zip-leading-data", "", b"#!/bin/sh\nexit\n" + one),
    ("leading-adjusted", "x.zip", "zip-leading-data", "", build(Entry(), lead=b"#!/bin/sh\nexit\n")),
    ("trailing", "x.zip", "zip-trailing-data", "", build(Entry(), tail=b"more")),
    ("two-archives", "x.zip", "zip-trailing-data", "", one + build(Entry(name=b"evil.py"))),
    ("comment", "x.zip", "zip-comment", "", build(Entry(), end={"comment": b"hello"})),
    ("archive-in-comment", "x.zip", "zip-comment", "", build(Entry(), end={"comment": build()})),
    ("said-comment", "x.zip", "zip-comment", "", one[:-2] + b"\5\0"),
    ("comment-begun-in-content", "x.zip", "zip-comment", "", build(Entry(name=b"a.bin", data=b"PK\5\6" + b"\0" * 16 + struct.pack("<H", 4 + 46 + 5 + 22)  + b"1234"))),
    ("cut-comment", "x.zip", "zip-comment", "", build(Entry(), end={"comment": b"hello"})[:-1]),
    ("entry-comment", "x.zip", "zip-comment", "etl.py", build(Entry(comment=b"hello"))),
    ("other-local-name", "x.zip", "zip-header-mismatch", "good.py", build(Entry(name=b"good.py", local={"name": b"evil.py"}))),
    ("longer-local-name", "x.zip", "zip-header-mismatch", "good.py", build(Entry(name=b"good.py", local={"name": b"evil_.py"}))),
    ("other-local-size", "x.zip", "zip-header-mismatch", "etl.py", build(Entry(local={"size": 5}))),
    ("other-local-packed", "x.zip", "zip-header-mismatch", "etl.py", build(Entry(local={"packed": 5}))),
    ("other-local-method", "x.zip", "zip-header-mismatch", "etl.py", build(Entry(local={"method": 8}))),
    ("other-local-crc", "x.zip", "zip-header-mismatch", "etl.py", build(Entry(local={"crc": 5}))),
    ("hidden-first", "x.zip", "zip-hidden-entry", "etl.py", build(Entry(name=b"evil.py", listed=False), Entry())),
    ("hidden-between", "x.zip", "zip-hidden-entry", "b.py", build(Entry(), Entry(name=b"evil.py", listed=False), Entry(name=b"b.py"))),
    ("hidden-last", "x.zip", "zip-hidden-entry", "", build(Entry(), Entry(name=b"evil.py", listed=False))),
    ("gap", "x.zip", "zip-hidden-entry", "", build(Entry(), gap=b"\0")),
    ("no-local-header", "x.zip", "zip-corrupt", "b.py", build(Entry(), Entry(name=b"b.py", offset=7, written=False))),
    ("offset-outside", "x.zip", "zip-corrupt", "b.py", build(Entry(), Entry(name=b"b.py", offset=1 << 30, written=False))),
    ("cut-file", "x.zip", "zip-corrupt", "", one[:60]),
    ("cut-end-record", "x.zip", "zip-corrupt", "", one[:-3]),
    ("long-directory-entry", "x.zip", "zip-corrupt", "", one.replace(b"\6\0\0\0\0\0\0\0\0\0\0\0\xa4\x81", b"\6\xff\0\0\0\0\0\0\0\0\0\0\xa4\x81")),
    ("no-directory-size", "x.zip", "zip-eocd", "", build(Entry(), end={"size": 0})),
    ("no-directory", "x.zip", "zip-eocd", "", build(Entry(listed=False))),
    ("count-less", "x.zip", "zip-eocd", "", build(Entry(), Entry(name=b"b.py"), end={"count": 1, "here": 1})),
    ("count-more", "x.zip", "zip-eocd", "", build(Entry(), end={"count": 2, "here": 2})),
    ("counts-differ", "x.zip", "zip-eocd", "", build(Entry(), end={"count": 2})),
    ("start", "x.zip", "zip-eocd", "", build(Entry(), end={"start": 5})),
    ("disk", "x.zip", "zip-multidisk", "", build(Entry(), end={"disk": 1})),
    ("directory-disk", "x.zip", "zip-multidisk", "", build(Entry(), end={"directory_disk": 1})),
    ("entry-disk", "x.zip", "zip-multidisk", "etl.py", build(Entry(disk=1))),
    ("bzip2", "x.zip", "zip-method", "etl.py", build(Entry(method=12, version=46))),
    ("lzma", "x.zip", "zip-method", "etl.py", build(Entry(method=14, version=63))),
    ("deflate64", "x.zip", "zip-method", "etl.py", build(Entry(method=9, version=21))),
    ("aes", "x.zip", "zip-method", "etl.py", build(Entry(method=99, flags=1, version=51))),
    ("version", "x.zip", "zip-version", "etl.py", build(Entry(version=45))),
    ("zip64-extra", "x.zip", "zip-zip64", "etl.py", build(Entry(extra=struct.pack("<HHQQ", 1, 16, 5, 5)))),
    ("zip64-sizes", "x.zip", "zip-zip64", "etl.py", build(Entry(size=0xFFFFFFFF, packed_size=0xFFFFFFFF, extra=struct.pack("<HHQQ", 1, 16, 5, 5)))),
    ("zip64-local-extra", "x.zip", "zip-zip64", "etl.py", build(Entry(extra=struct.pack("<HHQQ", 1, 16, 5, 5), central_extra=b""))),
    ("zip64-locator-in-extra", "x.zip", "zip-zip64", "", two_readings()),
    ("data-descriptor", "x.zip", "zip-data-descriptor", "etl.py", streamed()),
    ("1001-entries", "x.zip", "zip-too-many-entries", "", many),
    ("65535-entries", "x.zip", "zip-too-many-entries", "", build(Entry(), end={"count": 0xFFFF, "here": 0xFFFF})),
    ("long-name", "x.zip", "zip-name-too-long", "a" * 256, named("a" * 256)),
    ("deep", "x.zip", "zip-name-too-long", "a/" * 16 + "b.py", named("a/" * 16 + "b.py")),
    ("file-and-folder", "x.zip", "zip-path-conflict", "a/b", both("a", "a/b")),
    ("folder-and-file", "x.zip", "zip-path-conflict", "a", both("a/b", "a")),
    ("folder-with-bytes", "x.zip", "zip-path-conflict", "d/", build(Entry(), Entry(name=b"d/", data=b"1", mode=0o040755))),
    ("file-called-folder", "x.zip", "zip-path-conflict", "d", build(Entry(), Entry(name=b"d", data=b"1", attributes=0x10))),
    ("trailing-dot", "x.zip", "zip-reserved-name", "a.", named("a.")),
    ("trailing-space", "x.zip", "zip-reserved-name", "a /b", named("a /b")),
    ("device-name", "x.zip", "zip-reserved-name", "a/NUL.txt", named("a/NUL.txt")),
    ("stream-name", "x.zip", "zip-reserved-name", "etl.txt:evil", named("etl.txt:evil")),
    ("bad-utf8-name", "x.zip", "zip-name-encoding", "\\xff.py", named(b"\xff.py", flags=0x800)),
    ("cp437-name", "x.zip", "zip-name-encoding", "\\x82.py", named(b"\x82.py", flags=0)),
    ("unflagged-utf8-name", "x.zip", "zip-name-encoding", "\\xc3\\xa9.py", named("\u00e9.py", flags=0)),
    ("unicode-path-extra", "x.zip", "zip-extra-field", "good.py", build(Entry(name=b"good.py", extra=struct.pack("<HHBL", 0x7075, 12, 1, zlib.crc32(b"good.py")) + b"evil.py"))),
    ("unknown-extra", "x.zip", "zip-extra-field", "etl.py", build(Entry(extra=struct.pack("<HH", 0xCAFE, 0)))),
    ("cut-extra", "x.zip", "zip-extra-field", "etl.py", build(Entry(extra=struct.pack("<HH", 0x5455, 9)))),
    ("one-byte-extra", "x.zip", "zip-extra-field", "etl.py", build(Entry(extra=b"\x55"))),
    ("stuffed-extra", "x.zip", "zip-extra-field", "etl.py", build(Entry(extra=struct.pack("<HH", 0x5455, 40) + bytes(40)))),
    ("empty-archive", "x.zip", "no-dag-found", "", build()),
    ("no-python", "x.zip", "no-dag-found", "", build(Entry(name=b"a.sql", data=b"select 1"))),
    ("only-folder", "x.zip", "no-dag-found", "", build(Entry(name=b"d/", data=b"", mode=0o040755))),
    ("nested-zip", "x.zip", "nested-archive", "lib.zip", named("lib.zip")),
    ("nested-wheel", "x.zip", "nested-archive", "a/lib.WHL", named("a/lib.WHL")),
    ("nested-tar", "x.zip", "nested-archive", "lib.tar.gz", named("lib.tar.gz")),
    ("dot-segment", "x.zip", "zip-path-not-canonical", "./a", named("./a")),
    ("empty-segment", "x.zip", "zip-path-not-canonical", "a//b", named("a//b")),
    ("empty-name", "x.zip", "zip-path-not-canonical", "", named("")),
    ("not-a-zip", "x.zip", "unsupported-media-type", "", DAG),
    ("nothing", "x.zip", "unsupported-media-type", "", b""),
    ("zip-called-py", "x.py", "unsupported-media-type", "x.py", one),
    ("empty-zip-called-py", "x.py", "unsupported-media-type", "x.py", build()),
    ("pycache", "x.zip", "forbidden-file-type", "__pycache__/x", named("__pycache__/x")),
    ("pyc", "x.zip", "forbidden-file-type", "a.pyc", named("a.pyc")),
    ("so", "x.zip", "forbidden-file-type", "a.cpython-311.so", named("a.cpython-311.so")),
    ("so-version", "x.zip", "forbidden-file-type", "liba.so.1.2", named("liba.so.1.2")),
    ("pyd", "x.zip", "forbidden-file-type", "a.PYD", named("a.PYD")),
    ("dll", "x.zip", "forbidden-file-type", "a.dll", named("a.dll")),
    ("sitecustomize", "x.zip", "forbidden-file-name", "sitecustomize.py", named("sitecustomize.py")),
    ("usercustomize-package", "x.zip", "forbidden-file-name", "usercustomize/__init__.py", named("usercustomize/__init__.py")),
    ("pth", "x.zip", "forbidden-file-name", "a.pth", named("a.pth")),
    ("sitecustomize-py", "sitecustomize.py", "forbidden-file-name", "sitecustomize.py", DAG),
    ("shadows-os", "x.zip", "shadows-module", "os.py", named("os.py")),
    ("shadows-airflow", "x.zip", "shadows-module", "airflow/__init__.py", named("airflow/__init__.py")),
    ("shadows-ours", "x.zip", "shadows-module", "integrity/a/b.py", named("integrity/a/b.py")),
    ("shadows-main", "x.zip", "shadows-module", "__main__.py", named("__main__.py")),
    ("shadows-py", "json.py", "shadows-module", "json.py", DAG),
    ("nul", "x.py", "source-encoding", "x.py", b"x = 1\0\n"),
    ("substitute", "x.py", "source-encoding", "x.py", b"x = 1\n\x1a\nimport os\n"),
    ("escape", "x.py", "source-encoding", "x.py", b"# \x1b[2J\nx = 1\n"),
    ("latin-1", "x.py", "source-encoding", "x.py", b"x = '\xe9'\n"),
    ("utf-16", "x.py", "source-encoding", "x.py", "x = 1\n".encode("utf-16")),
    ("utf-16-bare", "x.py", "source-encoding", "x.py", "x = 1\n".encode("utf-16-le")),
    ("surrogate", "x.py", "source-encoding", "x.py", b"x = '\xed\xa0\x80'\n"),
    ("overlong", "x.py", "source-encoding", "x.py", b"x = '\xc0\xaf'\n"),
    ("polyglot", "x.py", "source-encoding", "x.py", b"x = 1\n#" + one),
    ("bom", "x.py", "source-bom", "x.py", b"\xef\xbb\xbfx = 1\n"),
    ("cookie-utf-7", "x.py", "source-encoding-cookie", "x.py", b"# coding: utf-7\n# +AAo-import os\n"),
    ("cookie-unicode-escape", "x.py", "source-encoding-cookie", "x.py", b"# -*- coding: unicode_escape -*-\n# \\u000aimport os\n"),
    ("cookie-second-line", "x.py", "source-encoding-cookie", "x.py", b"#!/usr/bin/python\n\t# vim: set fileencoding=raw_unicode_escape :\n"),
    ("cookie-latin-1", "x.py", "source-encoding-cookie", "x.py", b"# coding=latin-1\n"),
    ("cookie-iso2022", "x.py", "source-encoding-cookie", "x.py", b"# coding: iso2022_jp\n"),
    ("cookie-form-feed", "x.py", "source-encoding-cookie", "x.py", b"\f # coding: cp1252\n"),
    ("cookie-sig", "x.py", "source-encoding-cookie", "x.py", b"# coding: utf-8-sig\n"),
    ("cookie-in-zip", "x.zip", "source-encoding-cookie", "etl.py", source(b"# coding: utf-7\n")),
    ("bare-cr", "x.py", "source-bare-cr", "x.py", b"# harmless\rimport os\n"),
    ("bare-cr-last", "x.py", "source-bare-cr", "x.py", b"x = 1\r"),
    ("bidi-override", "x.py", "source-bidi", "x.py", "x = 1  # \u202e\n".encode()),
    ("bidi-isolate", "x.py", "source-bidi", "x.py", "x = '\u2066'\n".encode()),
    ("source-large", "x.zip", "source-too-large", "etl.py", source(b"x = 1\n" * 50_000)),
    ("line-long", "x.zip", "line-too-long", "etl.py", source(b"x = 1\ny = '" + b"a" * 70_000 + b"'\n")),
    ("empty", "x.py", "no-dag-found", "x.py", b""),
    ("blank", "x.py", "no-dag-found", "x.py", b" \n\t\r\n"),
]

# case, upload name, names of the members, bytes
GOOD: list[tuple[str, str, list[str], bytes]] = [
    ("plain", "etl.py", ["etl.py"], DAG),
    ("crlf", "etl.py", ["etl.py"], b"x = 1\r\ny = 2\r\n"),
    ("cookie", "etl.py", ["etl.py"], b"#!/usr/bin/env python\n# -*- coding: UTF_8 -*-\nx = '\xc3\xa9'\n"),
    ("cookie-third-line", "etl.py", ["etl.py"], b"x = 1\ny = 2\n# coding: latin-1\n"),
    ("form-feed", "etl.py", ["etl.py"], b"x = 1\n\f\ny = 2\n"),
    ("starts-like-zip", "etl.py", ["etl.py"], b"PK = 1\n"),
    ("stored", "x.zip", ["etl.py"], one),
    ("deflated", "x.zip", ["etl.py"], build(Entry(method=8))),
    ("folders", "x.zip", ["d/a.sql", "etl.py"], build(Entry(name=b"d/", data=b"", mode=0o040755, attributes=0x10), Entry(name=b"d/a.sql"), Entry())),
    ("deflated-folder", "x.zip", ["etl.py"], build(Entry(name=b"d/", data=b"", method=8, mode=0o040755), Entry())),
    ("executable", "x.zip", ["etl.py"], build(Entry(mode=0o100755))),
    ("from-windows", "x.zip", ["etl.py"], build(Entry(mode=0, made_by=0, attributes=0x20, extra=ntfs))),
    ("extras", "x.zip", ["etl.py"], build(Entry(extra=times + owner, central_extra=times + owner))),
    ("other-extras", "x.zip", ["etl.py"], build(Entry(extra=times + owner, central_extra=times))),
    ("utf8-names", "x.zip", ["donn\u00e9es.sql", "etl.py"], build(Entry(), Entry(name="donn\u00e9es.sql".encode(), flags=0x800))),
    ("other-order", "x.zip", ["a.py", "b.py"], build(Entry(name=b"b.py"), Entry(name=b"a.py"))),
    ("empty-init", "x.zip", ["etl.py", "pkg/__init__.py"], build(Entry(), Entry(name=b"pkg/__init__.py", data=b""))),
    ("level-flags", "x.zip", ["etl.py"], build(Entry(method=8, flags=6))),
    ("end-magic-inside", "x.zip", ["a.bin", "etl.py"], build(Entry(name=b"a.bin", data=b"PK\5\6" + b"\7" * 30), Entry())),
    ("stdlib-names-inside", "x.zip", ["etl.py", "json/a.json", "pkg/os.py"], build(Entry(), Entry(name=b"pkg/os.py"), Entry(name=b"json/a.json"))),
    ("by-zipfile", "x.zip", ["etl.py", "pkg/__init__.py", "pkg/q.sql"], by_zipfile(etl_DOT_py=DAG, pkg____init___DOT_py=b"", pkg__q_DOT_sql=b"select 1\n" * 99)),
]


def main() -> None:
    index = {"bad": [], "good": []}
    for folder in index:
        shutil.rmtree(HERE / folder, ignore_errors=True)
        (HERE / folder).mkdir()
    for case, name, rule, entry, data in BAD:
        file = f"bad/{case}.{name.rpartition('.')[2]}"
        (HERE / file).write_bytes(data)
        index["bad"].append({"file": file, "name": name, "rule": rule, "entry": entry})
    for case, name, members, data in GOOD:
        file = f"good/{case}.{name.rpartition('.')[2]}"
        (HERE / file).write_bytes(data)
        index["good"].append({"file": file, "name": name, "members": members})
    lines = [f' "{kind}": [\n  ' + ",\n  ".join(json.dumps(row) for row in rows) + "\n ]" for kind, rows in index.items()]
    (HERE / "index.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
