import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.config import LossConfig, TrainConfig
from model.loss import YWeight, attention_uniformity, compute_loss, soft_targets, step_weights
from model.presets import build
from model.targets import Targets, make_targets

T = 6


@pytest.fixture
def config() -> TrainConfig:
    return build({"tokenizer.n_rows": T, "tokenizer.n_bins": 20, "data.max_lanes": 2})


@pytest.fixture
def targets(config: TrainConfig) -> Targets:
    """One lane on rows 1 to 3 of 0..5, one slot empty; written bottom-up."""
    rows = 320 / T * np.arange(T)
    lane = np.stack([[300.0, 350.0, 400.0], rows[1:4]], axis=1)
    return make_targets([[lane]], config)


def logits(targets: Targets, vocab: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    n, L, _ = targets.ids.shape
    x, y = torch.randn(n, L, T, vocab, generator=g), torch.randn(n, L, T, T + 1, generator=g)
    return x.requires_grad_(), y.requires_grad_()


def test_only_what_decoding_asks_for_counts(targets: Targets) -> None:
    weights = step_weights(targets, LossConfig(ends_weight=0.1))
    # written bottom-up: two leading blanks, three points, the EOS
    assert weights[0, 0].tolist() == pytest.approx([0.1, 0.1, 1, 1, 1, 0.1])
    assert weights[0, 1].tolist() == pytest.approx([0.1] * T)
    only_points = step_weights(targets, LossConfig(ends="ignored"))
    assert only_points[0].tolist() == [[0, 0, 1, 1, 1, 0], [0] * T]


def test_the_first_point_of_a_lane_counts_start_weight(targets: Targets) -> None:
    weights = step_weights(targets, LossConfig(start_weight=5.0))
    assert weights[0, 0].tolist() == [1, 1, 5, 1, 1, 1]
    assert weights[0, 1].tolist() == [1] * T  # no lane
    only_points = step_weights(targets, LossConfig(start_weight=5.0, ends="ignored"))
    assert only_points[0, 0].tolist() == [0, 0, 5, 1, 1, 0]


def test_nothing_after_the_end_of_a_lane_counts(config: TrainConfig) -> None:
    rows = 320 / T * np.arange(T)
    lane = np.stack([[300.0, 350.0], rows[4:6]], axis=1)  # written first
    weights = step_weights(make_targets([[lane]], config), LossConfig())
    assert weights[0, 0].tolist() == [1, 1, 1, 0, 0, 0]


def test_objective_is_the_weighted_mean_of_x_and_y(targets: Targets) -> None:
    x, y = logits(targets)
    config = LossConfig(ends_weight=0.5)
    losses = compute_loss(x, y, targets, config, 0.3)
    w = step_weights(targets, config)
    ce_x = F.cross_entropy(x.flatten(0, 2), targets.ids.flatten(), reduction="none").view_as(w)
    ce_y = F.cross_entropy(y.flatten(0, 2), targets.y.flatten(), reduction="none").view_as(w)
    loss_x, loss_y = (ce_x * w).sum() / w.sum(), (ce_y * w).sum() / w.sum()
    plain = targets.point | targets.first_end
    assert losses.loss_x.item() == pytest.approx(loss_x.item(), rel=1e-6)
    assert losses.loss_y.item() == pytest.approx(loss_y.item(), rel=1e-6)
    assert losses.objective.item() == pytest.approx((0.7 * loss_x + 0.3 * loss_y).item(), rel=1e-6)
    assert losses.loss.item() == pytest.approx(ce_x[plain].mean().item(), rel=1e-6)


def test_uniform_guessing_costs_ln_vocab(targets: Targets) -> None:
    losses = compute_loss(
        torch.zeros(1, 2, T, 20), torch.zeros(1, 2, T, T + 1), targets, LossConfig(), 0.3
    )
    assert losses.loss.item() == pytest.approx(math.log(20), rel=1e-6)
    assert losses.loss_y.item() == pytest.approx(math.log(T + 1), rel=1e-6)


def test_y_weight_decides_which_head_learns(targets: Targets) -> None:
    for w, learns_x, learns_y in ((0.0, True, False), (0.5, True, True)):
        x, y = logits(targets)
        compute_loss(x, y, targets, LossConfig(), w).objective.backward()
        assert (x.grad is not None) == learns_x
        assert (y.grad is not None) == learns_y


def test_passes_with_the_totals_of_the_step_add_up_to_one_batch(config: TrainConfig) -> None:
    rows = 320 / T * np.arange(T)
    long = np.stack([np.linspace(100, 500, T), rows], axis=1)
    targets = make_targets([[long], [long[:2]], [], [long, long[1:4] + 9.0]], config)
    loss = LossConfig(ends_weight=0.3)
    x, y = logits(targets)
    whole = compute_loss(x, y, targets, loss, 0.3)
    w, plain = step_weights(targets, loss), targets.point | targets.first_end
    parts = [
        compute_loss(x[p], y[p], targets.select(p), loss, 0.3, totals=(w.sum(), plain.sum()))
        for p in ([0, 1], [2], [3])
    ]
    for name in ("objective", "loss", "loss_x", "loss_y"):
        total = sum(getattr(part, name).item() for part in parts)
        assert total == pytest.approx(getattr(whole, name).item(), rel=1e-6)


def test_nothing_to_learn_is_zero_not_nan(config: TrainConfig) -> None:
    empty = make_targets([[]], config)
    x, y = logits(empty)
    losses = compute_loss(x, y, empty, LossConfig(ends="ignored"), 0.3)
    assert losses.objective.item() == 0
    losses.objective.backward()
    assert x.grad is not None
    assert not x.grad.any()


def test_label_smoothing_is_torch_s(targets: Targets) -> None:
    x, y = logits(targets)
    losses = compute_loss(x, y, targets, LossConfig(label_smoothing=0.1, ends="ignored"), 0.0)
    at = targets.point
    expected = F.cross_entropy(x[at], targets.ids[at], label_smoothing=0.1)
    assert losses.objective.item() == pytest.approx(expected.item(), rel=1e-6)
    assert losses.loss.item() != pytest.approx(losses.objective.item(), rel=1e-3)


def test_soft_targets_stay_within_their_kind() -> None:
    table = soft_targets(15, 10, 1.0)  # 0 | 1..9 absolute | 10..14 steps
    assert torch.allclose(table.sum(-1), torch.ones(15))
    assert table[0].tolist() == [1.0] + [0.0] * 14
    assert not table[1:10, 10:].any()
    assert not table[10:, :10].any()
    assert table[5].argmax() == 5
    assert (table[5, 4] / table[5, 5]).item() == pytest.approx(math.exp(-0.5), rel=1e-6)


def test_soft_bins_forgive_a_near_miss(targets: Targets) -> None:
    def objective(ids: torch.Tensor) -> float:
        x = F.one_hot(ids, 20).float() * 5
        y = torch.zeros(1, 2, T, T + 1)
        return compute_loss(
            x, y, targets, LossConfig(soft_bins=1.0), 0.0, n_bins=20
        ).objective.item()

    near = torch.where(targets.point, targets.ids + 1, targets.ids)
    far = torch.where(targets.point, targets.ids + 6, targets.ids)
    assert objective(targets.ids) < objective(near) < objective(far)


def test_entropy_penalty_pushes_attention_together(targets: Targets) -> None:
    scores = torch.randn(1, 2, 2, T, 9, generator=torch.Generator().manual_seed(0))
    scores.requires_grad_()
    uniformity = attention_uniformity([scores.softmax(-1)])
    x, y = logits(targets)
    without = compute_loss(x, y, targets, LossConfig(), 0.0).objective
    losses = compute_loss(
        x, y, targets, LossConfig(entropy_penalty=0.5), 0.0, uniformity=uniformity
    )
    w = step_weights(targets, LossConfig())
    mean = (uniformity * w).sum() / w.sum()
    assert losses.objective.item() == pytest.approx((without + 0.5 * mean).item(), rel=1e-6)
    losses.objective.backward()
    assert scores.grad is not None
    sharper = scores.detach() - 50 * scores.grad
    assert attention_uniformity([sharper.softmax(-1)]).mean() < uniformity.mean()


def test_uniformity_is_one_for_uniform_and_zero_for_one_hot() -> None:
    uniform, one_hot = torch.full((1, 2, 1, 3, 8), 1 / 8), torch.zeros(1, 2, 1, 3, 8)
    one_hot[..., 2] = 1
    assert torch.allclose(attention_uniformity([uniform]), torch.ones(1, 1, 3))
    assert attention_uniformity([one_hot]).max() == 0
    padding = torch.tensor([[False] * 4 + [True] * 4])
    half = torch.where(padding, 0.0, 0.25).expand(1, 2, 1, 3, 8)
    assert torch.allclose(attention_uniformity([half], padding), torch.ones(1, 1, 3))


STAGED = LossConfig(
    y_schedule="staged", y_threshold=0.1, y_patience=3, y_first=0.1, y_hold=4, y_ramp=10
)


def test_staged_y_weight_waits_holds_and_ramps() -> None:
    y = YWeight(STAGED)
    events, weights = [], []
    for step in range(1, 31):
        weights.append(y.at(step))
        event = y.observe(step, 1.0 if step < 5 else 0.01)
        if event:
            events.append((step, event[:9]))
    # the running mean of 3 steps falls under 0.1 some steps after the loss did, then patience
    first = next(i for i, w in enumerate(weights) if w > 0)
    assert first >= 5 + 3
    assert weights[first : first + 4] == [0.1] * 4
    ramp = weights[first + 4 : first + 14]
    assert ramp == pytest.approx([0.1 + 0.02 * k for k in range(1, 11)])
    assert weights[-1] == pytest.approx(0.3)
    assert [text for _, text in events] == ["y stage 2", "y stage 3"]
    assert [step for step, _ in events] == [first, first + 4]
    assert y.unfinished(30) is None


def test_a_spike_starts_the_patience_anew() -> None:
    y = YWeight(STAGED)
    for step, loss in enumerate([0.01, 0.01, 5.0, 0.01, 0.01], start=1):
        y.observe(step, loss)
    assert y.stage == 1


def test_a_stage_never_reached_is_told() -> None:
    y = YWeight(STAGED)
    for step in range(1, 21):
        y.observe(step, 0.5)
    assert y.at(21) == 0
    assert "never reached" in (y.unfinished(20) or "")
    assert "0.5" in (y.unfinished(20) or "")


def test_the_stage_survives_a_checkpoint() -> None:
    losses = [1.0] * 4 + [0.01] * 26
    whole, first = YWeight(STAGED), YWeight(STAGED)
    expected = []
    for step, loss in enumerate(losses, start=1):
        expected.append(whole.at(step))
        whole.observe(step, loss)
    for cut in (3, 6, 9, 12, 20):
        first, got = YWeight(STAGED), []
        for step, loss in enumerate(losses, start=1):
            if step == cut:
                state = first.state()
                first = YWeight(STAGED)
                first.load(state)
            got.append(first.at(step))
            first.observe(step, loss)
        assert got == expected


def test_fixed_weight_has_no_stage() -> None:
    y = YWeight(LossConfig(y_weight=0.2))
    assert [y.at(1), y.observe(1, 0.0), y.at(400), y.unfinished(400)] == [0.2, None, 0.2, None]
