"""Builds zips in which each field may lie: for `make.py`, and for the tests that make up new ones."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

DAG = b"from airflow.sdk import DAG\n\nwith DAG('etl'):\n    pass\n"


@dataclass
class Entry:
    """One file of a zip, each field of which may lie. `local` overrides fields in the local header only."""

    name: bytes = b"etl.py"
    data: bytes = DAG
    method: int = 0
    flags: int = 0
    version: int = 20
    mode: int = 0o100644
    made_by: int = 3
    packed: bytes | None = None
    crc: int | None = None
    size: int | None = None
    packed_size: int | None = None
    extra: bytes = b""
    central_extra: bytes | None = None
    comment: bytes = b""
    disk: int = 0
    attributes: int = 0
    offset: int | None = None
    listed: bool = True
    written: bool = True
    before: bytes = b""
    local: dict = field(default_factory=dict)


def deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(data) + deflater.flush()


def local_header(entry: Entry, packed: bytes) -> bytes:
    values = {
        "version": entry.version,
        "flags": entry.flags,
        "method": entry.method,
        "crc": zlib.crc32(entry.data) if entry.crc is None else entry.crc,
        "packed": len(packed) if entry.packed_size is None else entry.packed_size,
        "size": len(entry.data) if entry.size is None else entry.size,
        "name": entry.name,
    } | entry.local
    return struct.pack(
        "<4s5H3L2H",
        b"PK\3\4",
        *(values["version"], values["flags"], values["method"], 0, 33),
        *(values["crc"], values["packed"], values["size"], len(values["name"]), len(entry.extra)),
    ) + values["name"] + entry.extra


def build(*entries: Entry, end: dict | None = None, lead: bytes = b"", tail: bytes = b"", gap: bytes = b"") -> bytes:
    body, directory, listed = bytearray(lead), bytearray(), 0
    for entry in entries:
        packed = entry.packed
        if packed is None:
            packed = deflate(entry.data) if entry.method == 8 else entry.data
        body += entry.before
        offset = len(body) if entry.offset is None else entry.offset
        if entry.written:
            body += local_header(entry, packed) + packed
        if entry.listed:
            listed += 1
            extra = entry.extra if entry.central_extra is None else entry.central_extra
            directory += struct.pack(
                "<4s6H3L5H2L",
                b"PK\1\2",
                *(entry.made_by << 8 | 20, entry.version, entry.flags, entry.method, 0, 33),
                zlib.crc32(entry.data) if entry.crc is None else entry.crc,
                len(packed) if entry.packed_size is None else entry.packed_size,
                len(entry.data) if entry.size is None else entry.size,
                *(len(entry.name), len(extra), len(entry.comment), entry.disk, 0),
                *(entry.mode << 16 | entry.attributes, offset),
            ) + entry.name + extra + entry.comment
    body += gap
    values = {
        "disk": 0, "directory_disk": 0, "here": listed, "count": listed,
        "size": len(directory), "start": len(body), "comment": b"",
    } | (end or {})
    record = struct.pack(
        "<4s4H2LH", b"PK\5\6", values["disk"], values["directory_disk"], values["here"], values["count"],
        values["size"], values["start"], len(values["comment"]),
    )
    return bytes(body + directory) + record + values["comment"] + tail
