"""Verify a dagseal proof file without dagseal: the standard library and `cryptography` only. Read it before you run it.

    python verify_standalone.py --trust-root KEY --proof etl.proof etl.zip

KEY: a file with the API's public key or keys, hex or base64, one a line. The last argument: the .py or .zip, or the folder that
was pushed. Exit code 0: all checks hold; 1: one does not; 3: a file cannot be read. The format: docs/protocol.md, *Proofs*.
It cannot tell whether the release was revoked after the checkpoint.
"""

import argparse
import base64
import hashlib
import json
import os
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MANIFEST_TYPE = "application/vnd.dagseal.manifest.v1+json"


class Failed(Exception):
    pass


def sha256(data):
    return hashlib.sha256(data).digest()


def require(holds, why):
    if not holds:
        raise Failed(why)


def canonical(data, what):
    """One JSON object in its only spelling."""
    value = json.loads(data.decode())
    again = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    require(isinstance(value, dict) and again == data, f"{what} is not canonical JSON")
    return value


def unbase64(text):
    raw = base64.b64decode(text, validate=True)
    require(base64.b64encode(raw).decode() == text, "not canonical base64")
    return raw


def signed(key, signature, message):
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def key_id(key):
    return hashlib.sha512(b"dagseal/key/v1\n" + key).hexdigest()[:64]


def keys_of(entries, trusted):
    """All keys of the log, and of these the trusted one and those after it."""
    keys, origin = [], ""
    for entry in entries:
        leaf = canonical(entry, "a key's entry")
        require(sorted(leaf) == ["at", "key", "kind", "signature", "v"], "an entry among the keys is no key")
        require((leaf["v"], leaf["kind"], str(leaf["at"]).isdecimal()) == (1, "key", True), "an entry is no key's")
        key = unbase64(leaf["key"])
        if keys:
            handed_on = b"dagseal/log-key/v1\n" + origin.encode() + b"\n" + key
            require(
                signed(keys[-1], unbase64(leaf["signature"]), handed_on), "a key was not signed by the one before it"
            )
        else:
            require(leaf["signature"] is None, "the log's first key is signed")
            origin = f"dagseal.dev/log/{key_id(key)}"
        keys.append(key)
    known = [at for at, key in enumerate(keys) if key in trusted]
    require(known, "none of the log's keys is trusted")
    return keys, keys[known[0] :], origin


def checkpoint_of(note, keys, origin):
    """Size, root and time, when one of these keys signed them under the log's name."""
    text, gap, below = note.decode().rpartition("\n\n")
    require(gap and below.endswith("\n"), "the checkpoint is no signed note")
    text += "\n"
    for line in below.split("\n")[:-1]:
        dash, name, encoded = line.split(" ")
        raw = unbase64(encoded)
        for key in keys:
            told = sha256(name.encode() + b"\n\x01" + key)[:4]
            if (dash, name, raw[:4]) == ("\u2014", origin, told) and signed(key, raw[4:], text.encode()):
                lines = text.split("\n")
                require(len(lines) == 5 and lines[0] == origin and lines[3][:5] == "time ", "this is no checkpoint")
                return int(lines[1]), unbase64(lines[2]), int(lines[3][5:])
    raise Failed("the checkpoint is not signed by a trusted key of the log")


def root_of(leaf, index, size, path):
    """RFC 9162, section 2.1.3.2."""
    require(0 <= index < size, "the log has no such leaf")
    at, last = index, size - 1
    for other in path:
        require(last, "the path is too long")
        if at % 2 or at == last:
            leaf = sha256(b"\x01" + other + leaf)
            while at % 2 == 0 and at:
                at, last = at >> 1, last >> 1
        else:
            leaf = sha256(b"\x01" + leaf + other)
        at, last = at >> 1, last >> 1
    require(last == 0, "the path is too short")
    return leaf


def manifest_of(envelope, keys, leaf):
    found = canonical(envelope, "the manifest's envelope")
    payload, kind = unbase64(found["payload"]), found["payloadType"]
    (one,) = found["signatures"]
    message = b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)
    key = next((key for key in keys if key_id(key) == one["keyid"]), None)
    require(kind == MANIFEST_TYPE, "this is no manifest")
    require(key and signed(key, unbase64(one["sig"]), message), "the manifest is not signed by a key of the log")
    require("sha512:" + hashlib.sha512(payload).hexdigest() == leaf["manifest"], "the log names another manifest")
    said = canonical(payload, "the manifest")
    for name in ("archive", "number", "digest", "size", "owner", "group"):
        require(said[name] == leaf[name], f"manifest and log differ in {name}")
    require(said["submitted_by"] == leaf["by"], "manifest and log differ in the submitter")
    return said


def compare(path, said):
    """The bytes of a file; of a folder those of each file that `dagseal push` takes."""
    here, whole = {}, not os.path.isdir(path)
    for at, folders, names in [("", [], [path])] if whole else os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for name in names if whole else [one for one in names if not one.startswith(".") and not one.endswith(".pyc")]:
            with open(os.path.join(at, name), "rb") as file:
                told = name if whole else os.path.relpath(os.path.join(at, name), path)
                here[told] = "sha512:" + hashlib.sha512(file.read()).hexdigest()
    stated = {path: said["digest"]} if whole else {member["name"]: member["digest"] for member in said["members"]}
    wrong = [f"changed: {name}" for name in sorted(stated) if name in here and here[name] != stated[name]]
    wrong += [f"missing: {name}" for name in sorted(stated) if name not in here]
    wrong += [f"unexpected: {name}" for name in sorted(here) if name not in stated]
    require(not wrong, "; ".join(wrong))


def verify(proof, trusted, path, owner):
    found = canonical(proof, "the proof file")
    require(found["v"] == 1, "this version is not known here")
    print("ok     1. the proof file is one canonical document")
    keys, believed, origin = keys_of([unbase64(one) for one in found["keys"]], trusted)
    print(f"ok     2. {len(keys)} keys of the log, handed on; trusted from {key_id(believed[0])[:16]} on")
    size, root, time = checkpoint_of(unbase64(found["checkpoint"]), believed, origin)
    print(f"ok     3. the checkpoint of {size} leaves is signed")
    entry = unbase64(found["entry"])
    leaf = canonical(entry, "the leaf")
    require(leaf["kind"] == "release", "the leaf is no release's")
    path_up = [unbase64(one) for one in found["path"]]
    require(root_of(sha256(b"\x00" + entry), found["index"], size, path_up) == root, "the release is not in the log")
    print(f"ok     4. {leaf['archive']}@{leaf['number']} is leaf {found['index']}")
    said = manifest_of(unbase64(found["manifest"]), keys, leaf)
    print(
        f"ok     5. its manifest is signed, and is the one in the log: by {said['submitted_by']}, owner {said['owner']}"
    )
    compare(path, said)
    print(f"ok     6. {path} is {said['digest']}")
    require(owner in (None, said["owner"]), f"it belongs to {said['owner']}")
    print(f"ok     7. the owner is {said['owner']}{'' if owner else ' (nobody was expected)'}")
    print(f"-      not checked: whether it was revoked after second {time} since 1970")


def main():
    parser = argparse.ArgumentParser()
    for name in ("--trust-root", "--proof"):
        parser.add_argument(name, required=True)
    parser.add_argument("--expect-owner")
    parser.add_argument("path")
    asked = parser.parse_args()
    try:
        with open(asked.trust_root) as file:
            lines = [line.strip() for line in file if line.strip() and not line.startswith("#")]
        with open(asked.proof, "rb") as file:
            proof = file.read()
        trusted = [bytes.fromhex(line) if len(line) == 64 else base64.b64decode(line) for line in lines]
        verify(proof, trusted, asked.path, asked.expect_owner)
    except OSError as error:
        print(f"could not verify: {error}")
        return 3
    except (Failed, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        print(f"FAILED {error if isinstance(error, Failed) else f'the proof is malformed: {error!r}'}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
