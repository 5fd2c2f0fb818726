"""What one optimiser step sees: image order, lanes, accumulation.

What is random here is drawn from streams named by their place in the run ("order/3": epoch 3), not
carried from step to step. So no stream disturbs another, and a resumed run needs no more than its
step to go on exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.config import BatchConfig, LossConfig
from model.init import stream
from model.loss import step_weights
from model.shift import Shift
from model.targets import Targets


class Order:
    """Which images each pass sees: one endless row of shuffled epochs, cut into passes.

    With at least as many images per pass as there are, every pass sees all of them, each once.
    """

    def __init__(self, n_images: int, config: BatchConfig, seed: int) -> None:
        self.n, self.seed, self.accumulate = n_images, seed, config.accumulate
        self.size = min(config.images, n_images)
        self._epochs: dict[int, list[int]] = {}

    def images(self, step: int) -> list[tuple[int, ...]]:
        """Images of each pass of a step (counted from 1)."""
        if self.size == self.n:
            return [tuple(range(self.n))] * self.accumulate
        first = (step - 1) * self.accumulate * self.size
        row = [self._at(first + i) for i in range(self.accumulate * self.size)]
        return [tuple(row[i : i + self.size]) for i in range(0, len(row), self.size)]

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self.n)
        if epoch not in self._epochs:
            generator = stream(self.seed, f"order/{epoch}")
            near = {e: row for e, row in self._epochs.items() if abs(e - epoch) <= 1}
            self._epochs = near | {epoch: torch.randperm(self.n, generator=generator).tolist()}
        return self._epochs[epoch][place]


def draw_lanes(
    present: Bool[Tensor, "n L"], lanes: int, generator: torch.Generator
) -> Float[Tensor, "n L"]:
    """Say how often each lane slot counts so that exactly `lanes` present lanes do.

    They take turns: every lane floor(lanes / present) times, the rest drawn. Slots of absent lanes
    count once: they teach how many lanes there are. A lane that counts twice is in the
    objective twice, which is the same as a copy of it in the batch.
    """
    times = (~present).float()
    where = present.nonzero()  # (lanes there are, 2)
    n = len(where)
    if n:
        turns, rest = divmod(lanes, n)
        count = torch.full((n,), float(turns))
        count[torch.randperm(n, generator=generator)[:rest]] += 1
        times[where[:, 0], where[:, 1]] = count
    return times


@dataclass(frozen=True)
class Batch:
    """One forward pass, on the device."""

    images: tuple[int, ...]
    features: list[Tensor]
    """(B, C, h, w) of each level used"""
    targets: Targets
    weights: Float[Tensor, "B L T"]
    """of the objective, lanes taken twice counted twice"""
    totals: tuple[Tensor, Tensor]
    """sum of weights, and number of points and first EOS, of the whole optimiser step"""


@runtime_checkable
class Bank(Protocol):
    """Frozen features by index (model.features.FeatureBank)."""

    def batch(self, indices: Sequence[int], levels: Sequence[int]) -> list[Tensor]:
        """(B, C, h, w) per level."""
        ...


class Batches:
    """Makes the passes of a step; what did not change since the last step is not made again."""

    def __init__(
        self,
        bank: Bank,
        indices: Sequence[int],
        targets: Targets,
        levels: Sequence[int],
        config: BatchConfig,
        loss: LossConfig,
        seed: int,
        device: torch.device,
        shift: Shift | None = None,
    ) -> None:
        """Serve the training images: `indices` into the bank, `targets` in the same order."""
        self.bank, self.indices, self.targets = bank, list(indices), targets
        self.levels, self.config, self.loss = tuple(levels), config, loss
        self.seed, self.device = seed, device
        self.shift = shift
        self.order = Order(len(self.indices), config, seed)
        self._chosen: list[tuple[int, ...]] = []
        self._made: list[Batch] = []

    def at(self, step: int) -> list[Batch]:
        """Give the passes of a step, counted from 1; their losses add up to the step's."""
        chosen = self.order.images(step)
        if self.shift is not None:  # nothing is the same twice
            parts = [self._load(images, step, i) for i, images in enumerate(chosen)]
        else:
            if chosen == self._chosen and self.config.lanes is None:
                return self._made
            known = {batch.images: (batch.features, batch.targets) for batch in self._made}
            for images in chosen:
                if images not in known:
                    known[images] = self._load(images, step, 0)
            parts = [known[images] for images in chosen]
        weights = [self._weigh(targets, step, i) for i, (_, targets) in enumerate(parts)]
        total = torch.stack([w.sum() for w in weights]).sum()
        count = torch.stack([(t.point | t.first_end).sum() for _, t in parts]).sum()
        self._chosen = chosen
        self._made = [
            Batch(images, features, targets, w, (total, count))
            for images, (features, targets), w in zip(chosen, parts, weights, strict=True)
        ]
        return self._made

    def _load(self, images: tuple[int, ...], step: int, part: int) -> tuple[list[Tensor], Targets]:
        features = self.bank.batch([self.indices[i] for i in images], self.levels)
        targets = self.targets.select(images)
        if self.shift is not None:
            generator = stream(self.seed, f"shift/{step}/{part}")
            features, targets = self.shift(images, features, targets, generator)
        targets = to_device(targets, self.device)
        return [f.to(self.device, non_blocking=True) for f in features], targets

    def _weigh(self, targets: Targets, step: int, part: int) -> Float[Tensor, "B L T"]:
        weights = step_weights(targets, self.loss)
        if self.config.lanes is None:
            return weights
        generator = stream(self.seed, f"lanes/{step}/{part}")
        times = draw_lanes(targets.present.cpu(), self.config.lanes, generator)
        return weights * times.to(self.device)[..., None]


def to_device(targets: Targets, device: torch.device) -> Targets:
    """Move all parts of `targets`."""
    return Targets(*(getattr(targets, field.name).to(device) for field in fields(targets)))
