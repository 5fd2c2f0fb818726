"""A bank of frozen features on disk, memory-mapped by every job (written by model.features).

A folder of one flat float32 file per pyramid level, (images, C, h, w), beside the moments of
every image and channel, and a manifest with the scenes' keys in row order.
"""

from __future__ import annotations

import dataclasses
import json
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

LAYOUT_VERSION = 1
"""Raised when the files below change."""

FILES = ("p3.f32", "p4.f32", "p5.f32", "moments.f64")
MANIFEST = "manifest.json"

_MAPPED_BYTES = 64 << 20
"""Pages of a file that a process keeps mapped before it hands them back to the system."""

_POOLED_ROWS = 1024
"""Images whose moments are read at a time; the parts are pooled as by Chan et al. (1979)."""


class FeatureError(RuntimeError):
    """A bank that cannot be made or opened: one line."""


@dataclass(frozen=True)
class Layout:
    """What a bank holds: its manifest, which decides the shapes of its files."""

    keys: tuple[str, ...]
    channels: tuple[int, int, int]
    sizes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

    def shapes(self) -> list[tuple[int, ...]]:
        """Of FILES: the levels, and per image and channel the mean and the variance."""
        n = len(self.keys)
        levels = [(n, c, h, w) for c, (h, w) in zip(self.channels, self.sizes, strict=True)]
        return [*levels, (n, 2, sum(self.channels))]

    def file_bytes(self) -> list[int]:
        """Sizes of FILES: three of float32, one of float64."""
        return [math.prod(shape) * (8 if len(shape) == 3 else 4) for shape in self.shapes()]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Layout:
        """Read a folder's manifest and compare its files' sizes with it.

        Raises:
            FeatureError: the folder is no bank, or a file of it is damaged.
        """
        try:
            raw = json.loads((folder / MANIFEST).read_text())
            c3, c4, c5 = (int(c) for c in raw["channels"])
            s3, s4, s5 = ((int(h), int(w)) for h, w in raw["sizes"])
            layout = cls(tuple(raw["keys"]), (c3, c4, c5), (s3, s4, s5))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FeatureError(f"{folder}: no feature bank ({type(error).__name__})") from None
        for name, size in zip(FILES, layout.file_bytes(), strict=True):
            path = folder / name
            given = path.stat().st_size if path.is_file() else 0
            if given != size:
                raise FeatureError(f"{path}: has {given} bytes, expected {size}")
        return layout


def is_complete(folder: Path) -> bool:
    """Whether the folder is a bank with all its files in their right size."""
    try:
        Layout.read(folder)
    except FeatureError:
        return False
    return True


class FeatureBank:
    """Features of an image set, read on demand.

    Attributes:
        keys: scene keys in row order.
        channels: of P3, P4 and P5.
        sizes: (h, w) of P3, P4 and P5; ((40, 100), (20, 50), (10, 25)) for 800x320 input.
    """

    @classmethod
    def open(cls, folder: Path) -> FeatureBank:
        """Map a bank that `prepare_features` returned.

        Raises:
            FeatureError: the folder is no bank, or a file of it is damaged.
        """
        return cls(folder, Layout.read(folder))

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.keys = layout.keys
        self.channels = layout.channels
        self.sizes = layout.sizes
        self._rows = {key: row for row, key in enumerate(self.keys)}
        paths = [folder / name for name in FILES]
        *levels, moments = layout.shapes()
        self._levels = [_MappedRows(*file) for file in zip(paths[:3], levels, strict=True)]
        self._moments = _MappedRows(paths[3], moments, np.float64)

    def __len__(self) -> int:
        return len(self.keys)

    def index(self, key: str) -> int:
        """Row of a scene; KeyError if the bank does not hold it."""
        return self._rows[key]

    def batch(
        self, indices: Sequence[int], levels: Sequence[int]
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """Read rows into fresh tensors, one per level asked for (0 = P3, 1 = P4, 2 = P5)."""
        return [torch.from_numpy(self._levels[level].read(indices)) for level in levels]

    def statistics(
        self, indices: Sequence[int]
    ) -> list[tuple[Float[Tensor, " _"], Float[Tensor, " _"]]]:
        """Mean and standard deviation of each channel over the images and positions, per level.

        Reads stored moments, not features, so that it costs the same for any level size.
        """
        n = 0
        mean = squares = variance = np.zeros(sum(self.channels))
        for start in range(0, len(indices), _POOLED_ROWS):
            part = indices[start : start + _POOLED_ROWS]
            rows = self._moments.read(part)  # (k, 2, C3 + C4 + C5)
            k, means = len(rows), rows[:, 0]
            delta = means.mean(axis=0) - mean
            squares = squares + means.var(axis=0) * k + delta**2 * n * k / (n + k)
            mean = mean + delta * k / (n + k)
            variance = variance + rows[:, 1].sum(axis=0)
            n += k
        std = np.sqrt((squares + variance) / n)
        ends = np.cumsum(self.channels)[:-1]
        return [
            (torch.from_numpy(m).float(), torch.from_numpy(s).float())
            for m, s in zip(np.split(mean, ends), np.split(std, ends), strict=True)
        ]


class _MappedRows:
    """A read-only array in a file, whose pages do not pile up in the process.

    Mapped pages count as resident memory once touched. After `_MAPPED_BYTES` they are handed
    back; they stay in the system's page cache, from which all jobs read.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type = np.float32) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._rows = np.frombuffer(self._map, dtype).reshape(shape)
        self._touched = 0

    def read(self, indices: Sequence[int]) -> np.ndarray:
        rows = self._rows[np.asarray(indices, dtype=np.int64)]  # indexing by a list copies
        self._touched += rows.nbytes
        if self._touched > _MAPPED_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
        return rows
