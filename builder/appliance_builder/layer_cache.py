"""What earlier builds learnt: blobs + layout version -> layer digest, and which repositories hold a layer.

An append-only file of JSON lines, so that a kill leaves at most a torn last line, which is skipped. Losing the file
costs time, never correctness: every layer is hashed again on its way, and remote images carry the same facts.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from appliance_image.contract import LAYOUT
from appliance_image.digest import Digest, DigestError
from appliance_image.layer import Blob


class LayerCache:
    def __init__(self, path: Path) -> None:
        self._path = path

    def layer(self, blobs: Sequence[Blob]) -> Digest | None:
        key = _key(blobs)
        found = None
        for record in self._records():
            if record.get("layout") == LAYOUT and record.get("blobs") == key:
                found = record.get("layer")
        try:
            return Digest.parse(found) if isinstance(found, str) else None
        except DigestError:  # a damaged line is as good as none
            return None

    def repositories(self, layer: Digest, *, host: str) -> list[str]:
        """Repositories of `host` that held this layer, latest first: where it can be mounted from."""
        prefix = f"{host}/"
        places = [
            place.removeprefix(prefix)
            for record in self._records()
            if record.get("at") == str(layer)
            and isinstance(place := record.get("repository"), str)
            and place.startswith(prefix)
        ]
        return list(dict.fromkeys(reversed(places)))

    def learn_layer(self, blobs: Sequence[Blob], layer: Digest) -> None:
        if self.layer(blobs) != layer:
            self._append({"layout": LAYOUT, "blobs": _key(blobs), "layer": str(layer)})

    def learn_repository(self, layer: Digest, *, host: str, repository: str) -> None:
        if self.repositories(layer, host=host)[:1] != [repository]:
            self._append({"at": str(layer), "repository": f"{host}/{repository}"})

    def forget_layer(self, blobs: Sequence[Blob]) -> None:
        self._append({"layout": LAYOUT, "blobs": _key(blobs), "layer": None})

    def _records(self) -> list[dict[str, object]]:
        try:
            lines = self._path.read_bytes().splitlines()
        except OSError:
            return []
        return [record for line in lines if (record := _parse(line)) is not None]

    def _append(self, record: dict[str, object]) -> None:
        with suppress(OSError):  # a full or read-only disk: the build is right without it, the next one slower
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                # A line of its own even after a torn one.
                file.write(b"\n" + json.dumps(record, separators=(",", ":")).encode() + b"\n")


def _key(blobs: Sequence[Blob]) -> list[str]:
    return [str(blob.digest) for blob in blobs]


def _parse(line: bytes) -> dict[str, object] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return cast("dict[str, object]", record) if isinstance(record, dict) else None
