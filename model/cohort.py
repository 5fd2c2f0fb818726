"""Training of several jobs as one stacked model: one pass for all, everything else their own.

The solo loop (`model.train`) and this one share all their parts: a `Job` per member gives its
batches, prefixes, rate, y weight, evaluation, checkpoint and readings, drawn from its own streams.
Only encode, forward and backward are one for all. A member that ends, diverges or is stopped
leaves; the others go on without it. Results agree with solo runs within float rounding, not bit
for bit, because a batched product may add in another order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.config import TrainConfig, settings_of
from model.exposure import Prefix
from model.init import stream
from model.job import Job
from model.loss import Losses, compute_loss
from model.optim import clip_gradients, lr_at, set_lr
from model.outcome import Interrupted, Log
from model.stacked import Stack, can_stack

SHARED = ("data", "backbone", "tokenizer", "visual", "model", "batch")
"""Parts of the config that decide shapes and images: equal in all members of a cohort."""

End = dict[str, float] | Exception
"""How a member ended: its readings, or what it raised (Diverged and Interrupted among them)."""


@dataclass(frozen=True)
class Member:
    """A job of a cohort: what `model.train.train` takes."""

    config: TrainConfig
    log: Log
    workdir: Path
    stop: Callable[[], bool] = lambda: False


def kinship(config: TrainConfig) -> str | None:
    """Give a name that jobs share which can train as one; None: this one trains alone.

    Alone are: own-token prefixes and entropy penalties, which need passes of their own, and models
    with parts that do not stack.
    """
    if config.exposure.mode != "teacher_forcing" or config.loss.entropy_penalty:
        return None
    if not can_stack(config):
        return None
    shared = {
        path: value for path, value in settings_of(config).items() if path.split(".")[0] in SHARED
    }
    runtime = (config.optim.precision, config.runtime.device, config.runtime.threads)
    return repr((sorted(shared.items()), runtime))


def train_cohort(members: Sequence[Member], cache: Path) -> Iterator[tuple[int, End]]:
    """Train members of one kinship together; yield each one's place and end as it comes.

    Raises nothing of a member's own: what it would have raised alone is its end.
    """
    torch.set_num_threads(members[0].config.runtime.threads)
    jobs, failed = opened(members, cache)
    yield from failed.items()
    while jobs:
        cohort = _Cohort(list(jobs.values()), [members[i] for i in jobs])
        ends: dict[int, End] = {}
        while not ends:
            ends = cohort.step()
        cohort.stack.release()
        places = list(jobs)
        for place, end in ends.items():
            job = jobs.pop(places[place])
            yield places[place], end if isinstance(end, Exception) else finish(job)


def opened(
    members: Sequence[Member], cache: Path, alike: bool = False
) -> tuple[dict[int, Job], dict[int, Exception]]:
    """Begin members' jobs, or go on from their checkpoints; those that cannot, and why.

    Those that are alike in images, labels and tokens share them.
    """
    jobs: dict[int, Job] = {}
    failed: dict[int, Exception] = {}
    for i, member in enumerate(members):
        material = next((job.material for job in jobs.values() if alike), None)
        try:
            jobs[i] = Job(member.config, member.log, member.workdir, cache, material)
        except Exception as error:  # noqa: BLE001 - the others can do without it
            failed[i] = error
    return jobs, failed


def due(job: Job, member: Member) -> End | None:
    """Say how a member ends before its next step; None: it goes on."""
    steps = job.config.optim.steps
    if job.progress.step >= steps:
        return {}
    try:
        if member.stop():
            job.book(0.0)
            job.save()
            return Interrupted(f"stopped after step {job.progress.step} of {steps}")
    except Exception as error:  # noqa: BLE001 - a full disk, or it diverged since its last look
        return error
    return None


def finish(job: Job) -> End:
    """Take a member's last readings, or what went wrong with them."""
    job.book(0.0)
    try:
        return job.finish()
    except Exception as error:  # noqa: BLE001 - the others can do without it
        return error


class _Cohort:
    """Members that train together until one of them leaves."""

    def __init__(self, jobs: Sequence[Job], members: Sequence[Member]) -> None:
        self.jobs, self.members = jobs, members
        self.stack = Stack([job.model for job in jobs])
        self._features: tuple[list[Tensor], list[Tensor]] = [], []

    def step(self) -> dict[int, End]:
        """Move every member one step of its own; give the ends of those that leave, if any."""
        own = enumerate(zip(self.jobs, self.members, strict=True))
        leaving = {k: end for k, (job, member) in own if (end := due(job, member)) is not None}
        if leaving:
            return leaving
        begin = time.perf_counter()
        steps = [job.progress.step + 1 for job in self.jobs]
        y_weights = [job.y_weight.at(step) for job, step in zip(self.jobs, steps, strict=True)]
        parts = self._pass(steps, y_weights)
        unused = [
            () if y_weight else job.model.head_y.parameters()
            for job, y_weight in zip(self.jobs, y_weights, strict=True)
        ]
        self.stack.hand_out_gradients(unused)
        share = (time.perf_counter() - begin) / len(self.jobs)
        for k, (job, step, y_weight) in enumerate(zip(self.jobs, steps, y_weights, strict=True)):
            job.book(share)
            try:
                _move(job, step, y_weight, parts[k])
            except Exception as error:  # noqa: BLE001 - Diverged, a full disk: the others go on
                leaving[k] = error
            job.pause()
        self.stack.clear_gradients()
        return leaving

    def _pass(
        self, steps: Sequence[int], y_weights: Sequence[float]
    ) -> list[list[tuple[Losses, Prefix]]]:
        """Run forward and backward of all members; their gradients add up in the stack."""
        own: list[list[tuple[Losses, Prefix]]] = [[] for _ in self.jobs]
        config, device = self.jobs[0].config, self.jobs[0].device
        bf16 = config.optim.precision == "bf16"
        batches = [job.batches.at(step) for job, step in zip(self.jobs, steps, strict=True)]
        for part, row in enumerate(zip(*batches, strict=True)):
            if config.model.dropout:
                self.stack.seed_dropout(
                    [
                        stream(job.config.seed, f"dropout/{step}/{part}").initial_seed()
                        for job, step in zip(self.jobs, steps, strict=True)
                    ]
                )
            prefixes = [
                job.exposure.prefix(job.model, None, batch.targets, step, part)
                for job, batch, step in zip(self.jobs, row, steps, strict=True)
            ]
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
                logits_x, logits_y = self.stack(
                    self._side_by_side([batch.features for batch in row]),
                    torch.cat([prefix.ids_in for prefix in prefixes]),
                    torch.cat([prefix.y_in for prefix in prefixes]),
                )
            images = len(logits_x) // len(self.jobs)
            for k, (job, batch) in enumerate(zip(self.jobs, row, strict=True)):
                losses = compute_loss(
                    logits_x[k * images : (k + 1) * images],
                    logits_y[k * images : (k + 1) * images],
                    prefixes[k].targets,
                    job.config.loss,
                    y_weights[k],
                    n_bins=job.config.tokenizer.n_bins,
                    weights=batch.weights,
                    totals=batch.totals,
                )
                own[k].append((losses, prefixes[k]))
            torch.stack([losses[-1][0].objective for losses in own]).sum().backward()
        return own

    def _side_by_side(self, features: Sequence[list[Tensor]]) -> list[Tensor]:
        """Lay the members' images one after the other; the same as last time are not laid again."""
        flat = [level for levels in features for level in levels]
        known, laid = self._features
        if len(known) != len(flat) or any(a is not b for a, b in zip(known, flat, strict=True)):
            laid = [torch.cat(levels) for levels in zip(*features, strict=True)]
            self._features = flat, laid
        return laid


def _move(job: Job, step: int, y_weight: float, parts: list[tuple[Losses, Prefix]]) -> None:
    """Do what follows backward, as the solo loop does."""
    config = job.config
    lr = lr_at(step, config.optim)
    set_lr(job.optimizer, lr)
    grad_norm = clip_gradients(job.parameters, config.optim.clip)
    job.optimizer.step()
    job.note(step, lr, y_weight, grad_norm, parts)
    job.after(step)
