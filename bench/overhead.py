"""What a job costs beside itself: no-op jobs through our coordinator and through its peers.

    python -m bench.overhead [--rounds 5] [--workers 2] [--only NAME]...

A job here does nothing, so all time is overhead: handing it out, hearing of its end, and, where
that is promised, keeping its result so that a kill or a power cut loses nothing. Each figure is the
slope between a short and a long run in a fresh process (seconds of the long less the short, by the
jobs between them): what starting up takes is in neither. Rounds take turns, medians are printed.

Ray Tune is not among our dependencies: pip install 'ray[tune]'. A peer that is not there is named.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ablate.engines import Outcome, StopAsked, Task, make_engine
from bench import noop
from bench.rows import Row, hand_in

QUIET = {
    "RAY_TRAIN_V2_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
GOAL_MS = 30.0
"""A job beyond the pool's own, results durable."""


def nothing(_: object = None) -> float:
    return 0.0


def plain_pool(jobs: int, workers: int, folder: Path) -> float:
    """`concurrent.futures`: results come back and nobody keeps them."""
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(nothing, range(workers)))
        begin = time.perf_counter()
        for future in [pool.submit(nothing, i) for i in range(jobs)]:
            future.result()
        return time.perf_counter() - begin


def our_pool(jobs: int, workers: int, folder: Path) -> float:
    """Our engine alone, without ledger: what `ours` is measured beyond."""
    engine = make_engine("pool", _ended, workers)
    try:
        begin = time.perf_counter()
        for i in range(jobs):
            engine.submit(Task(f"job{i}", 1, {}, 0))
        ended = 0
        while ended < jobs:
            ended += sum(notice.outcome is not None for notice in engine.wait(1.0))
        return time.perf_counter() - begin
    finally:
        engine.close()


def _ended(task: Task, stop: StopAsked) -> Outcome:
    return Outcome("ended")


def ours(jobs: int, workers: int, folder: Path) -> float:
    """The whole coordinator: a folder a job, events, result.json flushed to the disk."""
    return noop.run_study(jobs, "pool", workers, folder)


def optuna_memory(jobs: int, workers: int, folder: Path) -> float:
    """Optuna, `optimize(n_jobs=)` on threads, in memory: the floor without durability."""
    return _optimize(jobs, workers, None)


def optuna_journal(jobs: int, workers: int, folder: Path) -> float:
    """The same with its journal file, Optuna's cheapest way to keep trials."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return _optimize(jobs, workers, JournalStorage(JournalFileBackend(str(folder / "journal"))))


def _optimize(jobs: int, workers: int, storage: object) -> float:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler, storage=storage)  # pyright: ignore
    begin = time.perf_counter()
    study.optimize(lambda trial: nothing(trial.suggest_float("x", 0, 1)), jobs, n_jobs=workers)
    return time.perf_counter() - begin


def ray_tune(jobs: int, workers: int, folder: Path) -> float:
    """Ray Tune, which keeps the experiment's state on disk."""
    import ray  # pyright: ignore[reportMissingImports]
    from ray import tune  # pyright: ignore[reportMissingImports]

    ray.init(
        "local",  # a cluster of its own, whatever else runs on this machine
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    tuner = tune.Tuner(
        _tuned,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(num_samples=jobs, max_concurrent_trials=workers),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    )
    begin = time.perf_counter()
    found = tuner.fit()
    took = time.perf_counter() - begin
    assert len(found) == jobs
    assert not found.errors
    ray.shutdown()
    return took


def _tuned(config: dict[str, float]) -> None:
    from ray import tune  # pyright: ignore[reportMissingImports]

    tune.report({"loss": nothing(config["x"])})


@dataclass(frozen=True)
class Peer:
    run: Callable[[int, int, Path], float]
    jobs: tuple[int, int]
    """Of the short run and the long one."""
    durable: str
    needs: str = ""


PEERS: dict[str, Peer] = {
    "concurrent.futures": Peer(plain_pool, (200, 2200), "no"),
    "our pool alone": Peer(our_pool, (200, 2200), "no"),
    "ablate": Peer(ours, (20, 320), "yes, flushed"),
    "Optuna in memory": Peer(optuna_memory, (200, 1200), "no", "optuna"),
    "Optuna journal": Peer(optuna_journal, (20, 320), "yes, flushed", "optuna"),
    "Ray Tune": Peer(ray_tune, (4, 12), "periodic snapshots", "ray.tune"),
}


def missing(peer: Peer) -> bool:
    try:
        return bool(peer.needs) and importlib.util.find_spec(peer.needs) is None
    except ImportError:
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", action="append", choices=PEERS, default=None)
    parser.add_argument("--run", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory(prefix="lanelm-overhead-") as folder:
            took = PEERS[given.run].run(given.jobs, given.workers, Path(folder))
        sys.stdout.write(f"\n{took}\n")
        return
    names = [name for name in given.only or PEERS if not missing(PEERS[name])]
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in names:
            read = noop.slope("bench.overhead", name, PEERS[name].jobs, given.workers, QUIET)
            if read is not None:
                found[name].append(1e3 * read[0])
    show(found, given.rounds, given.workers)
    hand_in(rows_of(found))


def show(found: dict[str, list[float]], rounds: int, workers: int) -> None:
    """A row for each: median, range, and how many times ours."""
    title = f"overhead of a no-op job, {workers} workers, medians of {rounds} rounds"
    table = Table(title=title, title_justify="left")
    table.add_column("what", no_wrap=True)
    for column in ("ms a job", "least", "most", "against ablate"):
        table.add_column(column, justify="right")
    table.add_column("durable", no_wrap=True)
    middle = {name: statistics.median(values) for name, values in found.items() if values}
    base = middle.get("ablate")
    for name, peer in PEERS.items():
        if name not in middle:
            said = "failed" if name in found else "not asked for"
            said = "not installed" if missing(peer) else said
            table.add_row(name, said, "", "", "", peer.durable)
            continue
        low, high = min(found[name]), max(found[name])
        ratio = f"{middle[name] / base:.2f}x" if base else ""
        table.add_row(name, *(f"{v:.2f}" for v in (middle[name], low, high)), ratio, peer.durable)
    Console(width=110).print(table)


def rows_of(found: dict[str, list[float]]) -> list[Row]:
    """What we cost beyond our pool, and against the peer that keeps its results too."""
    middle = {name: statistics.median(values) for name, values in found.items() if values}
    rows = []
    if {"ablate", "our pool alone"} <= set(middle):
        beyond = middle["ablate"] - middle["our pool alone"]
        ours, alone = (
            f"{middle['ablate']:.1f} ms",
            f"{middle['our pool alone']:.2f} ms (pool alone)",
        )
        goal, met = f"<= {GOAL_MS:g} ms beyond", beyond <= GOAL_MS
        rows.append(Row("a no-op job, its result flushed", ours, alone, beyond, goal, met, "ms"))
    for peer in ("Optuna journal", "Ray Tune"):
        if {"ablate", peer} <= set(middle):
            ratio = middle[peer] / middle["ablate"]
            sides = f"{middle['ablate']:.1f} ms", f"{middle[peer]:.1f} ms ({peer})"
            rows.append(Row("a no-op job, its result kept", *sides, ratio, "none", True))
    return rows


if __name__ == "__main__":
    main()
