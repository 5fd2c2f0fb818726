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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")  # of workers' and raylets' lines: all
if os.environ.get("RAY_ADDRESS", "").strip() in ("", "local"):
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # its own way to say: loopback only

import ray as _ray  # pyright: ignore
from ray.exceptions import (  # pyright: ignore[reportMissingImports]
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
    NodeAffinitySchedulingStrategy as OnNode,
)

from ablate.engines import EngineError, Place, available_cores
from ablate.engines.far import unfit
from ablate.engines.pool import ONE_THREAD
from ablate.nouns import Resources, StudyError

ray: Any = _ray  # without the extra, a type checker takes the file ray.py beside this one for it
ANSWER = 120.0
"""Seconds in which a node must answer its first question: it imports the work for it."""

NODES_EVERY = 2.0
"""Seconds between looks at which nodes there are."""
STARTS = 3
"""Workers in a row that a node may fail to start."""
_NODE_GONE = re.compile(r"node (was |has )?(died|terminated|dead|unexpectedly)|node failure")

_unfit = ray.remote(max_retries=0)(unfit)


class Nodes:
    """The nodes that fit, and how many jobs each has room for.

    A new node is asked whether it sees OUT and has the same code; until it answers it has no room.
    """

    def __init__(self, needs: Resources, place: Place | None, work: Any, *, local: bool) -> None:
        """See which nodes there are, and wait for their answers.

        Args:
            needs: of each job.
            place: where the jobs lie.
            work: what is done for each job; a node must be able to import it.
            local: the cluster is this machine, which need not be asked.

        Raises:
            StudyError: one of them does not fit.
        """
        self.room: dict[str, int] = {}
        """Node -> workers that it holds."""
        self._needs, self._place, self._work, self._local = needs, place, work, local
        self._asked: dict[Any, tuple[str, float]] = {}
        """Question under way -> its node, and until when the answer counts."""
        self._address: dict[str, str] = {}
        self._fit: set[str] = set()
        self._unfit: dict[str, str] = {}
        """Node -> why it is not used."""
        self._failed: dict[str, int] = {}
        self._looked = 0.0
        self._begun = False
        self._word = secrets.token_hex(8)
        self._probe: Path | None = None
        """A file in OUT that every node must read."""
        if place is not None and place.resources.storage == "shared":
            self._probe = place.out / f".probe.{self._word}"
            place.out.mkdir(parents=True, exist_ok=True)
            self._probe.write_text(self._word)
        try:
            self._first_look()
        except BaseException:
            self.close()
            raise

    def questions(self) -> list[Any]:
        """Calls that have not returned; `hear` takes each that has."""
        return list(self._asked)

    def look(self, *, now: bool = False) -> None:
        """See which nodes there are, now or when it is time; ask new ones whether they fit."""
        clock = time.monotonic()
        if not now and clock - self._looked < NODES_EVERY:
            return
        self._looked = clock
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        self._address |= {name: node["NodeManagerAddress"] for name, node in alive.items()}
        for call, (name, until) in list(self._asked.items()):
            if name not in alive or clock > until:
                del self._asked[call]
            if name in alive and clock > until:
                self._exclude(name, f"does not answer within {ANSWER:g} s")
        if self._local:
            self._fit |= set(alive)
        asked = {name for name, _ in self._asked.values()}
        for name in alive.keys() - asked - self._fit - self._unfit.keys():
            question = _unfit.options(num_cpus=0, scheduling_strategy=OnNode(name, soft=False))
            call = question.remote(self._probe and str(self._probe), self._word, self._work)
            self._asked[call] = name, clock + ANSWER
        self.room = {
            name: self._holds(node["Resources"])
            for name, node in alive.items()
            if name in self._fit and name not in self._unfit
        }

    def hear(self, call: Any) -> None:
        """Take a node's answer."""
        name, _ = self._asked.pop(call)
        try:
            why: Any = ray.get(call)
        except RayTaskError as error:
            why = f"cannot do the work: {last_line(error)}; install the same package there"
        except RayError as error:
            why = cause(error)
        if not why:
            self._fit.add(name)
            self._looked = 0.0
        else:
            out = f"--out {self._place.out}" if self._place else "OUT"
            self._exclude(name, why.replace("OUT", out))

    def started(self, name: str) -> None:
        """A worker came up on a node."""
        self._failed.pop(name, None)

    def lost(self, name: str, error: BaseException | None = None) -> None:
        """A worker on a node is gone; `error`: it had not come up yet.

        Raises:
            EngineError: no worker can be started on this node, and there is no other.
        """
        self._looked = 0.0  # the node may be gone, too
        if error is None or _NODE_GONE.search(str(error)):
            return
        self._failed[name] = self._failed.get(name, 0) + 1
        if self._failed[name] < STARTS or name in self._unfit:
            return
        of_init = "creation task" in str(error)
        why = f"its workers cannot start: {last_line(error) if of_init else cause(error)}"
        self._exclude(name, why)
        if not self.room:
            raise EngineError(f"no Ray node is left; {self._address.get(name)}: {why}")

    def close(self) -> None:
        if self._probe is not None:
            self._probe.unlink(missing_ok=True)

    def _first_look(self) -> None:
        self.look(now=True)
        while self._asked:
            for call in ray.wait(self.questions(), timeout=1)[0]:
                self.hear(call)
            self.look()  # gives up those that do not answer
        self.look(now=True)
        if self._unfit:
            name, why = next(iter(self._unfit.items()))
            of = f"; so do {len(self._unfit) - 1} other nodes" if len(self._unfit) > 1 else ""
            raise StudyError(f"Ray node {self._address[name]}: {why}{of}")
        self._begun = True

    def _exclude(self, name: str, why: str) -> None:
        self._unfit[name] = why
        self.room.pop(name, None)
        if self._begun and self._place is not None:
            self._place.say(f"Ray node {self._address[name]} is not used: {why}")

    def _holds(self, resources: dict[str, float]) -> int:
        """How many jobs a node has room for."""
        wants = {"CPU": self._needs.cpus, "GPU": self._needs.gpus}
        if self._needs.memory is not None:
            wants["memory"] = self._needs.memory * 2**30
        return min(int(resources.get(k, 0.0) / v + 1e-9) for k, v in wants.items() if v)


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
    if _NODE_GONE.search(text):
        return f"its Ray node is lost{_of(text, 'ip')}"
    hint = " (out of memory)" if "OutOfMemory" in type(error).__name__ else ""
    return f"its Ray worker died{_of(text, 'ip')}{_of(text, 'pid')}{hint}"


def _of(text: str, what: str) -> str:
    found = re.search(rf"\b{what}: (\S+)", text)
    return f", {what} {found[1]}" if found else ""
