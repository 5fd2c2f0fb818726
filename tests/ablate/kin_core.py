"""The toy core with jobs that train as one: a job of `trouble` ends as it says."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate.core import Diverged, Member
from tests.ablate import toy_core
from tests.ablate.toy_core import criteria

__all__ = ["SETTINGS", "criteria", "kinship", "train", "train_cohort"]

SETTINGS = {**toy_core.SETTINGS, "trouble": "none", "shape": 1}


def kinship(config: Mapping[str, Any]) -> str | None:
    return f"shape {config['shape']}"


def train(settings: Any, log: Any, workdir: Path, cache: Path, stop: Any) -> dict[str, float]:
    if settings["trouble"] == "hangs":
        time.sleep(600)
    log(1, {"train/loss": 1.0}, event="alone")
    return {"final/loss": 1.0}


def train_cohort(
    members: Sequence[Member], cache: Path
) -> Iterator[tuple[int, dict[str, float] | Exception]]:
    for place, member in reversed(list(enumerate(members))):
        member.log(1, {"train/loss": 2.0})
        match member.settings["trouble"]:
            case "diverges":
                yield place, Diverged(1, {"train/loss": 9.0})
            case "disk":
                yield place, OSError("disk full")
            case "fails":
                yield place, ValueError("no good")
            case "hangs":
                time.sleep(600)
            case "kills all":
                raise RuntimeError("the pass failed")
            case _:
                yield place, {"final/loss": 2.0}
