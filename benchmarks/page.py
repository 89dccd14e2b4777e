"""Fill the tables of docs/performance.md from docs/results/bench/*.json, so that no number is ever typed.

    python benchmarks/page.py

Between `<!-- bench: NAME -->` and `<!-- end -->` stand the reports of suite NAME: the CPU's, then those of GPUs
and of other machines.
"""

from __future__ import annotations

import re
from pathlib import Path

from greenroom import folder
from greenroom.bench.report import read

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "docs" / "results" / "bench"
_BLOCK = re.compile(r"(<!-- bench: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, results: Path) -> str:
    """The page with every block as the reports in `results` have it."""
    return _BLOCK.sub(lambda found: found[1] + _block(found[2], results) + found[3], text)


def _block(suite: str, results: Path) -> str:
    paths = [results / f"{suite}.json", *sorted(results.glob(f"{suite}-*.json"))]
    blocks = [
        f"{read(path).markdown()}\nAll slices: [{path.name}](results/bench/{path.name}).\n"
        for path in paths
        if path.exists()
    ]
    return "\n" + ("\n".join(blocks) if blocks else "Not measured yet.\n") + "\n"


if __name__ == "__main__":
    folder.write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), RESULTS))
