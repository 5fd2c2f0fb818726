"""Jobs that differ in how they decode alone: trained once, each read in its own way.

Unless training reads its own tokens, no weight hangs on how lanes are decoded. So one of the jobs
moves the weights for all of them, as it would alone, and each takes its own evaluations, pictures,
best weights, checkpoints and readings of them: bit for bit those of a run of its own. What a job
cost is what it would have cost alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from model.cohort import End, Member, due, finish, opened
from model.config import TrainConfig
from model.job import Job
from model.lanelm import LaneLM
from model.train import move


def train_twins(members: Sequence[Member], cache: Path) -> Iterator[tuple[int, End]]:
    """Train members of one twinship once; yield each one's place and end as it comes.

    Who is of one: `model.workload.twinship`. Members whose checkpoints are further on wait there
    for the others. Raises nothing of a member's own: what it would have raised alone is its end.
    """
    torch.set_num_threads(members[0].config.runtime.threads)
    jobs, failed = opened(members, cache, alike=True)
    yield from failed.items()
    while jobs:
        ends: dict[int, End] = {}
        while not ends:
            ends = _step(jobs, members)
        for place, end in ends.items():
            job = jobs.pop(place)
            yield place, end if isinstance(end, Exception) else finish(job)


def _step(jobs: Mapping[int, Job], members: Sequence[Member]) -> dict[int, End]:
    """Move those who are least far by one step; give the ends of those that leave, if any."""
    leaving = {i: end for i, job in jobs.items() if (end := due(job, members[i])) is not None}
    if leaving:
        return leaving
    step = 1 + min(job.progress.step for job in jobs.values())
    team = {i: job for i, job in jobs.items() if job.progress.step == step - 1}
    lead, *others = team.values()
    for job in others:
        if job.optimizer is not lead.optimizer:
            _join(job, lead)
    begin = time.perf_counter()
    with torch.random.fork_rng([lead.device] if lead.device.type == "cuda" else []):
        moved = move(lead, step)
    took = time.perf_counter() - begin
    for i, job in team.items():
        job.book(took)
        try:
            job.note(step, *moved)
            job.after(step)
        except Exception as error:  # noqa: BLE001 - Diverged, a full disk: the others go on
            leaving[i] = error
        job.pause()
    return leaving


def _join(job: Job, lead: Job) -> None:
    """Let a job have the weights and moments of another that stands at the same step."""
    job.model = _read_as(lead.model, job.config)
    job.parameters, job.optimizer = lead.parameters, lead.optimizer


def _read_as(model: LaneLM, config: TrainConfig) -> LaneLM:
    """Give the very same modules and weights, decoding as `config` says."""
    twin = copy.copy(model)
    twin.config = config
    return twin
