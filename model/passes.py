"""Evaluation passes over images, a few at a time: what a model writes, freely and on true prefixes.

Nothing here changes the model or any random stream of the training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.batches import to_device
from model.eval_split import EvalSplit
from model.lanelm import LaneLM, Memory, likeliest, visual_tokens
from model.loss import compute_loss, step_weights
from model.metrics import Lanes, cross_entropy
from model.prompt import first_keypoints, prompt_of
from model.targets import Targets
from model.tokenizer import Tokenizer

COMPARED = 4
"""Images whose decoding is compared with teacher forcing, step by step."""


@runtime_checkable
class Bank(Protocol):
    """Frozen features by row (model.feature_bank.FeatureBank)."""

    def batch(self, indices: Sequence[int], levels: Sequence[int]) -> list[Tensor]: ...

    def statistics(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]: ...


@runtime_checkable
class Change(Protocol):
    """What a test does to an image before the model sees it."""

    def __call__(
        self, feature: Float[Tensor, "C h w"], level: int, place: int
    ) -> Float[Tensor, "C h w"]:
        """Change one level, by its place among those used, of the image at `place`."""
        ...


@dataclass(frozen=True)
class Forced:
    """What a model says of n images' lanes, always reading the true prefix."""

    nll: Float[Tensor, "n L T"]
    """x cross-entropy against hard targets"""
    nll_y: Float[Tensor, "n L T"]
    lanes: Lanes
    """x px of the most likely token"""
    objective: float
    """(1 - w) x + w y, as weighted and softened in training; of all n together"""

    def of(self, places: Sequence[int]) -> Forced:
        """Take some images."""
        at = list(places)
        return Forced(self.nll[at], self.nll_y[at], self.lanes[at], self.objective)


@dataclass(frozen=True)
class Decoded:
    """What a model writes, reading its own tokens."""

    lanes: Lanes
    """x px"""
    gap: tuple[float, float] | None
    """Largest difference of decoding's x logits from teacher forcing's, of all steps on the prefix
    it wrote and of the first step on that of the labels; None if not asked for."""


@dataclass
class Known:
    """What one state of the weights wrote so far, so that it is not asked to write it again."""

    lanes: dict[int, Float[np.ndarray, "L T"]] = field(default_factory=dict)
    """x px, by row of the feature bank"""

    def keep(self, rows: Sequence[int], ids: Int[Tensor, "n L T"], tokenizer: Tokenizer) -> None:
        """Remember what was decoded of some images."""
        self.lanes |= zip(rows, _px(tokenizer.decode(ids)), strict=True)


def at_once(model: LaneLM) -> int:
    """Images per pass: bounds memory, changes no reading beyond float rounding."""
    return max(4, min(16, 8192 // visual_tokens(model.config)))


@contextmanager
def evaluating(model: LaneLM) -> Iterator[None]:
    """Evaluate without gradients, then leave the model in the mode it was in."""
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(mode)


def images(
    model: LaneLM,
    bank: Bank,
    split: EvalSplit,
    size: int | None = None,
    change: Change | None = None,
) -> Iterator[tuple[Memory, Targets]]:
    """Yield what the model sees of some images at a time, and their targets, on its device."""
    device = next(model.parameters()).device
    size = size or at_once(model)
    for start in range(0, len(split), size):
        places = range(start, min(start + size, len(split)))
        features = bank.batch([split.indices[i] for i in places], model.levels)
        if change is not None:
            features = [
                torch.stack([change(f, level, i) for f, i in zip(batch, places, strict=True)])
                for level, batch in enumerate(features)
            ]
        memory = model.encode([f.to(device) for f in features])
        yield memory, to_device(split.targets.select(places), device)


def decode(
    model: LaneLM, bank: Bank, split: EvalSplit, *, gap: bool = False, known: Known | None = None
) -> Decoded:
    """Let the model write the lanes of a split that is not empty.

    Args:
        model: in any mode.
        bank: the images' features.
        split: the images.
        gap: compare with teacher forcing, on the first `COMPARED` images.
        known: what these weights wrote before; what they write now is added.
    """
    known = Known() if known is None else known
    found: tuple[float, float] | None = None
    with evaluating(model):
        if gap:
            first = split.first(COMPARED)
            memory, targets = next(images(model, bank, first, COMPARED))
            ids, logits = model.generate(memory, return_logits=True)
            found = _gap(model, memory, targets, ids, logits)
            known.keep(first.indices, ids, model.tokenizer)
        rest = split.select([i for i, row in enumerate(split.indices) if row not in known.lanes])
        rows = iter(rest.indices)
        for memory, targets in images(model, bank, rest):
            known.keep([next(rows) for _ in targets.ids], model.generate(memory), model.tokenizer)
    return Decoded(np.stack([known.lanes[row] for row in split.indices]), found)


def go_on(model: LaneLM, bank: Bank, split: EvalSplit, k: int = 1) -> Lanes:
    """Let the model write the lanes of a split, of each of which it is given the first k points."""
    written = []
    with evaluating(model):
        for memory, targets in images(model, bank, split):
            prompt = prompt_of(model.tokenizer, first_keypoints(targets.x, k))
            written.append(_px(model.tokenizer.decode(model.generate(memory, prompt=prompt))))
    return np.concatenate(written)


def force(
    model: LaneLM,
    bank: Bank,
    split: EvalSplit,
    *,
    y_weight: float | None = None,
    change: Change | None = None,
) -> Forced:
    """Ask the model for every step after the true prefix.

    Args:
        model: in any mode.
        bank: the images' features.
        split: the images, at least one.
        y_weight: w of the objective; None: the config's last one.
        change: what is done to the images first.
    """
    loss, tokenizer = model.config.loss, model.tokenizer
    w = loss.y_weight if y_weight is None else y_weight
    totals = (step_weights(split.targets, loss).sum(), plain_steps(split.targets).sum())
    nll, nll_y, lanes, objective = [], [], [], 0.0
    with evaluating(model):
        for memory, targets in images(model, bank, split, change=change):
            logits_x, logits_y = model(memory, *model.shift(targets.ids))
            nll.append(cross_entropy(logits_x, targets.ids).cpu())
            nll_y.append(cross_entropy(logits_y, targets.y).cpu())
            part = compute_loss(
                logits_x, logits_y, targets, loss, w, n_bins=tokenizer.n_bins, totals=totals
            )
            objective += float(part.objective)
            chosen = likeliest(logits_x, model.config.decode.choice)
            lanes.append(_px(after_prefix(tokenizer, targets.ids, chosen)))
    return Forced(torch.cat(nll), torch.cat(nll_y), np.concatenate(lanes), objective)


def after_prefix(
    tokenizer: Tokenizer, prefix: Int[Tensor, "B L T"], chosen: Int[Tensor, "B L T"]
) -> Float[Tensor, "B L T"]:
    """Give the x px of each step's token after the prefix before it, nan for no point."""
    T = prefix.shape[-1]
    step, place = torch.arange(T, device=prefix.device)[:, None], torch.arange(T).to(prefix.device)
    written = torch.where(place < step, prefix[..., None, :], 0)
    written = torch.where(place == step, chosen[..., None, :], written)  # (B, L, T steps, T)
    return tokenizer.decode(written).diagonal(dim1=-2, dim2=-1)


def plain_steps(targets: Targets) -> Tensor:
    """Mark the steps that `loss` is the mean over: points and the first end of each lane."""
    return targets.point | targets.first_end


def _gap(
    model: LaneLM,
    memory: Memory,
    targets: Targets,
    ids: Int[Tensor, "B L T"],
    logits: Float[Tensor, "B L T V"],
) -> tuple[float, float]:
    """Compare decoding's logits with teacher forcing's: of all steps, of the first step.

    What a leak hands to the first step is the labels'. A model that copies it writes the blank that
    decoding starts from, on which prefix nothing can be seen of it.
    """
    forced, _ = model(memory, *model.shift(ids))
    asked = model.tokenizer.ends(ids)[1] <= 1  # what comes after the lane's end is never read
    apart = (logits - forced).abs().amax(-1) * asked  # (B, L, T)
    taught, _ = model(memory, *model.shift(targets.ids))
    first = torch.maximum(apart[..., 0], (logits - taught)[:, :, 0].abs().amax(-1))
    return max(float(apart.max()), float(first.max())), float(first.max())


def _px(lanes: Tensor) -> np.ndarray:
    return lanes.double().cpu().numpy()
