"""Shifted and leaning images: features and labels move together, by the same px."""

from __future__ import annotations

import pytest
import torch

from model.config import TrainConfig
from model.material import Material, load_material
from model.shift import FARTHEST, Shift, lean, move, moves
from model.targets import Targets
from model.tokenizer import row_positions
from tests.model.tiny import tiny


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return tiny(batch__shift=1.5, data__train_images=6, data__lane_order="ego", data__max_lanes=4)


@pytest.fixture(scope="module")
def material(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return load_material(config, tmp_path_factory.mktemp("features"))


def shifted(
    config: TrainConfig, material: Material, seed: int
) -> tuple[list[torch.Tensor], list[torch.Tensor], Targets]:
    train, images = material.train, tuple(range(6))
    features = material.bank.batch(train.indices, (0, 2))
    shift = Shift(config, train.scenes)
    generator = torch.Generator().manual_seed(seed)
    return features, *shift(images, features, train.targets.select(images), generator)


def cells_moved(before: torch.Tensor, after: torch.Tensor) -> int:
    (found,) = [n for n in range(-4, 5) if torch.equal(move(before, n), after)]
    return found


def test_moving_right_brings_the_left_edge_in():
    f = torch.arange(5.0).view(1, 1, 5)
    assert move(f, 2).tolist() == [[[0, 0, 0, 1, 2]]]
    assert move(f, -1).tolist() == [[[1, 2, 3, 4, 4]]]
    assert move(f, 0).tolist() == f.tolist()


def test_levels_and_lanes_move_by_the_same_px(config: TrainConfig, material: Material):
    moved_ones = 0
    for seed in range(4):
        (p3, p5), (q3, q5), targets = shifted(config, material, seed)
        for image in range(6):
            n = cells_moved(p5[image], q5[image])
            assert torch.equal(move(p3[image], 4 * n), q3[image])
            was, now = material.train.targets.x[image], targets.x[image]
            if n == 0:
                assert torch.equal(was.nan_to_num(-1), now.nan_to_num(-1))
                continue
            moved_ones += 1
            expected = was + 32 * n
            stays = expected[(expected >= 0) & (expected < 160)].sort().values
            found = now[now.isfinite()].sort().values
            assert len(found) == len(stays)  # nothing comes in from outside the image
            torch.testing.assert_close(found, stays, rtol=0, atol=1e-3)
    assert moved_ones > 6


def test_the_bottom_leans_and_the_top_stays():
    ramp = torch.arange(40.0).expand(2, 8, 40)  # each column says where it is
    got = ramp - lean(ramp, 4.0)  # how far each place moved right
    by_row = 4.0 * (torch.arange(8) + 0.5) / 8
    torch.testing.assert_close(got[:, :, 4:], by_row.expand(2, 36, 8).mT, rtol=0, atol=1e-5)
    assert lean(ramp, 4.0)[0, -1, 0] == 0  # the edge column is repeated
    torch.testing.assert_close(lean(ramp.flip(-1), -4.0).flip(-1), lean(ramp, 4.0))
    assert lean(ramp.to(torch.bfloat16), 4.0).dtype == torch.bfloat16
    assert lean(ramp, 0.0) is ramp


def test_levels_and_lanes_lean_by_the_same_px(material: Material):
    config = tiny(batch__shear=1.0, data__train_images=6, data__max_lanes=4)
    y = torch.as_tensor(row_positions(config.tokenizer, config.data.height))
    for seed in range(3):
        (p3, p5), (q3, q5), targets = shifted(config, material, seed)
        leans = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed))[1].tolist()
        assert max(map(abs, leans)) > 0.5
        for image, cells in enumerate(leans):
            torch.testing.assert_close(q5[image], lean(p5[image], cells))
            torch.testing.assert_close(q3[image], lean(p3[image], 4 * cells))
            was, now = material.train.targets.x[image], targets.x[image]
            expected = was + 32 * cells * (y / config.data.height)
            for row in range(len(y)):
                stays = expected[:, row][(expected[:, row] >= 0) & (expected[:, row] < 160)]
                found = now[:, row][now[:, row].isfinite()]
                torch.testing.assert_close(
                    found.sort().values, stays.sort().values, rtol=0, atol=1e-3, check_dtype=False
                )


def test_who_moves_images():
    assert not moves(tiny().batch)
    assert moves(tiny(batch__shift=1.0).batch)
    assert moves(tiny(batch__shear=1.0).batch)


def test_the_same_stream_shifts_alike_and_none_goes_too_far(
    config: TrainConfig, material: Material
):
    wide = tiny(batch__shift=5000.0, data__train_images=6, data__max_lanes=4)
    one, two = (shifted(wide, material, 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one[1], two[1], strict=True))
    p5, q5 = one[0][1], one[1][1]
    outermost = [move(f, FARTHEST) for f in p5] + [move(f, -FARTHEST) for f in p5]
    assert all(any(torch.equal(f, g) for g in outermost) for f in q5)


def test_training_shows_images_at_new_places(material: Material, config: TrainConfig):
    from model.batches import Batches

    def serve(shift: Shift | None) -> Batches:
        train = material.train
        return Batches(
            material.bank, train.indices, train.targets, (2,), config.batch, config.loss, 0,
            torch.device("cpu"), shift,
        )  # fmt: skip

    shifting = Shift(config, material.train.scenes)
    seen = [serve(shifting).at(step)[0] for step in (1, 5, 5)]
    assert torch.equal(seen[1].features[0], seen[2].features[0])  # resumed: the same again
    batches = serve(shifting)
    same_image = [batches.at(step)[0] for step in range(1, 25)]
    by_image: dict[tuple[int, ...], set[bytes]] = {}
    for batch in same_image:
        by_image.setdefault(batch.images, set()).add(batch.features[0].numpy().tobytes())
    assert any(len(places) > 1 for places in by_image.values())
