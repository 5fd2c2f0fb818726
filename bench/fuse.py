"""K jobs as one stacked model, against K jobs one after the other, and in several processes.

    python -m bench.fuse [--device auto] [--k 1 4 8] [--size lanelm_256] [--levels p5 full]

A step here is what training does: encode, forward, loss, backward, and each member's own clip and
AdamW. Throughput is model steps per second. On a GPU K goes up to 256 and four processes share the
device as a third side; memory is the device allocator's peak. The matmul peak is that of the
device's large products in the same precision. Both sides are first checked to agree in their
losses.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.rows import Row, hand_in
from bench.step import CHANNELS, LANES
from model.config import TrainConfig
from model.lanelm import LaneLM, visual_tokens
from model.optim import clip_gradients, make_optimizer
from model.presets import SIZES, build
from model.stacked import Stack
from model.targets import targets_of

GOAL = 10.0
"""Times the throughput of solo jobs, at 250 tokens on a GPU."""
PROCESSES = 4


class Side:
    """K models with their images, optimisers and targets."""

    def __init__(self, config: TrainConfig, k: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.config, self.k, self.device = config, k, device
        self.models = [
            LaneLM(TrainConfig.model_validate({**config.model_dump(), "seed": seed}), CHANNELS).to(
                device
            )
            for seed in range(k)
        ]
        self.optimizers = [make_optimizer(model, config.optim) for model in self.models]
        self.parameters = [list(model.parameters()) for model in self.models]
        self.features = [
            torch.randn(1, CHANNELS[g.level], g.height, g.width, generator=generator).to(device)
            for g in self.models[0].visual.grids
        ]
        T = config.tokenizer.n_rows
        starts = torch.linspace(150, 650, LANES)[:, None]
        targets = targets_of((starts + torch.linspace(0, 90, T))[None], config)
        self.inputs = [part.to(device) for part in self.models[0].shift(targets.ids)]
        self.ids, self.y = targets.ids.flatten().to(device), targets.y.flatten().to(device)
        self.stack: Stack | None = None

    def solo(self) -> Tensor:
        """Move every model by itself; the losses."""
        losses = []
        for model, optimizer, parameters in zip(
            self.models, self.optimizers, self.parameters, strict=True
        ):
            logits_x, logits_y = model(model.encode(self.features), *self.inputs)
            loss = self._loss(logits_x, logits_y)
            loss.backward()
            clip_gradients(parameters, self.config.optim.clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return torch.stack(losses)

    def fused(self) -> Tensor:
        """Move all models as one; the losses."""
        if self.stack is None:
            self.stack = Stack(self.models)
            self.wide = [level.repeat(self.k, 1, 1, 1) for level in self.features]
            self.wide_inputs = [part.repeat(self.k, 1, 1) for part in self.inputs]
        logits_x, logits_y = self.stack(self.wide, *self.wide_inputs)
        losses = torch.stack(
            [
                self._loss(x, y)
                for x, y in zip(logits_x.chunk(self.k), logits_y.chunk(self.k), strict=True)
            ]
        )
        losses.sum().backward()
        self.stack.hand_out_gradients([()] * self.k)
        for parameters, optimizer in zip(self.parameters, self.optimizers, strict=True):
            clip_gradients(parameters, self.config.optim.clip)
            optimizer.step()
        self.stack.clear_gradients()
        return losses.detach()

    def _loss(self, logits_x: Tensor, logits_y: Tensor) -> Tensor:
        x = F.cross_entropy(logits_x.flatten(0, 2), self.ids)
        return 0.7 * x + 0.3 * F.cross_entropy(logits_y.flatten(0, 2), self.y)


def seconds(work: Callable[[], Tensor], device: torch.device, repeats: int) -> float:
    """Median seconds of a step, the device's work included."""
    times = []
    for turn in range(repeats + 2):
        begin = _clock(device)
        work()
        if turn >= 2:  # the first two warm up
            times.append(_clock(device) - begin)
    return statistics.median(times)


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time_ns() / 1e9


def measure(config: TrainConfig, k: int, device: torch.device, repeats: int) -> dict[str, float]:
    """Time K models both ways, from the same weights."""
    one = Side(config, k, device)
    solo_losses = torch.stack([one.solo() for _ in range(3)])
    solo = seconds(one.solo, device, repeats)
    del one  # the other side's memory is its own
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    many = Side(config, k, device)
    apart = float((torch.stack([many.fused() for _ in range(3)]) - solo_losses).abs().max())
    if apart > 1e-3:
        sys.exit(f"fused and solo losses differ by {apart:.2g} after three steps")
    fused = seconds(many.fused, device, repeats)
    memory = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else 0.0
    return {"solo": k / solo, "fused": k / fused, "memory": memory}


def _process(config: TrainConfig, device: str, ready: Barrier, results: Sequence, i: int) -> None:
    torch.set_num_threads(1)
    side = Side(config, 1, torch.device(device))
    side.solo()
    ready.wait()
    results[i] = 1 / seconds(side.solo, side.device, 20)  # pyright: ignore


def processes(config: TrainConfig, device: torch.device) -> float:
    """Steps per second of four processes that train one model each on one device."""
    context = multiprocessing.get_context("spawn")
    ready: Barrier = context.Barrier(PROCESSES)
    results: Any = context.Array("d", PROCESSES)
    crew = [
        context.Process(target=_process, args=(config, str(device), ready, results, i))
        for i in range(PROCESSES)
    ]
    for one in crew:
        one.start()
    for one in crew:
        one.join()
    return sum(list(results))


def peak(device: torch.device) -> float:
    """Floating point operations per second of a large float32 product."""
    n = 4096 if device.type == "cuda" else 1024
    x = torch.randn(n, n, device=device)
    return 2 * n**3 / seconds(lambda: x @ x, device, 7)


def step_operations(config: TrainConfig) -> float:
    """Floating point operations of a solo step, in products."""
    from bench.step import Products, make_step

    step = make_step(config, None)
    with Products() as products:
        step()
    return sum(2 * m * k * n * count for (m, k, n), count in products.shapes.items())


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark of fused cohorts")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--k", type=int, nargs="+", help="numbers of jobs")
    parser.add_argument("--levels", nargs="+", default=["p5", "full"], choices=["p5", "full"])
    parser.add_argument("--size", choices=sorted(SIZES), default="lanelm_256")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    gpu = torch.cuda.is_available() if options.device == "auto" else options.device != "cpu"
    device = torch.device("cuda" if gpu else "cpu")
    ks = options.k or ([2**i for i in range(9)] if gpu else [1, 4, 8])
    table = Table("tokens", "K", "solo steps/s", "fused steps/s", "ratio", "memory MB", "of peak")
    top, rows = peak(device), []
    for levels in options.levels:
        config = build({"model.preset": options.size, "visual.levels": levels})
        operations, tokens = step_operations(config), visual_tokens(config)
        best: tuple[float, int, dict[str, float]] = (0.0, 0, {})
        for k in ks:
            read = measure(config, k, device, options.repeats)
            ratio, share = read["fused"] / read["solo"], read["fused"] * operations / top
            best = max(best, (ratio, k, read), key=lambda found: found[0])
            speeds = f"{read['solo']:.1f}", f"{read['fused']:.1f}", f"{ratio:.2f}x"
            table.add_row(f"{tokens:,}", str(k), *speeds, f"{read['memory']:.0f}", f"{share:.0%}")
        shared = f", {processes(config, device):.1f} in {PROCESSES} processes" if gpu else ""
        asked = gpu and levels == "p5"
        goal = f">= {GOAL:g}x" if asked else "none"
        ratio, k, read = best
        what = f"fused jobs, {tokens:,} tokens, {device.type}, K = {k} (best of {ks})"
        solo = f"{read['solo']:.1f} steps/s (solo{shared})"
        ours = f"{read['fused']:.1f} steps/s"
        rows.append(Row(what, ours, solo, ratio, goal, not asked or ratio >= GOAL))
    Console().print(table)
    if not gpu:
        Console().print("unmeasured: no GPU here")
    hand_in(rows)


if __name__ == "__main__":
    main()
