"""The toy core where settings cannot meet: a high rate, a small scale and much noise."""

from ablate.core import CoreError
from ablate.module_core import ModuleCore
from tests.ablate import toy_core
from tests.ablate.toy_core import check, criteria, train

__all__ = ["SETTINGS", "build", "check", "criteria", "train"]

SETTINGS = toy_core.SETTINGS


def build(settings):
    config = ModuleCore(toy_core).build(settings)
    if config["lr"] >= 1.0 and config["scale"] <= 0.5 <= config["noise"]:
        raise CoreError(f"lr: given {config['lr']}, must be below 1.0 where scale is up to 0.5")
    return config
