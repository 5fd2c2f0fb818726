"""Lists of scenes: read whole as text, parsed line by line only for the scenes that are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from model.scene import DataError, SceneRef


class Line(NamedTuple):
    """A line that is not blank, and where it stands."""

    path: Path
    number: int
    text: str

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"


@dataclass(frozen=True)
class Listing:
    """The lines of one split of one root; `key` tells scenes apart without parsing."""

    name: str
    lines: Sequence[Line]
    key: Callable[[Line], str]
    parse: Callable[[Line], SceneRef]


def read_lines(path: Path) -> list[Line]:
    """The lines of a text file, blank ones left out, with their numbers from 1."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file (its bytes are not UTF-8)") from None
    lines = enumerate(text.split("\n"), start=1)
    return [Line(path, number, line.strip()) for number, line in lines if line.strip()]


def take(
    listings: Sequence[Listing], count: int | None, excluded: set[str]
) -> tuple[SceneRef, ...]:
    """Up to `count` scenes (None: all), from the listings in turn; each scene once.

    The keys taken are added to `excluded`.
    """
    taken: list[SceneRef] = []
    for listing, line in _in_turn(listings):
        if len(taken) == count:
            break
        key = listing.key(line)
        if key not in excluded:
            excluded.add(key)
            taken.append(listing.parse(line))
    return tuple(taken)


def _in_turn(listings: Sequence[Listing]) -> Iterator[tuple[Listing, Line]]:
    queue = deque((listing, iter(listing.lines)) for listing in listings)
    while queue:
        listing, lines = queue.popleft()
        line = next(lines, None)
        if line is not None:
            yield listing, line
            queue.append((listing, lines))
