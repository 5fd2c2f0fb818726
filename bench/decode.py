"""Greedy decoding with cached keys and values, against re-running the decoder for every token.

    python -m bench.decode [--repeats 5] [--size lanelm_256]

The slow side is how the research code decodes: lane after lane, one full pass of the decoder over
the rows so far for every token, the visual keys and values computed anew each time, the cross-
attention of torch's own layers over the image's tokens. Both sides write the same ids, which is
checked. One image's slow decoding is timed per image: it gains nothing from eight at once.
The time of ours includes the encoding of the images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench.rows import Row, hand_in
from bench.step import CHANNELS, LANES, Plain
from model.lanelm import LaneLM, visual_tokens
from model.presets import SIZES, build

GOALS = {("p5", 8): 24, ("full", 8): 35, ("p5", 1): 9, ("full", 1): 28}


def rerun(plain: Plain, model: LaneLM, features: list[Tensor]) -> Tensor:
    """Write one image's lanes by a full pass per token and lane; ids (1, L, T)."""
    T = model.config.tokenizer.n_rows
    ids = torch.zeros(1, LANES, T, dtype=torch.long)
    for lane in range(LANES):
        started = ended = False
        for t in range(T):
            ids_in, y_in = model.shift(ids)
            one = slice(lane, lane + 1)
            logits, _ = plain(features, ids_in[:, one, : t + 1], y_in[:, one, : t + 1], lane)
            chosen = int(logits[0, 0, t].argmax()) * (not ended)
            ids[0, lane, t] = chosen
            point = chosen > 0
            started, ended = started or point, ended or (started and not point)
    return ids


def measure(size: str, levels: str, repeats: int) -> list[Row]:
    """Time both sides at one number of tokens."""
    config = build({"model.preset": size, "visual.levels": levels})
    model = LaneLM(config, CHANNELS).eval()
    with torch.no_grad():
        model.head_x.weight *= 4  # untrained, but with tokens that differ from step to step
    plain = Plain(model, need_weights=False).eval()
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn(8, CHANNELS[g.level], g.height, g.width, generator=generator)
        for g in model.visual.grids
    ]
    rows = []
    with torch.no_grad():
        slow, slow_ids = _timed(lambda: rerun(plain, model, [f[:1] for f in features]), repeats)
        for images in (8, 1):
            some = [f[:images] for f in features]
            fast, ids = _timed(lambda some=some: model.generate(model.encode(some)), repeats)
            if not torch.equal(ids[:1], slow_ids):
                sys.exit(f"the ids differ in {int((ids[:1] != slow_ids).sum())} places")
            what = f"decoding, {visual_tokens(config):,} tokens, {images} at once, per image"
            goal = GOALS[levels, images]
            rows.append(Row.faster(what, fast / images, slow, goal, "re-run per token and lane"))
    return rows


def _timed(work: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    times, made = [], work()
    for _ in range(repeats):
        start = time.process_time_ns()
        made = work()
        times.append((time.process_time_ns() - start) / 1e9)
    return statistics.median(times), made


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark of greedy decoding")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", choices=sorted(SIZES), default="lanelm_256")
    options = parser.parse_args()
    torch.set_num_threads(1)
    hand_in(
        row for levels in ("p5", "full") for row in measure(options.size, levels, options.repeats)
    )


if __name__ == "__main__":
    main()
