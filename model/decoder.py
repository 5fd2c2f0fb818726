"""The decoder: blocks of causal self-attention, cross-attention to visual tokens, feed-forward."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.config import ModelConfig

KeysValues = tuple[Tensor, Tensor]
"""keys and values of one block, (B, heads, N, D / heads) each"""


@dataclass
class Cache:
    """Keys and values of the rows written so far, of one block, (B * L, heads, t, D / heads)."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> KeysValues:
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
        else:
            self.keys = torch.cat([self.keys, keys], dim=2)
            self.values = torch.cat([self.values, values], dim=2)
        return self.keys, self.values


class SelfAttention(nn.Module):
    """Each row reads itself and the rows written before it, lane by lane."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)

    def forward(self, x: Float[Tensor, "B L T D"], cache: Cache | None) -> Float[Tensor, "B L T D"]:
        B, L, T, D = x.shape
        qkv = self.qkv(x).view(B * L, T, 3, self.n_heads, D // self.n_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B * L, heads, T, D / heads) each
        if cache is not None:
            k, v = cache.extend(k, v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=k.shape[2] == T and T > 1)
        return self.out(y.transpose(1, 2).reshape(B, L, T, D))


class CrossAttention(nn.Module):
    """Rows read the visual tokens of their image; its lanes share keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.cross_heads or config.n_heads
        self.q = nn.Linear(config.d_model, config.d_model)
        self.kv = nn.Linear(config.d_model, 2 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)

    def read(self, tokens: Float[Tensor, "B N D"]) -> KeysValues:
        B, N, D = tokens.shape
        kv = self.kv(tokens).view(B, N, 2, self.n_heads, D // self.n_heads)
        k, v = kv.permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x: Float[Tensor, "B L T D"], memory: KeysValues) -> Float[Tensor, "B L T D"]:
        B, L, T, D = x.shape
        q = self.q(x).view(B, L * T, self.n_heads, D // self.n_heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, *memory)  # no causal mask: lanes fold into queries
        return self.out(y.transpose(1, 2).reshape(B, L, T, D))

    def weights(self, x: Float[Tensor, "B L T D"], memory: KeysValues) -> Tensor:
        B, L, T, D = x.shape
        q = self.q(x).view(B, L * T, self.n_heads, D // self.n_heads).transpose(1, 2)
        scores = q @ memory[0].transpose(-1, -2) / math.sqrt(q.shape[-1])
        return scores.softmax(-1).view(B, self.n_heads, L, T, -1)


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D = config.d_model
        self.norm_self, self.norm_cross, self.norm_ff = (nn.LayerNorm(D) for _ in range(3))
        self.self_attention = SelfAttention(config)
        self.cross_attention = CrossAttention(config)
        self.ff = nn.Sequential(nn.Linear(D, config.d_ff), nn.GELU(), nn.Linear(config.d_ff, D))

    def forward(
        self, x: Tensor, memory: KeysValues, cache: Cache | None, weights: list[Tensor] | None
    ) -> Tensor:
        x = x + self.self_attention(self.norm_self(x), cache)
        h = self.norm_cross(x)
        if weights is not None:
            weights.append(self.cross_attention.weights(h, memory))
        x = x + self.cross_attention(h, memory)
        return x + self.ff(self.norm_ff(x))
