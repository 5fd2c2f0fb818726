"""The decoder: blocks of causal self-attention, cross-attention to visual tokens, feed-forward."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.attention import attend, attention_weights, mix
from model.config import ModelConfig
from model.matmul import Linear, project


@dataclass(frozen=True)
class KeysValues:
    """What one block's cross-attention reads, once per image."""

    keys: Float[Tensor, "B H d N"]
    values: Float[Tensor, "B H d N"]
    padding: Bool[Tensor, "B N"] | None


class Cache:
    """Keys and values of the rows written so far, of one block."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.written = 0
        self.kept: Tensor | None = None  # (2, B * L, heads, rows, d)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add rows (B * L, heads, t, d) and give all rows so far."""
        n, heads, t, d = k.shape
        if self.kept is None:
            self.kept = k.new_empty(2, n, heads, self.rows, d)
        stop = self.written + t
        self.kept[0, :, :, self.written : stop] = k
        self.kept[1, :, :, self.written : stop] = v
        self.written = stop
        return self.kept[0, :, :, :stop], self.kept[1, :, :, :stop]


class SelfAttention(nn.Module):
    """Each row reads itself and the rows written before it, lane by lane."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv = Linear(config.d_model, 3 * config.d_model)
        self.out = Linear(config.d_model, config.d_model)

    def forward(
        self, x: Float[Tensor, "B L T D"], cache: Cache | None = None
    ) -> Float[Tensor, "B L T D"]:
        B, L, T, D = x.shape
        qkv = self.qkv(x).view(B * L, T, 3, self.n_heads, D // self.n_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B * L, heads, T, d) each
        if cache is not None:
            k, v = cache.extend(k, v)
        causal = T > 1  # a single row may read all there is: the cache holds nothing later
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out(y.transpose(1, 2).reshape(B, L, T, D))


class CrossAttention(nn.Module):
    """Rows read the visual tokens of their image; its lanes share keys and values.

    There is no causal mask here, so lanes and rows fold into one axis of queries. Keys have no
    bias, which the softmax would cancel, and values none, which the output's bias would repeat.
    """

    def __init__(self, config: ModelConfig, aligned: bool) -> None:
        super().__init__()
        D = config.d_model
        self.n_heads = config.cross_heads or config.n_heads
        self.q = Linear(D, D)
        self.k = Linear(D, D, bias=False)
        self.v = Linear(D, D, bias=False)
        self.out = Linear(D, D)
        # One matrix for both sides keeps q . k largest where their places agree.
        self.place = Linear(D, D, bias=False) if aligned else None
        self.log_temperature = None
        if config.attention == "qk_norm":
            self.log_temperature = nn.Parameter(torch.empty(self.n_heads))
        self.temperature = config.temperature

    def first_values(self) -> dict[str, Tensor]:
        return {"log_temperature": torch.full((self.n_heads,), math.log(self.temperature))}

    def read(
        self,
        tokens: Float[Tensor, "B D N"],
        place: Float[Tensor, "#B D N"] | None,
        padding: Bool[Tensor, "B N"] | None,
    ) -> KeysValues:
        """Compute the keys and values of the tokens."""
        B, D, N = tokens.shape
        keys = project(self.k.weight, tokens)
        if self.place is not None and place is not None:
            keys = keys + project(self.place.weight, place)
        keys = keys.view(B, self.n_heads, D // self.n_heads, N)
        if self.log_temperature is not None:
            keys = F.normalize(keys, dim=2)
        values = project(self.v.weight, tokens).view(B, self.n_heads, D // self.n_heads, N)
        return KeysValues(keys, values, padding)

    def queries(
        self, x: Float[Tensor, "B L T D"], place: Float[Tensor, "B L T D"] | None
    ) -> Float[Tensor, "B M D"]:
        B, L, T, D = x.shape
        q = self.q(x)
        if self.place is not None and place is not None:
            q = q + self.place(place)
        if self.log_temperature is None:
            return q.view(B, L * T, D) / math.sqrt(D // self.n_heads)
        q = F.normalize(q.view(B, L * T, self.n_heads, -1), dim=-1)
        return (q * self.temperatures(B)).flatten(2)

    def temperatures(self, images: int) -> Float[Tensor, "*B heads 1"]:
        """Give the learned temperature of each head (a stack of models: of each image's model)."""
        assert self.log_temperature is not None
        return self.log_temperature.exp()[:, None]

    def forward(
        self,
        x: Float[Tensor, "B L T D"],
        memory: KeysValues,
        place: Float[Tensor, "B L T D"] | None,
        weights: list[Tensor] | None = None,
    ) -> Float[Tensor, "B L T D"]:
        q = self.queries(x, place)
        if weights is None:
            y = attend(q, memory.keys, memory.values, memory.padding)
        else:
            of_block = attention_weights(q, memory.keys, memory.padding)
            weights.append(of_block.unflatten(2, x.shape[1:3]))  # (B, H, L, T, N)
            y = mix(of_block, memory.values)
        return self.out(y.view(x.shape))


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward, each on a residual path."""

    def __init__(self, config: ModelConfig, aligned: bool) -> None:
        super().__init__()
        D = config.d_model
        self.pre = config.norm == "pre"
        self.cross_first = config.order == "cross_first"
        self.norm_self, self.norm_cross, self.norm_ff = (nn.LayerNorm(D) for _ in range(3))
        self.self_attention = SelfAttention(config)
        self.cross_attention = CrossAttention(config, aligned)
        self.ff = nn.Sequential(Linear(D, config.d_ff), nn.GELU(), Linear(config.d_ff, D))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B L T D"],
        memory: KeysValues,
        place: Float[Tensor, "B L T D"] | None = None,
        cache: Cache | None = None,
        weights: list[Tensor] | None = None,
    ) -> Float[Tensor, "B L T D"]:
        """Run the block; with `weights`, the cross-attention's are appended to it."""

        def read_lane(h: Tensor) -> Tensor:
            return self.self_attention(h, cache)

        def read_image(h: Tensor) -> Tensor:
            return self.cross_attention(h, memory, place, weights)

        parts = [(self.norm_self, read_lane), (self.norm_cross, read_image)]
        if self.cross_first:
            parts.reverse()
        for norm, part in [*parts, (self.norm_ff, self.ff)]:
            x = self._residual(x, norm, part)
        return x

    def _residual(self, x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre:
            return x + self.dropout(part(norm(x)))
        return norm(x + self.dropout(part(x)))
