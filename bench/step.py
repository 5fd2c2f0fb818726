"""Time of one training step, against two plain ways to write the same decoder, and against matmul.

    python -m bench.step [--repeats 9] [--size lanelm_256]

Step: encode one image, forward of 4 lanes x 40 rows, cross-entropy, backward, clip, AdamW; one
thread. The plain models use `nn.MultiheadAttention` with the image's tokens repeated for each lane
and all lanes in one batch: (a) with the attention weights returned, as code that logs them does,
(b) without. They carry the same weights, and the three losses are checked to agree before anything
is timed. Each lives in a process of its own, as its users would run it (ours keeps freed memory,
`model/allocator.py`; torch's default gives it back); the three take turns, step by step. The clock
is the process's own: waiting for a busy machine is not counted.

Efficiency: the time that the step's matrix products alone take, each at its own shape and by the
faster of MKL and oneDNN, as a share of the step.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.rows import Row, hand_in
from model.config import TrainConfig
from model.decoder import Block
from model.lanelm import LaneLM, visual_tokens
from model.matmul import ONEDNN, product
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

    def forward(
        self, features: list[Tensor], ids: Tensor, y: Tensor, first_lane: int = 0
    ) -> tuple[Tensor, Tensor]:
        parts = []
        for i, feature in enumerate(features):
            rows = self.norms[i](feature.flatten(2).mT)
            level = next(self.embeddings[i].parameters())
            parts.append(self.projections[i](rows) + self.added[i] + level)
        B, L, T = ids.shape
        tokens = torch.cat(parts, 1).repeat_interleave(L, 0)  # (B * L, N, D)
        x = self.ids(ids) + self.y(y) + self.rows.weight[:T]
        lanes = self.lanes.weight[first_lane : first_lane + L, None]
        x = torch.cat([x[:, :, :1] + lanes, x[:, :, 1:]], 2).flatten(0, 1)
        causal = nn.Transformer.generate_square_subsequent_mask(T)
        for block in self.blocks:
            x = block(x, tokens, causal)
        h = self.norm(x).unflatten(0, (B, L))
        return self.head_x(h), self.head_y(h)


WAYS = {"ours": None, "(a) weights returned": True, "(b) weights off": False}
"""What is timed -> whether the plain model returns its attention weights."""
GOALS = {
    "p5": {"(a) weights returned": 1.8, "(b) weights off": 1.5, "matmul": 0.58},
    "full": {"(a) weights returned": 3.5, "(b) weights off": 2.5, "matmul": 0.65},
}
Step = Callable[[], float]
Shape = tuple[int, int, int]
"""m, k, n of x (m, k) @ y (k, n)"""


def make_step(config: TrainConfig, need_weights: bool | None) -> Step:
    """Make one step of our model (None) or of a plain one; a step returns its loss."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    model = LaneLM(config, CHANNELS) if need_weights is None else _without_allocator(config)
    features = [
        torch.randn(1, CHANNELS[g.level], g.height, g.width, generator=generator)
        for g in model.visual.grids
    ]
    T = config.tokenizer.n_rows
    starts = torch.linspace(150, 650, LANES)[:, None]
    targets = targets_of((starts + torch.linspace(0, 90, T))[None], config)
    inputs = model.shift(targets.ids)
    if need_weights is None:
        return _step(model, lambda: model(model.encode(features), *inputs), targets)
    plain = Plain(model, need_weights)
    return _step(plain, lambda: plain(features, *inputs), targets)


def _without_allocator(config: TrainConfig) -> LaneLM:
    """Make the model whose weights are copied, and leave the process's allocator as it was."""
    import model.lanelm as module

    module.keep_freed_memory = lambda: False
    return LaneLM(config, CHANNELS)


def _step(model: nn.Module, forward: Callable[[], tuple[Tensor, Tensor]], targets: Targets) -> Step:
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


class Products(TorchDispatchMode):
    """Collects the shapes of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[Shape] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            x, y = args[-2:]
            count = x.shape[0] if x.ndim == 3 else 1
            self.shapes[x.shape[-2], x.shape[-1], y.shape[-1]] += count
        elif name == "_linear_pointwise":
            x, y = args[:2]
            self.shapes[x.shape[0], x.shape[1], y.shape[0]] += 1
        return func(*args, **(kwargs or {}))


def products_alone(shapes: Counter[Shape]) -> tuple[float, float]:
    """Seconds that the products take by themselves, and their floating point operations."""
    seconds = operations = 0.0
    for (m, k, n), count in shapes.items():
        x, y, columns = torch.randn(m, k), torch.randn(n, k), torch.randn(k, n)
        ways: list[Callable[[], Tensor]] = [lambda x=x, y=columns: x @ y]
        if ONEDNN:
            ways.append(lambda x=x, y=y: product(x, y))
        seconds += count * min(_median(way) for way in ways)
        operations += count * 2 * m * k * n
    return seconds, operations


def _median(work: Callable[[], object], repeats: int = 7) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.process_time_ns()
        work()
        times.append((time.process_time_ns() - start) / 1e9)
    return statistics.median(times[1:])


def serve(pipe: Connection, size: str, levels: str, need_weights: bool | None) -> None:
    """Live as one way's process: a step each time it is told to, or its products."""
    config = build({"model.preset": size, "visual.levels": levels})
    step = make_step(config, need_weights)
    while (asked := pipe.recv()) is not None:
        if asked == "products":
            with Products() as products:
                step()
            pipe.send(products_alone(products.shapes))
        else:
            start = time.process_time_ns()
            loss = step()
            pipe.send(((time.process_time_ns() - start) / 1e9, loss))


def measure(size: str, levels: str, repeats: int) -> list[Row]:
    """Time the three at one number of tokens."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for way, need_weights in WAYS.items():
        pipes[way], theirs = context.Pipe()
        arguments = (theirs, size, levels, need_weights)
        context.Process(target=serve, args=arguments, daemon=True).start()

    def ask(way: str, what: str) -> tuple[float, float]:
        pipes[way].send(what)
        return pipes[way].recv()

    for _ in range(3):  # warms up, too
        losses = [ask(way, "step")[1] for way in WAYS]
        if max(losses) - min(losses) > 1e-3 * max(losses):
            sys.exit(f"the three models disagree: losses {losses}")
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    alone: list[tuple[float, float]] = []
    for turn in range(repeats):
        for way in WAYS:
            times[way].append(ask(way, "step")[0])
        if turn % 3 == 0:
            alone.append(ask("ours", "products"))
    for pipe in pipes.values():
        pipe.send(None)
    medians = {way: statistics.median(taken) for way, taken in times.items()}
    tokens = visual_tokens(build({"visual.levels": levels}))
    what, ours = f"training step, {tokens:,} tokens, {size}", medians.pop("ours")
    rows = [
        Row.faster(what, ours, taken, GOALS[levels][way], way) for way, taken in medians.items()
    ]
    seconds = statistics.median(seconds for seconds, _ in alone)
    operations, goal = alone[0][1], GOALS[levels]["matmul"]
    speeds = (operations / ours / 1e9, operations / seconds / 1e9)
    rows.append(
        Row(
            f"arithmetic of the step, {tokens:,} tokens",
            f"{speeds[0]:.0f} GFLOP/s",
            f"{speeds[1]:.0f} GFLOP/s (its products alone)",
            seconds / ours,
            f">= {goal:.0%}",
            seconds / ours >= goal,
            "share",
        )
    )
    return rows


def main() -> None:
    """Read the options and print a line per number of tokens."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9, help="steps timed, at least 5")
    parser.add_argument("--size", choices=sorted(SIZES), default="lanelm_256")
    options = parser.parse_args()
    hand_in(
        row
        for levels in ("p5", "full")
        for row in measure(options.size, levels, max(5, options.repeats))
    )


if __name__ == "__main__":
    main()
