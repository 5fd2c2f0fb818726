import itertools

import pytest
import torch
from torch import nn

from model.config import OptimConfig
from model.optim import clip_gradients, lr_at, make_optimizer, set_lr


def rates(config: OptimConfig) -> list[float]:
    return [lr_at(step, config) for step in range(1, config.steps + 1)]


def test_constant_rate_is_constant() -> None:
    assert set(rates(OptimConfig(steps=50, lr=1e-4))) == {1e-4}


def test_cosine_starts_at_the_rate_and_ends_at_the_floor() -> None:
    config = OptimConfig(steps=101, lr=1e-3, lr_min=1e-5, schedule="cosine")
    got = rates(config)
    assert got[0] == pytest.approx(1e-3)
    assert got[-1] == pytest.approx(1e-5)
    assert got[50] == pytest.approx((1e-3 + 1e-5) / 2)
    assert all(a > b for a, b in itertools.pairwise(got))


def test_warm_up_is_linear_and_reaches_the_rate() -> None:
    for schedule in ("constant", "cosine"):
        got = rates(OptimConfig(steps=20, lr=1e-3, warmup=5, schedule=schedule))
        assert got[:6] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3])
    assert got[-1] == pytest.approx(1e-6)


def test_a_single_step_has_a_rate() -> None:
    for warmup in (0, 1):
        assert rates(OptimConfig(steps=1, schedule="cosine", warmup=warmup))[0] > 0


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def test_weight_decay_is_on_matrices_only() -> None:
    model = small()
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.5, lr=0.1))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        factor = 1 - 0.1 * 0.5 if old.ndim >= 2 else 1.0
        assert torch.allclose(new, old * factor)


def test_adam_has_no_decay_and_takes_the_betas() -> None:
    optimizer = make_optimizer(small(), OptimConfig(optimizer="adam", beta1=0.8, beta2=0.9))
    assert type(optimizer) is torch.optim.Adam
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0]
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_the_rate_reaches_every_group() -> None:
    optimizer = make_optimizer(small(), OptimConfig())
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def with_gradients(value: float) -> list[nn.Parameter]:
    parameters = [
        nn.Parameter(torch.zeros(2)),
        nn.Parameter(torch.zeros(2)),
        nn.Parameter(torch.zeros(1)),
    ]
    for p in parameters[:2]:
        p.grad = torch.full_like(p, value)
    return parameters  # the last has no gradient


def test_clip_bounds_the_norm_and_gives_it_as_it_was() -> None:
    parameters = with_gradients(3.0)  # norm 6
    assert clip_gradients(parameters, 0.5).item() == pytest.approx(6.0)
    assert clip_gradients(parameters, None).item() == pytest.approx(0.5, rel=1e-4)


def test_small_gradients_and_no_bound_are_left_alone() -> None:
    for bound in (10.0, None):
        parameters = with_gradients(3.0)
        assert clip_gradients(parameters, bound).item() == pytest.approx(6.0)
        assert [p.grad.tolist() for p in parameters if p.grad is not None] == [[3.0, 3.0]] * 2
