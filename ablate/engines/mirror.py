"""A job's folder on two machines that share no storage: what changed on one, laid into the other.

The machine that trains owns the folder while the job runs; the coordinator's is its mirror. Files
that only grow travel as what was appended, the others whole; both sides replace a file in one
rename. A checkpoint is read before the events: the mirror never has one that is ahead of them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ablate.files import write_atomic

GROWING = ("events.jsonl", "output.txt")
LAST = "result.json"
OURS = ("lock",)
"""Never sent: each machine has its own."""


@dataclass(frozen=True)
class Parcel:
    """What changed in a folder. Paths are relative to it."""

    whole: Mapping[str, bytes] = field(default_factory=dict)
    grown: Mapping[str, tuple[int, bytes]] = field(default_factory=dict)
    """Offset, and the bytes from there on."""
    names: frozenset[str] | None = None
    """All files there; others are to go. None: this does not say."""

    def __bool__(self) -> bool:
        return bool(self.whole or self.grown or self.names is not None)

    def then(self, later: Parcel) -> Parcel:
        """Both in one; laying in again what was laid in before changes nothing."""
        grown = dict(later.grown)
        for name, (offset, data) in self.grown.items():
            _, more = later.grown.get(name, (0, b""))
            grown[name] = offset, data + more
        return Parcel({**self.whole, **later.whole}, grown, later.names)


class Sender:
    """Knows what the other side has of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sent: dict[str, tuple[int, int]] = {}
        self._offsets: dict[str, int] = {}

    def note(self) -> None:
        """The other side has all that is there now."""
        self.changes(final=True)

    def grown(self) -> bool:
        """Whether there are new lines to send."""
        return any(
            path.exists() and path.stat().st_size > self._offsets.get(path.name, 0)
            for path in (self.folder / name for name in GROWING)
        )

    def changes(self, *, files: bool = True, final: bool = False) -> Parcel:
        """What is new since the last call.

        Args:
            files: the files that do not grow, too.
            final: everything, a last line that is not closed too, and which files there are.
        """
        names = [name for name in _names(self.folder) if name not in OURS]
        whole, grown = {}, {}
        for name in names if files or final else ():
            if name in GROWING:
                continue
            path = self.folder / name
            try:
                with path.open("rb") as file:
                    state = os.fstat(file.fileno())
                    version = state.st_mtime_ns, state.st_size
                    if self._sent.get(name) != version:
                        whole[name] = file.read()
                        self._sent[name] = version
            except FileNotFoundError:  # replaced or removed while we looked
                continue
        for name in GROWING:
            offset = self._offsets.get(name, 0)
            try:
                with (self.folder / name).open("rb") as file:
                    file.seek(offset)
                    data = file.read()
            except FileNotFoundError:
                continue
            data = data if final else data[: data.rfind(b"\n") + 1]
            if data:
                grown[name] = offset, data
                self._offsets[name] = offset + len(data)
        return Parcel(whole, grown, frozenset(names) if final else None)


def lay_in(folder: Path, parcel: Parcel) -> None:
    """Make the folder what the parcel says; a result comes last, when all else is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (offset, data) in parcel.grown.items():
        with (folder / name).open("r+b" if (folder / name).exists() else "w+b") as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(data)
    if parcel.names is not None:
        for name in set(_names(folder)) - parcel.names - set(OURS):
            (folder / name).unlink(missing_ok=True)
    for name in sorted(parcel.whole, key=lambda name: name == LAST):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, parcel.whole[name])


def lay_out(folder: Path, parcel: Parcel) -> Sender:
    """Begin anew with what the coordinator has; what an earlier attempt left here goes."""
    shutil.rmtree(folder, ignore_errors=True)
    lay_in(folder, parcel)
    sender = Sender(folder)
    sender.note()
    return sender


def _names(folder: Path) -> list[str]:
    """The files below a folder, without temporary ones."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".tmp")
    ]
