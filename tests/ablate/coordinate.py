"""A coordinator as a process of its own, to be killed.

python -m tests.ablate.coordinate OUT N STEP_SECONDS [ENGINE RESOURCES_AS_JSON] [--core MODULE]
    [--record]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from ablate.conclude import rank_study
from ablate.core import load_core
from ablate.display import make_display
from ablate.nouns import Resources, Result
from ablate.rank import Ranking
from ablate.run import RunOptions, run
from ablate.scribe import Recorder
from tests.ablate.toys import CORE, toy_plan, toy_study


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("n", type=int)
    parser.add_argument("step_seconds", type=float)
    parser.add_argument("engine", nargs="?", default="pool")
    parser.add_argument("resources", nargs="?", default={}, type=json.loads)
    parser.add_argument("--core", default=CORE)
    parser.add_argument("--record", action="store_true", help="write MLflow too")
    given = parser.parse_args()
    plan = toy_plan(given.n, steps=12, step_seconds=given.step_seconds)
    study = toy_study(attempts=5, core=given.core, resources=Resources(**given.resources))

    def recorder() -> Recorder:
        from ablate.record import Recorder

        return Recorder(given.out, study)

    def conclude(results: Mapping[str, Result]) -> tuple[Ranking, list[Path]]:
        return rank_study(study, plan, load_core(given.core), results), []

    summary = run(
        study,
        plan,
        given.out,
        RunOptions(workers=2, engine=given.engine),
        make_display(),
        recorder if given.record else None,
        conclude if given.record else None,
    )
    return 1 if summary.count("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
