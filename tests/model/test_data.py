"""Readers of CULane and TuSimple, the choice of splits, and every way in which data can be bad."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import file_hashes, scene
from model.config import DataConfig
from model.data import DataError, Frame, check_scenes, fingerprint, make_splits, shortage
from model.image_file import jpeg_size
from model.scene import ascending, cut, input_lanes
from tests.model.fake_roots import make_culane_root, make_tusimple_root

N_TRAIN, N_TEST = 5, 2


@pytest.fixture(scope="module")
def culane_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_culane_root(tmp_path_factory.mktemp("data") / "culane", N_TRAIN, N_TEST)


@pytest.fixture(scope="module")
def tusimple_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tusimple_root(tmp_path_factory.mktemp("data") / "tusimple", N_TRAIN, N_TEST)


@pytest.fixture
def culane(culane_original: Path, tmp_path: Path) -> Path:
    """A root of this test's own to damage."""
    return _copy(culane_original, tmp_path / "culane")


@pytest.fixture
def tusimple(tusimple_original: Path, tmp_path: Path) -> Path:
    return _copy(tusimple_original, tmp_path / "tusimple")


def _copy(source: Path, target: Path) -> Path:
    for file in source.rglob("*"):
        if file.is_file():
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return target


def _config(*roots: Path, **settings: object) -> DataConfig:
    return DataConfig.model_validate({"roots": tuple(map(str, roots)), **settings})


def _check(config: DataConfig) -> None:
    splits = make_splits(config)
    check_scenes([*splits.train, *splits.val, *splits.test], config)


def _label(root: Path, index: int = 0) -> Path:
    return root / f"driver_train/0000.MP4/{index:05d}.lines.txt"


# --- reading -------------------------------------------------------------------------------------


def test_culane_lane_is_in_input_px_where_its_label_is(culane: Path) -> None:
    _label(culane).write_text("820.0 590 615.0 430 410.0 270\r\n\r\n")
    config = _config(culane)
    read = make_splits(config).train[0].load(config)
    np.testing.assert_allclose(read.lanes[0], [[200, 0], [300, 160], [400, 320]], atol=1e-9)
    np.testing.assert_allclose(read.original_lanes[0], [[410, 270], [615, 430], [820, 590]])
    assert read.image.shape == (320, 800, 3)
    assert read.h_samples is None


def test_culane_image_is_cropped_then_resized(culane: Path) -> None:
    config = _config(culane)
    ref = make_splits(config).train[0]
    whole = cv2.imread(str(culane / "driver_train/0000.MP4/00000.jpg"))
    assert whole is not None
    expected = cv2.resize(whole[270:], (800, 320))
    np.testing.assert_array_equal(ref.load(config).image, expected)


def test_points_outside_the_image_are_cut_where_the_lane_meets_its_edge(culane: Path) -> None:
    # leaves at the left edge (x < 0) and above the crop (y < 270)
    _label(culane).write_text("-100 470 100 430 300 390 340 250\n 1700 590 1600 550 1500 510\n")
    config = _config(culane)
    left, right = make_splits(config).train[0].load(config).lanes
    np.testing.assert_allclose(left[-1], [0, 180], atol=1e-6)  # halfway from 100,430 to -100,470
    np.testing.assert_allclose(left[0], [(300 + 40 * 120 / 140) * 800 / 1640, 0], atol=1e-6)
    assert right[-1, 0] == pytest.approx(800)
    assert (right[:, 0] < 800).all()


def test_above_crop_clip_puts_the_topmost_point_on_the_edge(culane: Path) -> None:
    _label(culane).write_text("820 590 615 430 410 260 400 250\n")
    config = _config(culane, above_crop="clip")
    lane = make_splits(config).train[0].load(config).lanes[0]
    np.testing.assert_allclose(lane[0], [400 * 800 / 1640, 0])
    assert len(lane) == 3


def test_tusimple_lane_is_in_input_px_and_negative_is_absent(tusimple: Path) -> None:
    path = tusimple / "label_data_0601.json"
    label = json.loads(path.read_text().splitlines()[0])
    rows = [160, 240, 440, 720, 730]
    label |= {"h_samples": rows, "lanes": [[-2, 640, -2, 960, -2], [-2] * 5]}
    path.write_text(json.dumps(label))
    config = _config(tusimple)
    read = make_splits(config).train[0].load(config)
    assert len(read.lanes) == len(read.original_lanes) == 1
    np.testing.assert_allclose(read.lanes[0], [[400, 80 * 4 / 7], [600, 320]], atol=1e-9)
    assert read.h_samples == tuple(rows)
    assert read.frame == Frame(1280, 720, 160, 800, 320)


@pytest.mark.parametrize("text", ["", "\n\n", "-2 -2 -2 -2\n", "-2 590 -2 -2\n"])
def test_an_image_without_lanes_is_valid(culane: Path, text: str) -> None:
    _label(culane).write_text(text)
    config = _config(culane)
    check_scenes(make_splits(config).train, config)
    assert make_splits(config).train[0].load(config).lanes == ()


def test_one_point_and_repeated_rows_do_no_harm(culane: Path) -> None:
    _label(culane).write_text("500 400\n300 590 310 590 400 400 410 400 500 300\n")
    config = _config(culane)
    read = make_splits(config).train[0].load(config)
    assert len(read.lanes) == 1
    assert (np.diff(read.lanes[0][:, 1]) > 0).all()
    np.testing.assert_allclose(read.original_lanes[1][:, 0], [500, 400, 300])  # the first of a row


def test_lanes_run_left_to_right_at_the_bottom() -> None:
    frame = Frame(800, 320, 0, 800, 320)
    outer = np.array([[300.0, 50], [0, 120]])  # leaves early: its prolongation is far left
    inner = np.array([[300.0, 50], [60, 320]])
    right = np.array([[310.0, 50], [700, 320]])
    far = np.array([[320.0, 50], [799, 100]])
    lanes = (right, far, inner, outer)
    config = DataConfig()
    ordered = input_lanes(lanes, frame, config)
    assert [lane[-1, 0] for lane in ordered] == pytest.approx([0, 60, 700, 799], abs=1e-6)
    labelled = input_lanes(lanes, frame, DataConfig(lane_order="label", max_lanes=2))
    assert [lane[-1, 0] for lane in labelled] == pytest.approx([700, 799], abs=1e-6)


def test_of_too_many_lanes_the_middle_ones_stay() -> None:
    frame = Frame(800, 320, 0, 800, 320)
    lanes = [np.array([[400.0, 20], [x, 320.0]]) for x in (-900, 100, 420, 700, 2000)]
    kept = input_lanes(lanes, frame, DataConfig(max_lanes=3))
    assert [lane[-1, 0] for lane in kept] == pytest.approx([100, 420, 700], abs=0.01)


@pytest.mark.parametrize(
    ("bottoms", "slots"),
    [
        ((100, 300, 500, 700), (100, 300, 500, 700)),
        ((300, 500), (None, 300, 500)),
        ((500, 700), (None, None, 500, 700)),
        ((100, 300), (100, 300)),
        ((500,), (None, None, 500)),
        ((450, 600, 750), (None, 450, 600, 750)),  # no room for two empty slots
        ((50, 150, 250, 550), (50, 150, 250, 550)),
        ((), (None, None)),
    ],
)
def test_ego_order_lays_the_lanes_about_the_middle(
    bottoms: tuple[float, ...], slots: tuple[float | None, ...]
) -> None:
    frame = Frame(800, 320, 0, 800, 320)
    lanes = [np.array([[400.0, 20], [x, 320.0]]) for x in bottoms]
    placed = input_lanes(lanes[::-1], frame, DataConfig(lane_order="ego"))
    found = tuple(round(float(lane[-1, 0])) if len(lane) else None for lane in placed)
    assert found == slots
    sorted_lanes = input_lanes(lanes, frame, DataConfig())
    assert [lane.tolist() for lane in placed if len(lane)] == [x.tolist() for x in sorted_lanes]


_numbers = st.floats(-2000, 3000, allow_nan=False).map(lambda value: round(value, 3))


@given(st.lists(st.tuples(_numbers, _numbers), min_size=2, max_size=12))
def test_cut_stays_inside_and_on_the_lane(points: list[tuple[float, float]]) -> None:
    lane = ascending(np.array(points))
    if len(lane) < 2:
        return
    part = cut(lane, 800, 320)
    assert (part >= 0).all()
    assert (part < (800, 320)).all()
    assert (np.diff(part[:, 1]) > 0).all()
    for x, y in part:
        assert _distance(x, y, lane) < 1e-3
    inside = ((lane >= 0) & (lane < (800, 320))).all(axis=1)
    assert len(part) or not inside.any()


def _distance(x: float, y: float, lane: np.ndarray) -> float:
    a, b = lane[:-1], lane[1:]
    along = b - a
    t = np.clip((((x, y) - a) * along).sum(axis=1) / (along**2).sum(axis=1), 0, 1)
    return float(np.hypot(*((a + t[:, None] * along) - (x, y)).T).min())


def test_frame_goes_there_and_back() -> None:
    frame = Frame(1640, 590, 270, 800, 320)
    points = np.array([[0.0, 270], [1640, 590], [820, 250]])
    np.testing.assert_allclose(frame.to_input(points)[:2], [[0, 0], [800, 320]])
    np.testing.assert_allclose(frame.to_original(frame.to_input(points)), points)


# --- splits --------------------------------------------------------------------------------------


def _keys(refs: tuple[scene.SceneRef, ...]) -> list[str]:
    return [ref.key for ref in refs]


def test_splits_are_disjoint_and_validation_stays_when_training_grows(culane: Path) -> None:
    few = make_splits(_config(culane, train_images=1, val_images=2, test_images="all"))
    more = make_splits(_config(culane, train_images=3, val_images=2, test_images="all"))
    assert _keys(few.train) == _keys(more.train)[:1]
    assert _keys(few.val) == _keys(more.val)
    sets = [set(_keys(refs)) for refs in (more.train, more.val, more.test)]
    assert [len(keys) for keys in sets] == [3, 2, N_TEST]
    assert len(set.union(*sets)) == 5 + N_TEST - 0


def test_fewer_validation_images_than_asked_for_are_taken_as_they_are(tusimple: Path) -> None:
    many, every = _config(tusimple, val_images=100), _config(tusimple, train_images="all")
    assert len(make_splits(many).val) == N_TRAIN - 1
    assert make_splits(every).val == ()
    said = shortage(make_splits(many), many)
    assert said == "data.val_images=100, but only 4 are left beside the training images"
    assert "only 0 are left" in shortage(make_splits(every), every)
    assert "nothing is read of held-out images" in shortage(make_splits(every), every)
    for fits in (_config(tusimple, val_images=2), _config(tusimple, val_images="all")):
        assert shortage(make_splits(fits), fits) == ""


def test_a_validation_list_is_used_but_never_its_test_images(culane: Path) -> None:
    test = (culane / "list/test.txt").read_text()
    train = (culane / "list/train_gt.txt").read_text().splitlines()
    (culane / "list/val.txt").write_text(f"{train[0]}\n{test}{train[3].split()[0].lstrip('/')}\n")
    splits = make_splits(_config(culane, val_images="all"))
    assert _keys(splits.val) == ["driver_train/0000.MP4/00003.jpg"]


def test_a_test_image_in_the_training_list_is_refused(culane: Path) -> None:
    with (culane / "list/train_gt.txt").open("a") as file:
        file.write((culane / "list/test.txt").read_text())
    config = _config(culane, train_images="all", test_images=1)
    with pytest.raises(DataError, match="is in the training list too"):
        make_splits(config)


def test_a_repeated_line_is_one_image(culane: Path) -> None:
    path = culane / "list/train_gt.txt"
    path.write_text(path.read_text() * 2)
    splits = make_splits(_config(culane, train_images=2, val_images="all"))
    assert len(splits.val) == N_TRAIN - 2
    assert not set(_keys(splits.train)) & set(_keys(splits.val))


def test_the_seed_chooses_and_zero_is_the_list_order(culane: Path) -> None:
    orders = [
        _keys(make_splits(_config(culane, train_images="all", seed=seed)).train)
        for seed in (0, 1, 1, 2, -3)
    ]
    assert orders[0] == sorted(orders[0])
    assert orders[1] == orders[2]
    assert len({tuple(order) for order in orders}) > 2
    assert all(sorted(order) == orders[0] for order in orders)


def test_several_roots_are_taken_in_turn(culane: Path, tusimple: Path) -> None:
    splits = make_splits(_config(culane, tusimple, train_images=4, val_images=2, test_images=3))
    assert [ref.kind for ref in splits.train] == ["culane", "tusimple"] * 2
    assert [ref.kind for ref in splits.val] == ["culane", "tusimple"]
    everything = make_splits(_config(culane, tusimple, train_images="all")).train
    assert len({ref.key for ref in everything}) == 2 * N_TRAIN


def test_leading_slash_blank_lines_and_crlf_make_no_difference(culane: Path) -> None:
    path = culane / "list/train_gt.txt"
    before = make_splits(_config(culane, train_images="all"))
    lines = [line.lstrip("/") for line in path.read_text().splitlines()]
    path.write_bytes(("\ufeff" + "\r\n\r\n".join(lines) + "\r\n \r\n").encode())
    after = make_splits(_config(culane, train_images="all"))
    assert _keys(before.train) == _keys(after.train)
    assert fingerprint(before) == fingerprint(after)


def test_train_txt_stands_in_for_train_gt(culane: Path) -> None:
    (culane / "list/train_gt.txt").rename(culane / "list/train.txt")
    assert len(make_splits(_config(culane, train_images="all")).train) == N_TRAIN


def test_a_list_as_long_as_culanes_is_planned_without_opening_its_images(tmp_path: Path) -> None:
    root = tmp_path / "large"
    (root / "list").mkdir(parents=True)
    for name, count in (("train_gt.txt", 88_880), ("test.txt", 34_680)):
        lines = [f"/{name[:4]}/{i:05d}.jpg /laneseg/{i}.png 1 1 1 0\n" for i in range(count)]
        (root / "list" / name).write_text("".join(lines))
    splits = make_splits(_config(root, train_images=64, seed=1))  # there is no image to open
    assert len(splits.train) == 64


# --- what is refused -----------------------------------------------------------------------------


def _refused(config: DataConfig, *parts: str, capfd: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(DataError) as caught:
        _check(config)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert capfd.readouterr() == ("", "")
    return message


def test_a_path_that_is_no_data_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        _refused(_config(path), str(path), "train_gt.txt", "label_data_*.json", capfd=capfd)


@pytest.mark.parametrize("damage", ["first half", "first bytes", "last bytes", "empty", "text"])
def test_a_damaged_image(culane: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = culane / "driver_train/0000.MP4/00000.jpg"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "first half": whole[: len(whole) // 2],
            "first bytes": whole[:100],
            "last bytes": whole[:-2],
            "empty": b"",
            "text": b"not an image at all\n" * 50,
        }[damage]
    )
    _refused(_config(culane), str(path), capfd=capfd)


def test_damage_inside_an_image_is_found_silently(
    tusimple: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tusimple / "clips/train/0/20.jpg"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(bytes(content))
    _refused(_config(tusimple), str(path), "damaged", capfd=capfd)


def test_no_cut_of_a_jpeg_passes_for_whole(culane: Path) -> None:
    content = (culane / "driver_train/0000.MP4/00000.jpg").read_bytes()
    assert jpeg_size(content) == (1640, 590)
    assert jpeg_size(content + b"\0\0") == (1640, 590)
    cuts = [*range(2, 700), *range(700, len(content), 997), *range(len(content) - 50, len(content))]
    assert [at for at in cuts if jpeg_size(content[:at])] == []


def test_an_image_of_another_size(culane: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = culane / "driver_train/0000.MP4/00000.jpg"
    for suffix, size in ((".jpg", (1636, 590)), (".png", (800, 320))):
        encoded = cv2.imencode(suffix, np.zeros((size[1], size[0], 3), np.uint8))[1]
        path.write_bytes(encoded.tobytes())
        given_size = f"{size[0]}x{size[1]}"
        _refused(_config(culane), str(path), given_size, "1640x590", capfd=capfd)


@pytest.mark.parametrize("suffix", [".jpg", ".lines.txt"])
def test_a_missing_file_is_named_with_its_place_in_the_list(
    culane: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = _label(culane, 1).with_name(f"00001{suffix}")
    path.unlink()
    config = _config(culane, train_images=2)
    _refused(config, f"{culane / 'list/train_gt.txt'}:2", str(path), capfd=capfd)


@pytest.mark.parametrize("text", ["1 2 3\n", "1 2 x 4\n", "nan 400 1 390\n", "1 2 inf 4\n"])
def test_a_malformed_culane_label(
    culane: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    _label(culane).write_text("1 590 2 580\n\n" + text)
    _refused(_config(culane), f"{_label(culane)}:3", capfd=capfd)


@pytest.mark.parametrize(
    "text",
    [
        "{not json",
        "[1, 2]",
        '{"lanes": [], "h_samples": []}',
        '{"raw_file": "a.jpg", "lanes": [[1, 2]], "h_samples": [240]}',
        '{"raw_file": "a.jpg", "lanes": [["x"]], "h_samples": [240]}',
        '{"raw_file": "a.jpg", "lanes": [[NaN]], "h_samples": [240]}',
        '{"raw_file": "a.jpg", "lanes": [[true]], "h_samples": [240]}',
        '{"raw_file": "a.jpg", "lanes": 3, "h_samples": [240]}',
        '{"raw_file": "a.jpg", "lanes": [3], "h_samples": [240]}',
        '{"raw_file": "a.jpg", "lanes": []}',
        '{"raw_file": "nowhere.jpg", "lanes": [], "h_samples": [240]}',
    ],
)
def test_a_malformed_tusimple_label(
    tusimple: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tusimple / "label_data_0601.json"
    good = path.read_text().splitlines()[0]
    path.write_text(f"{good}\n{text}\n")
    _refused(_config(tusimple, train_images=2), f"{path}:2", capfd=capfd)


def test_a_malformed_list_line_counts_only_if_it_is_used(
    culane: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = culane / "list/train_gt.txt"
    path.write_text(path.read_text() + "no image here\n")
    _check(_config(culane, train_images=2, val_images=0))
    _refused(_config(culane, train_images="all"), f"{path}:{N_TRAIN + 1}", capfd=capfd)


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xff\xfe\x00 binary"])
def test_an_empty_or_binary_list(
    culane: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = culane / "list/train_gt.txt"
    path.write_bytes(content)
    _refused(_config(culane), str(path), capfd=capfd)


def test_an_empty_label_file(tusimple: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tusimple / "label_data_0601.json").write_text("")
    _refused(_config(tusimple), "label_data_", "empty", capfd=capfd)


def test_an_empty_test_list_counts_only_if_it_is_used(
    culane: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (culane / "list/test.txt").write_text("")
    _check(_config(culane))
    _refused(_config(culane, test_images="all"), "test.txt", "empty", capfd=capfd)
    (culane / "list/test.txt").unlink()
    _refused(_config(culane, test_images=1), "test.txt", capfd=capfd)


def test_a_root_without_a_training_list(culane: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (culane / "list/train_gt.txt").unlink()
    _refused(_config(culane), str(culane), "train_gt.txt", capfd=capfd)


def test_more_images_than_there_are(
    culane: Path, tusimple: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = _config(culane, tusimple, train_images=11)
    _refused(config, "data.train_images=11", "only 10", str(culane), str(tusimple), capfd=capfd)
    _refused(_config(culane, test_images=3), "data.test_images=3", "only 2", capfd=capfd)


def test_a_root_given_twice(culane: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _refused(_config(culane, culane / "../culane"), "twice", capfd=capfd)


@pytest.mark.parametrize("name", ["train_images", "val_images", "test_images"])
def test_all_of_the_rendered_scenes(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    config = DataConfig.model_validate({name: "all"})
    _refused(config, f"data.{name}=all", "rendered", capfd=capfd)


# --- fingerprint ---------------------------------------------------------------------------------


def test_the_fingerprint_follows_content_not_place(
    culane: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(culane, train_images=2, val_images=1)
    before = fingerprint(make_splits(config))
    moved = _copy(culane, tmp_path / "elsewhere")
    assert fingerprint(make_splits(_config(moved, train_images=2, val_images=1))) == before
    _label(culane, 3).write_text("1 590 2 580\n")  # not used
    assert fingerprint(make_splits(config)) == before
    _label(culane, 1).write_text("1 590 2 580\n")
    assert fingerprint(make_splits(config)) != before


def test_a_tusimple_label_is_in_the_fingerprint(tusimple: Path) -> None:
    config = _config(tusimple)
    before = fingerprint(make_splits(config))
    path = tusimple / "label_data_0601.json"
    path.write_text(path.read_text().replace('"h_samples": [160,', '"h_samples": [161,', 1))
    assert fingerprint(make_splits(config)) != before


def test_the_cache_remembers_and_notices_change(
    culane: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    real = scene.hash_file
    monkeypatch.setattr(file_hashes, "hash_file", lambda path: hashed.append(path) or real(path))
    splits = make_splits(_config(culane, val_images=0))
    cache = tmp_path / "cache"
    first = fingerprint(splits, cache)
    assert fingerprint(splits, cache) == first == fingerprint(splits)
    assert len(hashed) == 4  # image and label, once with the cache and once without
    _label(culane).write_text("1 590 2 580\n")
    assert fingerprint(splits, cache) != first
    for store in cache.iterdir():
        for foreign in ('{"torn', "[1, 2]", "7", json.dumps({str(_label(culane)): [1, 2]})):
            store.write_text(foreign)
            assert fingerprint(splits, cache) == fingerprint(splits)
