"""Plays the launcher's `serialise`: `python airflow_parsing_peer.py SOCKET`. Airflow is imported once, a file in a fork each.

It checks nothing that the launcher checks but the digest; the real one is asked in tests/e2e.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from integrity import messages
from integrity.digests import Digest


def main() -> None:
    import airflow
    from airflow.dag_processing.dagbag import BundleDagBag
    from airflow.serialization.serialized_objects import DagSerialization

    def parse(name: str, data: bytes) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(data)
            bag = BundleDagBag(
                dag_folder=str(path), safe_mode=False, load_op_links=False, bundle_path=Path(folder), bundle_name="b"
            )
        if bag.import_errors:
            error = next(iter(bag.import_errors.values())).strip().splitlines()[-1]
            return {
                "kind": "refused",
                "error": "invalid-archive",
                "rule": "import-error",
                "entry": name,
                "detail": error,
            }
        dags = []
        for dag_id, dag in sorted(bag.dags.items()):
            document = DagSerialization.to_dict(dag)
            document["dag"]["fileloc"] = dag.relative_fileloc
            member = str(dag.relative_fileloc).removeprefix(f"{name}/")
            dags.append({"dag_id": dag_id, "member": member, "data": json.dumps(document)})
        return {"kind": "serialised", "airflow_version": airflow.__version__, "dags": dags}

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(sys.argv[1])
    listening.listen(16)
    print("ready", flush=True)
    while True:
        peer, _ = listening.accept()
        if os.fork():
            peer.close()
            while True:
                try:
                    if os.waitpid(-1, os.WNOHANG)[0] == 0:
                        break
                except ChildProcessError:
                    break
            continue
        frame, fds, _, _ = socket.recv_fds(peer, 65536, 1)
        fields = messages.decode(frame[messages.HEADER_BYTES :]).fields
        name, digest = fields.name("name", "archive"), fields.digest("digest")
        print("parsed", name, flush=True)
        try:
            data = os.pread(fds[0], 1 << 24, 0)
            digest.require(Digest.of(data), "the bytes")
            answer = parse(name, data)
        except Exception:
            answer = {"kind": "refused", "error": "fetch", "detail": traceback.format_exc()[-2000:]}
        kind = answer.pop("kind")
        peer.sendall(messages.encode(kind, **answer))
        os._exit(0)


if __name__ == "__main__":
    main()
