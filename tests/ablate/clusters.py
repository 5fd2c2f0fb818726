"""Clusters on this one machine, for tests: several Ray nodes, a whole Slurm. Loopback only."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SLURM_HERE = Path(__file__).parents[1] / "engines" / "slurm_here.sh"


def missing(kind: str) -> str:
    """Why this kind of cluster cannot be had here; "" when it can."""
    module = "ray" if kind == "ray" else "submitit"
    if importlib.util.find_spec(module) is None:
        return f"the extra [{kind}] is not installed"
    if kind == "slurm":
        programs = ("munged", "slurmctld", "slurmd", "sbatch")
        if gone := [p for p in programs if shutil.which(p, path=_path()) is None]:
            return f"no {gone[0]} here (apt-get install slurm-wlm munge)"
        if os.getuid() != 0:
            return "a Slurm of one's own is started as root"
    return ""


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin"


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def ray_nodes(nodes: int, cpus: int = 2) -> Iterator[Any]:
    """A Ray cluster of several nodes, named by RAY_ADDRESS; `remove_node` kills one."""
    os.environ.pop("RAY_ADDRESS", None)
    importlib.import_module("ablate.engines.ray")  # first: it keeps Ray on the loopback
    Cluster = importlib.import_module("ray.cluster_utils").Cluster

    options: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**options)
        with _environment(RAY_ADDRESS=str(cluster.address)):
            yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def slurm(folder: Path, cpus: int = 4) -> Iterator[Path]:
    """A Slurm of one node, named by SLURM_CONF."""
    with _environment(PATH=_path(), SLURM_CONF=str(folder / "slurm.conf")):
        subprocess.run([str(SLURM_HERE), "start", str(folder), str(cpus)], check=True)
        try:
            yield folder
        finally:
            subprocess.run([str(SLURM_HERE), "stop", str(folder)], check=False)
