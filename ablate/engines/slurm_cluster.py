"""What runs the array tasks: a Slurm, or this machine in its stead; both by way of submitit."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import submitit  # pyright: ignore[reportMissingImports]

from ablate.engines import EngineError, StopAsked, available_cores
from ablate.engines.pool import ONE_THREAD, worker_surroundings
from ablate.engines.post import Element
from ablate.nouns import Resources, StudyError
from ablate.resources import slurm_option

ARRAY = 1000
"""Tasks of one array; Slurm's own limit is 1,001 unless a site raised it."""
PARALLEL = 256
"""Tasks that Slurm runs at once where `--workers` says nothing."""
PATIENCE = 120.0
"""Seconds that a command of Slurm may take; its own limits are below that."""
LIST = ("squeue", "--me", "--noheader", "--array", "--format=%i")
LET_GO = 300.0
"""Seconds that Slurm has to end what it was told to cancel: it kills only after its KillWait."""
PASSING = re.compile(
    r"unable to contact|timed? ?out|temporarily|connect|zero bytes|socket|try again", re.IGNORECASE
)
"""What sbatch says when it may take the same again later."""


class Silent(Exception):  # noqa: N818 - a state of the world, not a mistake
    """Slurm does not answer now: nothing is known, of a submission neither. One line."""


class Refused(Exception):  # noqa: N818 - an answer
    """Slurm does not take what was submitted. One line."""


class QueueElement(Element):
    """With what submitit calls when Slurm warns before a preemption or the end of the time."""

    def checkpoint(self) -> Any:
        """Keep a checkpoint; submitit puts what is left back into the queue."""
        return submitit.helpers.DelayedSubmission(self.leave())


class Cluster(Protocol):
    """What runs the elements. An element is known by the id of its Slurm job."""

    workers: int
    burst: int
    """Elements that one submission may hold."""

    def submit(self, elements: Sequence[QueueElement], batch: str) -> list[str]:
        """Submit them as one array called `batch`; raises Silent, Refused."""
        ...

    def alive(self) -> set[str]:
        """All that are queued or running; raises Silent."""
        ...

    def find(self, batch: str, of: int) -> list[str]:
        """The ids of the `of` elements of a batch, empty if it is not there; raises Silent."""
        ...

    def cancel(self, ids: Iterable[str], *, queued: bool = False) -> str:
        """End them, or with `queued` those that have not begun; what went wrong."""
        ...

    def why(self, slurm: str) -> str:
        """How one ended."""
        ...


class SlurmCluster:
    """sbatch by submitit; squeue, scancel and scontrol by themselves: no accounting is needed."""

    workers = PARALLEL
    burst = ARRAY

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
            line = " ".join(lines[-1].split())
            raise (Silent if PASSING.search(line) else Refused)(line) from None
        return [job.job_id for job in jobs]

    def alive(self) -> set[str]:
        return set(self._ask(*LIST).split())

    def find(self, batch: str, of: int) -> list[str]:
        listed = self._ask("squeue", "--me", "--noheader", f"--name={batch}", "--format=%F")
        if not (ids := listed.split()):
            return []
        return [f"{ids[0]}_{i}" for i in range(of)] if of > 1 else ids[:1]

    def cancel(self, ids: Iterable[str], *, queued: bool = False) -> str:
        given = set(ids)
        wrong = ""
        if queued:  # not `scancel --state`: it takes all that waits of an array, named or not
            try:
                given &= set(self._ask(*LIST, "--states=PENDING").split())
            except Silent as silent:
                return str(silent)
        for i in range(0, len(given), 500):
            try:
                self._ask("scancel", *sorted(given)[i : i + 500])
            except Silent as silent:
                if PASSING.search(str(silent)):  # not: some have ended by themselves
                    wrong = str(silent)
        return wrong

    def why(self, slurm: str) -> str:
        try:
            text = self._ask("scontrol", "show", "job", "--oneliner", slurm)
        except Silent:  # it forgets an ended job after a while
            text = ""
        found = dict(word.split("=", 1) for word in text.split() if "=" in word)
        state = found.get("JobState", "gone")
        if found.get("ExitCode", "0:0") != "0:0":
            state += f", exit code {found['ExitCode']}"
        return f"its Slurm job {slurm} ended: {state}"

    @staticmethod
    def _ask(*command: str) -> str:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=PATIENCE
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Silent(f"{command[0]}: {' '.join(str(error).split())}") from None
        if done.returncode != 0:
            raise Silent(f"{command[0]}: {' '.join(done.stderr.split())}")
        return done.stdout


class LocalCluster:
    """submitit's executor on this machine: to try a study out before it goes to the queue.

    An element is known by its process, which outlives the coordinator as a Slurm job does.
    """

    workers = available_cores()

    def __init__(self, logs: Path, resources: Resources, workers: int) -> None:
        self._executor = submitit.LocalExecutor(logs / "%j")
        self._executor.update_parameters(
            timeout_min=slurm_option(resources, "time"), gpus_per_node=math.ceil(resources.gpus)
        )
        self.burst = workers
        self._mark = ["submitit.local._local", str(logs / "%j")]
        self._jobs: dict[str, Any] = {}

    def submit(self, elements: Sequence[QueueElement], batch: str) -> list[str]:
        with worker_surroundings():  # Ctrl-C reaches the terminal's processes: it is not for them
            jobs = [self._executor.submit(element) for element in elements]
        self._jobs |= {job.job_id: job for job in jobs}
        return [job.job_id for job in jobs]

    def alive(self) -> set[str]:
        self._jobs = {key: job for key, job in self._jobs.items() if job.state == "RUNNING"}
        return {str(pid) for pid in _processes() if _words(pid)[-2:] == self._mark}

    def find(self, batch: str, of: int) -> list[str]:
        return []

    def cancel(self, ids: Iterable[str], *, queued: bool = False) -> str:
        if queued:  # none is: they begin at once, and read that they are to end
            return ""
        parents = {pid: _parent(pid) for pid in _processes()}
        for slurm in set(ids) & self.alive():
            doomed = [int(slurm)]  # first, or it would start its task anew
            for pid in doomed:
                doomed += [child for child, parent in parents.items() if parent == pid]
            for pid in doomed:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return ""

    def why(self, slurm: str) -> str:
        return f"its task {slurm} ended; its words are in slurm/logs/{slurm}/"


def first_answer(cluster: Cluster) -> set[str]:
    """What is queued or running, when a coordinator starts.

    Raises:
        EngineError: it is silent.
    """
    why = ""
    for attempt in range(3):
        time.sleep(2 * attempt)
        try:
            return cluster.alive()
        except Silent as silent:
            why = str(silent)
    raise EngineError(f"Slurm does not answer: {why}")


def let_go(cluster: Cluster, ids: set[str], stop_asked: StopAsked) -> None:
    """Cancel elements, and wait until they have ended: they may write until then.

    Raises:
        EngineError: they do not end.
    """
    cluster.cancel(ids)
    deadline = time.monotonic() + LET_GO
    while time.monotonic() < deadline and not stop_asked():
        with suppress(Silent):
            if not ids & cluster.alive():
                return
        time.sleep(0.5)
    if not stop_asked():
        raise EngineError(
            f"Slurm has not ended {len(ids)} cancelled tasks within {LET_GO:g} s "
            f"({', '.join(sorted(ids)[:3])}): scancel them, then run again"
        )


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _words(pid: int) -> list[str]:
    """Of a process's command; none when it is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def _parent(pid: int) -> int:
    try:
        return int(
            Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1]
        )
    except OSError:
        return 0
