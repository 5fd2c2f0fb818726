"""A job as it runs: what it trains, how far it is, what it has read so far."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from model.album import Album
from model.backbone import CheckpointError
from model.batches import Batches
from model.checkpoint import Progress, resume, save_checkpoint, weights_of
from model.conclude import (
    final_readings,
    held_out_readings,
    other_weights,
    peak_memory_mb,
    renamed,
    reset_peak_memory,
)
from model.config import TrainConfig
from model.exposure import Exposure, Prefix
from model.lanelm import LaneLM, Memory
from model.loss import Losses, YWeight, attention_uniformity
from model.material import Material, load_material
from model.metrics import loss_trend
from model.optim import make_optimizer
from model.outcome import Diverged, Enough, Log
from model.passes import Known
from model.probe import readings, tokenizer_floor
from model.shift import Shift, moves

GROWTH = 10.0
"""A run has diverged when its running objective is this many times what uniform guessing costs, or
its own first step if that was worse. It ends runs that are lost and changes no number of the
others, so it is no setting."""
MEMORY = 20
"""Steps that the running objective remembers."""
TREND = 50
"""Means of the loss that tell how it went, at least; a reading of what was, so no setting."""
CHECKPOINT = "checkpoint.pt"


class Job:
    """The parts of one run. `model.train.train` moves them step by step."""

    def __init__(
        self,
        config: TrainConfig,
        log: Log,
        workdir: Path,
        cache: Path,
        material: Material | None = None,
    ) -> None:
        """Take what is known of a job, and go on from its checkpoint if there is one.

        Args:
            config: of the job.
            log: receives readings and events.
            workdir: its folder.
            cache: of frozen features.
            material: what another job with the same images, labels and tokens has loaded.
        """
        self._mark, self._alone = time.perf_counter(), True
        reset_peak_memory(torch.device(config.runtime.device))
        self.config, self.log, self.workdir = config, log, workdir
        self.device = torch.device(config.runtime.device)
        self.material = material or load_material(config, cache)
        self.progress = Progress()
        self.y_weight = YWeight(config.loss)
        workdir.mkdir(parents=True, exist_ok=True)
        self._build()
        if (workdir / CHECKPOINT).exists():
            self._resume()
        self.album = Album(config, self.material, workdir / "pictures")
        self.exposure = Exposure(config)
        self.batches = Batches(
            self.material.bank,
            self.material.train.indices,
            self.material.train.targets,
            self.model.levels,
            config.batch,
            config.loss,
            config.seed,
            self.device,
            Shift(config, self.material.train.scenes) if moves(config.batch) else None,
        )
        self._pending: list[tuple[int, float, float, Tensor]] = []
        self.known = Known()
        """what the weights as they stand wrote"""
        if self.progress.step == 0:
            known = self.material.train
            floor = tokenizer_floor(known.targets, self.model.tokenizer, known.truth)
            self.progress.evaluated = self._read_train()
            self.progress.start = self.progress.evaluated | floor
            log(0, self.progress.start)
            self._lap()
            self._draw()
        self._lap()

    def _build(self) -> None:
        """Make model and optimizer as they are before the first step."""
        material = self.material
        statistics = None
        if self.config.visual.norm == "standardize":
            statistics = material.bank.statistics(material.train.indices)
        self.model = LaneLM(self.config, material.bank.channels, statistics).to(self.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.model, self.config.optim)
        self.model.train()
        self.penalty = self.config.loss.entropy_penalty

    def _resume(self) -> None:
        path = self.workdir / CHECKPOINT
        try:
            self.progress = resume(
                path, self.config, self.material.name, self.model, self.optimizer
            )
        except CheckpointError as error:
            self.log(0, {}, event=f"starting over: {error}")
            self._build()
        else:
            self.y_weight.load(self.progress.y_weight)
            self.log(self.progress.step, {}, event=f"resumed after step {self.progress.step}")

    # -- during training ---------------------------------------------------------------------

    def note(
        self,
        step: int,
        lr: float,
        y_weight: float,
        grad_norm: Tensor,
        parts: Sequence[tuple[Losses, Prefix]],
    ) -> None:
        """Keep a step's readings on the device, and look at them when it is time to."""
        losses = [
            torch.stack([one.loss, one.loss_x, one.loss_y, one.objective.detach(), prefix.own])
            for one, prefix in parts
        ]
        row = torch.cat([torch.stack(losses).sum(0), grad_norm.detach()[None]])
        self._pending.append((step, lr, y_weight, row))
        self.progress.step = step
        every = self.config.runtime.log_every
        due = step % every == 0 or step in (1, self.config.optim.steps)
        if due or self.y_weight.waits:
            self.look()
        if due:
            self.log(step, self.progress.stepped)

    def look(self) -> None:
        """Bring the readings kept on the device over, in one go, and judge them step by step.

        Raises:
            Diverged: at the first step that was not finite or completed endless growth.
        """
        if not self._pending:
            return
        rows = torch.stack([row for *_, row in self._pending]).tolist()
        pending, self._pending = self._pending, []
        for (step, lr, y_weight, _), row in zip(pending, rows, strict=True):
            names = ("loss", "loss_x", "loss_y", "objective", "own_tokens", "grad_norm")
            read = dict(zip(names, row, strict=True)) | {"lr": lr, "y_weight": y_weight}
            read["own_tokens"] /= self.config.batch.accumulate
            if not self.exposure.own:
                del read["own_tokens"]
            self._judge(step, read)
            self.progress.losses.append(read["loss"])
            if step == 1:
                self.progress.grad_norm_first = read["grad_norm"]
            self.progress.grad_norm_most = max(self.progress.grad_norm_most, read["grad_norm"])
            clip = self.config.optim.clip
            self.progress.clipped += clip is not None and read["grad_norm"] > clip
            read["clipped_share"] = self.progress.clipped / step
            # a softened target has a floor of its own, which no threshold could be set under
            softened = self.config.loss.soft_bins or self.config.loss.label_smoothing
            event = self.y_weight.observe(step, read["loss" if softened else "loss_x"])
            if self.y_weight.stage:
                read["y_stage"] = float(self.y_weight.stage)
            self.progress.stepped = {f"train/{name}": value for name, value in read.items()}
            if event:
                self.log(step, {"train/y_stage": float(self.y_weight.stage)}, event=event)

    def _judge(self, step: int, read: Mapping[str, float]) -> None:
        p, objective = self.progress, read["objective"]
        for name in ("objective", "grad_norm"):
            if not math.isfinite(read[name]):
                known = p.evaluated | p.stepped | self._trend()
                raise Diverged(step, known, f"{name} is {read[name]}")
        if step == 1:
            p.first_objective = p.running_objective = objective
        p.running_objective += (objective - p.running_objective) / min(step, MEMORY)
        bound = GROWTH * max(p.first_objective, math.log(self.model.tokenizer.vocab))
        if p.running_objective > bound:
            now = {f"train/{name}": value for name, value in read.items()}
            raise Diverged(
                step,
                p.evaluated | now | self._trend(),
                f"running objective {p.running_objective:.4g} > {bound:.4g}",
            )

    def after(self, step: int) -> None:
        """Evaluate and save, where it is time to after a step."""
        last = step == self.config.optim.steps
        if last or step % self.config.evaluation.every == 0:
            self.evaluate()
        if last or step % self.config.runtime.checkpoint_every == 0:
            self.save()

    def evaluate(self) -> None:
        """Take the cheap readings; keep the weights if none did better on the validation images."""
        self.look()
        self._lap("step_seconds")
        self.known = Known()
        read, steps = self._read_train(), self.config.optim.steps
        if self.config.evaluation.reads_val(self.progress.step, steps):
            read |= self._read_val(last=self.progress.step == steps)
        self.progress.evaluated = read
        self.log(self.progress.step, read)
        self._lap("evaluation_seconds")
        self._draw()

    def is_enough(self, enough: Enough) -> bool:
        """Whether the run may end here: after an evaluation, by its readings, then by all of them.

        A resumed run asks again at the step it resumed at, and is told the same.
        """
        p = self.progress
        if not p.step or p.step % self.config.evaluation.every:
            return False
        cheap = renamed(p.evaluated, "train", "final") | renamed(p.evaluated, "attention", "final")
        if not enough(cheap, whole=False):
            return False
        found = final_readings(self.model, self.material, self.y_weight.at(p.step), self.known)
        self._lap("evaluation_seconds")
        return enough(self._qualified(found), whole=True)

    def save(self) -> None:
        """Write the checkpoint. After the last step no moments are kept: no step needs them."""
        self.look()
        self._lap("step_seconds")
        done = self.progress.step == self.config.optim.steps
        self.progress.y_weight = self.y_weight.state()
        save_checkpoint(
            self.workdir / CHECKPOINT,
            self.config,
            self.material.name,
            self.progress,
            self.model,
            None if done else self.optimizer,
        )
        self._lap()

    # -- at the end --------------------------------------------------------------------------

    def finish(self) -> dict[str, float]:
        """Take every reading of the trained weights, and tell what never came."""
        p, steps = self.progress, self.progress.step
        self._lap()
        early = steps < self.config.optim.steps
        if early:
            p.evaluated |= self._read_val(last=True)
        if event := self.y_weight.unfinished(steps):
            self.log(steps, {"train/y_stage": float(self.y_weight.stage)}, event=event)
        found = final_readings(self.model, self.material, self.y_weight.at(steps), self.known)
        found |= self._trend()
        found |= renamed(p.evaluated, "val", "val") | renamed(p.best_readings, "val", "best")
        if len(self.material.test):
            with other_weights(self.model, p.best_weights):
                found |= held_out_readings(self.model, self.material, "test")
        found = self._qualified(found)
        if early:
            found["final/step"] = float(steps)
        if p.best_step:
            found["best/step"] = float(p.best_step)
        if self.config.runtime.pictures:
            self.album.last(self.model, steps, self.known)
        start = self._mark
        self._lap()
        found |= {
            "cost/seconds": p.seconds,
            "cost/steps_per_second": steps / p.step_seconds,
            "cost/evaluation_seconds": p.evaluation_seconds,
            "cost/picture_seconds": p.picture_seconds,
            "cost/final_seconds": self._mark - start,
        }
        if self._alone:
            found["cost/peak_memory_mb"] = peak_memory_mb(self.device)
        self.log(steps, found)
        during = {name: v for name, v in p.evaluated.items() if not name.startswith("val/")}
        return p.stepped | during | found

    def uniformity(self, memory: Memory, prefix: Prefix) -> Float[Tensor, "n L T"]:
        """Give the uniformity of each query over the visual tokens, for the entropy penalty."""
        blocks = self.model.attention(memory, prefix.ids_in, prefix.y_in)
        if self.config.visual.select == "pool":
            return attention_uniformity([memory.over_cells(weights) for weights in blocks])
        return attention_uniformity(blocks, memory.padding)  # of the top K: over those K

    def _qualified(self, found: dict[str, float]) -> dict[str, float]:
        """Put beside final readings what the first step's weights read."""
        if "attention/uniformity" in self.progress.start:
            found["final/uniformity_init"] = self.progress.start["attention/uniformity"]
        return found

    # -- help --------------------------------------------------------------------------------

    def _read_val(self, last: bool) -> dict[str, float]:
        """Read the validation images, and keep the weights if none did better on them.

        The official scores of the best and of the last weights are reported: no others are taken.
        """
        if not len(self.material.val):
            return {}
        p = self.progress
        found = held_out_readings(
            self.model,
            self.material,
            "val",
            scored=lambda px: last or _score(px) < p.best_score,
            known=self.known,
        )
        if (score := _score(found)) < p.best_score:
            p.best_score, p.best_step, p.best_readings = score, p.step, found
            p.best_weights = weights_of(self.model)
        return found

    def _read_train(self) -> dict[str, float]:
        m = self.material
        return readings(
            self.model, m.bank, m.shown, "train", donors=None, full=False, known=self.known
        )

    def _draw(self) -> None:
        """Draw what the last evaluation decoded, after a few of them."""
        if self.album.during(self.model, self.progress.step, self.known):
            self._lap("picture_seconds")

    def _trend(self) -> dict[str, float]:
        """Say how the loss went, of whole passes over the images: they are not equally hard."""
        batch = self.config.batch
        a_pass = math.ceil(len(self.material.train) / (batch.images * batch.accumulate))
        together = max(1, min(a_pass, self.config.optim.steps // TREND))
        trend = loss_trend(self.progress.losses, together)
        if self.progress.grad_norm_first > 0:
            growth = self.progress.grad_norm_most / self.progress.grad_norm_first
            trend["grad_norm_growth"] = growth
        return {f"train/{name}": value for name, value in trend.items()}

    def book(self, seconds: float) -> None:
        """Book a share of a pass that was made for several jobs; the time since is the others'.

        What the process has in memory is theirs too: it is not reported as this job's.
        """
        self.progress.seconds += seconds
        self.progress.step_seconds += seconds
        self._mark, self._alone = time.perf_counter(), False

    def pause(self) -> None:
        """Book the time since `book` as this job's own; others come next."""
        self._lap("step_seconds")

    def _lap(self, part: str | None = None) -> None:
        """Book the time since the last call to a part of the run."""
        now = time.perf_counter()
        self.progress.seconds += now - self._mark
        if part is not None:
            setattr(self.progress, part, getattr(self.progress, part) + now - self._mark)
        self._mark = now


def _score(read: Mapping[str, float]) -> float:
    """Validation px error per share of rows decoded: few rows, well met, are no success."""
    coverage = read.get("val/coverage", 1.0)
    px = read.get("val/px_error", math.inf)
    return px / coverage if coverage > 0 and math.isfinite(px) else math.inf
