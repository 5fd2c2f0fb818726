"""LaneLM: lanes written as sequences of x tokens while looking at visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from model.config import TrainConfig
from model.decoder import Block, Cache, KeysValues
from model.init import initialise
from model.tokenizer import make_tokenizer
from model.visual import LEVELS, VisualEncoder, visual_tokens

__all__ = ["LaneLM", "Memory", "count_parameters", "visual_tokens"]


@dataclass(frozen=True)
class Memory:
    tokens: Float[Tensor, "B N D"]
    blocks: tuple[KeysValues, ...]
    padding: Bool[Tensor, "B N"] | None
    pool_weights: Tensor | None = None


class LaneLM(nn.Module):
    def __init__(
        self, config: TrainConfig, channels: tuple[int, int, int], statistics: Any = None
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = make_tokenizer(config.tokenizer, config.data.width)
        self.levels = LEVELS[config.visual.levels]
        D, T, V = config.model.d_model, config.tokenizer.n_rows, self.tokenizer.vocab
        self.visual = VisualEncoder(config, channels)
        self.embed_x = nn.Embedding(V + 1, D)
        self.embed_y = nn.Embedding(T + 1, D)
        self.embed_row = nn.Embedding(T, D)
        self.embed_lane = nn.Embedding(config.data.max_lanes, D)
        self.blocks = nn.ModuleList(Block(config.model) for _ in range(config.model.n_layers))
        self.norm = nn.LayerNorm(D)
        self.head_x = nn.Linear(D, V)
        self.head_y = nn.Linear(D, T + 1)
        initialise(self, config.seed)

    def encode(self, features: list[Tensor], padding: Bool[Tensor, "B N"] | None = None) -> Memory:
        tokens = self.visual(features, padding)
        blocks = tuple(b.cross_attention.read(tokens.values) for b in self.blocks)
        return Memory(tokens.values, blocks, tokens.padding)

    def forward(
        self,
        memory: Memory,
        ids_in: Int[Tensor, "B L T"],
        y_in: Int[Tensor, "B L T"],
        lane_ids: Int[Tensor, "*B L"] | None = None,
    ) -> tuple[Float[Tensor, "B L T V"], Float[Tensor, "B L T rows"]]:
        x = self._embed(ids_in, y_in, lane_ids, 0)
        return self._heads(self._decode(x, memory))

    def attention(
        self, memory: Memory, ids_in: Tensor, y_in: Tensor, lane_ids: Tensor | None = None
    ) -> list[Float[Tensor, "B heads L T N"]]:
        weights: list[Tensor] = []
        self._decode(self._embed(ids_in, y_in, lane_ids, 0), memory, weights=weights)
        return weights

    def shift(self, ids: Int[Tensor, "B L T"]) -> tuple[Tensor, Tensor]:
        T = ids.shape[-1]
        start = ids[..., :1] if self.config.model.start == "leak" else self._start(ids[..., :1])
        point = self.tokenizer.walk(ids) > 0
        y = torch.where(point, torch.arange(T, device=ids.device), T)
        first = torch.full_like(y[..., :1], T)
        return torch.cat([start, ids[..., :-1]], -1), torch.cat([first, y[..., :-1]], -1)

    @torch.no_grad()
    def generate(
        self,
        memory: Memory,
        n_lanes: int | None = None,
        prompt: Int[Tensor, "B L k"] | None = None,
        return_logits: bool = False,
    ) -> Any:
        B, L = memory.tokens.shape[0], n_lanes or self.config.data.max_lanes
        T = self.config.tokenizer.n_rows
        ids = memory.tokens.new_zeros(B, L, T, dtype=torch.long)
        started = ids.new_zeros(B, L, dtype=torch.bool)
        ended = started.clone()
        caches = [Cache() for _ in self.blocks]
        x_in = self._start(ids[..., :1])
        y_in = torch.full_like(x_in, T)
        all_logits = []
        for t in range(T):
            h = self._decode(self._embed(x_in, y_in, None, t), memory, caches)
            logits, _ = self._heads(h)
            all_logits.append(logits)
            chosen = logits[..., 0, :].argmax(-1)
            if prompt is not None and t < prompt.shape[-1]:
                chosen = prompt[..., t]
            ids[..., t] = chosen.masked_fill(ended, 0)
            point = self.tokenizer.walk(ids[..., : t + 1])[..., -1] > 0
            ids[..., t] *= point
            ended |= started & ~point
            started |= point
            x_in = ids[..., t : t + 1]
            y_in = torch.where(point, t, T)[..., None]
        return (ids, torch.cat(all_logits, dim=2)) if return_logits else ids

    def _start(self, like: Tensor) -> Tensor:
        leak = self.config.model.start == "leak"
        return torch.full_like(like, 0 if leak else self.tokenizer.bos)

    def _embed(self, ids: Tensor, y: Tensor, lane_ids: Tensor | None, first: int) -> Tensor:
        L, T = ids.shape[-2:]
        x = self.embed_x(ids) * self.config.model.x_scale + self.embed_y(y)
        x = x + self.embed_row.weight[first : first + T]
        if first == 0:
            lanes = torch.arange(L, device=ids.device) if lane_ids is None else lane_ids
            lane = self.embed_lane(lanes) * self.config.model.lane_scale
            x = torch.cat([x[..., :1, :] + lane[..., None, :], x[..., 1:, :]], dim=-2)
        return x

    def _decode(
        self,
        x: Tensor,
        memory: Memory,
        caches: list[Cache] | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, memory.blocks[i], caches[i] if caches else None, weights)
        return self.norm(x)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head_x(x), self.head_y(x)


def count_parameters(config: TrainConfig, channels: tuple[int, int, int]) -> int:
    """Count the trained parameters."""
    with torch.device("meta"):
        model = LaneLM(config, channels)
    return sum(p.numel() for p in model.parameters())
