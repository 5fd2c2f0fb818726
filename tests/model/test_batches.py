from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.batches import Batches, Order, draw_lanes
from model.config import BatchConfig, LossConfig
from model.presets import build
from model.targets import Targets, make_targets


def order(n: int, **batch: Any) -> list[list[tuple[int, ...]]]:
    made = Order(n, BatchConfig(**batch), seed=3)
    return [made.images(step) for step in range(1, 41)]


def test_every_image_is_seen_equally_often() -> None:
    steps = order(6, images=2, accumulate=3)
    assert {len(passes) for passes in steps} == {3}
    assert {len(p) for passes in steps for p in passes} == {2}
    for passes in steps:  # three passes of two are one epoch of six
        assert sorted(i for p in passes for i in p) == list(range(6))
    assert len({tuple(passes) for passes in steps}) > 20  # in an order of their own


def test_epochs_run_on_across_steps() -> None:
    steps = order(5, images=2)
    row = [i for passes in steps for p in passes for i in p]
    for epoch in range(16):
        assert sorted(row[5 * epoch : 5 * epoch + 5]) == list(range(5))


def test_more_images_than_there_are_means_all_of_them() -> None:
    assert set(map(tuple, order(3, images=8, accumulate=2))) == {((0, 1, 2), (0, 1, 2))}


def test_the_order_depends_on_the_seed_and_the_step_alone() -> None:
    config = BatchConfig(images=2)
    first = Order(7, config, seed=1)
    rows = [first.images(step) for step in range(1, 30)]
    again = Order(7, config, seed=1)
    assert [again.images(step) for step in (29, 3, 17)] == [rows[28], rows[2], rows[16]]
    assert [Order(7, config, seed=2).images(step) for step in range(1, 30)] != rows


def test_a_fixed_number_of_lanes_takes_turns() -> None:
    present = torch.tensor([[True, True, True, False], [True, False, False, False]])
    for lanes, counts in ((8, {2}), (4, {1}), (6, {1, 2}), (3, {0, 1})):
        times = draw_lanes(present, lanes, torch.Generator().manual_seed(0))
        assert times[present].sum() == lanes
        assert set(times[present].tolist()) == counts
        assert set(times[~present].tolist()) == {1.0}


def test_left_over_lanes_are_drawn_fairly() -> None:
    present = torch.tensor([[True, True, True, False]])
    generator = torch.Generator().manual_seed(0)
    taken = Counter(draw_lanes(present, 1, generator).argmax().item() for _ in range(300))
    del taken[3]
    assert min(taken[i] for i in range(3)) > 60


def test_an_image_without_lanes_is_no_error() -> None:
    assert draw_lanes(torch.zeros(1, 4, dtype=torch.bool), 6, torch.Generator()).tolist() == [
        [1] * 4
    ]


class Bank:
    """Features whose value is the image's index; remembers what was read."""

    def __init__(self) -> None:
        self.read: list[list[int]] = []

    def batch(self, indices: Sequence[int], levels: Sequence[int]) -> list[Tensor]:
        self.read.append(list(indices))
        return [torch.tensor(indices).float().view(-1, 1, 1, 1).expand(-1, 2, 3, 4) for _ in levels]


@pytest.fixture
def targets() -> Targets:
    config = build({"tokenizer.n_rows": 8, "data.max_lanes": 2})
    rows = 40.0 * np.arange(8)
    lanes = [np.stack([np.full(n, 100.0), rows[:n]], axis=1) for n in (8, 5, 3, 2)]
    return make_targets([[lanes[0]], [lanes[1], lanes[2]], [], [lanes[3]]], config)


def serve(bank: Bank, targets: Targets, **batch: Any) -> Batches:
    device = torch.device("cpu")
    return Batches(bank, [5, 6, 7, 8], targets, (2,), BatchConfig(**batch), LossConfig(), 0, device)


def test_features_and_targets_belong_together(targets: Targets) -> None:
    batches = serve(Bank(), targets, images=2)
    for step in range(1, 9):
        (batch,) = batches.at(step)
        assert batch.features[0][:, 0, 0, 0].tolist() == [5 + i for i in batch.images]
        assert torch.equal(batch.targets.ids, targets.ids[list(batch.images)])


def test_totals_are_those_of_the_whole_step(targets: Targets) -> None:
    passes = serve(Bank(), targets, images=2, accumulate=2).at(1)
    (whole,) = serve(Bank(), targets, images=4).at(1)
    assert sum(p.weights.sum() for p in passes) == whole.weights.sum()
    for batch in (*passes, whole):
        assert [t.item() for t in batch.totals] == [t.item() for t in whole.totals]
    assert whole.totals[1] == (targets.point | targets.first_end).sum()


def test_lanes_taken_twice_weigh_twice(targets: Targets) -> None:
    (batch,) = serve(Bank(), targets, images=4, lanes=8).at(1)
    assert torch.equal(batch.weights[targets.point], torch.full((18,), 2.0))


def test_lanes_are_drawn_anew_at_each_step_and_again_alike(targets: Targets) -> None:
    def draws(first: int) -> list[list[float]]:
        batches = serve(Bank(), targets, images=4, lanes=3)
        return [batches.at(s)[0].weights.sum((1, 2)).tolist() for s in range(first, 20)]

    assert len({tuple(d) for d in draws(1)}) > 1
    assert draws(9) == draws(1)[8:]


def test_what_stays_the_same_is_read_once(targets: Targets) -> None:
    bank = Bank()
    batches = serve(bank, targets, images=4)
    assert len({id(batches.at(step)[0]) for step in range(1, 10)}) == 1
    assert bank.read == [[5, 6, 7, 8]]
