"""The cache of frozen features: computed once per (images, backbone, input size), used by all jobs.

A bank is written under another name and renamed when whole, so that a folder of the final name is
complete or, if a file was damaged later, is noticed by its size and made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from model.allocator import keep_freed_memory
from model.backbone import STRIDES, Pyramid, make_pyramid
from model.config import DataConfig, TrainConfig
from model.feature_bank import (
    FILES,
    LAYOUT_VERSION,
    MANIFEST,
    FeatureBank,
    FeatureError,
    Layout,
    is_complete,
)
from model.file_hashes import FileHashes
from model.scene import SceneRef
from model.weights_file import backbone_fingerprint

__all__ = ["FeatureBank", "FeatureError", "compute", "cores", "prepare_features"]

Progress = Callable[[int, int], None]


def prepare_features(
    config: TrainConfig, refs: Sequence[SceneRef], cache: Path, progress: Progress | None = None
) -> Path:
    """Compute the features of `refs` unless the cache holds them; return the bank's folder.

    Images are computed one by one, each by a single thread on the CPU, several at a time: the
    same image has the same bits whatever set it is in and however many cores there are. Row i of
    the bank is the i-th key; repeated scenes are stored once. `progress(done, total)` is called
    after every image and while another process computes the same bank; an error that it raises
    stops the computation.

    Raises:
        CheckpointError: the backbone's weights cannot be used.
        FeatureError: one key for two scenes, no images, or not enough disk.
    """
    unique, digests = _unique(refs, cache)
    folder = cache / _bank_name(config, digests)
    if is_complete(folder):
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    report = progress or (lambda done, total: None)
    with _only_one(cache / f"{folder.name}.lock", lambda: report(0, len(unique))) as locked:
        if is_complete(folder):  # by the process that we waited for
            return folder
        if locked:
            for stale in cache.glob(f"{folder.name}.part-*"):  # left by a process that was killed
                shutil.rmtree(stale, ignore_errors=True)
        part = cache / f"{folder.name}.part-{uuid.uuid4().hex}"
        part.mkdir()
        try:
            _write_bank(config, unique, part, report)
            _publish(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _unique(refs: Sequence[SceneRef], cache: Path) -> tuple[list[SceneRef], dict[str, str]]:
    """The scenes without repeats, and the digest of each key, both in order."""
    hashes = FileHashes(cache)
    digests: dict[str, str] = {}
    unique: list[SceneRef] = []
    for ref in refs:
        digest = ref.digest(hashes)
        if ref.key not in digests:
            unique.append(ref)
        if digests.setdefault(ref.key, digest) != digest:
            raise FeatureError(f"two different scenes have the key {ref.key!r}")
    hashes.save()
    if not unique:
        raise FeatureError("no images to compute features of")
    return unique, digests


def _bank_name(config: TrainConfig, digests: Mapping[str, str]) -> str:
    size = (config.data.width, config.data.height)
    parts = [LAYOUT_VERSION, backbone_fingerprint(config.backbone), size, list(digests.items())]
    return f"features-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}"


def _write_bank(
    config: TrainConfig, refs: Sequence[SceneRef], part: Path, progress: Progress
) -> None:
    """Stream the features of `refs` into the files of `part`, the manifest last."""
    pyramid = make_pyramid(config.backbone)
    height, width = config.data.height, config.data.width
    s3, s4, s5 = ((height // stride, width // stride) for stride in STRIDES)
    layout = Layout(tuple(ref.key for ref in refs), pyramid.channels, (s3, s4, s5))
    _check_disk(part, len(refs), sum(layout.file_bytes()))
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((part / name).open("wb")) for name in FILES]
        images = compute(pyramid, refs, config.data)
        stack.callback(images.close)  # stops its threads when writing or `progress` fails
        for done, arrays in enumerate(images, start=1):
            for file, array in zip(files, arrays, strict=True):
                file.write(array.data)
            progress(done, len(refs))
        for file in files:
            _flush(file)
    with (part / MANIFEST).open("w") as file:
        file.write(layout.to_json())
        _flush(file)


def compute(
    pyramid: Pyramid, refs: Sequence[SceneRef], data: DataConfig, workers: int | None = None
) -> Generator[list[np.ndarray], None, None]:
    """Yield of each image P3, P4, P5 (C, h, w) and the (2, channels) mean and variance, in order.

    One image per thread at a time, all cores by default: reading or drawing an image hides behind
    the others' convolutions, and one thread per image does more than all threads on one.
    """
    workers = workers or cores()
    shape = (data.height, data.width, 3)

    def one(ref: SceneRef) -> list[np.ndarray]:
        image = np.array(ref.load(data).image)
        if image.shape != shape:
            raise FeatureError(f"scene {ref.key}: image of {image.shape}, expected {shape}")
        levels = [level[0].contiguous() for level in pyramid(torch.from_numpy(image)[None])]
        moments = [
            torch.var_mean(level.double(), dim=(1, 2), correction=0)[::-1] for level in levels
        ]
        stacked = torch.cat([torch.stack(pair) for pair in moments], dim=1)
        return [array.numpy() for array in (*levels, stacked)]

    keep_freed_memory()  # half as long again without: each map would be paged in anew
    threads = torch.get_num_threads()
    pending: deque[Future[list[np.ndarray]]] = deque()
    pool = ThreadPoolExecutor(workers, "features", initializer=torch.set_num_threads, initargs=(1,))
    try:
        for ref in refs:
            pending.append(pool.submit(one, ref))
            if len(pending) > 2 * workers:  # bounds the memory
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what a thread sets reaches libraries of the whole process


def _check_disk(folder: Path, images: int, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FeatureError(
            f"{folder.parent}: features of {images} images need {needed / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free"
        )


def _flush(file: IO[Any]) -> None:
    """Bring a file to the disk before the rename that declares it whole."""
    file.flush()
    os.fsync(file.fileno())


def _publish(part: Path, folder: Path) -> None:
    """Rename `part` to `folder`; a damaged bank there makes way, a complete one stays."""
    if folder.exists() and not is_complete(folder):
        damaged = part.with_name(f"{part.name}-damaged")
        folder.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    try:
        part.rename(folder)
    except OSError:
        if not is_complete(folder):
            raise
        # another process was faster, where locks do not work: its bank is the same


@contextlib.contextmanager
def _only_one(path: Path, waiting: Callable[[], None]) -> Iterator[bool]:
    """Hold the lock file while others wait; yields False where the file system has no locks.

    The system frees the lock when its process ends in any way.
    """
    with path.open("w") as file:
        while (locked := _try_lock(file)) is None:
            waiting()
            time.sleep(0.1)
        yield locked


def _try_lock(file: IO[Any]) -> bool | None:
    """True: locked; None: another holds it; False: the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:
        return False
    return True


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
