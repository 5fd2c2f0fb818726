"""What a model looks at: how even its cross-attention is, and the scale of what it sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.eval_split import EvalSplit
from model.lanelm import LaneLM
from model.passes import Bank, evaluating, images, plain_steps


def uniformity(
    weights: Float[Tensor, "*rows N"], keys: Int[Tensor, "*#rows"] | int
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    """Give H(p) / ln N and exp(H) of each row of attention weights; N = `keys`, the unmasked.

    1 is uniform, 0 is one key. With a single key there is nothing to choose: 0.
    """
    entropy = -torch.special.xlogy(weights, weights).sum(-1)
    log_n = torch.as_tensor(keys, device=weights.device).clamp(min=2).log()
    return entropy / log_n, entropy.exp()


def attention_readings(model: LaneLM, bank: Bank, split: EvalSplit) -> dict[str, float]:
    """Read the cross-attention under teacher forcing, image by image.

    `uniformity` and `effective_tokens` are means over images, blocks, heads and queries, taken
    after the entropy of each. Queries are the rows with a point and the first end of each lane,
    where the loss teaches what to look at. With pooling they are over the original tokens, decoder
    weights times pool weights, and `uniformity_slots` is over the pooled ones.
    `uniformity_block<i>` are the blocks' own.
    """
    means = _Means()
    with evaluating(model):
        for memory, targets in images(model, bank, split, 1):
            queries = plain_steps(targets)[0]  # (L, T)
            for i, weights in enumerate(model.attention(memory, *model.shift(targets.ids))):
                p = weights[:, :, queries].float()  # (1, heads, queries, N)
                if memory.pool_weights is not None:
                    means.add("uniformity_slots", uniformity(p, p.shape[-1])[0])
                    p = memory.over_cells(p)
                even, tokens = uniformity(p, p.shape[-1])  # whole images: no key is masked
                means.add("uniformity", even)
                means.add("effective_tokens", tokens)
                means.add(f"uniformity_block{i}", even)
    return means.all()


def visual_readings(model: LaneLM, bank: Bank, split: EvalSplit) -> dict[str, float]:
    """Read mean and std of the visual tokens, and of the frozen features they are made of."""
    means = _Means()
    with evaluating(model):
        for i in split.indices:
            for level in bank.batch([i], model.levels):
                means.add("feature_mean", level)
                means.add("feature_square", level.double().square())
        for memory, _ in images(model, bank, split, 1):
            means.add("mean", memory.tokens)
            means.add("square", memory.tokens.double().square())
    read = means.all()
    for name in ("", "feature_"):
        if f"{name}mean" in read:
            variance = read.pop(f"{name}square") - read[f"{name}mean"] ** 2
            read[f"{name}std"] = max(variance, 0.0) ** 0.5
    return read


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0


class _Means(dict[str, _Mean]):
    """Means by name of values that come in parts."""

    def add(self, name: str, values: Tensor) -> None:
        mean = self.setdefault(name, _Mean())
        mean.total += float(values.double().sum())
        mean.count += values.numel()

    def all(self) -> dict[str, float]:
        return {name: mean.total / mean.count for name, mean in self.items() if mean.count}
