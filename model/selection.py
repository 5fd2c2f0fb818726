"""Fewer visual tokens: pooled by learned queries, or the best by a learned score."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from model.attention import attend, attention_weights
from model.config import TrainConfig
from model.matmul import Linear, project
from model.positions import codes, make_grids, sharp
from model.visual import Tokens


@dataclass(frozen=True)
class Selected:
    """The K tokens that are left of N."""

    values: Float[Tensor, "B D K"]
    place: Float[Tensor, "#B D K"] | None
    padding: Bool[Tensor, "B K"] | None
    weights: Callable[[], Float[Tensor, "B K N"]] | None
    """Computes what each token is made of; None: it is itself."""


def keep_all(tokens: Tokens) -> Selected:
    """Leave the tokens as they are."""
    place = None if tokens.place is None else tokens.place[None]
    return Selected(tokens.values(), place, tokens.padding, None)


class Pool(nn.Module):
    """Attention pooling: each learned query mixes the tokens near its place and like its content.

    The queries start as the codes of an even grid of points; the keys are the tokens' own codes and
    a projection, at first 0, of what they show. Positions are mixed along with the content.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        D, K = config.model.d_model, config.visual.select_tokens
        basis, unit = sharp(D, config.data.width), math.sqrt(2)  # a sine's variance is 1 / 2
        y, x = _even_grid(K, config.data.height, config.data.width)
        self.anchors = (basis.rows(y) + basis.columns(x)) * unit
        self.queries = nn.Parameter(torch.empty(K, D))
        self.key = nn.Parameter(torch.empty(D, D))
        self.register_buffer("codes", codes(basis, make_grids(config)) * unit, persistent=False)

    def first_values(self) -> dict[str, Tensor]:
        return {"queries": self.anchors, "key": torch.zeros_like(self.key)}

    def forward(self, tokens: Tokens) -> Selected:
        values = tokens.values()
        B, D, N = values.shape
        keys = (project(self.key, values) + self.get_buffer("codes"))[:, None]
        queries = (self.queries / math.sqrt(D)).expand(B, -1, -1)
        mixed = values
        if tokens.place is not None:
            mixed = torch.cat([values, tokens.place.expand(B, -1, -1)], dim=1)
        pooled = attend(queries, keys, mixed[:, None], tokens.padding).mT
        return Selected(
            values=pooled[:, :D],
            place=None if tokens.place is None else pooled[:, D:],
            padding=None,
            weights=lambda: attention_weights(queries, keys, tokens.padding)[:, 0],
        )


class TopK(nn.Module):
    """The K tokens of highest learned score; a token's content is scaled by sigmoid(score)."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.k = config.visual.select_tokens
        self.score = Linear(config.model.d_model, 1)

    def forward(self, tokens: Tokens) -> Selected:
        values = tokens.values()
        B, D, N = values.shape
        scores = project(self.score.weight, values)[:, 0] + self.score.bias  # (B, N)
        ranked = scores if tokens.padding is None else scores.masked_fill(tokens.padding, -math.inf)
        kept = ranked.topk(min(self.k, N), dim=1).indices.sort(dim=1).values  # (B, K)
        gate = scores.gather(1, kept).sigmoid()[:, None]
        position = _take(tokens.position.expand(B, -1, -1), kept)
        return Selected(
            values=_take(tokens.content, kept) * gate + position,
            place=None if tokens.place is None else _take(tokens.place.expand(B, -1, -1), kept),
            padding=None if tokens.padding is None else tokens.padding.gather(1, kept),
            weights=lambda: F.one_hot(kept, N).to(values.dtype),
        )


def make_selection(config: TrainConfig) -> Pool | TopK | None:
    """Make what `visual.select` names; None leaves the tokens as they are."""
    if config.visual.select == "none":
        return None
    return {"pool": Pool, "topk": TopK}[config.visual.select](config)


def _take(x: Float[Tensor, "B D N"], kept: Int[Tensor, "B K"]) -> Float[Tensor, "B D K"]:
    return x.gather(2, kept[:, None].expand(-1, x.shape[1], -1))


def _even_grid(k: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Spread k points over the image: y and x px, (k,) each."""
    rows = min(k, max(1, round(math.sqrt(k * height / width))))
    y, x = [], []
    for row in range(rows):
        columns = k // rows + (row < k % rows)
        y += [(row + 0.5) * height / rows] * columns
        x += [(column + 0.5) * width / columns for column in range(columns)]
    return torch.tensor(y), torch.tensor(x)
