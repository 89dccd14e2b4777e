"""Fill the tables of docs/performance.md from docs/results/bench/*.json, so that no number is ever typed.

    python benchmarks/page.py

Between `<!-- bench: NAME -->` and `<!-- end -->` stand the reports of suite NAME: the CPU's, then those of GPUs.
Reports that were kept of another machine have a folder and a page of their own there, filled likewise.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from greenroom import folder
from greenroom.bench.report import read

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "bench"
PAGES = {ROOT / "docs" / "performance.md": RESULTS, **{page: page.parent for page in RESULTS.glob("*/tables.md")}}
"""Where the reports of each page lie."""

_BLOCK = re.compile(r"(<!-- bench: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, page: Path, results: Path) -> str:
    """The text of `page` with every block as the reports in `results` have it."""
    return _BLOCK.sub(lambda found: found[1] + _block(found[2], page, results) + found[3], text)


def _block(suite: str, page: Path, results: Path) -> str:
    paths = [results / f"{suite}.json", *sorted(results.glob(f"{suite}-*.json"))]
    blocks = [
        f"{read(path).markdown()}\nAll slices: [{path.name}]({os.path.relpath(path, page.parent)}).\n"
        for path in paths
        if path.exists()
    ]
    return "\n" + ("\n".join(blocks) if blocks else "Not measured yet.\n") + "\n"


if __name__ == "__main__":
    for page, results in PAGES.items():
        folder.write_text(page, filled(page.read_text(encoding="utf-8"), page, results))
