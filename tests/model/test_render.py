"""Rendered scenes: the same everywhere, apart in every split, and labelled where the paint is."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.config import DataConfig
from model.data import DataError, check_scenes, fingerprint, make_splits
from model.render import render, rendered_refs
from model.render_ground import paint_ground, survey
from model.render_light import choose_light
from model.render_road import HEIGHT, LaneLine, Road, drawn_road, road_through
from model.scene import Scene
from tests.model.fake_roots import make_tusimple_root


def _scenes(count: int, split: str = "train", **settings: object) -> list[Scene]:
    config = DataConfig.model_validate(settings)
    return [ref.load(config) for ref in rendered_refs(config, split, count)]


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return _scenes(36)


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight labels, each with lanes of its own."""
    root = make_tusimple_root(tmp_path_factory.mktemp("geometry") / "tusimple", 0, 0)
    path = root / "label_data_0601.json"
    rows = list(range(240, 720, 10))
    lines = [
        json.dumps(
            {
                "raw_file": f"clips/{index}/20.jpg",
                "lanes": [
                    _straight(-700 + 7 * index, rows),
                    _straight(600, rows),
                    [-2] * len(rows),
                ],
                "h_samples": rows,
            }
        )
        for index in range(8)
    ]
    path.write_text("\n".join(lines))
    return path


def _straight(bottom: int, rows: list[int]) -> list[int]:
    """A lane from the vanishing point (640, 220) to `bottom` px beside it at row 720."""
    xs = (round(640 + bottom * (row - 220) / 500) for row in rows)
    return [x if 0 <= x < 1280 else -2 for x in xs]


def _digest(scene: Scene) -> str:
    return hashlib.sha256(
        scene.image.tobytes() + b"".join(x.tobytes() for x in scene.lanes)
    ).hexdigest()


def test_another_process_draws_the_same_scene() -> None:
    here = [_digest(scene) for scene in _scenes(4, "val")]
    code = (
        "from tests.model.test_render import _digest, _scenes\n"
        "print(*[_digest(scene) for scene in reversed(_scenes(4, 'val'))])"
    )
    root = Path(__file__).parents[2]
    there = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert there.stdout.split() == here[::-1]


def test_splits_and_seeds_never_share_a_scene() -> None:
    images: Counter[bytes] = Counter()
    digests: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    for seed in (0, -1):
        config = DataConfig(train_images=2, val_images=2, test_images=2, seed=seed)
        splits = make_splits(config)
        for ref in (*splits.train, *splits.val, *splits.test):
            images[ref.load(config).image.tobytes()] += 1
            digests[ref.digest()] += 1
            keys[ref.key] += 1
    assert len(images) == len(digests) == len(keys) == 12


def test_more_scenes_keep_the_first_ones() -> None:
    few, more = (make_splits(DataConfig(train_images=n)) for n in (2, 5))
    assert more.train[:2] == few.train
    assert more.val == few.val
    assert fingerprint(few) != fingerprint(more)


def test_lanes_are_sound(many: list[Scene]) -> None:
    for scene in many:
        assert scene.image.shape == (320, 800, 3)
        assert scene.image.dtype == np.uint8
        for lane in scene.lanes:
            assert (np.diff(lane[:, 1]) > 0).all()
            assert (lane >= 0).all()
            assert (lane < (800, 320)).all()
            assert np.diff(lane[:, 1]).max() <= 8 + 1e-6  # labelled all the way, hidden or not
        bottoms = [lane[-1, 0] + 4 * (320 - lane[-1, 1]) * np.sign(lane[-1, 0] - 400) for lane in
                   scene.lanes]  # fmt: skip
        assert bottoms == sorted(bottoms)


def test_scenes_vary(many: list[Scene]) -> None:
    counts = Counter(len(scene.lanes) for scene in many)
    assert set(counts) == {0, 1, 2, 3, 4}
    brightness = np.array([scene.image.mean() for scene in many])
    assert (brightness < 45).any()  # night
    assert (brightness > 110).any()  # day
    bends = [np.ptp(np.diff(lane[:, 0]) / np.diff(lane[:, 1])) for x in many for lane in x.lanes]
    assert np.quantile(bends, 0.9) > 2.0 > np.quantile(bends, 0.1)


@pytest.mark.parametrize("seed", range(6))
def test_the_first_training_scene_is_a_plain_one(seed: int) -> None:
    scene = _scenes(1, seed=seed)[0]
    assert len(scene.original_lanes) in (3, 4)
    assert scene.image.mean() > 70


def test_original_lanes_are_in_the_culane_frame(many: list[Scene]) -> None:
    for scene in many[:10]:
        for lane in scene.original_lanes:
            assert lane[-1, 1] == pytest.approx(590)
        assert (scene.frame.width, scene.frame.height, scene.frame.crop_top) == (1640, 590, 270)


def test_other_input_sizes_scale_the_same_scene() -> None:
    (large,), (small,) = _scenes(1), _scenes(1, width=416, height=160)
    assert small.image.shape == (160, 416, 3)
    for a, b in zip(large.lanes, small.lanes, strict=True):
        rows = np.linspace(a[0, 1] + 1, a[-1, 1] - 1, 9)
        at = np.interp(rows, a[:, 1], a[:, 0])
        np.testing.assert_allclose(np.interp(rows / 2, b[:, 1], b[:, 0]), at * 0.52, atol=1e-6)


def test_max_lanes_applies(many: list[Scene]) -> None:
    index = next(i for i, scene in enumerate(many) if len(scene.lanes) == 4)
    config = DataConfig(max_lanes=2)
    fewer = rendered_refs(config, "train", index + 1)[index].load(config)
    assert len(fewer.lanes) == 2
    assert len(fewer.original_lanes) == 4


# --- labels lie on the paint ---------------------------------------------------------------------


def _paint_of(road: Road, seed: int) -> np.ndarray:
    """How much the road's lines change the unlit ground, (320, 800)."""
    light = replace(choose_light(np.random.default_rng(0), True), shadows=False, headlights=0.0)
    pictures = []
    for lines in (road.lines, ()):
        rng = np.random.default_rng(seed)
        seen = replace(road, lines=lines)
        ground = survey(seen, rng)
        picture = np.zeros((HEIGHT, 800))
        picture[ground.first :] = paint_ground(seen, ground, light, rng).sum(axis=2)
        pictures.append(picture)
    return np.abs(pictures[0] - pictures[1])


def _offsets(road: Road, seed: int) -> np.ndarray:
    """Distance in px, across the line, from label to middle of the paint in each painted row."""
    found = []
    for line in road.lines:
        fresh = replace(line, strength=1.5, dash=None)  # worn paint has no middle
        paint = _paint_of(replace(road, lines=(fresh,)), seed)
        x, y = line.lane.T
        rows = np.arange(max(int(np.ceil(y[0])) + 1, 0), int(y[-1]))
        before, middle, after = (np.interp(rows + d, y, x) for d in (-0.5, 0, 0.5))
        slant = np.hypot(1, after - before)
        for row, at, steep in zip(rows, middle, slant, strict=True):
            weight = paint[row]
            if 40 < at < 760 and weight.max() > 30:
                touched = np.flatnonzero(weight > 1)
                found.append(float((touched[0] + touched[-1]) / 2 - at) / steep)
    return np.array(found)


@pytest.mark.parametrize("seed", range(6))
def test_paint_lies_on_the_label(seed: int) -> None:
    road = drawn_road(np.random.default_rng(seed + 100), typical=seed % 2 == 0)
    offsets = np.abs(_offsets(road, seed))
    if road.lines:
        assert len(offsets) > 50
        assert np.median(offsets) < 0.15  # of the span of whole pixels touched
        assert np.quantile(offsets, 0.98) < 0.5


def test_paint_off_its_label_would_be_seen() -> None:
    road = drawn_road(np.random.default_rng(102), typical=True)
    moved = tuple(replace(line, lane=line.lane + np.array([2.0, 0.0])) for line in road.lines)
    found: list[np.ndarray] = []
    for line, other in zip(road.lines, moved, strict=True):
        paint = _paint_of(replace(road, lines=(replace(other, strength=1.5),)), 1)
        rows = np.flatnonzero(paint.max(axis=1) > 60)
        middle = (paint[rows] * np.arange(800)).sum(axis=1) / paint[rows].sum(axis=1)
        found.append(np.abs(middle - np.interp(rows, line.lane[:, 1], line.lane[:, 0])))
    assert np.median(np.concatenate(found)) > 1.0


def test_solid_paint_reaches_from_end_to_end() -> None:
    road = drawn_road(np.random.default_rng(103), typical=True)
    line = replace(road.lines[1], dash=None, strength=1.5)
    paint = _paint_of(replace(road, lines=(line,)), 3)
    top = int(np.ceil(line.lane[0, 1])) + 1
    assert (paint[top:].max(axis=1) > 5).all()


def test_dashes_leave_gaps() -> None:
    road = drawn_road(np.random.default_rng(103), typical=True)
    solid: LaneLine = replace(road.lines[1], dash=None, strength=1.5)
    dashed = replace(solid, dash=(4.0, 6.0))
    whole, part = (_paint_of(replace(road, lines=(line,)), 3).sum() for line in (solid, dashed))
    assert 0.2 < part / whole < 0.95


# --- lane shapes from a label file ---------------------------------------------------------------


def test_geometry_gives_the_lanes_and_paint_follows(geometry: Path) -> None:
    config = DataConfig(geometry=str(geometry), train_images=2)
    splits = make_splits(config)
    scene = splits.train[0].load(config)
    label = json.loads(geometry.read_text().splitlines()[0])
    rows = np.array(label["h_samples"])
    for xs, lane in zip(label["lanes"][:2], scene.lanes, strict=True):
        there = np.array(xs) >= 0
        y = (rows[there] - 160) * 320 / 560
        at = np.interp(y, lane[:, 1], lane[:, 0])
        np.testing.assert_allclose(at, np.array(xs)[there] * 800 / 1280, atol=1e-6)
    lanes = tuple(scene.lanes)
    offsets = np.abs(_offsets(road_through(lanes, np.random.default_rng(1)), 1))
    assert len(offsets) > 30
    assert np.quantile(offsets, 0.95) < 1.0


def test_splits_never_share_a_shape(geometry: Path) -> None:
    config = DataConfig(geometry=str(geometry), train_images=20, val_images=20, test_images=20)
    splits = make_splits(config)
    check_scenes([*splits.train, *splits.val, *splits.test], config)
    shapes = [
        {getattr(ref, "shape").text for ref in refs}  # noqa: B009 - a field of rendered refs only
        for refs in (splits.train, splits.val, splits.test)
    ]
    assert len(set.union(*shapes)) == sum(map(len, shapes)) == 8
    plain = make_splits(DataConfig(train_images=20, val_images=20, test_images=20))
    assert fingerprint(plain) != fingerprint(splits)


def test_one_lane_is_enough_for_a_road() -> None:
    lane = np.array([[420.0, 60], [300, 310]])
    image, lanes = render("one", shape=(lane,))
    assert image.std() > 10
    np.testing.assert_array_equal(lanes[0], lane)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"),
        ("", "at least 4 labels"),
        ("{}\n" * 3, "at least 4 labels"),
        ("{}\n" * 4, ":1"),
        ('{"raw_file": "", "lanes": [[-2]], "h_samples": [240]}\n' * 4, "no lane long enough"),
    ],
)
def test_a_bad_geometry_file(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "labels.json"
    if text is not None:
        path.write_text(text)
    config = DataConfig(geometry=str(path))
    with pytest.raises(DataError, match=said) as caught:
        check_scenes(make_splits(config).train, config)
    assert str(path) in str(caught.value)
