"""What this Python's `zipfile` and `zipimport` make of zips: `python read.py FILE...` prints it as JSON. Standard library only,
for any Python from 3.9 on: it is run by others than the one that tests.

Of each file, for either parser: the names with the start of the SHA-256 of their bytes, or the type of the error.
"""

import hashlib
import json
import sys
import zipfile
import zipimport


def short(data):
    return hashlib.sha256(data).hexdigest()[:12]


def by_zipfile(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: short(archive.read(info)) for info in archive.infolist()}


def by_zipimport(path):
    importer = zipimport.zipimporter(path)
    importer.invalidate_caches()
    names = importer._get_files() if hasattr(importer, "_get_files") else importer._files
    return {name: short(importer.get_data(name)) for name in names}


def reading(parser, path):
    try:
        return parser(path)
    except Exception as error:
        return type(error).__name__


def readings(path):
    return {"zipfile": reading(by_zipfile, path), "zipimport": reading(by_zipimport, path)}


if __name__ == "__main__":
    print(json.dumps({path: readings(path) for path in sys.argv[1:]}))
