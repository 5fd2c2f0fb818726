"""LaneLM: each lane a sequence of x tokens, one per row, written while looking at visual tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, overload

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from model.allocator import keep_freed_memory
from model.config import TrainConfig
from model.decoder import Block, Cache, KeysValues
from model.init import initialise
from model.lane_map import LaneMap
from model.matmul import Linear
from model.positions import LEVELS, Grid, make_grids, sharp
from model.selection import Selected, keep_all, make_selection
from model.tokenizer import make_tokenizer, row_positions
from model.visual import Statistics, VisualEncoder


@dataclass(frozen=True)
class Memory:
    """What the decoder may look at: B images, encoded once."""

    selected: Selected
    blocks: tuple[KeysValues, ...]
    """keys and values of each block"""
    grids: tuple[tuple[Grid, ...], ...]
    """the cells that each block's tokens were or were made of, level after level"""
    content: Float[Tensor, "B D N0"]
    """what the cells show, before a place was added"""

    @property
    def tokens(self) -> Float[Tensor, "B N D"]:
        return self.selected.values.mT

    @property
    def padding(self) -> Bool[Tensor, "B N"] | None:
        return self.selected.padding

    @cached_property
    def pool_weights(self) -> Float[Tensor, "B K N"] | None:
        """With pool or topk: the share of each original token in each that is left."""
        return None if self.selected.weights is None else self.selected.weights()

    def over_cells(self, weights: Float[Tensor, "B *q N"]) -> Float[Tensor, "B *q N0"]:
        """Turn attention over tokens into attention over cells (pool, topk: weight times share)."""
        if self.pool_weights is None:
            return weights
        return torch.einsum("b...k,bkn->b...n", weights, self.pool_weights)

    def maps(self, block: int, weights: Float[Tensor, "B *q N"]) -> list[Float[Tensor, "B *q h w"]]:
        """Lay one block's attention out as a map per level."""
        grids = self.grids[block]
        levels = self.over_cells(weights).split([grid.cells for grid in grids], dim=-1)
        return [
            level.unflatten(-1, (grid.height, grid.width))
            for level, grid in zip(levels, grids, strict=True)
        ]


class LaneLM(nn.Module):
    """encode(features) once per image, then forward(...) to train or generate(...) to decode.

    Args:
        config: the whole job's settings.
        channels: of P3, P4, P5.
        statistics: of P3, P4, P5, for visual.norm = standardize; may come with a state dict.
    """

    def __init__(
        self,
        config: TrainConfig,
        channels: tuple[int, int, int],
        statistics: Statistics | None = None,
    ) -> None:
        super().__init__()
        keep_freed_memory()
        self.config = config
        self.levels = LEVELS[config.visual.levels]
        self.tokenizer = make_tokenizer(config.tokenizer, config.data.width)
        D, T, V = config.model.d_model, config.tokenizer.n_rows, self.tokenizer.vocab
        aligned = config.visual.position == "aligned"
        with torch.random.fork_rng(devices=[]):  # torch's own draws, replaced below
            self.visual = VisualEncoder(config, channels, statistics)
            self.selection = make_selection(config)
            self.embed_x = nn.Embedding(V + 1, D)
            self.embed_y = nn.Embedding(T + 1, D)
            self.embed_row = nn.Embedding(T, D)
            self.embed_lane = nn.Embedding(config.data.max_lanes, D)
            blocks = [Block(config.model, aligned) for _ in range(config.model.n_layers)]
            self.blocks = nn.ModuleList(blocks)
            self.norm = nn.LayerNorm(D) if config.model.norm == "pre" else nn.Identity()
            self.head_x = Linear(D, V)
            self.head_y = Linear(D, T + 1)
            self.lane_map = LaneMap(config) if config.loss.lane_map else None
        self.basis = None
        if aligned:
            heads = config.model.cross_heads or config.model.n_heads
            self.basis = sharp(D, config.data.width, heads)
            rows = torch.from_numpy(row_positions(config.tokenizer, config.data.height)).float()
            self.register_buffer("row_codes", self.basis.rows(rows), persistent=False)
        initialise(self, config.seed)

    def encode(
        self,
        features: Sequence[Float[Tensor, "B _c _h _w"]],
        padding: Bool[Tensor, "B N"] | None = None,
    ) -> Memory:
        """Turn the pyramid levels of `self.levels` into keys and values.

        Args:
            features: one tensor per level used, finest first.
            padding: True where a cell is not to be looked at; cells as in `Memory.grids`.
        """
        tokens = self.visual(features, padding)
        selected = keep_all(tokens) if self.selection is None else self.selection(tokens)
        grids = self.visual.grids
        if self.config.model.memory == "concat":
            parts = [slice(None)] * len(self.blocks)
            seen = (grids,) * len(self.blocks)
        else:  # block i reads level i, and begins again when there are more blocks than levels
            stops = [sum(grid.cells for grid in grids[: i + 1]) for i in range(len(grids))]
            of_level = [
                slice(stop - grid.cells, stop) for stop, grid in zip(stops, grids, strict=True)
            ]
            parts = [of_level[i % len(grids)] for i in range(len(self.blocks))]
            seen = tuple((grids[i % len(grids)],) for i in range(len(self.blocks)))
        blocks = tuple(
            block.cross_attention.read(
                selected.values[..., part],
                None if selected.place is None else selected.place[..., part],
                None if selected.padding is None else selected.padding[..., part],
            )
            for block, part in zip(self._blocks(), parts, strict=True)
        )
        return Memory(selected, blocks, seen, tokens.content)

    def forward(
        self,
        memory: Memory,
        ids_in: Int[Tensor, "B L T"],
        y_in: Int[Tensor, "B L T"],
        lane_ids: Int[Tensor, "*B L"] | None = None,
    ) -> tuple[Float[Tensor, "B L T V"], Float[Tensor, "B L T rows"]]:
        """Give the logits of x ids and y steps at every step, from inputs as `shift` makes them.

        Args:
            memory: the images, encoded.
            ids_in: what each step reads of x, 0 .. vocab.
            y_in: what each step reads of y, 0 .. T.
            lane_ids: which lane each of the L is; without, 0 .. L - 1.
        """
        h = self._decode(memory, ids_in, y_in, lane_ids)
        return self.head_x(h), self.head_y(h)

    def attention(
        self,
        memory: Memory,
        ids_in: Int[Tensor, "B L T"],
        y_in: Int[Tensor, "B L T"],
        lane_ids: Int[Tensor, "*B L"] | None = None,
    ) -> list[Float[Tensor, "B heads L T N"]]:
        """Give each block's cross-attention weights, differentiable; a pass of its own."""
        return self.look(memory, ids_in, y_in, lane_ids)[2]

    def look(
        self,
        memory: Memory,
        ids_in: Int[Tensor, "B L T"],
        y_in: Int[Tensor, "B L T"],
        lane_ids: Int[Tensor, "*B L"] | None = None,
    ) -> tuple[
        Float[Tensor, "B L T V"],
        Float[Tensor, "B L T rows"],
        list[Float[Tensor, "B heads L T N"]],
    ]:
        """Give what `forward` gives, and each block's cross-attention weights beside it."""
        weights: list[Tensor] = []
        h = self._decode(memory, ids_in, y_in, lane_ids, weights=weights)
        return self.head_x(h), self.head_y(h), weights

    def shift(self, ids: Int[Tensor, "B L T"]) -> tuple[Int[Tensor, "B L T"], Int[Tensor, "B L T"]]:
        """Give what the steps read when `ids` are written: the x and the y of the step before."""
        T = ids.shape[-1]
        # Legacy leak: training reads its first target, which decoding cannot know.
        leak = self.config.model.start == "leak"
        start = ids[..., :1] if leak else torch.full_like(ids[..., :1], self.tokenizer.bos)
        y = torch.where(self.tokenizer.walk(ids) > 0, torch.arange(T, device=ids.device), T)
        none = torch.full_like(y[..., :1], T)
        return torch.cat([start, ids[..., :-1]], -1), torch.cat([none, y[..., :-1]], -1)

    @overload
    def generate(
        self,
        memory: Memory,
        n_lanes: int | None = None,
        prompt: Int[Tensor, "B L k"] | None = None,
        return_logits: Literal[False] = False,
    ) -> Int[Tensor, "B L T"]: ...
    @overload
    def generate(
        self,
        memory: Memory,
        n_lanes: int | None = None,
        prompt: Int[Tensor, "B L k"] | None = None,
        *,
        return_logits: Literal[True],
    ) -> tuple[Int[Tensor, "B L T"], Float[Tensor, "B L T V"]]: ...
    @torch.no_grad()
    def generate(
        self,
        memory: Memory,
        n_lanes: int | None = None,
        prompt: Int[Tensor, "B L k"] | None = None,
        return_logits: bool = False,
    ) -> Int[Tensor, "B L T"] | tuple[Int[Tensor, "B L T"], Float[Tensor, "B L T V"]]:
        """Write the lanes 0 .. n_lanes - 1 of every image greedily, all at once, step by step.

        A lane ends at its first blank after a point; what the model would write after it is 0.
        Call `eval()` before, or dropout stays on.

        Args:
            memory: the images, encoded.
            n_lanes: lanes per image; without, data.max_lanes.
            prompt: ids of the first k steps, taken as written; -1 where the model writes itself
                (`model.prompt`).
            return_logits: also give the x logits each step was chosen from.
        """
        model, T = self.config.model, self.config.tokenizer.n_rows
        B, L = memory.tokens.shape[0], n_lanes or self.config.data.max_lanes
        ids = torch.zeros(B, L, T, dtype=torch.long, device=memory.tokens.device)
        start = 0 if model.start == "leak" else self.tokenizer.bos
        ids_in, y_in = torch.full_like(ids, start), torch.full_like(ids, T)
        started = ended = torch.zeros(B, L, dtype=torch.bool, device=ids.device)
        caches = [Cache(T) for _ in self.blocks]
        logits = []
        for t in range(T):
            h = self._decode(memory, ids_in[..., : t + 1], y_in[..., : t + 1], caches=caches)
            logits.append(self.head_x(h))  # (B, L, 1, V)
            asked = self.config.decode.ends == "x_or_y"
            chosen = self.choose(logits[-1], self.head_y(h) if asked else None)[..., 0]
            if prompt is not None and t < prompt.shape[-1]:
                chosen = torch.where(prompt[..., t] < 0, chosen, prompt[..., t])
            ids[..., t] = chosen * ~ended
            point = self.tokenizer.walk(ids[..., : t + 1])[..., -1] > 0
            ids[..., t] *= point  # a step that starts nowhere is a blank
            started, ended = started | point, ended | (started & ~point)
            if t + 1 < T:  # legacy: decoding's x comes a step late, its y is a row off
                late = int(model.decode_shift)
                if t >= late:
                    ids_in[..., t + 1] = ids[..., t - late]
                y_in[..., t + 1] = torch.where(point, t + model.decode_y_offset, T)
        return (ids, torch.cat(logits, dim=2)) if return_logits else ids

    def choose(
        self, logits_x: Float[Tensor, "B L t V"], logits_y: Float[Tensor, "B L t R"] | None
    ) -> Int[Tensor, "B L t"]:
        """Give the id that greedy decoding writes at each step; only `ends: x_or_y` asks for y."""
        ids = likeliest(logits_x, self.config.decode.choice)
        if self.config.decode.ends == "x_or_y":
            assert logits_y is not None
            ids = ids * (logits_y.argmax(-1) < self.config.tokenizer.n_rows)
        return ids

    def _decode(
        self,
        memory: Memory,
        ids_in: Int[Tensor, "B L T"],
        y_in: Int[Tensor, "B L T"],
        lane_ids: Tensor | None = None,
        caches: Sequence[Cache] | None = None,
        weights: list[Tensor] | None = None,
    ) -> Float[Tensor, "B L t D"]:
        """Run the blocks over all steps; with caches, over the last one only."""
        L, T = ids_in.shape[-2:]
        first = 0 if caches is None else T - 1
        place = self._place(ids_in, first)
        x = self.embed_x(ids_in[..., first:]) * self.config.model.x_scale
        x = x + self.embed_y(y_in[..., first:]) + self.row_embedding(first, T, len(x))
        if first == 0:
            lanes = torch.arange(L, device=x.device) if lane_ids is None else lane_ids
            lane = self.embed_lane(lanes)[..., None, :] * self.config.model.lane_scale
            x = x + F.pad(lane, (0, 0, 0, T - 1))  # the start says which lane
        for i, block in enumerate(self._blocks()):
            x = block(x, memory.blocks[i], place, caches[i] if caches else None, weights)
        return self.norm(x)

    def row_embedding(self, first: int, stop: int, images: int) -> Float[Tensor, "*B t D"]:
        """Give the learned vectors of some rows (a stack of models: of each image's model)."""
        return self.embed_row.weight[first:stop]

    def _place(self, ids_in: Int[Tensor, "B L T"], first: int) -> Float[Tensor, "B L t D"] | None:
        """Give the code of the row each step writes and the column it wrote last."""
        if self.basis is None:
            return None
        column = F.pad(self.tokenizer.columns(ids_in[..., 1:]), (1, 0), value=-1.0)[..., first:]
        code = self.basis.columns(column) * (column >= 0)[..., None]
        return code + self.get_buffer("row_codes")[first : ids_in.shape[-1]]

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block


def likeliest(
    logits_x: Float[Tensor, "*steps V"], choice: Literal["token", "point", "median"]
) -> Int[Tensor, "*steps"]:
    """Give the likeliest id of each step; with `point`, of whichever of point and none is likelier.

    A model that knows that there is a lane but not where spreads it over many ids, each of them
    less likely than "no point" (0): then the likeliest token loses the lane. Of the columns that it
    thinks possible the `median` is the one with the least error to expect.
    """
    if choice == "token":
        return logits_x.argmax(-1)
    points = logits_x[..., 1:].float()
    none = logits_x[..., 0].float() > points.logsumexp(-1)
    if choice == "median":
        below = points.softmax(-1).cumsum(-1) < 0.5
        return (below.sum(-1) + 1) * ~none
    return (points.argmax(-1) + 1) * ~none


def count_parameters(config: TrainConfig, channels: tuple[int, int, int]) -> int:
    """Count the trained parameters, without making them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in LaneLM(config, channels).parameters())


def visual_tokens(config: TrainConfig) -> int:
    """Count the tokens of an image that the decoder may look at (per_level: over its blocks)."""
    cells = sum(grid.cells for grid in make_grids(config))
    kept = config.visual.select_tokens
    return {"none": cells, "pool": kept, "topk": min(cells, kept)}[config.visual.select]
