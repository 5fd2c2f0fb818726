"""What all tests share: pinned threads, and where real images lie."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch is imported: 2 busy cores, 2 threads: up to 9x slower

# a shell ignores SIGINT for what it starts with `&`, and so would every Ctrl-C test
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder with a CULane root `culane/` and a TuSimple root `tusimple/`."""
    place = os.environ.get("LANELM_REAL_DATA")
    if not place:
        pytest.skip("LANELM_REAL_DATA does not say where real CULane and TuSimple samples lie")
    root = Path(place)
    for name in ("culane", "tusimple"):
        if not (root / name).is_dir():
            pytest.skip(f"LANELM_REAL_DATA={place} holds no folder {name}/")
    return root
