"""Run the benchmarks one after the other and write bench/RESULTS.md.

    python -m bench [--quick] [--only NAME ...] [--out bench/RESULTS.md]

Every figure in the table comes from the named script, both sides measured in turn in the same run;
rows of scripts that are not run this time stay as they were.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ablate.engines import available_cores
from ablate.origin import describe_environment
from bench.rows import HANDED_IN, Row

SCRIPTS: dict[str, tuple[list[str], list[str]]] = {
    "step": (["--repeats", "9"], ["--repeats", "5"]),
    "decode": (["--repeats", "5"], ["--repeats", "2"]),
    "features": (["--images", "24"], ["--images", "8", "--repeats", "3"]),
    "start": (["--repeats", "5"], ["--repeats", "3"]),
    "orchestration": ([], ["--theirs", "2"]),
    "overhead": ([], ["--rounds", "1"]),
    "fuse": (["--repeats", "5"], ["--k", "1", "4", "--levels", "p5", "--repeats", "5"]),
    "study": (["--steps", "2000"], ["--steps", "20", "--side", "ours"]),
    "answers": ([], ["--repeats", "1"]),
    "engines": (["--rounds", "5"], ["--rounds", "1", "--only", "inline", "--only", "pool"]),
}
"""Script -> its options, and those of a quick run. The study takes 10 minutes a side;
`python -m bench.scale`, a simulation, is apart."""


def main() -> int:
    parser = argparse.ArgumentParser(description="All benchmarks")
    parser.add_argument("--quick", action="store_true", help="fewer repeats and smaller studies")
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    options = parser.parse_args()
    data = options.out.with_suffix(".json")
    kept: dict[str, Any] = json.loads(data.read_text()) if data.exists() else {}
    failed = []
    for name in options.only:
        words = SCRIPTS[name][options.quick]
        print(f"== python -m bench.{name} {' '.join(words)}", flush=True)  # noqa: T201
        with tempfile.TemporaryDirectory() as temporary:
            handed_in = Path(temporary) / "rows.jsonl"
            environment = {**os.environ, HANDED_IN: str(handed_in), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", f"bench.{name}", *words]
            if subprocess.run(command, env=environment, check=False).returncode:
                failed.append(name)
            elif handed_in.exists():
                rows = [json.loads(line) for line in handed_in.read_text().splitlines()]
                kept[name] = {"rows": rows, **circumstances(" ".join(words))}
        data.write_text(json.dumps(kept, indent=1) + "\n")
        options.out.write_text(page(kept))
    for name in failed:
        print(f"bench.{name} failed", file=sys.stderr)  # noqa: T201
    return 1 if failed else 0


def circumstances(words: str) -> dict[str, str]:
    """Where and when, and how busy the machine was with other work."""
    machine = describe_environment()
    day = datetime.datetime.fromtimestamp(time.time(), datetime.UTC).date().isoformat()
    vectors = torch.backends.cpu.get_cpu_capability()
    return {
        "options": words,
        "date": day,
        "machine": f"{available_cores()} cores of {machine['cpu']} ({vectors}), "
        f"torch {machine['torch']}",
        "load": f"{os.getloadavg()[2]:.1f}",
    }


def page(kept: dict[str, Any]) -> str:
    """Write the rows of all scripts as one table."""
    lines = [
        "# Benchmarks",
        "Made by `python -m bench.SCRIPT` with the options below (`make bench` runs them all); "
        "both sides in one run, medians of its repeats (the study: one run a side). Seconds are "
        "the processor's where one thread does the work (step, decode, features, "
        "fuse on a CPU), and wall time elsewhere.",
        "",
        "| what | ours | baseline | ratio | goal | met | script |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in kept.items():
        for fields in one["rows"]:
            row = Row(**fields)
            met = row.verdict().replace("no", "**no**")
            cells = (row.what, row.ours, row.baseline, row.value(), row.goal, met, name)
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "| script | options | machine | load of 15 minutes | date |",
        "|---|---|---|---|---|",
    ]
    for name, one in kept.items():
        cells = (one["options"], one["machine"], one["load"], one["date"])
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    notes = Path(__file__).with_name("NOTES.md")
    return "\n".join(lines) + "\n" + ("\n" + notes.read_text() if notes.exists() else "")


if __name__ == "__main__":
    sys.exit(main())
