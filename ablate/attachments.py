"""Files and images of a run, laid out as MLflow's UI expects them.

`MlflowClient.log_image` would encode each image anew, which takes 130 ms; here the original is
linked (or copied) and only the small copy for grids is made.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ablate.runs import Picture, gallery, picture_name

SMALL = 256
"""Longer side of the copies that MLflow's grids show, px."""
QUALITY = 80
"""Of the WebP encoding; OpenCV's own default is lossless and slow."""


def local_folder(uri: str) -> Path | None:
    """The folder that an artifact URI names, if it is on this machine."""
    split = urlsplit(uri)
    return Path(url2pathname(split.path)) if split.scheme == "file" else None


def lay_out(root: Path, pictures: Sequence[Picture], files: Sequence[Path], time: int) -> None:
    """Put files and pictures under a run's artifact root; what is there stays."""
    root.mkdir(parents=True, exist_ok=True)
    for path in files:
        if path.exists():
            _link(path, root / path.name)
    if pictures:
        (root / "images").mkdir(exist_ok=True)
    for picture in gallery(pictures):
        name = picture_name(picture, time)
        small = root / "images" / f"{name}+compressed.webp"
        if picture.path.suffix == ".webp":  # the other suffix that the UI knows
            _link(picture.path, root / "images" / f"{name}.webp")
            _link(picture.path, small)  # small as it is
            continue
        _link(picture.path, root / "images" / f"{name}.png")
        _shrink(picture.path, small)


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _shrink(source: Path, target: Path) -> None:
    import cv2

    image = cv2.imread(str(source))
    if image is None:
        return
    scale = min(1.0, SMALL / max(image.shape[:2]))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(target), small, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
