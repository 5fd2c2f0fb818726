"""Runs that were stopped or killed go on as if they had not been."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.outcome import Interrupted
from model.train import train
from tests.model.tiny import VARIED, Events, Numbers, numbers, run, settings, tiny


@pytest.mark.parametrize("stops", [[0], [1], [3, 4], [5], [7], [2, 6]])
def test_a_stopped_run_ends_as_an_undisturbed_one(
    tmp_path: Path, cache: Path, stops: list[int], varied: tuple[Numbers, Events]
) -> None:
    config = tiny(**VARIED)
    whole, log = varied
    events = Events()
    for stop in stops:
        with pytest.raises(Interrupted):
            train(config, events, tmp_path, cache, until(events, stop))
        assert load_checkpoint(tmp_path / "checkpoint.pt")["progress"]["step"] == stop
    assert numbers(train(config, events, tmp_path, cache)) == numbers(whole)
    for name in ("train/loss", "train/grad_norm", "train/y_weight", "val/coverage"):
        assert events.of(name) == log.of(name), name


def until(events: Events, step: int) -> Callable[[], bool]:
    """Stop when that step was logged."""
    return lambda: max((s for s, m, _ in events.lines if "train/loss" in m), default=0) >= step


SCRIPT = """
import json, sys
from pathlib import Path
from model.presets import build
from model.train import train
settings, folder, cache = sys.argv[1:]
log = lambda step, metrics, event=None: print(step, flush=True)
metrics = train(build(json.loads(settings)), log, Path(folder), Path(cache))
print(json.dumps(metrics))
"""


def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path: Path, cache: Path) -> None:
    varied = settings(**VARIED, optim__steps=40, evaluation__every=20)
    whole, _ = run(tiny(**VARIED, optim__steps=40, evaluation__every=20), tmp_path / "a", cache)
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT, json.dumps(varied), str(folder), str(cache)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 15:  # in the middle, past some checkpoints
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    kept = load_checkpoint(folder / "checkpoint.pt")["progress"]["step"]
    assert 12 <= kept < 40
    metrics, events = run(tiny(**VARIED, optim__steps=40, evaluation__every=20), folder, cache)
    assert events.events[0] == (kept, f"resumed after step {kept}")
    assert numbers(metrics) == numbers(whole)


def test_killed_after_the_last_step_only_the_readings_come_again(
    tmp_path: Path, cache: Path, plain: tuple[Numbers, Events]
) -> None:
    run(tiny(), tmp_path, cache)
    metrics, events = run(tiny(), tmp_path, cache)
    assert numbers(metrics) == numbers(plain[0])
    assert events.of("train/loss") == {}


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "foreign"])
def test_a_damaged_checkpoint_starts_over_and_says_so(
    tmp_path: Path, cache: Path, damage: str, plain: tuple[Numbers, Events]
) -> None:
    with pytest.raises(Interrupted):
        train(tiny(), Events(), tmp_path, cache, stop_at(5))
    path = tmp_path / "checkpoint.pt"
    data = bytearray(path.read_bytes())
    if damage == "torn":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        place = data.index(b"head_x.weight")  # in the pickle; and in the weights
        data[place] ^= 1
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        torch.save({"state_dict": {}}, path)
    metrics, events = run(tiny(), tmp_path, cache)
    (step, event) = events.events[0]
    assert step == 0
    assert event.startswith("starting over: checkpoint")
    assert "\n" not in event
    assert numbers(metrics) == numbers(plain[0])


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(
    tmp_path: Path, cache: Path, plain: tuple[Numbers, Events]
) -> None:
    with pytest.raises(Interrupted):
        train(tiny(optim__lr=0.5), Events(), tmp_path, cache, stop_at(5))
    metrics, events = run(tiny(), tmp_path, cache)
    assert "optim.lr was 0.5, now 0.0003" in events.events[0][1]
    assert numbers(metrics) == numbers(plain[0])


def stop_at(step: int) -> Any:
    calls = iter(range(1000))
    return lambda: next(calls) >= step
