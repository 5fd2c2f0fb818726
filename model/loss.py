"""What is minimised: (1 - w) x cross-entropy + w y cross-entropy, and how w grows.

A step of a lane counts 1 where there is a point (`start_weight` where it is the first),
`ends_weight` where there is none but decoding still asks (leading blanks, the first EOS, the blanks
of an absent lane), and 0 after its EOS. With `ends: ignored` only points count. The lane map's loss
(`loss.lane_map`) is minimised beside this objective and is in no reading of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from model.config import LossConfig
from model.metrics import first_points
from model.targets import Targets


@dataclass(frozen=True)
class Losses:
    """Scalars; only `objective` has a gradient."""

    objective: Float[Tensor, ""]
    """(1 - w) loss_x + w loss_y + entropy_penalty * uniformity"""
    loss: Float[Tensor, ""]
    """x cross-entropy, hard targets, unweighted, over points and the first EOS of each lane"""
    loss_x: Float[Tensor, ""]
    """x part of the objective: weighted, against the soft or smoothed targets if there are any"""
    loss_y: Float[Tensor, ""]


def step_weights(targets: Targets, config: LossConfig) -> Float[Tensor, "n L T"]:
    """What each step counts in the objective."""
    weights = targets.point.float()
    if config.start_weight != 1.0:
        weights = torch.where(first_points(targets.point), config.start_weight, weights)
    if config.ends == "ignored":
        return weights
    return weights + config.ends_weight * (targets.first_end | targets.lead).float()


def compute_loss(
    logits_x: Float[Tensor, "n L T V"],
    logits_y: Float[Tensor, "n L T R"],
    targets: Targets,
    config: LossConfig,
    y_weight: float,
    *,
    n_bins: int | None = None,
    weights: Float[Tensor, "n L T"] | None = None,
    totals: tuple[Tensor | float, Tensor | float] | None = None,
    uniformity: Float[Tensor, "n L T"] | None = None,
) -> Losses:
    """Reduce logits to the objective and its parts.

    Args:
        logits_x: over the x ids.
        logits_y: over the T steps and "no point", so R = T + 1.
        targets: the lanes to write.
        config: how to reduce.
        y_weight: w of this optimiser step (`YWeight.at`).
        n_bins: where absolute ids end and steps begin, for soft targets; None: all are absolute.
        weights: of the steps; None: `step_weights`.
        totals: sum of weights and number of points and first EOS of the *whole* optimiser step;
            None: of this pass. Passes divided by the same totals add up to the large batch.
        uniformity: of the cross-attention, for the entropy penalty.
    """
    if weights is None:
        weights = step_weights(targets, config)
    plain = targets.point | targets.first_end
    total, count = totals if totals is not None else (weights.sum(), plain.sum())
    total, count = (torch.as_tensor(t, device=weights.device) for t in (total, count))
    total, count = total.clamp(min=1e-9), count.clamp(min=1)  # nothing counts: 0, not 0 / 0

    log_p = F.log_softmax(logits_x.float(), dim=-1)
    hard = -log_p.gather(-1, targets.ids[..., None])[..., 0]  # (n, L, T)
    soft = _soften(hard, log_p, targets, config, n_bins)
    loss_x = (soft * weights).sum() / total
    with torch.set_grad_enabled(y_weight > 0 and torch.is_grad_enabled()):
        nll_y = F.cross_entropy(
            logits_y.float().flatten(0, 2), targets.y.flatten(), reduction="none"
        )
        loss_y = (nll_y.view_as(weights) * weights).sum() / total
    objective = (1 - y_weight) * loss_x + y_weight * loss_y if y_weight else loss_x
    if uniformity is not None:
        objective = objective + config.entropy_penalty * (uniformity * weights).sum() / total
    loss = (hard.detach() * plain).sum() / count
    return Losses(objective, loss, loss_x.detach(), loss_y.detach())


def _soften(
    hard: Float[Tensor, "n L T"],
    log_p: Float[Tensor, "n L T V"],
    targets: Targets,
    config: LossConfig,
    n_bins: int | None,
) -> Float[Tensor, "n L T"]:
    """Cross-entropy per step against what `config` makes of the hard target."""
    if config.soft_bins:
        table = soft_targets(log_p.shape[-1], n_bins or log_p.shape[-1], config.soft_bins)
        return -(table.to(log_p.device)[targets.ids] * log_p).sum(-1)
    if config.label_smoothing:
        return torch.lerp(hard, -log_p.mean(-1), config.label_smoothing)
    return hard


@lru_cache(maxsize=4)
def soft_targets(vocab: int, n_bins: int, std: float) -> Float[Tensor, "V V"]:
    """Target distribution of every id: a Gaussian of `std` bins over its neighbours, rows sum to 1.

    Neighbours are of the id's own kind: absolute bins 1 .. n_bins - 1, or steps n_bins .. V - 1.
    "No point" (0) stays hard.
    """
    ids = torch.arange(vocab)
    kind = (ids > 0).long() + (ids >= n_bins).long()
    distance = (ids[:, None] - ids[None, :]).float() / std
    table = torch.exp(-0.5 * distance.square()) * (kind[:, None] == kind[None, :])
    return table / table.sum(-1, keepdim=True)


def attention_uniformity(
    attention: Sequence[Float[Tensor, "n heads L T N"]], padding: Bool[Tensor, "n N"] | None = None
) -> Float[Tensor, "n L T"]:
    """H(p) / ln N of each query (N: unmasked keys), mean over heads and blocks; has a gradient."""
    parts = []
    for weights in attention:
        weights = weights.float()
        entropy = -(weights * weights.clamp(min=1e-30).log()).sum(-1)  # (n, heads, L, T)
        N = weights.shape[-1]
        keys = torch.full_like(entropy[:, 0, 0, 0], N) if padding is None else (~padding).sum(-1)
        parts.append(entropy.mean(1) / keys.float().clamp(min=2).log()[:, None, None])
    return torch.stack(parts).mean(0)


class YWeight:
    """The y weight w of each optimiser step.

    | stage | w | ends |
    |---|---|---|
    | 1 | 0 | the running x loss was under y_threshold for y_patience steps in a row |
    | 2 | y_first | after y_hold steps |
    | 3 | from y_first to y_weight over y_ramp steps, then y_weight | never |

    The running loss is a mean with a memory of y_patience steps. `fixed` has no stages (stage 0).
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        self.stage = 1 if config.y_schedule == "staged" else 0
        self.since = 0
        """Step after which the stage began."""
        self.running = 0.0
        self.seen = 0
        self.below = 0
        """Steps in a row with the running loss under the threshold."""

    @property
    def waits(self) -> bool:
        """Whether the next stage begins as soon as the steps so far allow it."""
        return self.stage in (1, 2)

    def at(self, step: int) -> float:
        """Give w of a step, counted from 1."""
        c = self.config
        match self.stage:
            case 0:
                return c.y_weight
            case 1:
                return 0.0
            case 2:
                return c.y_first
        return c.y_first + (c.y_weight - c.y_first) * min(1.0, (step - self.since) / c.y_ramp)

    def observe(self, step: int, loss_x: float) -> str | None:
        """Take the x loss of a step; say which stage begins after it, if one does."""
        c = self.config
        if self.stage == 1:
            self.seen += 1
            self.running += (loss_x - self.running) / min(self.seen, c.y_patience)
            self.below = self.below + 1 if self.running < c.y_threshold else 0
            if self.below >= c.y_patience:
                self.stage, self.since = 2, step
                return f"y stage 2: weight {c.y_first:g}, running x loss {self.running:.4g}"
        elif self.stage == 2 and step - self.since >= c.y_hold:
            self.stage, self.since = 3, step
            return f"y stage 3: weight from {c.y_first:g} to {c.y_weight:g} in {c.y_ramp} steps"
        return None

    def unfinished(self, steps: int) -> str | None:
        """After the last step: say what of the schedule never came, if anything."""
        c = self.config
        if self.stage == 1:
            return (
                f"y stage 2 never reached: running x loss {self.running:.4g} after {steps} steps, "
                f"y_threshold {c.y_threshold:g} for {c.y_patience} steps in a row"
            )
        if self.stage == 2 or (self.stage == 3 and steps - self.since < c.y_ramp):
            return f"y ramp unfinished: weight {self.at(steps):.4g} of {c.y_weight:g} at the end"
        return None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        names = ("stage", "since", "running", "seen", "below")
        return {name: getattr(self, name) for name in names}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        for name, value in state.items():
            setattr(self, name, value)
