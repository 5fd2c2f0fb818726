"""Not LaneLM: softmax regression on three clouds of points; faults at `fault_step` to order."""

import json
import os
import time

import numpy as np

from ablate.core import CoreError, Diverged, Interrupted
from ablate.nouns import Condition, Criterion

SETTINGS = {"lr": 0.5, "steps": 40, "noise": 0.5, "scale": 1.0, "step_seconds": 0.0}
SETTINGS |= {"fault": "none", "fault_step": 10, "fault_times": 99}
FAULTS = ("none", "raise", "exit", "diverge", "sleep", "hang")


def train(settings, log, workdir, cache, stop=lambda: False, enough=None):
    rng, y = np.random.default_rng(settings["seed"]), np.arange(120) % 3
    x = np.array([[0, 2], [2, -1], [-2, -1]])[y] + settings["noise"] * rng.normal(size=(120, 2))
    x, kept = settings["scale"] * np.c_[x, np.ones(120)], workdir / "kept.json"
    step, w = json.loads(kept.read_text()) if kept.exists() else (0, np.zeros((3, 3)))
    while True:
        p = np.exp(x @ np.array(w))
        p /= p.sum(1, keepdims=True)
        error, loss = float((p.argmax(1) != y).mean()), float(-np.log(p[range(120), y]).mean())
        log(step, {"train/loss": loss}, "warm" if step == 3 else None)
        if step == settings["steps"]:
            return {"final/loss": loss, "final/error": error, "cost/seconds": time.process_time()}
        read = {"final/loss": loss, "final/error": error}
        if enough and step and step % 10 == 0 and enough(read, whole=True):
            return {**read, "final/step": step}
        if stop():
            raise Interrupted(f"stopped at step {step}")
        if step == settings["fault_step"]:
            strike(settings, step, workdir / "faults")
        step, w = step + 1, w - settings["lr"] * x.T @ (p - np.eye(3)[y]) / 120
        (workdir / "new").write_text(json.dumps([step, w.tolist()]))
        (workdir / "new").replace(kept)
        time.sleep(settings["step_seconds"])


def strike(settings, step, struck):
    times = len(struck.read_text()) if struck.exists() else 0
    if (fault := settings["fault"]) != "none" and times < settings["fault_times"]:
        struck.write_text("x" * (times + 1))
        if fault == "raise":
            raise OSError("broken as asked")
        if fault == "exit":
            os._exit(9)
        if fault == "diverge":
            raise Diverged(step, {"train/loss": float("inf")})
        time.sleep(0.5 if fault == "sleep" else 3600)


def check(configs):
    if wrong := [c["fault"] for c in configs if c["fault"] not in FAULTS]:
        raise CoreError(f"fault: given {wrong[0]!r}, must be one of {', '.join(FAULTS)}")


def criteria():
    return (Criterion("loss", (Condition("final/loss", 0.3),)),)
