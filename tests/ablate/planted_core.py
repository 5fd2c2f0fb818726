"""Not LaneLM: readings with known effects. Of five switches two matter, and they interact."""

import math
import random

from ablate.nouns import Condition, Criterion

SWITCHES = ("tokens", "lr", "clip", "schedule", "position")
SETTINGS = dict.fromkeys(SWITCHES, False)
START, TOKENS, LR, BOTH, NOISE = math.log(40), -1.2, -0.6, 0.8, 0.05
"""Of log px: at the base, what each of two switches adds, both together, and the noise."""


def train(settings, log, workdir, cache, stop=lambda: False):
    tokens, lr = settings["tokens"], settings["lr"]
    block = random.Random(f"seed {settings['seed']}").gauss(0, 0.1)
    own = random.Random(repr(sorted(settings.items()))).gauss(0, NOISE)
    aim = START + TOKENS * tokens + LR * lr + BOTH * (tokens and lr) + block + own
    for step in range(0, 50, 10):
        log(step, {"train/px_error": math.exp(aim + 3 * math.exp(-step / 10))})
    return {"final/px_error": math.exp(aim), "final/zigzag": abs(random.Random(own).gauss(0, 1))}


def criteria():
    return (
        Criterion("px_error", (Condition("final/px_error", 20.0),)),
        Criterion("zigzag", (Condition("final/zigzag", 5.0),)),
    )
