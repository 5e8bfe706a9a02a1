"""A zip with one reading: entries laid end to end from byte 0, then their directory, then the end record, then nothing.

    [local header, name, extra, content]*  [directory entry]*  end record (22 bytes, no comment)

Promise: what is accepted here is extracted by Python's `zipfile` to exactly these members, and `zipimport` sees the
same; a reader that streams and one that starts at the end agree. So nothing is searched for, skipped or ignored: a
directory entry equals its local header, every byte belongs to one record, sizes and CRC are those of the content.
Content is stored or deflated. Not understood, hence refused: zip64, encryption, several disks, comments, data
descriptors, links and devices, extra fields but times and owners. Inflating stops one byte after the declared size,
and declared sizes are checked first, so a bomb costs what `Limits` allows.
"""

from __future__ import annotations

import re
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from integrity.errors import InvalidArchiveError, UnsafeArchiveError
from vocabulary import membernames
from vocabulary.limits import Limits

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
LOCAL_MAGIC, CENTRAL_MAGIC, END_MAGIC, ZIP64_LOCATOR_MAGIC = b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\7"
STORED, DEFLATED = 0, 8
UTF8_FLAG = 0x0800
_VERSION = 20  # 2.0: folders and deflate; whatever needs more uses something that is refused
_DEFLATE_LEVEL_FLAGS = 0x0006
_DESCRIPTOR_FLAG = 0x0008
_ENCRYPTION_FLAGS = 0x2041
_EXTRAS = {0x5455: 13, 0x7875: 24, 0x000A: 36}  # id: longest honest content (times; uid and gid; NTFS times)
_ZIP64_EXTRA = 0x0001
_FOLDER_ATTRIBUTE = 0x10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    name: str
    raw_name: bytes
    repeated: bytes  # what the local header has to say again: version needed to length of the name
    version: int
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    attributes: int
    offset: int

    @property
    def is_folder(self) -> bool:
        return self.name.endswith("/")


def read_members(view: memoryview, limits: Limits) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file, in the order of the archive; it is accepted when the last was given. Raises
    `UnsafeArchiveError`, or `InvalidArchiveError` for what is no zip."""
    count, start = _end_record(view, limits)
    entries = _directory(view, count, start)
    offsets = [entry.offset for entry in entries]
    if len(set(offsets)) < count:
        _refuse("zip-overlap", "two directory entries share one content")
    for entry in entries:
        _check_entry(entry)
        membernames.check(entry.name, limits)
    membernames.check_together(entry.name for entry in entries)
    _check_sizes(entries, limits)
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.offset):
        content = _content_offset(view, entry, start)
        if entry.offset < end:
            _refuse("zip-overlap", "begins inside the entry before it", entry.name)
        if entry.offset > end:
            _refuse("zip-hidden-entry", f"bytes {end} to {entry.offset} before it are in no entry", entry.name)
        end = content + entry.packed
        if end > start:
            _refuse("zip-overlap", "reaches into the directory", entry.name)
        data = _inflate(view[content:end], entry)
        if not entry.name.endswith("/"):
            yield entry.name, data
    if end != start:
        _refuse("zip-hidden-entry", f"bytes {end} to {start}, before the directory, are in no entry")


def _end_record(view: memoryview, limits: Limits) -> tuple[int, int]:
    """How many directory entries there are, and where they begin."""
    tail = bytes(view[-(END.size + 0xFFFF) :])
    at = tail.find(END_MAGIC)
    if at < 0:
        if view[:4] == LOCAL_MAGIC:
            _refuse("zip-corrupt", "there is no end record: the file was cut off")
        raise InvalidArchiveError("unsupported-media-type", "this is not a zip file")
    while at >= 0:  # content may hold the magic too; a comment that another reader would take for one may not
        comment = int.from_bytes(tail[at + 20 : at + 22], "little")
        last, at = at, tail.find(END_MAGIC, at + 1)
        if comment and (at < 0 or last + END.size + comment == len(tail)):
            _refuse(
                "zip-comment",
                "the archive has a comment, in which another archive can hide: zip the folder without (git archive adds one)",
            )
    if last + END.size > len(tail):
        _refuse("zip-corrupt", "the end record was cut off")
    if last + END.size < len(tail):
        _refuse("zip-trailing-data", f"{len(tail) - last - END.size} bytes follow the end record")
    _, disk, directory_disk, count_here, count, size, start, _ = END.unpack_from(tail, last)
    where = len(view) - END.size
    if disk or directory_disk:
        _refuse("zip-multidisk", "the archive is a part of several: make it as one file")
    if max(count, count_here) > limits.max_members:
        _refuse("zip-too-many-entries", f"{max(count, count_here)} entries, the limit is {limits.max_members}")
    if view[max(where - 20, 0) : max(where - 16, 0)] == ZIP64_LOCATOR_MAGIC:
        _refuse("zip-zip64", "the archive has a zip64 directory, which no archive of allowed size needs")
    if where == 0:
        raise InvalidArchiveError("no-dag-found", "the archive is empty")
    if view[:4] != LOCAL_MAGIC:
        _refuse(
            "zip-leading-data", "the file does not begin with its first entry: something was put before the archive"
        )
    if start + size != where and re.search(re.escape(END_MAGIC), view[:where]):
        _refuse("zip-trailing-data", "two archives follow each other in one file")
    if count != count_here or start + size != where or not count:
        _refuse("zip-eocd", "the end record does not describe the directory before it")
    return count, start


def _directory(view: memoryview, count: int, start: int) -> list[_Entry]:
    entries: list[_Entry] = []
    at, end = start, len(view) - END.size
    for _ in range(count):
        if end - at < CENTRAL.size or view[at : at + 4] != CENTRAL_MAGIC:
            _refuse("zip-eocd", f"the end record counts {count} entries, the directory has {len(entries)}")
        fields = CENTRAL.unpack_from(view, at)
        version, flags, method = fields[2:5]
        crc, packed, size, name_size, extra_size, comment_size, disk, _, attributes, offset = fields[7:]
        name_at = at + CENTRAL.size
        extra_at = name_at + name_size
        repeated = bytes(view[at + 6 : at + 30])
        at = extra_at + extra_size + comment_size
        if at > end:
            _refuse("zip-corrupt", "the last directory entry reaches into the end record")
        raw_name = bytes(view[name_at:extra_at])
        name = membernames.decode(raw_name, utf8=bool(flags & UTF8_FLAG))
        if disk:
            _refuse("zip-multidisk", "lies on another disk: make the archive as one file", name)
        if comment_size:
            _refuse("zip-comment", "has a comment: make the archive without", name)
        _check_extras(view[extra_at : extra_at + extra_size], name)
        entries.append(
            _Entry(
                name=name,
                raw_name=raw_name,
                repeated=repeated,
                version=version,
                flags=flags,
                method=method,
                crc=crc,
                packed=packed,
                size=size,
                attributes=attributes,
                offset=offset,
            )
        )
    if at != end:
        _refuse("zip-eocd", f"{end - at} bytes follow the {count} directory entries")
    return entries


def _check_entry(entry: _Entry) -> None:
    if entry.method not in (STORED, DEFLATED):
        _refuse("zip-method", f"is compressed by method {entry.method}: use deflate, or none", entry.name)
    if entry.flags & _ENCRYPTION_FLAGS:
        _refuse("zip-encrypted", "is encrypted: upload it in clear", entry.name)
    if entry.flags & _DESCRIPTOR_FLAG:
        _refuse(
            "zip-data-descriptor",
            "has its size after its content, as in a zip that was written to a pipe: write the zip to a file",
            entry.name,
        )
    if entry.flags & ~(UTF8_FLAG | _DEFLATE_LEVEL_FLAGS):
        _refuse("zip-flags", f"has the flags {entry.flags:#06x}, of which some are not known here", entry.name)
    if entry.version > _VERSION:
        _refuse("zip-version", f"asks for zip version {entry.version / 10}, the newest read here is 2.0", entry.name)
    mode = entry.attributes >> 16
    if stat.S_ISLNK(mode):
        _refuse("zip-symlink", "is a symbolic link: put the file itself in the archive", entry.name)
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFDIR if entry.is_folder else stat.S_IFREG):
        _refuse("zip-special-file", f"is neither a file nor a folder (mode {mode:o})", entry.name)
    if mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX):
        _refuse("zip-mode", f"is set-uid, set-gid or sticky (mode {mode:o}): chmod it", entry.name)
    if entry.size if entry.is_folder else entry.attributes & _FOLDER_ATTRIBUTE:
        _refuse("zip-path-conflict", "is a folder by its name or its attributes, and a file by the other", entry.name)


def _check_extras(extras: memoryview, name: str) -> None:
    while extras:
        kind = int.from_bytes(extras[:2], "little")
        size = int.from_bytes(extras[2:4], "little")
        if kind == _ZIP64_EXTRA:
            _refuse("zip-zip64", "has zip64 sizes, which no file of allowed size needs", name)
        if len(extras) < 4 + size or size > _EXTRAS.get(kind, -1):
            _refuse(
                "zip-extra-field", f"has an extra field {kind:#06x} of {size} bytes: make the archive by zip -X", name
            )
        extras = extras[4 + size :]


def _check_sizes(entries: list[_Entry], limits: Limits) -> None:
    total = 0
    for entry in entries:
        total += entry.size
        if entry.size > limits.max_member_bytes:
            _refuse("zip-expanded-too-large", f"{entry.size} bytes, the limit is {limits.max_member_bytes}", entry.name)
        if entry.size > limits.ratio_from_bytes and entry.size > limits.max_ratio * entry.packed:
            _refuse("zip-expanded-too-large", f"inflates more than {limits.max_ratio} times", entry.name)
    if total > limits.max_total_bytes:
        _refuse("zip-expanded-too-large", f"{total} bytes inflated, the limit is {limits.max_total_bytes}")


def _content_offset(view: memoryview, entry: _Entry, start: int) -> int:
    """Where the content begins, behind a local header that says the same as the directory."""
    name_at = entry.offset + LOCAL.size
    if name_at > start or view[entry.offset : entry.offset + 4] != LOCAL_MAGIC:
        _refuse("zip-corrupt", f"has no local header at byte {entry.offset}", entry.name)
    extra_at = name_at + len(entry.raw_name)
    if view[entry.offset + 4 : name_at - 2] != entry.repeated or view[name_at:extra_at] != entry.raw_name:
        _refuse(
            "zip-header-mismatch",
            "the directory and the local header differ, so two readers could see two files",
            entry.name,
        )
    content = extra_at + int.from_bytes(view[name_at - 2 : name_at], "little")
    _check_extras(view[extra_at:content], entry.name)
    return content


def _inflate(packed: memoryview, entry: _Entry) -> bytes:
    if entry.method == STORED:
        data = bytes(packed)
    else:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflater.decompress(packed, entry.size + 1)
        except zlib.error as error:
            _refuse("zip-corrupt", f"cannot be inflated ({error})", entry.name)
        if len(data) <= entry.size and not inflater.eof:
            _refuse("zip-corrupt", "its content ends too early", entry.name)
        if inflater.unused_data:
            _refuse("zip-hidden-entry", f"{len(inflater.unused_data)} bytes follow its content", entry.name)
    if len(data) != entry.size:
        _refuse("zip-size-lie", f"says {entry.size} bytes, its content has another size", entry.name)
    if zlib.crc32(data) != entry.crc:
        _refuse("zip-crc", "its content does not have its CRC: the file was damaged, make it again", entry.name)
    return data


def _refuse(rule: str, detail: str, name: str = "") -> NoReturn:
    raise UnsafeArchiveError(rule, detail, membernames.shown(name))
