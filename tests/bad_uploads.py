"""Bad archives and the exact answer to each, as one literal table: `docs/bad-uploads.md` is it as our users see it.

A row: its number in that document, the case, the name it is uploaded as, its bytes, and the answer: status, last part of the
problem's type, entry named. Status 201 is a case that is harmless here; `why` says why. `vector(...)` are the committed
files of `tests/vectors/archives` (`make.py` there builds each); what is too large to be committed is built here.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VECTORS = Path(__file__).parent / "vectors" / "archives"
DAG = b"from airflow.sdk import DAG\n\nwith DAG('%s'):\n    pass\n"
Bytes = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Case:
    row: int
    case: str
    name: str
    data: Bytes
    status: int
    problem: str
    entry: str
    why: str = ""


def vector(file: str) -> Bytes:
    return lambda: (VECTORS / file).read_bytes()


def py(source: bytes) -> Bytes:
    return lambda: source


def zipped(**members: bytes) -> Bytes:
    """A zip as `zipfile` writes it; `__` in a keyword is a slash, and the names end in .py."""

    def build() -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(f"{name.replace('__', '/')}.py", content)
        return file.getvalue()

    return build


def many_entries() -> bytes:
    """70,000 empty files: more than the end record can count, so `zipfile` writes zip64 records as well."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(70_000):
            archive.writestr(zipfile.ZipInfo(str(number)), b"")
    return file.getvalue()


@cache
def zeros() -> bytes:
    """100 MiB of zeros in 100 KiB."""
    size, name = 100 << 20, b"z"
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflater.compress(bytes(size)) + deflater.flush()
    head = struct.pack("<5H3L2H", 20, 0, 8, 0, 33, zlib.crc32(bytes(size)), len(packed), size, len(name), 0)
    local = b"PK\3\4" + head + name + packed
    central = b"PK\1\2\x14\3" + head + struct.pack("<3H2L", 0, 0, 0, 0o100644 << 16, 0) + name
    return local + central + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)


HOMOGLYPH = "import os\nfrom airflow.sdk import DAG\nｏｓ.getpid()\n".encode()
HOMOGLYPH_IN_F_STRING = "import os\nx = f'{ｏｓ.getpid()}'\n# airflow dag\n".encode()
JAPANESE = "from airflow.sdk import DAG\n# ＤＡＧ\nwith DAG('japanese', description='１日１回 ﬁ'):\n    pass\n".encode()

CASES: tuple[Case, ...] = (
    Case(1, "`..` first", "x.zip", vector("bad/parent.zip"), 422, "zip-path-traversal", "../evil.py"),
    Case(1, "`..` inside", "x.zip", vector("bad/parent-inside.zip"), 422, "zip-path-traversal", "a/../../evil.py"),
    Case(2, "absolute", "x.zip", vector("bad/absolute.zip"), 422, "zip-absolute-path", "/tmp/x.py"),
    Case(3, "drive letter", "x.zip", vector("bad/drive.zip"), 422, "zip-drive-letter", "C:/x.py"),
    Case(4, "backslash", "x.zip", vector("bad/backslash.zip"), 422, "zip-backslash", r"a\b.py"),
    Case(4, "drive and backslash", "x.zip", vector("bad/drive-backslash.zip"), 422, "zip-backslash", r"C:\x.py"),
    Case(5, "symbolic link", "x.zip", vector("bad/symlink.zip"), 422, "zip-symlink", "l"),
    Case(6, "linked folder", "x.zip", vector("bad/symlink-folder.zip"), 422, "zip-symlink", "l/"),
    Case(7, "fifo", "x.zip", vector("bad/fifo.zip"), 422, "zip-special-file", "p"),
    Case(7, "device", "x.zip", vector("bad/device.zip"), 422, "zip-special-file", "d"),
    Case(8, "set-uid", "x.zip", vector("bad/setuid.zip"), 422, "zip-mode", "s"),
    Case(8, "set-gid folder", "x.zip", vector("bad/setgid-folder.zip"), 422, "zip-mode", "s/"),
    Case(8, "executable", "x.zip", vector("good/executable.zip"), 201, "", "", "no mode is kept: a task's copy is read-only"),
    Case(9, "100 MiB of zeros", "x.zip", zeros, 413, "zip-expanded-too-large", "z"),
    Case(9, "bomb by ratio", "x.zip", vector("bad/bomb-ratio.zip"), 413, "zip-expanded-too-large", "z"),
    Case(9, "bomb in total", "x.zip", vector("bad/bomb-total.zip"), 413, "zip-expanded-too-large", ""),
    Case(9, "bomb that lies", "x.zip", vector("bad/bomb-that-lies.zip"), 422, "zip-size-lie", "z"),
    Case(10, "two names, one content", "x.zip", vector("bad/two-names-one-content.zip"), 422, "zip-overlap", ""),
    Case(11, "quoted overlap", "x.zip", vector("bad/quoted-overlap.zip"), 422, "zip-overlap", "b.txt"),
    Case(12, "name twice", "x.zip", vector("bad/duplicate.zip"), 422, "zip-duplicate", "etl.py"),
    Case(13, "names by case", "x.zip", vector("bad/case.zip"), 422, "zip-case-collision", "README"),
    Case(13, "folders by case", "x.zip", vector("bad/case-folder.zip"), 422, "zip-case-collision", "D/b"),
    Case(14, "not NFC", "x.zip", vector("bad/decomposed.zip"), 422, "zip-unicode-collision", "e\u0301.txt"),
    Case(14, "one by NFKC", "x.zip", vector("bad/compatible.zip"), 422, "zip-unicode-collision", "\ufb01.txt"),
    Case(15, "NUL in a name", "x.zip", vector("bad/nul-name.zip"), 422, "zip-name-control-char", r"a\x00.txt"),
    Case(16, "newline in a name", "x.zip", vector("bad/newline-name.zip"), 422, "zip-name-control-char", r"a\n.txt"),
    Case(16, "escape in a name", "x.zip", vector("bad/escape-name.zip"), 422, "zip-name-control-char", r"a\x1b[2J"),
    Case(17, "bidi in a name", "x.zip", vector("bad/bidi-name.zip"), 422, "zip-name-bidi", r"a\u202eyp.txt"),
    Case(17, "zero width in a name", "x.zip", vector("bad/zero-width-name.zip"), 422, "zip-name-bidi", r"a\u200bb.py"),
    Case(18, "encrypted", "x.zip", vector("bad/encrypted.zip"), 422, "zip-encrypted", "etl.py"),
    Case(19, "wrong CRC", "x.zip", vector("bad/crc.zip"), 422, "zip-crc", "etl.py"),
    Case(20, "cut deflate stream", "x.zip", vector("bad/cut-deflate.zip"), 422, "zip-corrupt", "etl.py"),
    Case(21, "more than it says", "x.zip", vector("bad/larger-than-said.zip"), 422, "zip-size-lie", "etl.py"),
    Case(21, "less than it says", "x.zip", vector("bad/smaller-than-said.zip"), 422, "zip-size-lie", "etl.py"),
    Case(22, "prepended", "x.zip", vector("bad/leading.zip"), 422, "zip-leading-data", ""),
    Case(22, "prepended, adjusted", "x.zip", vector("bad/leading-adjusted.zip"), 422, "zip-leading-data", ""),
    Case(23, "appended", "x.zip", vector("bad/trailing.zip"), 422, "zip-trailing-data", ""),
    Case(24, "two zips", "x.zip", vector("bad/two-archives.zip"), 422, "zip-trailing-data", ""),
    Case(25, "archive in the comment", "x.zip", vector("bad/archive-in-comment.zip"), 422, "zip-comment", ""),
    Case(26, "two names", "x.zip", vector("bad/other-local-name.zip"), 422, "zip-header-mismatch", "good.py"),
    Case(27, "two sizes", "x.zip", vector("bad/other-local-size.zip"), 422, "zip-header-mismatch", "etl.py"),
    Case(28, "two methods", "x.zip", vector("bad/other-local-method.zip"), 422, "zip-header-mismatch", "etl.py"),
    Case(29, "hidden entry first", "x.zip", vector("bad/hidden-first.zip"), 422, "zip-hidden-entry", "etl.py"),
    Case(29, "hidden entry last", "x.zip", vector("bad/hidden-last.zip"), 422, "zip-hidden-entry", ""),
    Case(30, "directory of size 0", "x.zip", vector("bad/no-directory-size.zip"), 422, "zip-eocd", ""),
    Case(31, "count too small", "x.zip", vector("bad/count-less.zip"), 422, "zip-eocd", ""),
    Case(31, "count too large", "x.zip", vector("bad/count-more.zip"), 422, "zip-eocd", ""),
    Case(32, "several disks", "x.zip", vector("bad/disk.zip"), 422, "zip-multidisk", ""),
    Case(33, "bzip2", "x.zip", vector("bad/bzip2.zip"), 422, "zip-method", "etl.py"),
    Case(33, "lzma", "x.zip", vector("bad/lzma.zip"), 422, "zip-method", "etl.py"),
    Case(34, "AES", "x.zip", vector("bad/aes.zip"), 422, "zip-method", "etl.py"),
    Case(34, "deflate64", "x.zip", vector("bad/deflate64.zip"), 422, "zip-method", "etl.py"),
    Case(35, "zip64 that lies", "x.zip", vector("bad/zip64-sizes.zip"), 422, "zip-zip64", "etl.py"),
    Case(35, "zip64, local only", "x.zip", vector("bad/zip64-local-extra.zip"), 422, "zip-zip64", "etl.py"),
    Case(35, "zip64 locator", "x.zip", vector("bad/zip64-locator-in-extra.zip"), 422, "zip-zip64", ""),
    Case(36, "data descriptor", "x.zip", vector("bad/data-descriptor.zip"), 422, "zip-data-descriptor", "etl.py"),
    Case(37, "1,001 entries", "x.zip", vector("bad/1001-entries.zip"), 413, "zip-too-many-entries", ""),
    Case(37, "70,000 entries", "x.zip", many_entries, 413, "zip-too-many-entries", ""),
    Case(38, "256 bytes of name", "x.zip", vector("bad/long-name.zip"), 422, "zip-name-too-long", "a" * 256),
    Case(38, "17 deep", "x.zip", vector("bad/deep.zip"), 422, "zip-name-too-long", "a/" * 16 + "b.py"),
    Case(39, "file and folder", "x.zip", vector("bad/file-and-folder.zip"), 422, "zip-path-conflict", "a/b"),
    Case(40, "trailing dot", "x.zip", vector("bad/trailing-dot.zip"), 422, "zip-reserved-name", "a."),
    Case(40, "trailing space", "x.zip", vector("bad/trailing-space.zip"), 422, "zip-reserved-name", "a /b"),
    Case(40, "device name", "x.zip", vector("bad/device-name.zip"), 422, "zip-reserved-name", "a/NUL.txt"),
    Case(41, "bad UTF-8 name", "x.zip", vector("bad/bad-utf8-name.zip"), 422, "zip-name-encoding", r"\xff.py"),
    Case(41, "cp437 name", "x.zip", vector("bad/cp437-name.zip"), 422, "zip-name-encoding", r"\x82.py"),
    Case(42, "0x7075 names another", "x.zip", vector("bad/unicode-path-extra.zip"), 422, "zip-extra-field", "good.py"),
    Case(43, "empty archive", "x.zip", vector("bad/empty-archive.zip"), 422, "no-dag-found", ""),
    Case(43, "no Python in it", "x.zip", vector("bad/no-python.zip"), 422, "no-dag-found", ""),
    Case(43, "Python without a dag", "x.zip", zipped(a=b"# airflow dag\nx = 1\n"), 422, "no-dag-found", ""),
    Case(44, "zip in it", "x.zip", vector("bad/nested-zip.zip"), 422, "nested-archive", "lib.zip"),
    Case(44, "wheel in it", "x.zip", vector("bad/nested-wheel.zip"), 422, "nested-archive", "a/lib.WHL"),
    Case(45, "`./`", "x.zip", vector("bad/dot-segment.zip"), 422, "zip-path-not-canonical", "./a"),
    Case(45, "`//`", "x.zip", vector("bad/empty-segment.zip"), 422, "zip-path-not-canonical", "a//b"),
    Case(46, "no zip", "x.zip", vector("bad/not-a-zip.zip"), 415, "unsupported-media-type", ""),
    Case(46, "zip called .py", "x.py", vector("bad/zip-called-py.py"), 415, "unsupported-media-type", "x.py"),
    Case(47, "__pycache__", "x.zip", vector("bad/pycache.zip"), 422, "forbidden-file-type", "__pycache__/x"),
    Case(47, ".pyc", "x.zip", vector("bad/pyc.zip"), 422, "forbidden-file-type", "a.pyc"),
    Case(47, ".so", "x.zip", vector("bad/so.zip"), 422, "forbidden-file-type", "a.cpython-311.so"),
    Case(47, ".pyd", "x.zip", vector("bad/pyd.zip"), 422, "forbidden-file-type", "a.PYD"),
    Case(47, ".dll", "x.zip", vector("bad/dll.zip"), 422, "forbidden-file-type", "a.dll"),
    Case(48, "sitecustomize", "x.zip", vector("bad/sitecustomize.zip"), 422, "forbidden-file-name", "sitecustomize.py"),
    Case(48, "usercustomize package", "x.zip", vector("bad/usercustomize-package.zip"), 422, "forbidden-file-name",
         "usercustomize/__init__.py"),
    Case(48, ".pth", "x.zip", vector("bad/pth.zip"), 422, "forbidden-file-name", "a.pth"),
    Case(49, "hides os", "x.zip", vector("bad/shadows-os.zip"), 422, "shadows-module", "os.py"),
    Case(49, "hides airflow", "x.zip", vector("bad/shadows-airflow.zip"), 422, "shadows-module", "airflow/__init__.py"),
    Case(49, "hides an installed one", "x.zip", zipped(yaml__a=b"", etl=DAG % b"a"), 422, "shadows-module", "yaml/a.py"),
    Case(50, "NUL", "x.py", vector("bad/nul.py"), 422, "source-encoding", "x.py"),
    Case(50, "^Z", "x.py", vector("bad/substitute.py"), 422, "source-encoding", "x.py"),
    Case(50, "Latin-1", "x.py", vector("bad/latin-1.py"), 422, "source-encoding", "x.py"),
    Case(50, "UTF-16", "x.py", vector("bad/utf-16.py"), 422, "source-encoding", "x.py"),
    Case(51, "byte order mark", "x.py", vector("bad/bom.py"), 422, "source-bom", "x.py"),
    Case(51, "and a cookie", "x.py", py(b"\xef\xbb\xbf# coding: latin-1\n"), 422, "source-bom", "x.py"),
    Case(52, "cookie utf-7", "x.py", vector("bad/cookie-utf-7.py"), 422, "source-encoding-cookie", "x.py"),
    Case(52, "cookie unicode_escape", "x.py", vector("bad/cookie-unicode-escape.py"), 422, "source-encoding-cookie", "x.py"),
    Case(52, "cookie in line 2", "x.py", vector("bad/cookie-second-line.py"), 422, "source-encoding-cookie", "x.py"),
    Case(53, "cookie latin-1", "x.py", vector("bad/cookie-latin-1.py"), 422, "source-encoding-cookie", "x.py"),
    Case(53, "cookie iso2022_jp", "x.py", vector("bad/cookie-iso2022.py"), 422, "source-encoding-cookie", "x.py"),
    Case(54, "bare CR", "x.py", vector("bad/bare-cr.py"), 422, "source-bare-cr", "x.py"),
    Case(55, "bidi in a comment", "x.py", vector("bad/bidi-override.py"), 422, "source-bidi", "x.py"),
    Case(55, "a name by NFKC", "x.py", py(HOMOGLYPH), 422, "source-homoglyph", "x.py"),
    Case(55, "in an f-string", "x.py", py(HOMOGLYPH_IN_F_STRING), 422, "source-homoglyph", "x.py"),
    Case(55, "such text", "japanese.py", py(JAPANESE), 201, "", "", "in texts and comments it changes no name"),
    Case(56, "parentheses", "x.py", py(b"x = " + b"(" * 30_000 + b")" * 30_000), 422, "source-syntax", "x.py:1"),
    Case(56, "101 indents", "x.py", py(b"".join(b" " * i + b"if 1:\n" for i in range(101))), 422, "source-syntax", "x.py:101"),
    Case(57, "60,000 unary", "x.py", py(b"x = " + b"-" * 60_000 + b"1"), 422, "source-too-complex", "x.py"),
    Case(57, "5,000 lambda", "x.py", py(b"x = " + b"lambda:" * 5_000 + b"1"), 422, "source-too-complex", "x.py"),
    Case(57, "10,000 elif", "x.py", py(b"if 1: pass\n" + b"elif 1: pass\n" * 10_000), 422, "source-too-complex", "x.py"),
    Case(58, "80,000 attributes", "x.py", py(b"x = (a\n" + b".a\n" * 80_000 + b")\n"), 422, "source-too-complex", "x.py"),
    Case(58, "100,000 additions", "x.py", py(b"x = (1\n" + b"+1" * 100_000 + b")\n"), 422, "line-too-long", "x.py"),
    Case(59, "1 MiB of statements", "x.py", py(b"x=1\n" * (1 << 18)), 413, "source-too-large", "x.py"),
    Case(59, "256 KiB of them", "x.py", py(b"x=1\n" * (1 << 16)), 422, "no-dag-found", ""),
    Case(60, "a line of 10 MiB", "x.py", py(b"x = '" + b"a" * (10 << 20) + b"'"), 413, "source-too-large", "x.py"),
    Case(60, "a line of 100 KiB", "x.py", py(b"x = '" + b"a" * 100_000 + b"'"), 422, "line-too-long", "x.py"),
    Case(61, "4,301 digits", "x.py", py(b"x = " + b"1" * 4301), 422, "source-syntax", "x.py:1"),
    Case(62, "empty", "x.py", py(b""), 422, "no-dag-found", "x.py"),
    Case(62, "no dag", "x.py", py(b"x = 1\n"), 422, "no-dag-found", ""),
)  # fmt: skip
