"""Time of one training step, against two plain ways to write the same decoder.

    python -m bench.step [--repeats 7] [--size lanelm_128]

Step: encode one image, forward of 4 lanes x 40 rows, cross-entropy, backward, clip, AdamW; one
thread. The plain models use `nn.MultiheadAttention` with the image's tokens repeated for each lane:
(a) with the attention weights returned, as code that logs them does, (b) without. They carry the
same weights, and the three losses are checked to agree before anything is timed. The three take
turns and the clock is the process's own, so that a busy machine skews no ratio.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import TrainConfig
from model.decoder import Block
from model.lanelm import LaneLM, visual_tokens
from model.presets import SIZES, build
from model.targets import Targets, targets_of
from model.visual import Level

CHANNELS = (40, 112, 320)  # of EfficientNet-Lite0
LANES = 4


def linear(source: nn.Linear) -> nn.Linear:
    """Make torch's own layer with the weights of one of ours."""
    made = nn.Linear(source.in_features, source.out_features, bias=source.bias is not None)
    made.load_state_dict(source.state_dict())
    return made


class PlainBlock(nn.Module):
    """A pre-norm block of torch's own parts."""

    def __init__(self, block: Block, need_weights: bool) -> None:
        super().__init__()
        self.need_weights = need_weights
        own, cross = block.self_attention, block.cross_attention
        D = own.out.in_features
        self.norms = nn.ModuleList(
            copy.deepcopy(norm) for norm in (block.norm_self, block.norm_cross, block.norm_ff)
        )
        self.own = nn.MultiheadAttention(D, own.n_heads, batch_first=True)
        self.cross = nn.MultiheadAttention(D, cross.n_heads, batch_first=True)
        self.own.out_proj.load_state_dict(own.out.state_dict())
        self.cross.out_proj.load_state_dict(cross.out.state_dict())
        with torch.no_grad():
            self.own.in_proj_weight.copy_(own.qkv.weight)
            self.own.in_proj_bias.copy_(own.qkv.bias)
            parts = (cross.q.weight, cross.k.weight, cross.v.weight)
            self.cross.in_proj_weight.copy_(torch.cat(parts))
            self.cross.in_proj_bias.zero_()[:D].copy_(cross.q.bias)
        first, last = block.ff[0], block.ff[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        self.ff = nn.Sequential(linear(first), nn.GELU(), linear(last))

    def forward(self, x: Tensor, tokens: Tensor, causal: Tensor) -> Tensor:
        h = self.norms[0](x)
        x = x + self.own(h, h, h, attn_mask=causal, need_weights=False)[0]
        h = self.norms[1](x)
        x = x + self.cross(h, tokens, tokens, need_weights=self.need_weights)[0]
        return x + self.ff(self.norms[2](x))


class Plain(nn.Module):
    """The same model with lanes in the batch axis and the image's tokens repeated for each."""

    def __init__(self, model: LaneLM, need_weights: bool) -> None:
        super().__init__()
        levels = [level for level in model.visual.levels.values() if isinstance(level, Level)]
        self.norms = nn.ModuleList(copy.deepcopy(level.norm or nn.Identity()) for level in levels)
        self.projections = nn.ModuleList(linear(level.projection) for level in levels)
        self.embeddings = nn.ModuleList(
            copy.deepcopy(level.embedding or nn.Identity()) for level in levels
        )
        self.added = model.visual.get_buffer("added").T.split([g.cells for g in model.visual.grids])
        self.ids, self.y = copy.deepcopy(model.embed_x), copy.deepcopy(model.embed_y)
        self.rows, self.lanes = copy.deepcopy(model.embed_row), copy.deepcopy(model.embed_lane)
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        self.blocks = nn.ModuleList(PlainBlock(block, need_weights) for block in blocks)
        self.norm = copy.deepcopy(model.norm)
        self.head_x, self.head_y = linear(model.head_x), linear(model.head_y)

    def forward(self, features: list[Tensor], ids: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        parts = []
        for i, feature in enumerate(features):
            rows = self.norms[i](feature.flatten(2).mT)
            level = next(self.embeddings[i].parameters())
            parts.append(self.projections[i](rows) + self.added[i] + level)
        B, L, T = ids.shape
        tokens = torch.cat(parts, 1).repeat_interleave(L, 0)  # (B * L, N, D)
        x = self.ids(ids) + self.y(y) + self.rows.weight
        x = torch.cat([x[:, :, :1] + self.lanes.weight[:, None], x[:, :, 1:]], 2).flatten(0, 1)
        causal = nn.Transformer.generate_square_subsequent_mask(T)
        for block in self.blocks:
            x = block(x, tokens, causal)
        h = self.norm(x).unflatten(0, (B, L))
        return self.head_x(h), self.head_y(h)


def steps(config: TrainConfig) -> dict[str, Callable[[], float]]:
    """Make one step of each model; a step returns its loss."""
    generator = torch.Generator().manual_seed(0)
    model = LaneLM(config, CHANNELS)
    features = [
        torch.randn(1, CHANNELS[g.level], g.height, g.width, generator=generator)
        for g in model.visual.grids
    ]
    T = config.tokenizer.n_rows
    starts = torch.linspace(150, 650, LANES)[:, None]
    targets = targets_of((starts + torch.linspace(0, 90, T))[None], config)
    inputs = model.shift(targets.ids)
    models: dict[str, tuple[nn.Module, Callable[[], tuple[Tensor, Tensor]]]] = {
        "ours": (model, lambda: model(model.encode(features), *inputs))
    }
    for name, need_weights in (("plain, weights", True), ("plain", False)):
        plain = Plain(model, need_weights)
        models[name] = (plain, lambda plain=plain: plain(features, *inputs))
    return {name: _step(*parts, targets) for name, parts in models.items()}


def _step(
    model: nn.Module, forward: Callable[[], tuple[Tensor, Tensor]], targets: Targets
) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def step() -> float:
        logits_x, logits_y = forward()
        x = F.cross_entropy(logits_x.flatten(0, 2), targets.ids.flatten())
        y = F.cross_entropy(logits_y.flatten(0, 2), targets.y.flatten())
        loss = 0.7 * x + 0.3 * y
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def measure(size: str, levels: str, repeats: int) -> None:
    """Time the three at one number of tokens and print a line."""
    config = build({"model.preset": size, "visual.levels": levels})
    ways = steps(config)
    first = [[step() for step in ways.values()] for _ in range(3)]  # warms up, too
    for losses in first:
        if max(losses) - min(losses) > 1e-3 * max(losses):
            sys.exit(f"the three models disagree: losses {losses}")
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, step in ways.items():
            start = time.process_time()
            step()
            times[way].append(1000 * (time.process_time() - start))
    medians = {way: statistics.median(taken) for way, taken in times.items()}
    ratios = ", ".join(
        f"{way} {value:.0f} ms ({value / medians['ours']:.1f}x)"
        for way, value in medians.items()
        if way != "ours"
    )
    print(f"{size}: {visual_tokens(config)} tokens: ours {medians['ours']:.1f} ms; {ratios}")  # noqa: T201


def main() -> None:
    """Read the options and print a line per number of tokens."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7, help="steps timed, at least 5")
    parser.add_argument("--size", choices=sorted(SIZES), default="lanelm_128")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for levels in ("p5", "full"):
        measure(options.size, levels, max(5, options.repeats))


if __name__ == "__main__":
    main()
