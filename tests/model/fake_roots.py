"""Tiny CULane and TuSimple roots made of rendered scenes, with exact labels."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from model.config import DataConfig
from model.render import rendered_refs
from model.scene import Scene

_CONFIG = DataConfig()


def make_culane_root(path: Path, n_train: int, n_test: int) -> Path:
    """Write a CULane root: 1640x590 JPEGs, `.lines.txt`, `list/train_gt.txt`, `list/test.txt`."""
    (path / "list").mkdir(parents=True)
    for split, count, name in (("train", n_train, "train_gt.txt"), ("test", n_test, "test.txt")):
        lines = []
        for index, scene in enumerate(_scenes(split, count)):
            relative = f"driver_{split}/{index // 10:04d}.MP4/{index:05d}.jpg"
            _write_image(path / relative, scene, (1640, 590), 270)
            label = [
                " ".join(f"{x:.4f} {y:.4f}" for x, y in lane[::-1]) + " \n"
                for lane in scene.original_lanes
            ]
            (path / relative).with_suffix(".lines.txt").write_text("".join(label))
            seen = " ".join(str(int(slot < len(scene.lanes))) for slot in range(4))
            segmentation = f"/laneseg_label_w16/{relative[:-4]}.png"
            lines.append(
                f"/{relative} {segmentation} {seen}\n" if split == "train" else f"/{relative}\n"
            )
        (path / "list" / name).write_text("".join(lines))
    return path


def make_tusimple_root(path: Path, n_train: int, n_test: int) -> Path:
    """Write a TuSimple root: 1280x720 JPEGs, `label_data_0601.json`, `test_label.json`."""
    path.mkdir(parents=True)
    rows = np.arange(160, 720, 10)
    for split, count, name in (
        ("train", n_train, "label_data_0601.json"),
        ("test", n_test, "test_label.json"),
    ):
        lines = []
        for index, scene in enumerate(_scenes(split, count)):
            raw_file = f"clips/{split}/{index}/20.jpg"
            _write_image(path / raw_file, scene, (1280, 720), 160)
            label = {
                "raw_file": raw_file,
                "lanes": [_at_rows(lane, rows) for lane in scene.lanes],
                "h_samples": rows.tolist(),
            }
            lines.append(json.dumps(label) + "\n")
        (path / name).write_text("".join(lines))
    return path


def _scenes(split: str, count: int) -> list[Scene]:
    return [ref.load(_CONFIG) for ref in rendered_refs(_CONFIG, split, count)]


def _write_image(path: Path, scene: Scene, size: tuple[int, int], cut: int) -> None:
    width, height = size
    image = np.full((height, width, 3), 90, np.uint8)
    image[cut:] = cv2.resize(scene.image, (width, height - cut))
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 90])


def _at_rows(lane: np.ndarray, rows: np.ndarray) -> list[int]:
    """A lane (input px) as TuSimple writes it: whole x at each row, -2 where there is none."""
    x, y = lane.T * np.array([[1280 / 800], [560 / 320]])
    columns = np.interp(rows - 160, y, x, left=-2, right=-2)
    return [int(column) if column < 0 else round(column) for column in columns]
