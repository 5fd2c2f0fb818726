"""Where a result comes from: the code that made its numbers, and the machine."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from ablate.core import load_core
from ablate.engines import affine_cores


def describe_code(core: str) -> dict[str, str]:
    """The commit this package was run from (`+` when files differ from it), and the core's hash.

    No commit where git does not keep this file: a package installed inside another's repository.
    """
    here = Path(__file__)

    def git(*arguments: str) -> str:
        try:
            command = ["git", "-C", str(here.parent), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout.strip()

    ours = git("ls-files", "--error-unmatch", here.name)
    commit = git("rev-parse", "--short=12", "HEAD") if ours else ""
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        commit += "+"
    return {"commit": commit, "core": load_core(core).source_hash()}


def describe_environment() -> dict[str, Any]:
    """Python, the libraries that make numbers, and the machine."""
    versions: dict[str, Any] = {}
    for name in ("torch", "numpy", "opencv-python-headless"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": affine_cores(),
    }


environment_here = functools.cache(describe_environment)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
