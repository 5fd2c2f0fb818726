"""Content hashes of files, each computed once as long as its file stays as it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

from model.scene import DataError, hash_file


class FileHashes:
    """Hashes of files, remembered in a folder by (path, size, time of change); None: by nobody."""

    def __init__(self, folder: Path | None) -> None:
        self._store = folder / "file_hashes.json" if folder else None
        self._known = _read(self._store) if self._store else {}
        self._new = False

    def __call__(self, path: Path) -> str:
        """Give the SHA-256 of a file's content; DataError if it cannot be read."""
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        name, state = str(path.absolute()), [stat.st_size, stat.st_mtime_ns]
        match self._known.get(name):
            case [size, changed, str(digest)] if [size, changed] == state:
                return digest
        digest = hash_file(path)
        self._known[name] = [*state, digest]
        self._new = True
        return digest

    def save(self) -> None:
        """Write what was learnt, whole or not at all."""
        if not self._store or not self._new:
            return
        self._store.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._store.with_name(f"{self._store.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self._known))
        temporary.replace(self._store)


def _read(store: Path) -> dict[str, object]:
    """What a store remembers; one that is not there, torn or foreign remembers nothing."""
    try:
        known = json.loads(store.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
