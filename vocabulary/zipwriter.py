"""The zip that is made from a folder: the same files give the same bytes, whenever, wherever and by whomever.

Names are sorted, times are 1980-01-01, modes 0644, content is deflated at level 9 (its bytes are those of the zlib at
hand) unless that is no shorter. `zipreader` reads it back to the same files.
"""

from __future__ import annotations

import stat
import zlib
from collections.abc import Mapping

from integrity.errors import UnsafeArchiveError
from vocabulary.limits import DEFAULT
from vocabulary.zipreader import CENTRAL, CENTRAL_MAGIC, DEFLATED, END, END_MAGIC, LOCAL, LOCAL_MAGIC, STORED, UTF8_FLAG

_DATE, _TIME = (1 << 5) | 1, 0  # 1980-01-01 00:00
_VERSION, _UNIX = 20, 3 << 8
_ATTRIBUTES = (stat.S_IFREG | 0o644) << 16


def pack(files: Mapping[str, bytes]) -> bytes:
    """The archive of `files` (name to content). Names and sources are judged by `archives.read`, not here; what no zip
    without zip64 can hold is over the default limits, and refused."""
    if len(files) > DEFAULT.max_members:
        raise UnsafeArchiveError("zip-too-many-entries", f"{len(files)} files, the limit is {DEFAULT.max_members}")
    total = sum(len(content) for content in files.values())
    if total > DEFAULT.max_total_bytes:
        raise UnsafeArchiveError("zip-expanded-too-large", f"{total} bytes, the limit is {DEFAULT.max_total_bytes}")
    body, directory = bytearray(), bytearray()
    for name in sorted(files):
        content, raw_name = files[name], name.encode("utf-8")
        if len(raw_name) > DEFAULT.max_name_bytes:
            raise UnsafeArchiveError("zip-name-too-long", f"the limit is {DEFAULT.max_name_bytes} bytes", name[:300])
        deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed, method = deflater.compress(content) + deflater.flush(), DEFLATED
        if len(packed) >= len(content):
            packed, method = content, STORED
        shared = (
            *(_VERSION, 0 if name.isascii() else UTF8_FLAG, method, _TIME, _DATE),
            *(zlib.crc32(content), len(packed), len(content), len(raw_name), 0),
        )
        directory += CENTRAL.pack(CENTRAL_MAGIC, _UNIX | _VERSION, *shared, 0, 0, 0, _ATTRIBUTES, len(body)) + raw_name
        body += LOCAL.pack(LOCAL_MAGIC, *shared) + raw_name + packed
    end = END.pack(END_MAGIC, 0, 0, len(files), len(files), len(directory), len(body), 0)
    return bytes(body + directory + end)
