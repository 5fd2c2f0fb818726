"""The toy core, made believe that it trains on a GPU: it reports the one that it was shown."""

import os

from ablate.nouns import Cost, Workload
from tests.ablate import toy_core
from tests.ablate.toy_core import criteria

__all__ = ["SETTINGS", "criteria", "probe", "train", "workload"]

SETTINGS = toy_core.SETTINGS


def train(settings, log, workdir, cache, stop=lambda: False):
    found = toy_core.train(settings, log, workdir, cache, stop)
    return {**found, "final/gpu": float(os.environ["CUDA_VISIBLE_DEVICES"])}


def workload(config):
    return Workload((("steps", config["steps"]),), config["steps"], 0, "cuda")


def probe(settings, cache):
    return Cost(0.01, 0.0, 0.0, 4000.0)
