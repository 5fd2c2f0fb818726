"""What the decoder reads as its previous tokens while it trains.

    teacher_forcing     the labels' tokens
    scheduled_sampling  each point, with a growing probability, the model's own
    rollout             the model's own for `rollout_rows` rows, from a random row of the lane on

Own tokens are what greedy decoding (`decode.choice`) writes after the *own* prefix, found in
parallel passes over all rows: k passes make the first k own tokens after a true one those of
step-by-step decoding (Duckworth et al., "Parallel Scheduled Sampling", 2019). `rollout` takes as
many passes as rows; it is our reading of "train during inference too".

Beside any of these a lane may be `hidden`: what all its steps read is blank. Each of them is then
asked where the lane is at its row when no row before it has been written. Under teacher forcing
only a lane's first point is asked that: the one that no token before it tells.

Own tokens move points, they neither add nor remove any: decoding stops where a lane ends, so it
never goes on from a prefix that ended wrongly. Where a token is a step from the previous point, the
target after a moved point is the step that leads back to the lane.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.config import TrainConfig
from model.init import stream
from model.lanelm import likeliest
from model.targets import Targets
from model.tokenizer import RelativeDisjoint, Tokenizer, make_tokenizer


@runtime_checkable
class Decoder(Protocol):
    """What is asked of the model (model.lanelm.LaneLM)."""

    training: bool

    def __call__(self, memory: Any, ids_in: Any, y_in: Any) -> tuple[Tensor, Tensor]: ...

    def shift(self, ids: Any) -> tuple[Tensor, Tensor]: ...

    def train(self, mode: bool = True) -> Any: ...


@dataclass(frozen=True)
class Prefix:
    """What the decoder reads, and what it should write after it."""

    ids_in: Int[Tensor, "n L T"]
    y_in: Int[Tensor, "n L T"]
    targets: Targets
    own: Float[Tensor, ""]
    """share of the points that are the model's own"""


class Exposure:
    """Makes the prefixes of each step."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.seed = config.exposure, config.seed
        self.decode = config.decode
        self.steps, self.dropout = config.optim.steps, config.model.dropout > 0
        self.tokenizer = make_tokenizer(config.tokenizer, config.data.width)
        self.own = self.config.mode != "teacher_forcing"
        self._clean: Prefix | None = None

    def probability(self, step: int) -> float:
        """Of an own token (scheduled_sampling) or an own stretch in a lane (rollout)."""
        c = self.config
        since = (step - 1) / self.steps - c.start
        if not self.own or since < 0:
            return 0.0
        if c.mode == "rollout" or since >= c.ramp:
            return c.maximum
        return c.maximum * since / c.ramp

    def prefix(self, model: Decoder, memory: Any, targets: Targets, step: int, part: int) -> Prefix:
        """Make the prefix of a step (from 1) and of its pass `part`."""
        probability = self.probability(step)
        c = self.config
        if not (probability or c.input_noise or c.hidden):
            return self._teacher(model, targets)
        generator = stream(self.seed, f"exposure/{step}/{part}")
        x, moved = targets.x, torch.zeros_like(targets.point)
        if probability:
            chosen = self._choose(targets, probability, generator)
            x, moved = self._decode(model, memory, targets, chosen)
        if c.input_noise:
            std = c.input_noise * self.tokenizer.bin_width
            noise = torch.randn(x.shape, generator=generator)
            x = x + std * noise.to(x.device)
        if c.hidden:
            hidden = torch.rand(*x.shape[:2], 1, generator=generator) < c.hidden
            x = x.masked_fill(hidden.to(x.device), torch.nan)
        written = self.tokenizer.encode(x)
        goals = dataclasses.replace(targets, ids=retarget(self.tokenizer, written, targets))
        own = moved.sum() / targets.point.sum().clamp(min=1)
        return Prefix(*model.shift(written), goals, own)

    def _teacher(self, model: Decoder, targets: Targets) -> Prefix:
        if self._clean is None or self._clean.targets is not targets:
            zero = targets.x.new_zeros(())
            self._clean = Prefix(*model.shift(targets.ids), targets, zero)
        return self._clean

    def _choose(
        self, targets: Targets, probability: float, generator: torch.Generator
    ) -> Bool[Tensor, "n L T"]:
        """Draw the points that are to be the model's own."""
        point = targets.point
        n, L, T = point.shape
        if self.config.mode == "scheduled_sampling":
            coin = torch.rand(n, L, T, generator=generator) < probability
            return coin.to(point.device) & point
        lane, place = torch.rand(2, n, L, 1, generator=generator).to(point.device)
        length = point.sum(-1, keepdim=True)
        first = (place * length).long() + point.long().argmax(-1, keepdim=True)
        row = torch.arange(T, device=point.device)
        stretch = (row >= first) & (row < first + self.config.rollout_rows)
        return stretch & point & (lane < probability)

    @torch.no_grad()
    def _decode(
        self, model: Decoder, memory: Any, targets: Targets, chosen: Bool[Tensor, "n L T"]
    ) -> tuple[Float[Tensor, "n L T"], Bool[Tensor, "n L T"]]:
        """Give the lanes' x px with chosen points as the model writes them, and which it wrote."""
        c, tokenizer = self.config, self.tokenizer
        passes = c.rollout_rows if c.mode == "rollout" else c.passes
        x, moved = targets.x, torch.zeros_like(chosen)
        training = model.training
        if training and self.dropout:  # decoding has none
            model.train(False)
        for _ in range(passes):
            written = tokenizer.encode(x)
            guess = likeliest(model(memory, *model.shift(written))[0], self.decode.choice)
            bins = _bins_after(tokenizer, guess, written)
            moved = chosen & (bins > 0)
            x = torch.where(moved, tokenizer.centres(bins), targets.x)
        if training and self.dropout:
            model.train(True)
        return x, moved


def retarget(
    tokenizer: Tokenizer, written: Int[Tensor, "n L T"], targets: Targets
) -> Int[Tensor, "n L T"]:
    """Give the ids that lead to the labels' points after the prefix `written`.

    They differ from the labels' own ids only in closed-loop relative mode: legacy relative modes
    keep the step of the label, which is what they are there to show.
    """
    if type(tokenizer) is not RelativeDisjoint:
        return targets.ids
    bins = tokenizer.bins(targets.x)
    previous = _previous_bins(tokenizer, written)
    step = (bins - previous).clamp(-tokenizer.max_abs_dx, tokenizer.max_abs_dx)
    return torch.where(previous == 0, bins, tokenizer.step_id(step)) * targets.point


def _bins_after(
    tokenizer: Tokenizer, guess: Int[Tensor, "n L T"], written: Int[Tensor, "n L T"]
) -> Int[Tensor, "n L T"]:
    """Give the bin each guessed id stands for after the prefix `written`, 0 for no point."""
    previous = _previous_bins(tokenizer, written)
    step = guess - tokenizer.n_bins - tokenizer.max_abs_dx
    stepped = (previous + step).clamp(1, tokenizer.n_bins - 1) * (previous > 0)
    return torch.where(guess >= tokenizer.n_bins, stepped, guess)


def _previous_bins(tokenizer: Tokenizer, ids: Int[Tensor, "n L T"]) -> Int[Tensor, "n L T"]:
    """Give the bin of the row written before each step, 0 where that was no point."""
    bins = tokenizer.walk(ids)
    return torch.cat([torch.zeros_like(bins[..., :1]), bins[..., :-1]], dim=-1)
