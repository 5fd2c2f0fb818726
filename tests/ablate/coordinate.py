"""A coordinator as a process of its own, to be killed.

python -m tests.ablate.coordinate OUT N STEP_SECONDS [ENGINE RESOURCES_AS_JSON]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ablate.display import make_display
from ablate.nouns import Resources
from ablate.run import RunOptions, run
from tests.ablate.toys import toy_plan, toy_study


def main() -> int:
    out, n, step_seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    plan = toy_plan(n, steps=12, step_seconds=step_seconds)
    engine, resources = sys.argv[4:6] or ("pool", "{}")
    study = toy_study(attempts=5, resources=Resources(**json.loads(resources)))
    summary = run(study, plan, out, RunOptions(workers=2, engine=engine), make_display())
    return 1 if summary.count("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
