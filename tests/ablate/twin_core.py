"""The toy core with jobs whose training is the same: `trouble` is how one is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.ablate.kin_core import SETTINGS, criteria, kinship, train, train_cohort

__all__ = ["SETTINGS", "criteria", "kinship", "train", "train_cohort", "twinship"]


def twinship(settings: Mapping[str, Any]) -> str | None:
    return None if settings["trouble"] == "own tokens" else f"shape {settings['shape']}"
