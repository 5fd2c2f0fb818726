"""The door to the scenes: which of them train, validate and test, checked before anything runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.config import DataConfig
from model.culane_data import culane_listing, is_culane
from model.file_hashes import FileHashes
from model.listing import Listing, take
from model.mirror import with_mirror_images
from model.render import rendered_refs
from model.scene import DataError, Frame, Kind, Polyline, Scene, SceneRef
from model.tusimple_data import is_tusimple, tusimple_listing

__all__ = [
    "DataError",
    "Frame",
    "Kind",
    "Polyline",
    "Scene",
    "SceneRef",
    "Splits",
    "check_scenes",
    "fingerprint",
    "make_splits",
    "shortage",
]

_HOLDS = (
    "a CULane root holds list/train_gt.txt or list/train.txt, "
    "a TuSimple root holds label_data_*.json"
)


@dataclass(frozen=True)
class Splits:
    """The scenes a run uses; no scene is in two of them."""

    train: tuple[SceneRef, ...]
    val: tuple[SceneRef, ...]
    test: tuple[SceneRef, ...]


def make_splits(config: DataConfig) -> Splits:
    """Choose the scenes by `data.seed` (0: in list order), reading lists and no image.

    Training images come from the front of the training lists, several roots in turn. Validation
    images come from a root's own validation list, else from the far end of its training list, so
    that they stay the same when `train_images` grows; there may be fewer than asked for, as
    `shortage` says. No image of a test list validates. With `mirror` the mirror images of the
    training images follow them.

    Raises:
        DataError: a root that is no data set, a list that is missing, empty or malformed, or fewer
            images than asked for.
    """
    splits = _chosen(config)
    if config.mirror:
        return dataclasses.replace(splits, train=with_mirror_images(splits.train))
    return splits


def _chosen(config: DataConfig) -> Splits:
    """The scenes as they lie there, before any is mirrored."""
    if not config.roots:
        return _rendered(config)
    roots = _roots(config)
    train_lists = [_training(root, config.seed) for root in roots]
    test_lists = [x for x in (_listing(root, "test", config.seed) for root in roots) if x]
    test_keys = {listing.key(line) for listing in test_lists for line in listing.lines}
    used: set[str] = set()
    train = take(train_lists, _count(config.train_images), used)
    _require("train_images", config.train_images, len(train), train_lists)
    test: tuple[SceneRef, ...] = ()
    if config.test_images:
        if not test_lists:
            raise DataError(
                f"{config.roots[0]}: data.test_images={config.test_images}, but there is no "
                "list/test.txt (CULane) or test_label.json (TuSimple)"
            )
        leaked = next((ref.key for ref in train if ref.key in test_keys), None)
        if leaked is not None:
            raise DataError(f"{test_lists[0].name}: {leaked} is in the training list too")
        test = take([_filled(listing) for listing in test_lists], _count(config.test_images), set())
        _require("test_images", config.test_images, len(test), test_lists)
    val_lists = [_validation(root, config.seed) for root in roots] if config.val_images else []
    val = take(val_lists, _count(config.val_images), used | test_keys)
    return Splits(train, val, test)


def shortage(splits: Splits, config: DataConfig) -> str:
    """Say how many validation images there are where that is fewer than asked for, else ""."""
    asked, found = config.val_images, len(splits.val)
    if isinstance(asked, str) or found >= asked:
        return ""
    none = (
        "" if found else ": nothing is read of held-out images, and no weights are chosen by them"
    )
    return f"data.val_images={asked}, but only {found} are left beside the training images{none}"


def check_scenes(refs: Iterable[SceneRef], config: DataConfig) -> None:
    """Open every image and label of `refs`.

    Raises:
        DataError: the first that is missing, damaged or malformed, with its path and line.
    """
    for ref in refs:
        ref.check(config)


def fingerprint(splits: Splits, cache: Path | None = None) -> str:
    """Hash of the content of all scenes used and of their places; no path is in it.

    Args:
        splits: The scenes used.
        cache: Folder that remembers file hashes by path, size and time of change.
    """
    hashes = FileHashes(cache)
    digests = {
        field.name: [ref.digest(hashes) for ref in getattr(splits, field.name)]
        for field in dataclasses.fields(splits)
    }
    hashes.save()
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _rendered(config: DataConfig) -> Splits:
    counts = {"train": config.train_images, "val": config.val_images, "test": config.test_images}
    for split, count in counts.items():
        if count == "all":
            raise DataError(
                f"data.{split}_images=all: rendered scenes have no end, give a number "
                "(all needs real data, data.roots)"
            )
    return Splits(**{split: rendered_refs(config, split, int(n)) for split, n in counts.items()})


_Root = tuple[Path, str]  # and the prefix of its scenes' keys


def _roots(config: DataConfig) -> list[_Root]:
    roots: list[_Root] = []
    for index, given in enumerate(config.roots):
        path = Path(given)
        try:
            if not path.is_dir():
                raise DataError(f"{given}: no such folder; {_HOLDS}")
            if not is_culane(path) and not is_tusimple(path):
                raise DataError(f"{given}: not a data set; {_HOLDS}")
            if any(path.samefile(other) for other, _ in roots):
                raise DataError(f"{given}: given twice; name each data set once")
        except OSError as error:
            raise DataError(f"{given}: cannot be read ({error.strerror})") from None
        roots.append((path, f"{index}/" if len(config.roots) > 1 else ""))
    return roots


def _listing(root: _Root, split: str, seed: int) -> Listing | None:
    """The root's own list of a split, in the order that the seed chooses."""
    path, prefix = root
    read = culane_listing if is_culane(path) else tusimple_listing
    listing = read(path, split, prefix)
    if listing is None or not seed:
        return listing
    stream = hashlib.sha256(f"{seed}/{split}/{prefix}".encode()).digest()
    order = np.random.default_rng(int.from_bytes(stream, "little")).permutation(len(listing.lines))
    return dataclasses.replace(listing, lines=[listing.lines[place] for place in order])


def _training(root: _Root, seed: int) -> Listing:
    listing = _listing(root, "train", seed)
    if listing is None:
        raise DataError(f"{root[0]}: no training list; {_HOLDS}")
    return _filled(listing)


def _validation(root: _Root, seed: int) -> Listing:
    """A root's own validation list, else its training list from the far end."""
    own = _listing(root, "val", seed)
    if own is not None:
        return _filled(own)
    train = _training(root, seed)
    return dataclasses.replace(train, lines=train.lines[::-1])


def _filled(listing: Listing) -> Listing:
    if not listing.lines:
        raise DataError(f"{listing.name}: the list is empty, expected one image per line")
    return listing


def _count(images: int | str) -> int | None:
    return None if isinstance(images, str) else images


def _require(name: str, asked: int | str, found: int, listings: Sequence[Listing]) -> None:
    if isinstance(asked, str) or found == asked:
        return
    where = ", ".join(
        f"{len({listing.key(line) for line in listing.lines})} in {listing.name}"
        for listing in listings
    )
    allowed = f"; allowed: up to {found}, or all" if found else ""
    raise DataError(f"data.{name}={asked}, but there are only {found}: {where}{allowed}")
