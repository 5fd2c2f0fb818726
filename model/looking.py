"""What a model looks at: how even its cross-attention is, and the scale of what it sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.eval_split import EvalSplit
from model.guessing import can_guess, prove, written
from model.lanelm import LaneLM, Memory
from model.passes import Bank, Known, evaluating, images, plain_steps
from model.positions import STRIDES
from model.targets import Targets


def uniformity(
    weights: Float[Tensor, "*rows N"], keys: Int[Tensor, "*#rows"] | int
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    """Give H(p) / ln N and exp(H) of each row of attention weights; N = `keys`, the unmasked.

    1 is uniform, 0 is one key. With a single key there is nothing to choose: 0.
    """
    entropy = -torch.special.xlogy(weights, weights).sum(-1)
    log_n = torch.as_tensor(keys, device=weights.device).clamp(min=2).log()
    return entropy / log_n, entropy.exp()


def looked_at(
    model: LaneLM, memory: Memory, weights: Float[Tensor, "*rows K"]
) -> tuple[Float[Tensor, "*rows N"], int]:
    """Give attention over the original tokens, and how many of them there were to choose from.

    A pooled token is made of all of them. Of the top K the others are no keys: K.
    """
    cells = memory.over_cells(weights)
    return cells, (weights if model.config.visual.select == "topk" else cells).shape[-1]


def looking_readings(
    model: LaneLM, bank: Bank, split: EvalSplit, known: Known | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Read the cross-attention and the visual tokens under teacher forcing, image by image.

    Of attention: `uniformity` and `effective_tokens` are means over images, blocks, heads and
    queries, taken after the entropy of each. Queries are the rows with a point and the first end of
    each lane, where the loss teaches what to look at. With pooling they are over the original
    tokens, decoder weights times pool weights, and `uniformity_slots` is over the pooled ones; of
    the top K it is over those K. `uniformity_block<i>` are the blocks' own.

    Of the tokens: their `mean` and `std`, and those of the frozen features they are made of.

    Args:
        model: in any mode.
        bank: the images' features.
        split: the images.
        known: receives the lanes that the same passes prove to be what the model would write.
    """
    looks, tokens = _Means(), _Means()
    with evaluating(model):
        for row, (memory, targets) in zip(
            split.indices, images(model, bank, split, 1), strict=True
        ):
            logits_x, logits_y, weights = model.look(memory, *model.shift(targets.ids))
            _read_attention(looks, model, memory, targets, weights)
            tokens.add("mean", memory.tokens)
            tokens.add("square", memory.tokens.double().square())
            if known is not None and row not in known.lanes and can_guess(model):
                ids, proved = written(model, logits_x, logits_y), torch.ones(1).bool()
                if not torch.equal(ids, targets.ids):
                    ids, proved = prove(model, memory, ids)
                if bool(proved):
                    known.keep([row], ids, model.tokenizer)
    return looks.all(), _spread(tokens.all()) | _feature_readings(model, bank, split)


def _read_attention(
    looks: _Means, model: LaneLM, memory: Memory, targets: Targets, weights: list[Tensor]
) -> None:
    """Add what one image's attention says, block by block."""
    queries = plain_steps(targets)[0]  # (L, T)
    for i, of_block in enumerate(weights):
        p = of_block[:, :, queries].float()  # (1, heads, queries, N)
        if memory.pool_weights is not None:
            looks.add("uniformity_slots", uniformity(p, p.shape[-1])[0])
        even, tokens = uniformity(*looked_at(model, memory, p))  # whole images: no key is masked
        looks.add("uniformity", even)
        looks.add("effective_tokens", tokens)
        looks.add(f"uniformity_block{i}", even)


def _feature_readings(model: LaneLM, bank: Bank, split: EvalSplit) -> dict[str, float]:
    """Read the frozen features' mean and std from the moments of each channel."""
    if not len(split):
        return {}
    data, statistics = model.config.data, bank.statistics(split.indices)
    total = mean = square = 0.0
    for level in model.levels:
        means, stds = (moment.double() for moment in statistics[level])
        cells = data.height // STRIDES[level] * (data.width // STRIDES[level])
        total += cells * len(means)
        mean += cells * float(means.sum())
        square += cells * float((means.square() + stds.square()).sum())
    read = _spread({"mean": mean / total, "square": square / total})
    return {f"feature_{name}": value for name, value in read.items()}


def _spread(read: dict[str, float]) -> dict[str, float]:
    """Turn a mean square into a standard deviation."""
    if "square" in read:
        variance = read.pop("square") - read["mean"] ** 2
        read["std"] = max(variance, 0.0) ** 0.5
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
