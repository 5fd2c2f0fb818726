"""A job reads labels as labels: no image is opened or drawn for them, no file hashed twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from model import culane_data, material, render, scene, tusimple_data
from model.config import DataConfig, TrainConfig
from model.data import make_splits
from model.material import load_material
from model.scene import NO_PIXELS, SceneRef
from tests.model.fake_roots import make_culane_root, make_tusimple_root
from tests.model.tiny import tiny


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The settings of each kind of data."""
    folder = tmp_path_factory.mktemp("data")
    culane = make_culane_root(folder / "culane", 3, 1)
    tusimple = make_tusimple_root(folder / "tusimple", 3, 1)
    return {
        "rendered": {},
        "shaped": {"geometry": str(_four_labels(tusimple, folder))},
        "culane": {"roots": [str(culane)]},
        "tusimple": {"roots": [str(tusimple)]},
    }


def _four_labels(tusimple: Path, folder: Path) -> Path:
    """A label file with a lane to build a road around in each line."""
    labels = [json.loads(line) for line in _lines(tusimple / "label_data_0601.json")]
    rows = labels[0]["h_samples"]
    straight = [[600 + shift - (720 - y) // 4 for y in rows] for shift in (0, 300)]
    path = folder / "shapes.json"
    shaped = [
        {**labels[0], "lanes": [[x + 9 * i for x in one] for one in straight]} for i in range(4)
    ]
    path.write_text("".join(f"{json.dumps(label)}\n" for label in shaped))
    return path


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise AssertionError("pixels were read or drawn")

    for module in (culane_data, tusimple_data):
        monkeypatch.setattr(module, "read_image", refuse)
    monkeypatch.setattr(cv2, "imdecode", refuse)
    monkeypatch.setattr(cv2, "imread", refuse)
    for name in ("paint_sky", "paint_ground", "roadside", "traffic", "_through_lens"):
        monkeypatch.setattr(render, name, refuse)


@pytest.mark.parametrize("kind", ["rendered", "shaped", "culane", "tusimple"])
@pytest.mark.parametrize("size", [(800, 320), (256, 96)])
def test_labels_are_those_of_the_whole_scene(
    kind: str, size: tuple[int, int], roots: dict[str, dict[str, Any]], monkeypatch: Any
) -> None:
    config = DataConfig(train_images=2, val_images=1, width=size[0], height=size[1], **roots[kind])
    refs = [ref for split in vars(make_splits(config)).values() for ref in split]
    whole = [ref.load(config) for ref in refs]
    assert all(one.image.shape == (size[1], size[0], 3) for one in whole)
    _no_pixels(monkeypatch)
    assert any(one.lanes for one in whole)
    for ref, one in zip(refs, whole, strict=True):
        labels = ref.labels(config)
        assert labels.image is NO_PIXELS
        for name in ("key", "kind", "frame", "h_samples"):
            assert getattr(labels, name) == getattr(one, name)
        for name in ("lanes", "original_lanes"):
            ours, theirs = getattr(labels, name), getattr(one, name)
            assert len(ours) == len(theirs)
            assert all(map(np.array_equal, ours, theirs))  # to the last bit


@pytest.mark.parametrize("kind", ["rendered", "culane", "tusimple"])
def test_a_job_whose_features_are_there_opens_no_image(
    kind: str, roots: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: Any
) -> None:
    config = _job(roots[kind])
    first = load_material(config, tmp_path)
    material._labels.cache_clear()  # as in another process
    _no_pixels(monkeypatch)
    opened: list[Path] = []
    monkeypatch.setattr(scene, "hash_file", lambda path: opened.append(path) or "")
    monkeypatch.setattr("model.file_hashes.hash_file", lambda path: opened.append(path) or "")
    again = load_material(config, tmp_path)
    assert opened == []
    assert again.name == first.name
    for split in ("train", "val"):
        ours, theirs = getattr(again, split), getattr(first, split)
        assert ours.targets.ids.equal(theirs.targets.ids)
        assert [one.key for one in ours.scenes] == [one.key for one in theirs.scenes]


def test_changed_labels_are_read_anew(roots: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    config = _job(roots["culane"])
    before = load_material(config, tmp_path)
    ref: SceneRef = before.splits.train[0]
    label = next(path for path in ref.files if path.suffix == ".txt")
    kept = label.read_text()
    label.write_text("700 580 700 300\n")
    try:
        changed = load_material(config, tmp_path)
    finally:
        label.write_text(kept)
    assert changed.name != before.name
    assert len(changed.train.scenes[0].original_lanes) == 1


def _job(data: dict[str, Any]) -> TrainConfig:
    return tiny(**{f"data__{name}": value for name, value in data.items()})
