"""What runs the array tasks: a Slurm, or this machine in its stead; both by way of submitit."""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import submitit  # pyright: ignore[reportMissingImports]

from ablate.engines import EngineError, available_cores
from ablate.engines.pool import ONE_THREAD
from ablate.engines.post import Element
from ablate.nouns import Resources, StudyError
from ablate.resources import slurm_option

PARALLEL = 256
"""Tasks of one array that Slurm runs at once where `--workers` says nothing."""


class QueueElement(Element):
    """With what submitit calls when Slurm warns before a preemption or the end of the time."""

    def checkpoint(self) -> Any:
        """Keep a checkpoint; submitit puts what is left back into the queue."""
        return submitit.helpers.DelayedSubmission(self.leave())


class Cluster(Protocol):
    """What runs the elements."""

    workers: int

    def submit(self, elements: Sequence[QueueElement], batch: str) -> list[str]: ...

    def alive(self) -> set[str]: ...

    def find(self, batch: str, index: int, of: int) -> str: ...

    def cancel(self, ids: Iterable[str]) -> None: ...

    def why(self, slurm: str) -> str: ...


class SlurmCluster:
    """sbatch by submitit; squeue, scancel and scontrol by themselves: no accounting is needed."""

    workers = PARALLEL

    def __init__(self, logs: Path, resources: Resources, workers: int) -> None:
        if shutil.which("sbatch") is None:
            raise StudyError(
                "--engine slurm: there is no sbatch here; run on a machine of the cluster, or give "
                "--resource slurm.cluster=local to try it on this one"
            )
        if resources.gpus != int(resources.gpus):
            raise StudyError(
                f"resources: gpus: given {resources.gpus:g}, Slurm gives whole ones; one task runs "
                "several jobs one after the other with slurm.jobs_per_task"
            )

        def option(name: str) -> Any:
            return slurm_option(resources, name)

        self._executor = submitit.AutoExecutor(
            folder=logs / "%j", cluster="slurm", slurm_max_num_timeout=option("requeues")
        )
        parameters = {
            "timeout_min": option("time"),
            "cpus_per_task": math.ceil(resources.cpus),
            "gpus_per_node": int(resources.gpus) or None,
            "mem_gb": resources.memory,
            "slurm_array_parallelism": workers,
            "slurm_signal_delay_s": option("warning"),
            "slurm_setup": [*(f"export {k}={v}" for k, v in ONE_THREAD.items()), *option("setup")],
            "slurm_additional_parameters": {"requeue": True, **option("sbatch")},
        }
        for name in ("partition", "account", "qos", "constraint"):
            parameters[f"slurm_{name}"] = option(name)
        self._executor.update_parameters(**{k: v for k, v in parameters.items() if v is not None})
        self._warning = option("warning")

    def submit(self, elements: Sequence[QueueElement], batch: str) -> list[str]:
        self._executor.update_parameters(name=batch)
        for element in elements:
            element.warning = self._warning
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(element) for element in elements]
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise EngineError(f"sbatch refuses: {' '.join(lines[-1].split())}") from None
        return [job.job_id for job in jobs]

    def alive(self) -> set[str]:
        listed = self._ask("squeue", "--me", "--noheader", "--array", "--format=%i")
        return set(listed.split())

    def find(self, batch: str, index: int, of: int) -> str:
        listed = self._ask("squeue", "--me", "--noheader", f"--name={batch}", "--format=%F")
        ids = listed.split()
        return "" if not ids else f"{ids[0]}_{index}" if of > 1 else ids[0]

    def cancel(self, ids: Iterable[str]) -> None:
        given = sorted(ids)
        for i in range(0, len(given), 500):
            subprocess.run(["scancel", *given[i : i + 500]], capture_output=True, check=False)

    def why(self, slurm: str) -> str:
        text = subprocess.run(
            ["scontrol", "show", "job", "--oneliner", slurm],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        found = dict(word.split("=", 1) for word in text.split() if "=" in word)
        state = found.get("JobState", "gone")
        if found.get("ExitCode", "0:0") != "0:0":
            state += f", exit code {found['ExitCode']}"
        return f"its Slurm job {slurm} ended: {state}"

    @staticmethod
    def _ask(*command: str) -> str:
        for attempt in range(3):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return done.stdout
            time.sleep(2 * attempt)
        reason = " ".join(done.stderr.split())  # pyright: ignore[reportPossiblyUnboundVariable]
        raise EngineError(f"{command[0]} does not answer: {reason}")


class LocalCluster:
    """submitit's executor on this machine: to try a study out before it goes to the queue."""

    workers = available_cores()

    def __init__(self, logs: Path, resources: Resources, workers: int) -> None:
        self._executor = submitit.LocalExecutor(logs / "%j")
        self._executor.update_parameters(
            timeout_min=slurm_option(resources, "time"),
            gpus_per_node=math.ceil(resources.gpus),
            setup=[f"export {k}={v}" for k, v in ONE_THREAD.items()],
        )
        self._jobs: dict[str, Any] = {}

    def submit(self, elements: Sequence[QueueElement], batch: str) -> list[str]:
        jobs = [self._executor.submit(element) for element in elements]
        self._jobs |= {job.job_id: job for job in jobs}
        return [job.job_id for job in jobs]

    def alive(self) -> set[str]:
        self._jobs = {key: job for key, job in self._jobs.items() if job.state == "RUNNING"}
        return set(self._jobs)

    def find(self, batch: str, index: int, of: int) -> str:
        return ""

    def cancel(self, ids: Iterable[str]) -> None:
        for slurm in ids:
            if (job := self._jobs.get(slurm)) is not None:
                job.cancel()

    def why(self, slurm: str) -> str:
        return f"its task {slurm} ended; its words are in slurm/logs/{slurm}/"
