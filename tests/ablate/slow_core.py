"""The toy core on a slow disk: importing it makes this process write each file in two halves.

So a kill at a random moment often meets a half-written result, config or line of events. Only for
processes that are made to be killed.
"""

import os
import time

from ablate import files
from tests.ablate.toy_core import SETTINGS, criteria, train

__all__ = ["SETTINGS", "criteria", "train"]

PAUSE = 0.01


def write_in_halves(descriptor, data):
    half = len(data) // 2
    os.write(descriptor, data[:half])
    time.sleep(PAUSE)
    os.write(descriptor, data[half:])
    if len(data) > 500:  # a result or a config, not an event: still not renamed
        time.sleep(PAUSE)


files._write_all = write_in_halves
