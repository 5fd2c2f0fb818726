"""What a search suggested, kept so that a killed one goes on with the same points.

OUT/<study>/suggestions.jsonl   one line a suggestion, on disk before its job starts
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablate.files import append_line
from ablate.nouns import StudyError
from ablate.space import Params


@dataclass(frozen=True)
class Suggestion:
    """A point, and what its sampler must remember of it."""

    number: int
    params: Params
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suggestions:
    """The suggestions of one search in a file that it shares with others."""

    file: Path
    search: str
    """The digest of all that they hang on (`Search.digest`)."""
    siblings: frozenset[str] = frozenset()
    """Digests of the study's searches."""

    def read(self) -> tuple[list[Suggestion], int]:
        """The suggestions kept, and how many were made under other settings."""
        try:
            lines = self.file.read_bytes().splitlines()
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise StudyError(f"{self.file}: cannot be read ({error.strerror})") from None
        kept, strange = [], 0
        for line in lines:
            try:
                value = json.loads(line)
                one = Suggestion(value["number"], value["params"], value["attributes"])
                digest = value["search"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # torn by a kill: its job never started, so it is thought of again
            if digest != self.search:
                strange += digest not in self.siblings
            elif one.number == len(kept):
                kept.append(one)
        return kept, strange

    def keep(self, one: Suggestion) -> None:
        """Put a suggestion on disk, to stay there after a power cut too."""
        line = {"search": self.search, **vars(one)}
        try:
            append_line(self.file, json.dumps(line))
            for path in (self.file, self.file.parent):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise StudyError(
                f"{self.file}: a suggestion cannot be kept ({error.strerror})"
            ) from None
