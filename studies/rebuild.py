"""Make the tables and figures of RESULTS.md from the result tables shipped beside this.

`make results` trains nothing and reads no data: `studies/results/NAME.csv` holds a row per job, as
`ablate export table` wrote it. Each block of RESULTS.md between

    <!-- table: KIND NAME ... --> and <!-- end -->
    <!-- figure: FILE KIND NAME ... --> and <!-- end -->

is written anew, and each figure drawn into docs/results/. With `--check` nothing is written; the
exit status says whether RESULTS.md is what the tables say and each of its figures is there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from studies import figures
from studies.shipped_tables import FOLDER, KINDS, ROOT

BLOCK = re.compile(
    r"<!-- (?P<sort>table|figure): (?P<asked>[^\n]*?) -->\n(?P<body>.*?)<!-- end -->", re.DOTALL
)


def rebuild(text: str, draw: bool = False) -> str:
    """RESULTS.md with every block written anew, and its figures drawn where asked.

    Raises:
        SystemExit: a block asks for what is not there.
    """

    def block(found: re.Match[str]) -> str:
        words = [word.strip('"') for word in re.findall(r"\"[^\"]*\"|\S+", found["asked"])]
        make = table if found["sort"] == "table" else figure
        return f"<!-- {found['sort']}: {found['asked']} -->\n{make(*words)}<!-- end -->"

    def table(kind: str, *arguments: str) -> str:
        if kind not in KINDS:
            raise SystemExit(f"RESULTS.md: unknown table {kind!r}; allowed: {', '.join(KINDS)}")
        return KINDS[kind](*arguments)

    def figure(file: str, kind: str, name: str, *arguments: str) -> str:
        if kind not in figures.FIGURES:
            known = ", ".join(figures.FIGURES)
            raise SystemExit(f"RESULTS.md: unknown figure {kind!r}; allowed: {known}")
        path = figures.FOLDER / file
        if draw:
            path.parent.mkdir(parents=True, exist_ok=True)
            figures.FIGURES[kind](path, name, *arguments)
        elif not path.exists():
            raise SystemExit(f"RESULTS.md: {file} is not drawn yet: make results")
        return f"![{kind} of {name}: {', '.join(arguments)}]({path.relative_to(ROOT)})\n"

    return BLOCK.sub(block, text)


def main(arguments: Sequence[str]) -> int:
    """Write RESULTS.md anew, or with `--check` see whether it would change."""
    page = ROOT / "RESULTS.md"
    old = page.read_text()
    new = rebuild(old, draw="--check" not in arguments)
    if "--check" in arguments:
        return int(new != old)
    page.write_text(new)
    sys.stdout.write(f"{len(BLOCK.findall(old))} tables and figures of RESULTS.md from {FOLDER}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
