"""Workers on GPUs: how many fit, and which of them computes on which GPU.

Not measured on a GPU yet: RESERVE and SLACK are what a CUDA context and the allocator's rounding
usually take. `--workers N` is obeyed whatever this says.
"""

from __future__ import annotations

import heapq
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from ablate.nouns import StudyError

RESERVE = 600.0
"""MB that a process takes of a GPU before it trains."""
SLACK = 1.2
"""Memory that the allocator holds, beside what tensors take at their peak."""


def seats(free_mb: Sequence[float], need_mb: float | None, cores: int) -> tuple[int, ...]:
    """The GPU of each worker, as many workers as fit and no more than cores, which feed them.

    Each goes where most memory is left. What is not known to fit has a GPU to itself.

    >>> seats([8_000, 16_000], 4_000, cores=8)
    (1, 1, 0)
    >>> seats([8_000, 16_000], None, cores=8)
    (1, 0)

    Args:
        free_mb: of each GPU.
        need_mb: of the largest job at its peak; None: not known.
        cores: workers at most.
    """
    if need_mb is None:
        order = sorted(range(len(free_mb)), key=lambda gpu: -free_mb[gpu])
        return tuple(order[:cores])
    return _fill(free_mb, need_mb, cores, only_fitting=True)


def shared_seats(
    free_mb: Sequence[float], need_mb: float, cores: int, at_most: int
) -> tuple[tuple[int, ...], int]:
    """The GPU of each worker, and how many jobs each may train as one, so that most train at once.

    >>> shared_seats([80_000], 2_000, cores=16, at_most=32)
    ((0,), 32)
    >>> shared_seats([16_000], 2_000, cores=16, at_most=32)
    ((0,), 6)
    >>> shared_seats([80_000], 2_000, cores=16, at_most=4)
    ((0, 0, 0, 0, 0, 0, 0), 4)

    Args:
        free_mb: of each GPU.
        need_mb: of the largest job at its peak; several that train as one take as much each.
        cores: workers at most.
        at_most: jobs that may train as one.
    """

    def at_once(together: int) -> tuple[int, int, tuple[int, ...]]:
        found = seats(free_mb, need_mb * together, cores)
        return together * len(found), together, found

    _, together, found = max(map(at_once, range(1, at_most + 1)))
    return found, together


def fitting(free_mb: Sequence[float], need_mb: float, workers: int, at_most: int) -> int:
    """How many jobs each of `workers` may train as one, so that all fit; 1 where none does.

    >>> fitting([80_000], 2_000, workers=2, at_most=32)
    16
    """
    sizes = range(at_most, 0, -1)
    return next((k for k in sizes if len(seats(free_mb, need_mb * k, workers)) == workers), 1)


def assigned(free_mb: Sequence[float], need_mb: float | None, workers: int) -> tuple[int, ...]:
    """The GPU of each of `workers`, whether they fit or not.

    >>> assigned([8_000, 16_000], 4_000, workers=4)
    (1, 1, 0, 1)
    >>> assigned([8_000, 8_000], None, workers=3)
    (0, 1, 0)
    """
    need = max(free_mb, default=0.0) / max(workers, 1) if need_mb is None else need_mb
    return _fill(free_mb, need, workers, only_fitting=False)


def _fill(
    free_mb: Sequence[float], need_mb: float, workers: int, only_fitting: bool
) -> tuple[int, ...]:
    a_worker = need_mb * SLACK + RESERVE
    left = [(-free, gpu) for gpu, free in enumerate(free_mb)]
    heapq.heapify(left)
    found: list[int] = []
    while left and len(found) < workers:
        free, gpu = left[0]
        if only_fitting and -free < a_worker:
            break
        heapq.heapreplace(left, (free + a_worker, gpu))
        found.append(gpu)
    return tuple(found)


def visible_names(count: int, environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process sees as 0, 1, ...

    >>> visible_names(2, {"CUDA_VISIBLE_DEVICES": "3,GPU-ab"})
    ('3', 'GPU-ab')
    >>> visible_names(2, {})
    ('0', '1')
    """
    given = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in given.split(",")] if given else []
    return tuple(names[:count]) if len(names) >= count else tuple(map(str, range(count)))


def free_memory_mb(core: str) -> tuple[float, ...]:
    """Free MB of each GPU that the core's library sees, asked in a process that then goes away.

    Asked here, the coordinator itself would keep some of every GPU for as long as it lives.

    Raises:
        StudyError: that process failed; the last line that it wrote says why.
    """
    code = "import json, sys; from ablate.core import load_core; "
    code += f"sys.stdout.write(json.dumps(load_core({core!r}).free_gpu_memory_mb()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    try:
        return tuple(float(free) for free in json.loads(done.stdout))
    except (ValueError, TypeError):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        why = " ".join(lines[-1].split()) if lines else f"it ended with status {done.returncode}"
        raise StudyError(f"the GPUs here cannot be asked for their memory: {why}") from None
