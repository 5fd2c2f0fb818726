"""Jobs that are all alike, on a GPU that is none: each says how many trained as one with it."""

from ablate.core import Member
from tests.ablate.gpu_core import SETTINGS, criteria, probe, workload

__all__ = ["SETTINGS", "criteria", "probe", "train", "workload"]


def kinship(config):
    return "one"


def fused_by_default(config):
    return 32


def train(settings, log, workdir, cache, stop=lambda: False):
    log(1, {"train/loss": 1.0})
    return {"final/loss": 1.0, "final/together": 1.0}


def train_cohort(members: list[Member], cache):
    for place, member in enumerate(members):
        yield (
            place,
            train(member.settings, member.log, member.workdir, cache)
            | {"final/together": float(len(members))},
        )
