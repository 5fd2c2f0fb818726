"""Training: one job, one loop, resumable at any step.

Every random number is drawn from a stream named by its place in the run ("order/3",
"dropout/120/0"), so neither logging nor evaluation nor an interruption changes what comes after.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from model.config import TrainConfig
from model.exposure import Prefix
from model.init import stream
from model.job import Job
from model.loss import Losses, compute_loss
from model.optim import clip_gradients, lr_at, set_lr
from model.outcome import Diverged, Enough, Interrupted, Log

__all__ = ["Diverged", "Enough", "Interrupted", "Log", "train"]


def train(
    config: TrainConfig,
    log: Log,
    workdir: Path,
    cache: Path,
    stop: Callable[[], bool] = lambda: False,
    enough: Enough | None = None,
) -> dict[str, float]:
    """Train one job, on from `workdir/checkpoint.pt` if it is there, and read it at the end.

    Args:
        config: of the job.
        log: receives readings and events. After a resumption the steps since the checkpoint come
            again, with the same readings.
        workdir: the job's folder, for its checkpoint and pictures.
        cache: where frozen features lie, or are put if they are not there yet.
        stop: asked before every step; True ends the run with a checkpoint.
        enough: asked after an evaluation, first of its readings, then of all final ones; True of
            both ends the run there, with a checkpoint that another run can go on from.

    Returns:
        The readings named final/, val/, best/, test/, floor/, cost/, and the last of the others;
        `final/step` is the step of a run that ended early.

    Raises:
        Diverged: the objective is not finite, or grew without end.
        Interrupted: after `stop()`.
        DataError, CheckpointError, FeatureError: what it needs cannot be used.
    """
    torch.set_num_threads(config.runtime.threads)
    job = Job(config, log, workdir, cache)
    steps = config.optim.steps
    with torch.random.fork_rng([job.device] if job.device.type == "cuda" else []):
        for step in range(job.progress.step + 1, steps + 1):
            if enough is not None and job.is_enough(enough):
                job.save()
                break
            if stop():
                job.save()
                raise Interrupted(f"stopped after step {job.progress.step} of {steps}")
            job.note(step, *move(job, step))
            job.after(step)
        return job.finish()


Moved = tuple[float, float, Tensor, list[tuple[Losses, Prefix]]]
"""The rate and the y weight of a step, its gradient norm before clipping, the losses of its parts
and the prefixes they read."""


def move(job: Job, step: int) -> Moved:
    """Move a job's weights by one step: forward, backward, clip, optimiser."""
    config, model, optimizer = job.config, job.model, job.optimizer
    bf16 = config.optim.precision == "bf16"
    lr, y_weight = lr_at(step, config.optim), job.y_weight.at(step)
    set_lr(optimizer, lr)
    parts: list[tuple[Losses, Prefix]] = []
    for part, batch in enumerate(job.batches.at(step)):
        if config.model.dropout:
            torch.manual_seed(stream(config.seed, f"dropout/{step}/{part}").initial_seed())
        # no cache of cast weights: one made in an own-token pass would have no gradient
        with torch.autocast(job.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            memory = model.encode(batch.features)
            prefix = job.exposure.prefix(model, memory, batch.targets, step, part)
            logits_x, logits_y = model(memory, prefix.ids_in, prefix.y_in)
            penalised = job.uniformity(memory, prefix) if job.penalty else None
        losses = compute_loss(
            logits_x,
            logits_y,
            prefix.targets,
            config.loss,
            y_weight,
            n_bins=config.tokenizer.n_bins,
            weights=batch.weights,
            totals=batch.totals,
            uniformity=penalised,
        )
        objective = losses.objective
        if model.lane_map is not None:
            of_map = model.lane_map.loss(memory.content, batch.targets)
            objective = objective + config.loss.lane_map * of_map / config.batch.accumulate
        objective.backward()
        parts.append((losses, prefix))
    grad_norm = clip_gradients(job.parameters, config.optim.clip)
    optimizer.step()
    optimizer.zero_grad()
    return lr, y_weight, grad_norm, parts
