"""A Ray cluster: joined or started here, which of its nodes fit, and what its errors mean."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")  # of workers' and raylets' lines: all
if os.environ.get("RAY_ADDRESS", "").strip() in ("", "local"):
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # its own way to say: loopback only

import ray as _ray  # pyright: ignore
from ray.exceptions import (  # pyright: ignore[reportMissingImports]
    GetTimeoutError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
    NodeAffinitySchedulingStrategy as OnNode,
)

from ablate.engines import EngineError, Place, available_cores
from ablate.engines.far import unfit
from ablate.engines.pool import ONE_THREAD
from ablate.nouns import StudyError

ray: Any = _ray  # without the extra, a type checker takes the file ray.py beside this one for it
ANSWER = 120.0
"""Seconds in which a node must answer its first question: it imports the work for it."""

_unfit = ray.remote(max_retries=0)(unfit)


class Probe:
    """A file in OUT that every node must read."""

    def __init__(self, place: Place | None) -> None:
        self._place = place
        self._file: Path | None = None
        self._word = secrets.token_hex(8)
        if place is not None and place.resources.storage == "shared":
            self._file = place.out / f".probe.{self._word}"
            place.out.mkdir(parents=True, exist_ok=True)
            self._file.write_text(self._word)

    def ask(self, nodes: Sequence[str], work: Any) -> dict[str, str]:
        """Nodes that do not fit -> why."""
        calls = {
            node: _unfit.options(num_cpus=0, scheduling_strategy=OnNode(node, soft=False)).remote(
                self._file and str(self._file), self._word, work
            )
            for node in nodes
        }
        wrong = {}
        deadline = time.monotonic() + ANSWER
        for node, call in calls.items():
            try:
                why: Any = ray.get(call, timeout=max(deadline - time.monotonic(), 0.01))
            except GetTimeoutError:
                why = f"does not answer within {ANSWER:g} s"
            except RayTaskError as error:
                why = f"cannot do the work: {last_line(error)}; install the same package there"
            except RayError as error:
                why = cause(error)
            if why and self._place:
                wrong[node] = why.replace("OUT", f"--out {self._place.out}")
            elif why:
                wrong[node] = why
        return wrong

    def remove(self) -> None:
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def connect(cpus: float) -> bool:
    """Join the cluster, or start one on this machine (then True)."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address.startswith("ray://"):
        raise StudyError(
            f"RAY_ADDRESS: given {address!r}, must be host:port or auto: run on one of its machines"
        )
    options: dict[str, Any] = {"address": address}
    if not address or address == "local":
        options = {
            "address": "local",
            "num_cpus": max(available_cores(), int(cpus + 0.999)),
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    try:
        with signals_kept():
            ray.init(
                **options,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                namespace=f"ablate-{socket.gethostname()}-{os.getpid()}",
                runtime_env={"env_vars": ONE_THREAD},
            )
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        if not address:
            raise EngineError(f"Ray cannot start: {last_line(error)}") from None
        raise StudyError(
            f"RAY_ADDRESS: given {address!r}, no Ray cluster answers there ({last_line(error)}); "
            "start one: ray start --head"
        ) from None
    return not address or address == "local"


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; Ctrl-C and a closed terminal are for the coordinator alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGTERM, handler)


def last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-1].split()) if lines else type(error).__name__


def cause(error: BaseException) -> str:
    """What Ray says of a loss, on one line and without its advice."""
    text = str(error)
    if re.search(r"node (was |has )?(died|terminated|dead|unexpectedly)|node failure", text):
        return f"its Ray node is lost{_of(text, 'ip')}"
    hint = " (out of memory)" if "OutOfMemory" in type(error).__name__ else ""
    return f"its Ray worker died{_of(text, 'ip')}{_of(text, 'pid')}{hint}"


def _of(text: str, what: str) -> str:
    found = re.search(rf"\b{what}: (\S+)", text)
    return f", {what} {found[1]}" if found else ""
