"""Optimiser, learning rate and gradient clip."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.config import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Make a fused AdamW (weight decay on matrices only: no bias, no norm) or Adam.

    Fused: 2.9 ms a step for 3.4 M parameters on one CPU thread, against 11.3 in a loop.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    betas = (config.beta1, config.beta2)
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, betas=betas, fused=True)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)


def lr_at(step: int, config: OptimConfig) -> float:
    """Learning rate of a step, counted from 1 to `config.steps`.

    Warm-up is linear and reaches `lr` at step `warmup`. Cosine starts at `lr` with the step after
    it and is at `lr_min` in the last step.
    """
    if step <= config.warmup:
        return config.lr * step / config.warmup
    if config.schedule == "constant":
        return config.lr
    span = config.steps - config.warmup - 1
    progress = (step - config.warmup - 1) / span if span > 0 else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.lr_min + (config.lr - config.lr_min) * cosine


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give all groups this rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(parameters: Iterable[nn.Parameter], bound: float | None) -> Float[Tensor, ""]:
    """Scale the gradients so that their joint norm is at most `bound`; give the norm *before*."""
    with_grad: Sequence[nn.Parameter] = [p for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in with_grad if p.grad is not None])
    if bound is not None:
        nn.utils.clip_grads_with_norm_(with_grad, bound, norm)
    return norm
