"""The toy core with a probe: a shape is its scale, a fault strikes the probe as it does a job."""

import os
from pathlib import Path

from ablate.nouns import Cost, Workload
from tests.ablate import toy_core
from tests.ablate.toy_core import criteria, train

__all__ = ["SETTINGS", "criteria", "probe", "train", "workload"]

SETTINGS = toy_core.SETTINGS


def workload(config):
    shape = (("scale", config["scale"]), ("fault", config["fault"]))
    return Workload(shape, config["steps"], 2)


def probe(settings, cache):
    with (Path(cache) / "probed.txt").open("a") as file:
        file.write(f"{settings['scale']} in {os.getpid()}\n")
    if settings["fault"] == "raise":
        raise OSError("broken as asked")
    if settings["fault"] == "exit":
        os._exit(9)
    return Cost(settings["scale"], 10.0, 100.0, 1000.0 * settings["scale"])
