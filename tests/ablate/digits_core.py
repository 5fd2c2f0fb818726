"""An example core: a linear classifier of scikit-learn's bundled digits. A study names this module.

SETTINGS, train and criteria are all that a core needs; the rest shows what else it may say.
"""

import pickle
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

from ablate.core import CoreError, Interrupted
from ablate.nouns import Condition, Cost, Criterion, Workload

SETTINGS = {"lr": 0.01, "alpha": 0.0001, "epochs": 10, "images": 1200}
preload = ("sklearn.linear_model", "sklearn.datasets")


def train(settings, log, workdir, cache, stop=lambda: False):
    begin, kept, n = time.perf_counter(), workdir / "checkpoint.pkl", settings["images"]
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(settings["seed"]).permutation(len(x))
    x, y = x[order] / 16, y[order]
    model = SGDClassifier(loss="log_loss", alpha=settings["alpha"], eta0=settings["lr"],
                          learning_rate="constant", random_state=settings["seed"])  # fmt: skip
    epoch, model = pickle.loads(kept.read_bytes()) if kept.exists() else (0, model)
    while epoch < settings["epochs"]:
        if stop():
            raise Interrupted(f"stopped after epoch {epoch}")
        epoch, model = epoch + 1, model.partial_fit(x[:n], y[:n], classes=range(10))
        log(epoch, {"train/loss": log_loss(y[:n], model.predict_proba(x[:n]))})
        (workdir / "new").write_bytes(pickle.dumps((epoch, model)))
        (workdir / "new").replace(kept)
    loss, seconds = log_loss(y[n:], model.predict_proba(x[n:])), time.perf_counter() - begin
    return {"final/error": 1 - model.score(x[n:], y[n:]), "final/loss": loss,
            "cost/seconds": seconds}  # fmt: skip


def check(configs):
    if any(not 10 <= config["images"] <= 1500 for config in configs):
        raise CoreError("images: must be 10 to 1500")


def criteria():
    return (Criterion("error", (Condition("final/error", 0.1),)),)


def workload(config):
    return Workload((("images", config["images"]),), config["epochs"])


def probe(settings, cache):
    with tempfile.TemporaryDirectory() as folder:
        found = train(settings | {"epochs": 2}, lambda *_: None, Path(folder), cache)
    return Cost(found["cost/seconds"] / 2, 0.0, 0.0, 200.0)
